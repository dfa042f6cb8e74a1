"""A dashboard in static files: one page with a table to search, cards that are fetched from disk when they are opened.

Cards stand in script files of 1,024 each (a page opened from disk may load scripts, nothing else), as HTML in which
all text is escaped, compressed to a third of it. Nothing is loaded from anywhere else.
"""

import json
import zlib
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from hfsae.errors import InvalidValue
from hfsae.features.card import STYLE, FeatureCard

if TYPE_CHECKING:
    from hfsae.features.index import FeatureIndex

_CARDS_PER_FILE = 1024


def write_dashboard(index: "FeatureIndex", folder: Path, texts: Sequence[Any]) -> Path:
    """Write the pages into a folder, made when it is not there, and return the one to open.

    Args: texts: `TopFeatures`, one for each text to be read with its features.
    Raises: InvalidValue: when the folder holds something else.
    """
    page = folder / "index.html"
    if folder.exists() and any(folder.iterdir()) and not page.exists():
        raise InvalidValue(f"{folder} is not empty and holds no dashboard. A folder of its own was expected.")
    (folder / "cards").mkdir(parents=True, exist_ok=True)
    cards = [index[feature] for feature in range(len(index))]
    for start in range(0, len(cards), _CARDS_PER_FILE):
        file = start // _CARDS_PER_FILE
        html = [card.to_plain_html() for card in cards[start : start + _CARDS_PER_FILE]]
        (folder / "cards" / f"{file}.js").write_text(f'packedCards[{file}] = "{_packed(html)}";\n', encoding="utf-8")
    rows = [_row(card) for card in cards]
    template = Template(files("hfsae.features").joinpath("dashboard.html").read_text(encoding="utf-8"))
    page.write_text(
        template.substitute(
            title=escape(index.dictionary),
            tokens=f"{index.tokens:,}",
            features=f"{len(index):,}",
            texts="".join(_text(text) for text in texts) or "<p>No texts were given.</p>",
            card_style=STYLE,
            rows=_packed(rows),
            per_file=_CARDS_PER_FILE,
        ),
        encoding="utf-8",
    )
    return page


def _row(card: FeatureCard) -> list[Any]:
    f1 = None if card.f1 is None else round(card.f1, 2)
    promoted = " ".join(token for token, _ in card.promoted)
    return [card.feature, card.label, float(f"{100 * card.density:.3g}"), float(f"{card.max:.3g}"), f1, promoted]


def _text(tokens: Any) -> str:
    """Return a text whose tokens open their strongest feature."""
    spans = []
    for token in tokens:
        told = ", ".join(f"{i} {value:.2f} {label}".strip() for i, value, label in token.features)
        shown = escape(token.token.replace("↵", "↵\n"))
        first = token.features[0][0] if token.features else ""
        spans.append(f'<a data-feature="{first}" title="{escape(told)}">{shown}</a>')
    return f'<p class="text">{"".join(spans)}</p>'


def _packed(value: Any) -> str:
    """Return JSON compressed and in letters that may stand in a script, whatever it holds."""
    return b64encode(zlib.compress(json.dumps(value, ensure_ascii=False).encode(), 9)).decode()
