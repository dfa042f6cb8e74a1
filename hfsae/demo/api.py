"""The endpoints for programs: `gradio_client.Client(url).predict(..., api_name="/generate")`.

Each takes and returns plain JSON values. Edits are a JSON list as in `state.edits_to_json`; they are arguments of the
call, never state of the server. What is wrong with a call comes back as its error message.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from hfsae.demo.handlers import DEADLINE, Handlers
from hfsae.demo.state import Request, checked_int, edits_from_json
from hfsae.errors import HfsaeError

P = ParamSpec("P")
R = TypeVar("R")


def add(handlers: Handlers, *, concurrency_id: str) -> None:
    """Add the endpoints to the `gradio.Blocks` that is open."""
    import gradio as gr

    for name, endpoint in _endpoints(handlers).items():
        gr.api(_told(endpoint), api_name=name, concurrency_id=concurrency_id)


def _told(endpoint: Callable[P, R]) -> Callable[P, R]:
    """``endpoint``, with an error of ours as a message to the client."""
    import gradio as gr

    @wraps(endpoint)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return endpoint(*args, **kwargs)
        except HfsaeError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return run


def _endpoints(handlers: Handlers) -> dict[str, Callable[..., Any]]:
    engine, cards = handlers.engine, handlers.cards

    def generate(
        prompt: str, edits: str = "[]", tokens: int = 40, temperature: float = 0.0, seed: int = 0
    ) -> dict[str, Any]:
        """Continue a prompt without and with the edits: {"default": text, "steered": text}."""
        return _generated(handlers, _request(prompt, edits, tokens, temperature, seed))

    def inspect(text: str, k: int = 8) -> list[Any]:
        """Each token with its k strongest features: [[token, [[feature, activation], ...]], ...]."""
        return [
            [piece, [[i, v] for i, v in found]] for piece, found in engine.inspect(text, checked_int("k", k, 1, 64))
        ]

    def search(words: str) -> list[Any]:
        """Features whose label, contexts or promoted tokens hold the words: [[feature, label], ...]."""
        return [list(found) for found in cards.search(words)]

    def contrast(text: str, other: str) -> list[Any]:
        """Features that tell two texts apart: [[feature, difference of the mean activation], ...]."""
        return [list(found) for found in engine.contrast(text, other)]

    def cost(edits: str) -> dict[str, float]:
        """What the edits cost on a fixed text: KL and CE in nats per token."""
        active = tuple(edit for edit in edits_from_json(edits) if edit.on)
        return asdict(engine.cost(active, handlers.cost_text))

    def python(prompt: str, edits: str = "[]", tokens: int = 40, temperature: float = 0.0, seed: int = 0) -> str:
        """The script that does the same."""
        return _request(prompt, edits, tokens, temperature, seed).to_python(handlers.opening)

    return {f.__name__: f for f in (generate, inspect, search, contrast, cost, python)}


def _request(prompt: str, edits: str, tokens: int, temperature: float, seed: int) -> Request:
    return Request(prompt=prompt, edits=edits_from_json(edits), tokens=tokens, temperature=temperature, seed=seed)


def _generated(handlers: Handlers, request: Request) -> dict[str, Any]:
    """Both texts, whole, or as far as they came before the deadline."""
    stop = time.monotonic() + DEADLINE
    told: dict[str, Any] = {}
    for streamed in handlers.engine.stream(request):
        default, steered = ("".join(piece.text for piece in row) for row in (streamed.default, streamed.steered))
        told = {"default": default, "steered": steered, "done": streamed.done}
        if time.monotonic() > stop:
            break
    return told
