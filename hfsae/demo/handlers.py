"""What happens when a control of the page is used: values of components in, what components show out.

All values come from a browser and are checked; an error of ours becomes a message in place of the result.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from hfsae.demo import render
from hfsae.demo.cards import Cards
from hfsae.demo.engine import Engine, Streamed, Written
from hfsae.demo.pieces import Pieces
from hfsae.demo.state import (
    MAX_SEED,
    MAX_TOKENS,
    EditChoice,
    Request,
    checked_int,
    edits_from_rows,
    edits_to_json,
)
from hfsae.errors import HfsaeError, InvalidValue

DEADLINE = 120.0
"""Seconds after which a generation stops: one whose reader has left must not hold a worker."""

Shown = dict[str, Any]
"""The value of the component that shows both texts."""


@dataclass(frozen=True)
class Handlers:
    """The functions behind the page."""

    engine: Engine
    cards: Cards
    opening: str
    """The lines of Python that load this model and attach this dictionary."""

    def request(self, prompt: Any, edits: Any, tokens: Any, temperature: Any, seed: Any, chat: Any = False) -> Request:
        """The checked state of the page."""
        return Request(
            prompt=prompt,
            edits=edits_from_rows(edits or []),
            tokens=checked_int("tokens", tokens, 1, MAX_TOKENS),
            temperature=temperature,
            seed=checked_int("seed", seed, 0, MAX_SEED),
            chat=chat,
        )

    def stream(self, watch: str, *values: Any) -> Iterator[Shown]:
        """Both texts as they grow; ``values`` are those of `request`."""
        try:
            request = self.request(*values)
            watched = self.watched(watch)
            begun = time.monotonic()
            for streamed in self.engine.stream(request, watched):
                yield self._shown(streamed, watched) | {"run": begun}
                if time.monotonic() > begun + DEADLINE:
                    break
        except HfsaeError as error:
            yield {"error": str(error)}

    def watched(self, watch: Any) -> int | None:
        """The feature whose card is open and that tints the texts."""
        if not watch:
            return None
        if not isinstance(watch, str) or not watch.isdecimal() or len(watch) > 9:
            raise InvalidValue("The chosen feature is no number. Choose one of the list.")
        return self.engine.check_feature(int(watch))

    def _shown(self, streamed: Streamed, watched: int | None) -> Shown:
        shown: Shown = {"feature": watched, "label": "", "scale": 0.0, "prompt": streamed.prompt, "done": streamed.done}
        if watched is not None:
            shown["label"] = self.cards.plain_words(watched)
            shown["scale"] = self.cards.maximum(watched) or self.engine.typical
        return shown | {"texts": [asdict(streamed.default), asdict(streamed.steered)]}

    def tint(self, watch: str, shown: Any) -> Shown | None:
        """The texts on the page, tinted by another feature; None where nothing changes."""
        watched = self.watched(watch)
        if not isinstance(shown, dict) or not shown.get("done") or shown.get("feature") == watched:
            return None
        default, steered = (self._tinted(ids, watched) for ids in self._ids(shown))
        prompt = checked_int("length of the prompt", shown.get("prompt"), 0, self.engine.context)
        return self._shown(Streamed(prompt, default, steered, done=True), watched)

    def _tinted(self, ids: list[int], watched: int | None) -> Written:
        values = self.engine.tint(ids, watched) if watched is not None else [0.0] * len(ids)
        return Written(ids, Pieces(self.engine.tokenizer, ids).finish().texts, values)

    def _ids(self, shown: Any) -> list[list[int]]:
        """The tokens of the texts on the page, which a client may have made up."""
        texts = shown.get("texts") if isinstance(shown, dict) else None
        if not isinstance(texts, list) or len(texts) != 2 or not all(isinstance(text, dict) for text in texts):
            raise InvalidValue("There are no texts. Generate them first.")
        return [self.engine.check_ids(text.get("ids")) for text in texts]

    def token(self, shown: Any, row: Any, position: Any) -> str:
        """The strongest features of one token of the texts."""
        ids = self._ids(shown)[checked_int("text", row, 0, 1)]
        at = checked_int("position", position, 0, len(ids) - 1)
        features = self.engine.inspect(ids)[at]
        piece = Pieces(self.engine.tokenizer, ids).finish().texts[at]
        if not features:
            return render.note(f"no feature fires on the token {piece!r}, or the dictionary does not stand for it")
        return self._found(f"Strongest on {piece!r}", features, "{:.2f}")

    def search(self, words: str) -> str:
        """Features whose label, contexts or promoted tokens hold the words, or the one of that number."""
        found = self.cards.search(words)
        if not found:
            return render.note("Nothing found. Try another word, or click a token of the texts.")
        return render.found(f"{len(found)} found", [(feature, label, "") for feature, label in found])

    def contrast(self, text: str, other: str) -> str:
        """The features that tell two texts apart."""
        found = self.engine.contrast(text, other)
        more = [pair for pair in found if pair[1] > 0]
        less = [pair for pair in found if pair[1] < 0]
        return self._found("Stronger in the first", more, "{:+.2f}") + self._found(
            "Stronger in the second", less, "{:+.2f}"
        )

    def _found(self, title: str, features: list[tuple[int, float]], figure: str) -> str:
        return render.found(title, [(i, self.cards.words(i), figure.format(value)) for i, value in features])

    def card(self, watch: str) -> str:
        """The card of the chosen feature."""
        watched = self.watched(watch)
        return "" if watched is None else render.card(self.cards.card(watched), self.cards.measured_on)

    def facts(self, edits: Any) -> dict[str, Any]:
        """What the list of edits shows of its features."""
        width = self.cards.dictionary.config.d_sae
        features = sorted({edit.feature for edit in edits_from_rows(edits or [])})
        return {str(feature): self.cards.facts(feature) for feature in features if feature < width}

    def cost(self, edits: Any) -> str:
        """What the edits cost on the fixed text, and what is out of the ordinary about them."""
        choices = tuple(edit for edit in edits_from_rows(edits or []) if edit.on)
        return render.cost(self.engine.cost(choices), [text for edit in choices if (text := self._warning(edit))])

    def _warning(self, edit: EditChoice) -> str:
        warning = self.cards.warning(edit)
        return f"Feature {edit.feature}: {warning}." if warning else ""

    def link(self, *values: Any) -> tuple[str, str, str]:
        """The query of the URL, the Python and the JSON of the state of the page."""
        try:
            request = self.request(*values)
        except HfsaeError as error:
            return "", f"# {error}", "[]"
        return request.to_query(), request.to_python(self.opening), edits_to_json(request.edits)


def guarded(make: Callable[..., str]) -> Callable[..., str]:
    """Return ``make`` with an error of ours as its result."""

    def run(*values: Any) -> str:
        try:
            return make(*values)
        except HfsaeError as error:
            return render.error(str(error))

    return run
