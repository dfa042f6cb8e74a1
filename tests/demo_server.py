"""The demo as its users start it: a process of its own, because gradio leaves event loops open in one."""

import atexit
import os
import socket
import subprocess
import sys
from functools import cache


@cache
def demo_server() -> tuple[str, int]:
    """Run `hfsae demo` on a free port until the tests end; return its address and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hfsae", "demo", "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def stop() -> None:
        server.terminate()
        server.communicate()

    atexit.register(stop)
    first = server.stdout.readline()
    assert f"http://127.0.0.1:{port}" in first, first
    return f"http://127.0.0.1:{port}/", server.pid
