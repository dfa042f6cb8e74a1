"""The steering demo in a browser, the same as `hfsae demo`: a prompt continued without and with edits of features.

python demos/steering.py                                                      the shipped model, no network
python demos/steering.py --model openai-community/gpt2 --sae owner/repo --layer 8
"""

import sys

from hfsae.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    main()
