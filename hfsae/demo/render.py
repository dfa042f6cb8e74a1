"""The HTML of the demo that Python writes: lists of features, feature cards, costs, messages.

Every string that is not written here is escaped: labels, tokens and errors come from outside. Class names begin with
``hfsae-`` because gradio owns the short ones. A button with ``data-pick`` chooses, one with ``data-add`` adds an edit.
"""

import re
from collections.abc import Sequence
from html import escape
from math import isfinite, log1p

from hfsae.demo.engine import Cost
from hfsae.features.card import FeatureCard

Found = Sequence[tuple[int, str, str]]
"""Features with their label and a figure."""


def words(text: str) -> str:
    """A label, escaped, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def found(title: str, features: Found) -> str:
    """A list of features to choose from or to add."""
    rows = "".join(
        f'<li><button class="hfsae-pick" data-pick="{feature}"><b>{feature}</b>'
        f"<span>{words(label)}</span><i>{escape(figure)}</i></button>{_add(feature, '+')}</li>"
        for feature, label, figure in features
    )
    return f'<h3>{escape(title)}</h3><ul class="hfsae-found">{rows}</ul>'


def _add(feature: int, text: str) -> str:
    title = f"add feature {feature} to the edits"
    return f'<button class="hfsae-add" data-add="{feature}" aria-label="{title}" title="{title}">{text}</button>'


def presets(names: Sequence[str]) -> str:
    """Buttons that pick a preset by its number."""
    buttons = (f'<button class="hfsae-chip" data-pick="{n}">{escape(name)}</button>' for n, name in enumerate(names))
    return f'<div class="hfsae-chips"><span>Try</span>{"".join(buttons)}</div>'


def card(told: FeatureCard, measured_on: str) -> str:
    """What is known of a feature, and on what its figures were measured."""
    facts = []
    if isfinite(told.density):
        facts.append(f"fires on {told.density:.3%} of tokens")
    if isfinite(told.max):
        facts.append(f"largest {told.max:.3g}")
    if isfinite(told.mean):
        facts.append(f"mean {told.mean:.3g} where it fires")
    parts = [
        f'<div class="hfsae-head"><h3>Feature {told.feature}</h3>{_add(told.feature, "add to the edits")}</div>',
        f'<p class="hfsae-label">{words(told.label) or "no label"}{_source(told)}</p>',
        note(" · ".join([*facts, measured_on])) if facts else "",
        histogram(told.histogram),
        '<div class="hfsae-effects">',
        _effects("promotes", told.promoted),
        _effects("suppresses", told.suppressed),
        "</div>",
    ]
    for title, examples in (("Strongest contexts", told.top), ("Weak to strong, at random", told.samples)):
        if examples:
            shown = "".join(example.to_html(told.max) for example in examples)
            parts.append(f"<details open><summary>{title}</summary>{shown}</details>")
    if told.neighbours:
        near = "".join(
            f'<button class="hfsae-chip" data-pick="{i}" title="cosine">{i} <i>{cosine:.2f}</i></button>'
            for i, cosine in told.neighbours
        )
        parts.append(f'<div class="hfsae-chips"><span>nearest</span>{near}</div>')
    return f'<article class="hfsae-card">{"".join(parts)}</article>'


def _source(told: FeatureCard) -> str:
    if not told.label:
        return ""
    quality = f", F1 {told.f1:.2f}" if told.f1 is not None else ""
    return f" <small>{escape(told.label_source)}{quality}</small>"


def _effects(name: str, tokens: Sequence[tuple[str, float]]) -> str:
    """Tokens with a bar each, longest for the largest effect on the logit."""
    if not tokens:
        return ""
    most = max(abs(value) for _, value in tokens) or 1.0
    rows = "".join(
        f'<li style="--share:{abs(value) / most:.2f}"><code>{escape(token).replace(chr(10), "⏎")}</code>'
        f"<i>{value:+.2f}</i></li>"
        for token, value in tokens
    )
    return f"<div><h4>{name}</h4><ul>{rows}</ul></div>"


def histogram(counts: Sequence[int], height: int = 40) -> str:
    """Bars of firings by half-octave of strength as inline SVG; the height is logarithmic."""
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return ""
    first, shown, top = filled[0], counts[filled[0] : filled[-1] + 1], log1p(max(counts))
    bars = "".join(
        f'<rect x="{8 * i}" width="7" y="{height * (1 - log1p(count) / top):.1f}"'
        f' height="{height * log1p(count) / top:.1f}"><title>{count:,} firings from {2 ** ((first + i) / 2 - 10):.3g}'
        "</title></rect>"
        for i, count in enumerate(shown)
    )
    width = 8 * len(shown)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        f' aria-label="firings by strength">{bars}</svg>'
    )


def cost(told: Cost, warnings: Sequence[str]) -> str:
    """What the edits cost, and what is out of the ordinary about them."""
    figures = (
        ("KL to the unedited model", f"{told.kl:.4f}", "nats per token"),
        ("cross-entropy", f"{told.ce_clean:.3f} → {told.ce_edited:.3f}", f"{told.ce_edited - told.ce_clean:+.3f} nats"),
    )
    cells = "".join(f"<div><h4>{name}</h4><b>{value}</b> <small>{unit}</small></div>" for name, value, unit in figures)
    warned = "".join(f'<p class="hfsae-warning">{escape(text)}</p>' for text in warnings)
    measured = note(f"measured on a fixed text of {told.tokens} tokens, edited throughout")
    return f'<div class="hfsae-cost">{cells}</div>{warned}{measured}'


def error(message: str) -> str:
    """What went wrong, for the place where the result would have stood."""
    return f'<div class="hfsae-error" role="alert">{escape(message)}</div>'


def note(message: str) -> str:
    """A remark in small letters."""
    return f'<p class="hfsae-note">{escape(message)}</p>'
