"""Many users of one demo, users who vanish, hostile ones, and what the server must not give away."""

import json
import math
import os
import re
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from demo_server import connected, demo_server, seconds_until_served_after_ten_vanish, soak

pytest.importorskip("gradio", reason="the demo extra is not installed")
import httpx
from gradio_client import Client
from gradio_client.exceptions import AppError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def server() -> tuple[str, int]:
    return demo_server()


@pytest.fixture(scope="module")
def client(server: tuple[str, int]) -> Client:
    return connected(server[0])


def test_each_of_four_users_gets_the_answer_it_gets_alone(server):
    answers, _ = soak(server, users=4, seconds=3, tokens=8)
    assert min(answers) >= 1


@pytest.mark.slow
def test_each_of_twenty_users_gets_the_answer_it_gets_alone_for_a_minute(server):
    answers, memory = soak(server, users=20, seconds=60, tokens=16)
    assert min(answers) >= 1
    third = len(memory) // 3
    assert max(memory[-third:]) < 1.03 * max(memory[third : 2 * third])


def test_clients_that_vanish_free_their_places(server):
    waited = seconds_until_served_after_ten_vanish(server[0])
    assert waited < 2


HOSTILE = {
    "The prompt has 1,000,000 characters": {"prompt": "x" * 1_000_000},
    "At most 4,000 are read": {"prompt": "x" * 4_001},
    "The prompt is empty": {"prompt": " \n"},
    "The prompt is a list": {"prompt": ["x"]},
    "The prompt has": {"prompt": "() " * 1_300},
    "null byte": {"prompt": "a\x00b"},
    "Feature 1000000 does not exist": {"edits": json.dumps([{"kind": "ablate", "feature": 10**6}])},
    "The edits are no JSON": {"edits": "[" * 100_000},
    "The edits cannot be read": {"edits": "[" * 5_000},
    "An edit cannot be read": {"edits": '[{"kind": {"__class__": "os"}, "feature": 1, "on_load": "x"}]'},
    "wrong type": {"edits": '[{"kind": ["steer"], "feature": 1}]'},
    "a number of many digits is out of range": {"edits": f'[{{"kind": "set", "feature": 1, "value": {10**300}}}]'},
    "value of set=nan is out of range": {"edits": '[{"kind": "set", "feature": 1, "value": NaN}]'},
    "value of set=inf is out of range": {"edits": '[{"kind": "set", "feature": 1, "value": 1e999}]'},
    "is a bool": {"edits": '[{"kind": "set", "feature": true, "value": 1}]'},
    "no list of at most 12": {"edits": json.dumps([{"kind": "ablate", "feature": i} for i in range(13)])},
    "temperature=nan is out of range": {"temperature": math.nan},
    "temperature=-1 is out of range": {"temperature": -1},
    "tokens is a str": {"tokens": "9"},
    "tokens=1e+09 is out of range": {"tokens": 1e9},
    "tokens=2.5 is no whole number": {"tokens": 2.5},
    "seed=-1 is out of range": {"seed": -1},
    "no chat template": {"chat": True},
}


def raw(address: str, endpoint: str, data: list[Any]) -> str:
    """Call an endpoint as no client of good will does: NaN and whatever else Python's JSON can write."""
    url, body = f"{address}gradio_api/call/{endpoint}", json.dumps({"data": data})
    joined = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=30).json()
    last = httpx.get(f"{url}/{joined['event_id']}", timeout=30).text.split("event: ")[-1]
    name, told = last.split("\ndata: ")
    return json.loads(told)["error"] if name == "error" else told


@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_arguments_get_a_clear_message(server, message):
    usual = {"prompt": "x", "edits": "[]", "tokens": 2, "temperature": 0.0, "seed": 0, "chat": False}
    assert message in raw(server[0], "generate", list((usual | HOSTILE[message]).values()))


@pytest.mark.parametrize(
    "text", ["🙂🙂🙂", "שלום עולם", "<script>alert(1)</script>", "${7*7}{{7*7}}`", "e\u0301\u202e\ufeff\ud7ff"]
)
def test_any_text_comes_back_as_it_is(client, text):
    told = client.predict(prompt=text, tokens=2, api_name="/generate")
    assert told["default"].startswith(text)


def test_the_server_lives_after_bodies_that_are_no_json(server, client):
    url = f"{server[0]}gradio_api/call/generate"
    for body in (b"", b"{", b"[" * 100_000, b'{"data": {"a": 1}}', b"\xff\xfe", b'{"data": []}'):
        httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=30)
    assert client.predict(prompt="x", tokens=1, api_name="/generate")["done"]


def test_each_endpoint_answers_by_name(client):
    names = ("/generate", "/inspect", "/search", "/card", "/contrast", "/cost", "/python")
    assert tuple(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == names
    edits = json.dumps([{"kind": "steer", "feature": 3707, "value": 0.7, "unit": "max"}])
    assert client.predict(text="import os", k=2, api_name="/inspect")[1][0] == "import"
    assert 3707 in [feature for feature, _ in client.predict(words="raise", api_name="/search")]
    assert client.predict(feature=3707, api_name="/card")["feature"] == 3707
    assert client.predict(text="import os", other="raise ValueError", api_name="/contrast")
    assert client.predict(edits=edits, api_name="/cost")["kl"] > 0
    assert "att.steer(3707, 0.7, unit='max')" in client.predict(prompt="x", edits=edits, api_name="/python")
    with pytest.raises(AppError, match="Feature 4096 does not exist"):
        client.predict(feature=4096, api_name="/card")


SECRET = Path(__file__).resolve()


@pytest.mark.parametrize(
    "path",
    [
        f"gradio_api/file={SECRET}",
        f"file={SECRET}",
        "gradio_api/file=pyproject.toml",
        "gradio_api/file=../../../../../../etc/passwd",
        "gradio_api/file=/proc/self/environ",
        "gradio_api/file%3D/etc/passwd",
        "gradio_api/file/etc/passwd",
        "gradio_api/call/../file=/etc/passwd",
        "static/../../../../../../../../etc/passwd",
        "static/..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "assets/%2e%2e/%2e%2e/%2e%2e/routes.py",
        "svelte/..%2f..%2froutes.py",
        "gradio_api/proxy=http://127.0.0.1:22/",
        "gradio_api/vibe-code",
        "gradio_api/deep_link",
        "gradio_api/stream/x/1/y/playlist.m3u8",
        "monitoring",
        "monitoring/summary",
        "login",
    ],
)
def test_nothing_but_the_page_is_served(server, path):
    with httpx.Client(base_url=server[0]) as session:
        request = session.build_request("GET", "/")
        request.url = request.url.copy_with(raw_path=b"/" + path.encode())
        told = session.send(request)
    assert told.status_code in (400, 403, 404, 405)
    assert "root:" not in told.text
    assert "SECRET" not in told.text


def test_nothing_can_be_uploaded_or_posted_without_bounds(server):
    upload = httpx.post(f"{server[0]}gradio_api/upload", files={"files": b"x"})
    assert upload.status_code == 404
    huge = HTTPConnection(urlsplit(server[0]).netloc)
    huge.putrequest("POST", "/gradio_api/queue/join")
    huge.putheader("Content-Length", "5000000")
    huge.endheaders()
    assert huge.getresponse().status == 413
    huge.close()
    chunks = iter([b"x", b"y"])
    assert httpx.post(f"{server[0]}gradio_api/queue/join", content=chunks).status_code == 411


def test_it_listens_on_loopback_alone(server):
    port = urlsplit(server[0]).port
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_the_snippet_of_the_readme_runs(server, capsys):
    code = re.search(r"```py\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    exec(compile(code.replace("http://127.0.0.1:7860/", server[0]), "README", "exec"), {})
    assert "The default value is" in capsys.readouterr().out


def test_the_launcher_is_the_command():
    launcher = [sys.executable, str(ROOT / "demos" / "steering.py"), "--help"]
    told = subprocess.run(launcher, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert told.returncode == 0, told.stderr
    assert "hfsae demo" in told.stdout
