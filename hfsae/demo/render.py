"""The HTML of the demo: tokens with a tint, feature cards, tables of costs.

Every string that is not written here is escaped: prompts, tokens, labels and errors come from outside. Class names
begin with ``hfsae-`` because gradio owns the short ones. Colours mix with the page's own, so dark mode needs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

TINT = (230, 126, 34)
"""Orange: readable on white and on black, and told from blue by every eye."""

CSS = """
.hfsae-text {font-family: ui-monospace, monospace; white-space: pre-wrap; line-height: 1.7; overflow-wrap: anywhere}
.hfsae-token {border-radius: 3px; cursor: pointer; position: relative}
.hfsae-token:hover, .hfsae-token:focus-visible {outline: 2px solid rgb(230, 126, 34)}
.hfsae-prompt {opacity: .65}
.hfsae-panel {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .6em .8em; min-height: 7em}
.hfsae-panel h3 {margin: 0 0 .4em; font-size: .85em; opacity: .7; font-weight: 600}
.hfsae-list {display: flex; flex-wrap: wrap; gap: .35em; margin: .4em 0}
.hfsae-chip {border: 1px solid var(--border-color-primary); border-radius: 1em; padding: .15em .7em; cursor: pointer;
  font-size: .85em; background: none; color: inherit}
.hfsae-chip:hover, .hfsae-chip:focus-visible {border-color: rgb(230, 126, 34)}
.hfsae-card table, .hfsae-cost {width: 100%; border-collapse: collapse; font-size: .88em}
.hfsae-card td, .hfsae-cost td, .hfsae-cost th {padding: .15em .5em; text-align: left; border: 0}
.hfsae-bar {fill: rgb(230, 126, 34)}
.hfsae-error {color: rgb(192, 57, 43); font-weight: 600}
.hfsae-note {opacity: .7; font-size: .85em}
@media (max-width: 640px) {.hfsae-panel {min-height: 4em; padding: .5em}}
"""

CLICKS = """
element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-pick]');
  if (target) trigger('click', {pick: target.dataset.pick});
});
element.addEventListener('keydown', (event) => {
  const target = event.target.closest('[data-pick]');
  if (target && (event.key === 'Enter' || event.key === ' ')) {
    event.preventDefault();
    trigger('click', {pick: target.dataset.pick});
  }
});
"""
"""A click, Enter or space on anything with ``data-pick`` is a click of the component, with that value as ``pick``."""


@dataclass(frozen=True)
class Token:
    """A piece of text with the activation of the feature that is being watched."""

    text: str
    value: float = 0.0


def tokens(pieces: Sequence[Token], *, scale: float, prompt: int = 0, row: str = "") -> str:
    """Tokens tinted by their value, each with the value on hover.

    Args:
        pieces: The tokens, in order.
        scale: The value of full tint, usually the feature's recorded maximum.
        prompt: How many of the first ones are the prompt, shown fainter.
        row: What ``data-pick`` begins with; a token picks ``<row>:<position>``. Empty: tokens are not to be picked.
    """
    spans = []
    for position, piece in enumerate(pieces):
        strength = min(max(piece.value / scale, 0.0), 1.0) if scale > 0 else 0.0
        tint = f"background: rgba({TINT[0]},{TINT[1]},{TINT[2]},{0.75 * strength:.2f})" if strength else ""
        kind = "hfsae-token hfsae-prompt" if position < prompt else "hfsae-token"
        pick = f' data-pick="{escape(row)}:{position}" tabindex="0" role="button"' if row else ""
        spans.append(f'<span class="{kind}" style="{tint}" title="{piece.value:.3g}"{pick}>{escape(piece.text)}</span>')
    return f'<div class="hfsae-text">{"".join(spans)}</div>'


def panel(title: str, body: str) -> str:
    """A titled box around HTML that is already escaped."""
    return f'<div class="hfsae-panel"><h3>{escape(title)}</h3>{body}</div>'


def chips(features: Sequence[tuple[int, str]]) -> str:
    """Features to pick: number and a few words each; a chip picks ``feature:<number>``."""
    buttons = (
        f'<button class="hfsae-chip" data-pick="feature:{number}"><b>{number}</b> {escape(words)}</button>'
        for number, words in features
    )
    return f'<div class="hfsae-list">{"".join(buttons)}</div>'


def table(rows: Sequence[tuple[str, str]], kind: str = "hfsae-card") -> str:
    """Two columns, name and value."""
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="{kind}">{body}</table>'


def error(message: str) -> str:
    """What went wrong, for the place where the result would have stood."""
    return f'<div class="hfsae-error" role="alert">{escape(message)}</div>'


def note(message: str) -> str:
    """A remark in small letters."""
    return f'<div class="hfsae-note">{escape(message)}</div>'


def histogram(counts: Sequence[int], width: int = 220, height: int = 48) -> str:
    """Bars of a histogram as inline SVG, on a logarithmic height."""
    if not counts or max(counts) == 0:
        return ""
    from math import log1p

    top = log1p(max(counts))
    step = width / len(counts)
    bars = "".join(
        f'<rect class="hfsae-bar" x="{i * step:.1f}" width="{max(step - 1, 1):.1f}" '
        f'y="{height - height * log1p(count) / top:.1f}" height="{height * log1p(count) / top:.1f}"/>'
        for i, count in enumerate(counts)
    )
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{bars}</svg>'
