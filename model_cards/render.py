"""Write the card of the shipped dictionaries anew from their files; what people wrote in it stays."""

from pathlib import Path

from hfsae.card import render
from hfsae.hub.publishing import dictionaries_in
from hfsae.registry import SHIPPED

CARD = Path(__file__).with_name("stdlib-gpt2.md")
FILES = Path(__file__).parents[1] / "hfsae" / "default" / "files"

if __name__ == "__main__":
    entries = [dictionary.entry() for dictionary in dictionaries_in([FILES])]
    existing = CARD.read_text(encoding="utf-8") if CARD.is_file() else None
    CARD.write_text(render(SHIPPED, entries, license="apache-2.0", existing=existing), encoding="utf-8")
