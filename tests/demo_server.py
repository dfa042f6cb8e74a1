"""The demo as its users start it: a process of its own, which gradio leaves event loops open in."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def demo_server(*options: str) -> Iterator[tuple[str, int]]:
    """Run `hfsae demo` on a free port; gives its address and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hfsae", "demo", "--port", str(port), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            first = server.stdout.readline()
            assert f"http://127.0.0.1:{port}" in first, first
            yield f"http://127.0.0.1:{port}/", server.pid
        finally:
            server.terminate()
