"""What happens when a control of the page is used: values of components in, HTML out.

An edit row gives its values in the order of `ROW_FIELDS`. An error of ours becomes a message in place of the result.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hfsae.demo import render
from hfsae.demo.cards import Cards
from hfsae.demo.engine import Engine, Streamed
from hfsae.demo.state import KINDS, EditChoice, Request, checked_int, edits_to_json
from hfsae.errors import HfsaeError

ROWS = 4
"""Lines of the list of edits."""
ROW_FIELDS = ("on", "kind", "feature", "value", "unit")
DEADLINE = 120.0
"""Seconds after which a generation stops: one whose reader has left must not hold a worker."""


def read_edits(values: tuple[Any, ...]) -> tuple[EditChoice, ...]:
    """The edits in the rows that name a feature; a row without one is no edit."""
    edits = []
    for start in range(0, len(values), len(ROW_FIELDS)):
        on, kind, feature, value, unit = values[start : start + len(ROW_FIELDS)]
        if feature is None:
            continue
        units = KINDS.get(kind, ("",))
        number = checked_int("feature", feature, 0, 2**31)
        chosen = unit if unit in units else units[0]
        edits.append(EditChoice(kind=kind, feature=number, value=value or 0.0, unit=chosen, on=bool(on)))
    return tuple(edits)


def written_rows(edits: tuple[EditChoice, ...]) -> list[Any]:
    """The values of all rows that show these edits; the rows left over are empty."""
    values: list[Any] = []
    for edit in edits[:ROWS]:
        values += [edit.on, edit.kind, edit.feature, edit.value, edit.unit]
    return values + [True, "steer", None, 1.0, "max"] * (ROWS - len(edits[:ROWS]))


@dataclass(frozen=True)
class Handlers:
    """The functions behind the page."""

    engine: Engine
    cards: Cards
    opening: str
    """The lines of Python that load this model and attach this dictionary."""
    cost_text: str
    """The fixed text on which the cost of edits is measured."""

    def stream(self, watch: float | None, *values: Any) -> Iterator[tuple[str, str]]:
        """Stream both panels; ``values`` are those of `request`."""
        try:
            request = self.request(*values)
            watched = self._watched(watch, request)
            stop = time.monotonic() + DEADLINE
            for streamed in self.engine.stream(request, watched):
                yield self._panels(streamed, watched)
                if time.monotonic() > stop:
                    break
        except HfsaeError as error:
            yield render.error(str(error)), ""

    def request(self, prompt: str, tokens: float, temperature: float, seed: float, *rows: Any) -> Request:
        """The checked state of the page."""
        return Request(
            prompt=prompt,
            edits=read_edits(rows),
            tokens=checked_int("tokens", tokens, 1, 200),
            temperature=temperature,
            seed=checked_int("seed", seed, 0, 2**31 - 1),
        )

    def _watched(self, watch: float | None, request: Request) -> int | None:
        """The feature that tints the text: the one chosen, else that of the first edit."""
        if watch is not None:
            return checked_int("feature", watch, 0, self.cards.count - 1)
        return request.active[0].feature if request.active else None

    def _panels(self, streamed: Streamed, watched: int | None) -> tuple[str, str]:
        scale = 1.0 if watched is None else self.cards.maximum(watched)
        tint = "" if watched is None else f", tinted by feature {watched}"
        default = render.tokens(streamed.default, scale=scale, prompt=streamed.prompt, row="default")
        steered = render.tokens(streamed.steered, scale=scale, prompt=streamed.prompt, row="steered")
        return render.panel(f"default{tint}", default), render.panel(f"with the edits{tint}", steered)

    def cost(self, *rows: Any) -> str:
        """What the edits cost on the fixed text."""
        choices = tuple(edit for edit in read_edits(rows) if edit.on)
        cost = self.engine.cost(choices, self.cost_text)
        table = render.table(
            [
                ("KL to the unedited model", f"{cost.kl:.4f} nats per token"),
                ("CE, unedited → edited", f"{cost.ce_clean:.3f} → {cost.ce_edited:.3f} nats per token"),
                ("change", f"{cost.ce_edited - cost.ce_clean:+.3f}"),
            ],
            kind="hfsae-cost",
        )
        outside = [edit for edit in choices if self.cards.is_outside(edit)]
        warnings = "".join(
            render.note(f"Feature {edit.feature}: the strength is beyond the largest activation recorded for it.")
            for edit in outside
        )
        return table + warnings + render.note(f"measured on a fixed text of {cost.tokens} tokens")

    def link(self, *values: Any) -> tuple[str, str, str]:
        """The query of the URL, the Python and the JSON of the state of the page."""
        try:
            request = self.request(*values)
        except HfsaeError as error:
            return "", f"# {error}", "[]"
        return request.to_query(), request.to_python(self.opening), edits_to_json(request.edits)

    def inspect(self, prompt: str) -> str:
        """The prompt's tokens, to be picked."""
        found = self.engine.inspect(prompt)
        pieces = [render.Token(piece, features[0][1] if features else 0.0) for piece, features in found]
        scale = max((piece.value for piece in pieces), default=1.0)
        return render.tokens(pieces, scale=scale, row="token") + render.note(
            "pick a token to see its strongest features"
        )

    def token(self, prompt: str, pick: str) -> str:
        """The strongest features of one picked token."""
        row, _, position = pick.partition(":")
        found = self.engine.inspect(prompt)
        if row != "token" or not position.isdigit() or int(position) >= len(found):
            return ""
        features = found[int(position)][1]
        return render.chips([(i, f"{self.cards.words(i)} · {value:.2f}") for i, value in features])

    def search(self, words: str) -> str:
        """Features whose label, contexts or promoted tokens hold the words."""
        found = self.cards.search(words)
        return render.chips(found) if found else render.note("nothing found: try another word, or a prompt's tokens")

    def contrast(self, text: str, other: str) -> str:
        """The features that tell two texts apart."""
        found = self.engine.contrast(text, other)
        return render.chips([(i, f"{self.cards.words(i)} · {value:+.2f}") for i, value in found])

    def card(self, feature: float | None) -> str:
        """The card of one feature."""
        return "" if feature is None else self.cards.html(checked_int("feature", feature, 0, self.cards.count - 1))


def guarded(make: Callable[..., str]) -> Callable[..., str]:
    """Return ``make`` with an error of ours as its result."""

    def run(*values: Any) -> str:
        try:
            return make(*values)
        except HfsaeError as error:
            return render.error(str(error))

    return run
