"""What of gradio's server the demo leaves open: the page and its events; no files, uploads, monitoring or editing."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]

MAX_BODY = 4_000_000
"""Bytes of a request; what a prompt may be is checked, and said, further in."""

PAGES = {
    "",
    "config",
    "theme.css",
    "favicon.ico",
    "robots.txt",
    "manifest.json",
    "pwa_icon",
    "static",
    "assets",
    "svelte",
}
EVENTS = {"info", "queue", "call", "run", "cancel", "reset", "heartbeat", "startup-events", "app_id", "login_check"}
"""What the page, the list of endpoints and `gradio_client` ask for below ``gradio_api``."""


class Guard:
    """ASGI middleware that answers for everything that the demo does not need."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Pass the request on, or refuse it."""
        refused = _refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, reason = refused
        headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": reason.encode()})


def _refusal(scope: Scope) -> tuple[int, str] | None:
    """The status and the reason with which a request is refused; None where it is not."""
    first, _, rest = scope["path"].lstrip("/").partition("/")
    known = rest.partition("/")[0] in EVENTS if first == "gradio_api" else first in PAGES
    if not known:
        return 404, "The demo serves no such thing."
    if scope["method"] in ("GET", "HEAD"):
        return None
    length = dict(scope["headers"]).get(b"content-length", b"")
    if not length.isdigit():
        return 411, "The length of the request is missing."
    if int(length) > MAX_BODY:
        return 413, f"The request has {int(length):,} bytes. At most {MAX_BODY:,} are read."
    return None
