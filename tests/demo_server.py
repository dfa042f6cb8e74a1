"""The demo in a process of its own, because gradio leaves event loops open, and crowds of users."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradio_client import Client

PROMPTS = ("The default value is", "def read(path):\n    ", "import ", "# Return the", "class Widget(object):\n")
FEATURES = (3707, 3983, 805, 995)


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


def connected(address: str) -> "Client":
    """Return a client of the demo."""
    from gradio_client import Client

    return Client(address, verbose=False)


def call_of(user: int, tokens: int) -> dict[str, Any]:
    """What one user asks: prompt, edit, temperature and seed are together no one else's."""
    edit = {"kind": "steer", "feature": FEATURES[user % 4], "value": 0.5 + 0.02 * user, "unit": "max"}
    return {
        "prompt": PROMPTS[user % 5],
        "edits": json.dumps([edit]),
        "tokens": tokens,
        "temperature": 0.8 * (user % 2),
        "seed": user,
        "api_name": "/generate",
    }


def resident(process: int) -> float:
    """Memory of a process in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def soak(server: tuple[str, int], *, users: int, seconds: float, tokens: int) -> tuple[list[int], list[float]]:
    """Let users ask all at once for a while, each answer checked; answers of each, memory of the server each second."""
    address, process = server
    clients = [connected(address) for _ in range(users)]
    calls = [call_of(user, tokens) for user in range(users)]
    alone = [client.predict(**call) for client, call in zip(clients, calls, strict=True)]
    assert all(answer["done"] for answer in alone)
    assert len({answer["steered"] for answer in alone}) == users
    answers, memory, stop = [0] * users, [], time.monotonic() + seconds

    def use(user: int) -> None:
        while time.monotonic() < stop:
            assert clients[user].predict(**calls[user]) == alone[user]
            answers[user] += 1

    with ThreadPoolExecutor(users) as pool:
        using = [pool.submit(use, user) for user in range(users)]
        while time.monotonic() < stop:
            time.sleep(1)
            memory.append(resident(process))
        for one in using:
            one.result(timeout=120)
    return answers, memory


VANISHING = """
import sys, threading, time
from gradio_client import Client
started = threading.Semaphore(0)
def use(seed):
    job = Client(sys.argv[1], verbose=False).submit("import", "[]", 200, 1.0, seed, False, api_name="/generate")
    while not job.outputs() and seed < 4:
        time.sleep(0.01)
    started.release()
    time.sleep(600)
for seed in range(10):
    threading.Thread(target=use, args=(seed,), daemon=True).start()
for _ in range(10):
    started.acquire()
print("all asked", flush=True)
time.sleep(600)
"""


def seconds_until_served_after_ten_vanish(address: str) -> float:
    """Kill ten clients in the midst of their generations; how long the next one then waits."""
    client, short = connected(address), {"prompt": "x", "tokens": 1, "api_name": "/generate"}
    client.predict(**short)
    with subprocess.Popen([sys.executable, "-c", VANISHING, address], stdout=subprocess.PIPE, text=True) as crowd:
        assert crowd.stdout.readline() == "all asked\n"
        begun = time.monotonic()
        os.kill(crowd.pid, signal.SIGKILL)
        client.predict(**short)
        return time.monotonic() - begun
