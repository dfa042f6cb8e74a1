"""The endpoints for programs: `gradio_client.Client(url).predict(..., api_name="/generate")`.

Each takes and returns plain JSON values. Edits are a JSON list as in `state.edits_to_json`; they are arguments of the
call, never state of the server. What is wrong with a call comes back as its error message.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from typing import Any

from hfsae.demo.handlers import DEADLINE, Handlers
from hfsae.demo.pieces import Pieces
from hfsae.demo.state import Request, checked_int, checked_text, edits_from_json
from hfsae.errors import HfsaeError


def add(handlers: Handlers, *, concurrency_id: str, concurrency_limit: int) -> None:
    """Add the endpoints to the `gradio.Blocks` that is open."""
    import gradio as gr

    queue = {"concurrency_id": concurrency_id, "concurrency_limit": concurrency_limit}
    gr.api(_generate(handlers), api_name="generate", **queue)
    for endpoint in _endpoints(handlers):
        gr.api(_told(endpoint), api_name=endpoint.__name__, **queue)


@contextmanager
def _as_message() -> Iterator[None]:
    """Send an error of ours to the client as its message."""
    import gradio as gr

    try:
        yield
    except HfsaeError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _told(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(endpoint)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _as_message():
            return endpoint(*args, **kwargs)

    return run


def _generate(handlers: Handlers) -> Callable[..., Iterator[dict[str, Any]]]:
    def generate(
        prompt: str,
        edits: str = "[]",
        tokens: int = 40,
        temperature: float = 0.0,
        seed: int = 0,
        chat: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Continue a prompt without and with the edits, as it grows: {"default": text, "steered": text, "done": bool}.

        It streams, so that a client that leaves is noticed at the next token.
        """
        with _as_message():
            request = _request(prompt, edits, tokens, temperature, seed, chat)
            stop = time.monotonic() + DEADLINE
            for streamed in handlers.engine.stream(request):
                default, steered = ("".join(text.pieces) for text in (streamed.default, streamed.steered))
                yield {"default": default, "steered": steered, "done": streamed.done}
                if time.monotonic() > stop:
                    break

    return generate


def _endpoints(handlers: Handlers) -> list[Callable[..., Any]]:
    engine, cards = handlers.engine, handlers.cards

    def inspect(text: str, k: int = 8) -> list[Any]:
        """Each token with its k strongest features: [[token, [[feature, activation], ...]], ...]."""
        ids = engine.encode(checked_text("text", text))
        features = engine.inspect(ids, checked_int("k", k, 1, 64))
        return [list(pair) for pair in zip(Pieces(engine.tokenizer, ids).finish().texts, features, strict=True)]

    def search(words: str) -> list[Any]:
        """Features whose label, contexts or promoted tokens hold the words: [[feature, label], ...]."""
        return [list(found) for found in cards.search(words)]

    def card(feature: int) -> dict[str, Any]:
        """What is known of a feature: its label, density, maximum, contexts, promoted tokens, neighbours."""
        number = engine.check_feature(checked_int("feature", feature, 0, 2**31))
        return {name: value for name, value in asdict(cards.card(number)).items() if value == value}  # NaN is no JSON

    def contrast(text: str, other: str) -> list[Any]:
        """Features that tell two texts apart: [[feature, difference of the mean activation], ...]."""
        return [list(found) for found in engine.contrast(text, other)]

    def cost(edits: str) -> dict[str, float]:
        """What the edits cost on a fixed text: KL and CE in nats per token."""
        return asdict(engine.cost(tuple(edit for edit in edits_from_json(edits) if edit.on)))

    def python(
        prompt: str,
        edits: str = "[]",
        tokens: int = 40,
        temperature: float = 0.0,
        seed: int = 0,
        chat: bool = False,
    ) -> str:
        """The script that does the same."""
        return _request(prompt, edits, tokens, temperature, seed, chat).to_python(handlers.opening)

    return [inspect, search, card, contrast, cost, python]


def _request(prompt: str, edits: str, tokens: int, temperature: float, seed: int, chat: bool) -> Request:
    return Request(
        prompt=prompt, edits=edits_from_json(edits), tokens=tokens, temperature=temperature, seed=seed, chat=chat
    )
