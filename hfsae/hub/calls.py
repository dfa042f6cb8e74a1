"""Calls to the Hub that end: one deadline for each, retries where they are safe, and errors told apart.

huggingface_hub retries by itself and can stay silent for minutes on a stalled server, and it reports 403, 429 and 500
as "not in the cache". So every call runs in a thread of its own that is given up at the deadline, and what went wrong
is read off the chain of errors. A token never becomes part of a message.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from hfsae.errors import CheckpointNotFound, HfsaeError, HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

SECONDS = 60.0
"""How long a call may take in all; `HFSAE_HUB_TIMEOUT` overrides it."""
BYTES_PER_SECOND = 250_000
"""The slowest transfer that is waited for, on top of that."""

_TRIES = 3
_RETRIED = (429, 500, 502, 503, 504)
_NO_ADDRESS = ("name or service not known", "name resolution", "getaddrinfo", "nodename nor servname", "no address")


class Unreachable(HubError):
    """The Hub gave no answer at all, so what is in the cache may serve instead."""


@dataclass(frozen=True)
class Target:
    """What a call is about: enough to word any error of it."""

    repo_id: str
    """The repository."""
    revision: str | None = None
    """The branch, tag or commit asked for."""
    token: str | None = None
    """Sent with the call, and kept out of every message."""

    def __str__(self) -> str:
        return f"{self.repo_id!r}" + (f" at revision {self.revision!r}" if self.revision else "")


def api(token: str | None) -> "HfApi":
    """Return a client of the Hub; made at each call, so that `HF_ENDPOINT` is read then."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="hfsae")


def reading(call: Callable[[], T], target: Target, *, size: int = 0) -> T:
    """Return what a call that changes nothing returns, trying again where the Hub asks for patience.

    Args:
        size: Bytes to transfer: a large file may take longer.

    Raises:
        CheckpointNotFound: when the repository, revision or file does not exist.
        HubError: when the Hub cannot be reached, refuses, or is too slow.
    """
    deadline = time.monotonic() + _limit(size)
    for attempt in range(_TRIES):
        try:
            return _before(deadline, call)
        except _failures() as error:
            wait = _patience(error, attempt)
            if wait is None or attempt == _TRIES - 1 or time.monotonic() + wait > deadline:
                raise _translated(error, target) from _safe_cause(error, target)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def writing(call: Callable[[], T], target: Target, *, size: int = 0) -> T:
    """Return what a call that changes the repository returns; it is made once, since it may have worked unseen.

    Raises:
        CheckpointNotFound: when the repository or revision does not exist.
        HubError: when the Hub cannot be reached, refuses, or is too slow.
    """
    try:
        return _before(time.monotonic() + _limit(size), call)
    except _failures() as error:
        raise _translated(error, target) from _safe_cause(error, target)


def _failures() -> tuple[type[Exception], ...]:
    """What the libraries underneath raise when a call fails: unrelated types, of which most are no OSError."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # Its first base is the root of the HTTP library's errors: httpx below huggingface_hub 2, httpx2 from there on.
    return (_TooSlow, OSError, ValueError, RuntimeError, EntryNotFoundError, HfHubHTTPError.__bases__[0])


def _limit(size: int) -> float:
    return float(os.environ.get("HFSAE_HUB_TIMEOUT", SECONDS)) + size / BYTES_PER_SECOND


def _before(deadline: float, call: Callable[[], T]) -> T:
    """Run the call in a thread and give it up at the deadline."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)  # raised again in the caller's thread, whatever it is

    thread = threading.Thread(target=run, name="hfsae-hub", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    if not results:
        raise _TooSlow
    return results[0]


class _TooSlow(Exception):
    """The deadline passed."""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if one is."""
    for link in _chain(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _retry_after(error: BaseException) -> str | None:
    for link in _chain(error):
        headers = getattr(getattr(link, "response", None), "headers", None)
        if headers is not None and headers.get("Retry-After"):
            return str(headers.get("Retry-After"))[:40]
    return None


def _patience(error: BaseException, attempt: int) -> float | None:
    """Seconds to wait before trying again, or None where that would not help."""
    if isinstance(error, _TooSlow):
        return None
    if _status(error) in _RETRIED:
        asked = _retry_after(error)
        return float(asked) if asked is not None and asked.isdigit() else 0.5 * 2**attempt
    dropped = any(type(link).__name__ in ("RemoteProtocolError", "ReadError") for link in _chain(error))
    return 0.2 if dropped else None


def _safe_cause(error: BaseException, target: Target) -> BaseException | None:
    """The cause to show beside our error, unless it would show the token."""
    shown = "".join(f"{link}{link.args}" for link in _chain(error))
    return None if target.token and target.token in shown else error


def _translated(error: BaseException, target: Target) -> HfsaeError:
    if isinstance(error, HfsaeError):
        return error
    if isinstance(error, _TooSlow):
        return Unreachable(
            f"The Hub did not answer about {target} in time. It has {_limit(0):.0f} s, and more for large files. "
            "Try again, or set HFSAE_HUB_TIMEOUT to more seconds."
        )
    status = _status(error)
    return _no_answer(error, target) if status is None else _refusal(error, status, target)


def _refusal(error: BaseException, status: int, target: Target) -> HfsaeError:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    repo = repr(target.repo_id)
    links = list(_chain(error))
    if any(isinstance(link, GatedRepoError) for link in links):
        return HubError(f"{repo} is gated ({status}). Its owner must grant access. Ask on its page, then pass token=.")
    if any(isinstance(link, RevisionNotFoundError) for link in links):
        return CheckpointNotFound(f"{repo} has no revision {target.revision!r} (404). Name a branch, tag or commit.")
    if any(isinstance(link, EntryNotFoundError) and _status(link) == 404 for link in links) and status == 404:
        return CheckpointNotFound(f"A file is missing in {target} (404). It was listed a moment ago. Try again.")
    wording = _STATUS.get(status, "The Hub answered {status} about {target}. Try again later.")
    patience = _retry_after(error)
    when = f" It says to wait {patience} s." if patience else ""
    kind = CheckpointNotFound if status == 404 else Unreachable if status >= 500 else HubError
    return kind(wording.format(repo=repo, status=status, target=target) + when)


_STATUS = {
    401: "The Hub refused the credentials for {repo} (401). A private repository needs a valid token, and a missing "
    "repository answers alike. Run `hf auth login`, pass token=, or check the name.",
    403: "Access to {repo} is forbidden (403). The token lacks the right to do this. Use one with that right.",
    404: "{repo} is not on the Hub, or is private (404). A repository id reads 'owner/name'. Check it, or pass token=.",
    409: "{repo} is busy with another change (409). One change at a time is allowed. Try again.",
    412: "{repo} changed during the push (412). Nothing was written. Push again to add to what it holds now.",
    429: "The Hub limits how often {repo} is asked for (429). Try again later, or with token= for a higher limit.",
    500: "The Hub failed at {target} (500). This is no fault of the call. Try again later.",
}


def _no_answer(error: BaseException, target: Target) -> HfsaeError:
    names = {type(link).__name__ for link in _chain(error)}
    text = " ".join(str(link) for link in _chain(error)).lower()
    if "OfflineModeIsEnabled" in names:
        return Unreachable(
            f"{target} was not asked for: HF_HUB_OFFLINE is set. Unset it, or pass local_files_only=True."
        )
    if any(words in text for words in _NO_ADDRESS):
        why = "its name does not resolve. Check the DNS and the network"
    elif any("Timeout" in name for name in names):
        why = "it is too slow. Try again later"
    elif names & {"RemoteProtocolError", "ReadError", "WriteError"}:
        why = "it dropped the connection. Try again"
    elif "ConnectError" in names:
        why = "nothing answers there. Check the network, a proxy, and HF_ENDPOINT"
    else:
        return HubError(f"The call about {target} failed: {type(error).__name__}. The cause is above. Try again.")
    return Unreachable(f"The Hub could not be reached for {target}: {why}, or pass local_files_only=True.")
