"""`python -m hfsae` is the command `hfsae`."""

from hfsae.cli import main

if __name__ == "__main__":
    main()
