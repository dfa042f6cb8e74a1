"""`FeatureCard`: what an index knows of one feature, as text and as HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from hfsae.features.contexts import LEFT

STYLE = (
    ".hfsae-card{font:14px/1.5 system-ui,sans-serif;max-width:60rem}"
    ".hfsae-card code{white-space:pre-wrap;overflow-wrap:anywhere;display:block;padding:.15rem 0}"
    ".hfsae-card span[data-f]{background:rgba(230,159,0,calc(.6*var(--a)));border-radius:3px}"
    ".hfsae-card b{text-decoration:underline}"
    ".hfsae-card figure{display:inline-block;margin:0 2rem .5rem 0}"
    ".hfsae-card figcaption{font-size:12px}"
)
"""How cards look; the tint of a token shows on light and on dark."""
_IN_ROW = 4


@dataclass(frozen=True)
class Example:
    """A context in which a feature fires."""

    tokens: tuple[str, ...]
    """The tokens in reading order."""
    f: tuple[float, ...]
    """Activation of the feature on each."""
    at: int
    """Which of them the context was chosen for."""

    def __str__(self) -> str:
        return "".join(f"«{t}»" if i == self.at else t for i, t in enumerate(self.tokens)).replace("\n", "⏎")

    def to_html(self, maximum: float) -> str:
        """Return it as HTML, tinted by activation."""
        spans = []
        for i, (token, f) in enumerate(zip(self.tokens, self.f, strict=True)):
            text = escape(token.replace("\n", "⏎\n"))
            text = f"<b>{text}</b>" if i == self.at else text
            share = f / maximum if maximum else 0.0
            spans.append(f'<span data-f style="--a:{share:.1g}" title="{f:.2g}">{text}</span>' if f else text)
        return f"<code>{''.join(spans)}</code>"


@dataclass(frozen=True, kw_only=True)
class FeatureCard:
    """What an index knows of one feature."""

    feature: int
    """Its id."""
    label: str
    """What it is called; automatic labels say what tokens it fires on."""
    label_source: str
    """Who says so: "automatic", or the source in the dictionary's labels."""
    f1: float | None
    """How well the automatic rule predicts when it fires, on the data of the index."""
    density: float
    """Fraction of tokens on which it fires."""
    max: float
    """Its largest activation."""
    mean: float
    """Its mean activation where it fires."""
    histogram: tuple[int, ...]
    """Firings by half-octave of strength, from 2^-10."""
    by_position: tuple[int, ...]
    """Firings by position in the row, in doubling bins."""
    top: tuple[Example, ...]
    """Where it fires most strongly, at most one context per row."""
    samples: tuple[Example, ...]
    """Random firings, a few of each octave of strength, weakest first."""
    promoted: tuple[tuple[str, float], ...]
    """Tokens whose logits its direction raises, by direct effect alone."""
    suppressed: tuple[tuple[str, float], ...]
    """Tokens whose logits it lowers."""
    neighbours: tuple[tuple[int, float], ...]
    """Features with the nearest decoder directions, and the cosine."""
    cofiring: tuple[tuple[int, float], ...] = ()
    """Features that fire on the same tokens, and the correlation of firing."""

    @property
    def summary(self) -> str:
        """It in one line: number, label, and who says so."""
        f1 = f", F1 {self.f1:.2f}" if self.f1 is not None and self.label_source == "automatic" else ""
        return f"feature {self.feature}: {self.label or 'never fires'} ({self.label_source}{f1})"

    def row(self) -> dict[str, Any]:
        """Return what the card of a repository shows of it, ready for JSON."""
        return {
            "feature": self.feature,
            "density": self.density,
            "context": str(self.top[0]) if self.top else "",
            "promotes": [token for token, _ in self.promoted[:_IN_ROW]],
            "suppresses": [token for token, _ in self.suppressed[:_IN_ROW]],
            "label": self.label,
            "source": self.label_source,
        }

    def __str__(self) -> str:
        lines = [
            self.summary,
            f"  fires on {self.density:.3%} of tokens, maximum {self.max:.3g}, mean {self.mean:.3g} where it fires",
        ]
        for name, tokens in (("promotes", self.promoted), ("suppresses", self.suppressed)):
            if tokens:
                lines.append(f"  {name}: " + ", ".join(repr(token) for token, _ in tokens))
        for name, partners in (("nearest", self.neighbours), ("fires with", self.cofiring)):
            if partners:
                lines.append(f"  {name}: " + ", ".join(f"{i} ({value:.2f})" for i, value in partners))
        return "\n".join(lines + [f"  {example.f[example.at]:8.3g}  {example}" for example in self.top])

    def to_html(self) -> str:
        """Return the card as HTML that stands alone; all text in it is escaped."""
        return f"<style>{STYLE}</style>{self.to_plain_html()}"

    def to_plain_html(self) -> str:
        """Return it as HTML for a page that holds the style of cards."""
        source = self.label_source + (f", F1 {self.f1:.2f}" if self.f1 is not None else "")
        parts = [
            f"<h2>Feature {self.feature}</h2>",
            f"<p>{escape(self.label or 'never fires')} <small>({escape(source)})</small></p>",
            f"<p>Fires on {self.density:.3%} of tokens; maximum {self.max:.3g}, mean {self.mean:.3g}.</p>",
            _bars(self.histogram, "Firings by strength, {} to {}", _strength),
            _bars(_rates(self.by_position), "Firings per position in the row, {} to {}", _position),
            _tokens("Promotes", self.promoted),
            _tokens("Suppresses", self.suppressed),
        ]
        for title, partners in (("Nearest", self.neighbours), ("Fires with", self.cofiring)):
            shown = ", ".join(f'<a href="#{i}">{i}</a> {value:.2f}' for i, value in partners)
            parts.append(f"<p>{title}: {shown}</p>" if shown else "")
        for title, examples in (("Strongest contexts", self.top), ("Random contexts, weak to strong", self.samples)):
            parts.append(f"<h3>{title}</h3>" + "".join(example.to_html(self.max) for example in examples))
        return f'<div class="hfsae-card">{"".join(parts)}</div>'

    def _repr_html_(self) -> str:
        return self.to_html()


def example_of(ids: list[int], f: list[float], vocabulary: list[str]) -> Example:
    """Return the example of a stored context; ids of -1 lie beyond its row."""
    inside = [i for i, token in enumerate(ids) if token >= 0]
    tokens = tuple(vocabulary[ids[i]] for i in inside)
    return Example(tokens, tuple(f[i] for i in inside), inside.index(LEFT))


def _tokens(title: str, tokens: tuple[tuple[str, float], ...]) -> str:
    shown = ", ".join(f"<q>{escape(token)}</q> {value:+.2f}" for token, value in tokens)
    return f"<p>{title}: {shown}</p>" if shown else ""


def _strength(edge: int) -> str:
    """Where a bin of the histogram begins."""
    return f"{2 ** (edge / 2 - 10):.3g}"


def _position(edge: int) -> str:
    """Where a bin of positions begins."""
    return str(2**edge - 1)


def _rates(by_position: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(count / 2**i for i, count in enumerate(by_position))


def _bars(heights: Sequence[int | float], title: str, edge: Callable[[int], str]) -> str:
    """Draw bars as an inline picture that takes the colour of the text, over the range that is not empty."""
    filled = [i for i, height in enumerate(heights) if height]
    if not filled:
        return ""
    first, last, most = filled[0], filled[-1], max(heights)
    bars = (f"M{8 * i} 20v-{20 * heights[first + i] / most:.0f}h7V20" for i in range(last - first + 1))
    width, caption = 8 * (last - first + 1), title.format(edge(first), edge(last + 1))
    return (
        f'<figure><svg viewBox="0 0 {width} 20" width="{width}" height="40" preserveAspectRatio="none" '
        f'fill="currentColor" aria-hidden="true"><path d="{"".join(bars)}"/></svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
