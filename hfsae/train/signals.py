"""SIGINT and SIGTERM during a run: noted, so that the step ends and a checkpoint is saved before the exit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Which signal asked the run to stop, if one did."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Be the handler of a signal."""
        self.signal = number


@contextmanager
def noted_signals() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM while open; in another thread than the main one, where no handler may be set, neither."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
