"""A Hub on loopback for tests: the calls that huggingface_hub makes, answered from memory, with faults on request.

It speaks: repo create, info, tree, preupload, LFS batch, commit, discussions and resolve. A commit is all or nothing.
Faults are asked for by `fail`: a status (with headers), a dropped connection, a cut body or a stall.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Fault:
    """What goes wrong at requests of that method whose path contains that text, that many times."""

    method: str
    path: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    action: str = ""  # "drop", "cut" or "stall"
    times: int = 1_000_000


@dataclass
class Repo:
    """One repository: its branches, and the files of every commit."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    pull_requests: int = 0

    def commit(self, files: Files, branch: str = "main") -> str:
        """Make those files the head of the branch and return the commit id."""
        seed = json.dumps([len(self.commits), sorted(files)]).encode()
        oid = hashlib.sha1(seed).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        """The commit id of a branch, pull request or commit id."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    @property
    def head(self) -> Files:
        """The files at the head of main."""
        return self.commits[self.branches["main"]]


class HubStandIn:
    """The state of the loopback Hub: repositories, known tokens, faults, and the requests seen."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens = {"hf_good"}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lfs: Files = {}
        self.lfs_above: int | None = None
        self.url = ""
        self.released = threading.Event()

    def add(self, repo_id: str, files: Files, **flags: bool) -> Repo:
        """Put a repository there with those files at main."""
        repo = self.repos.setdefault(repo_id, Repo(**flags))
        repo.commit(files)
        return repo

    def fail(self, method: str, path: str, **what: object) -> None:
        """Make requests of that method whose path contains that text fail."""
        self.faults.append(Fault(method, path, **what))  # type: ignore[arg-type]

    def fault_for(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, counted."""
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and fault.path in path:
                fault.times -= 1
                return fault
        return None

    def seen(self, method: str, path: str) -> int:
        """How many requests of that method came for paths containing that text."""
        return sum(m == method and path in p for m, p in self.requests)


@contextmanager
def running_hub() -> Iterator[HubStandIn]:
    """A stand-in served on a free loopback port for as long as the block lasts."""
    hub = HubStandIn()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), unquote(url.path)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.hub.requests.append((self.command, path))
        self.fault = self.hub.fault_for(self.command, path)
        if self.fault is not None and self.fault.action in ("drop", "stall"):
            if self.fault.action == "stall":
                self.hub.released.wait(30)
            self.close_connection = True
            with suppress(OSError):
                self.connection.close()
        elif self.fault is not None and self.fault.status:
            self._json({"error": "asked for by the test"}, self.fault.status, self.fault.headers)
        else:
            self._route(path)

    do_GET = do_POST = do_PUT = do_HEAD = _serve

    def _route(self, path: str) -> None:
        for method, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                handle(self, *match.groups())
                return
        self._json({"error": f"no route {self.command} {path}"}, 404)

    def _reply(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        cut = self.fault is not None and self.fault.action == "cut"
        with suppress(OSError):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def _json(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._reply(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _error(self, status: int, code: str) -> None:
        self._json({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def _repo(self, repo_id: str) -> Repo | None:
        """The repository if this caller may read it; else the answer is sent and None returned."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        repo = self.hub.repos.get(repo_id)
        if token and token not in self.hub.tokens:
            self._json({"error": "bad token"}, 401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and not token):
            self._error(404 if token or repo is None else 401, "RepoNotFound")
        elif repo.gated and not token:
            self._error(403, "GatedRepo")
        else:
            return repo
        return None

    def _info(self, repo_id: str, revision: str | None) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        oid = repo.resolve(revision or "main")
        if oid is None:
            self._error(404, "RevisionNotFound")
            return
        siblings = [self._sibling(name, content) for name, content in sorted(repo.commits[oid].items())]
        self._json({"id": repo_id, "sha": oid, "siblings": siblings, "private": repo.private, "tags": []})

    def _sibling(self, name: str, content: bytes) -> dict[str, object]:
        found: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": _git_sha1(content)}
        if self._is_lfs(content):
            found["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return found

    def _is_lfs(self, content: bytes) -> bool:
        return self.hub.lfs_above is not None and len(content) > self.hub.lfs_above

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        oid = repo.resolve(revision)
        if oid is None:
            self._error(404, "RevisionNotFound")
        elif name not in repo.commits[oid]:
            self._error(404, "EntryNotFound")
        else:
            content = repo.commits[oid][name]
            headers = {"X-Repo-Commit": oid, "ETag": f'"{_git_sha1(content)}"', "Accept-Ranges": "none"}
            if self._is_lfs(content):
                sha256 = hashlib.sha256(content).hexdigest()
                headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            self._reply(content, 200, headers)

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if self.headers.get("Authorization") is None:
            self._json({"error": "log in"}, 401)
        elif repo_id in self.hub.repos:
            self._json({"error": "exists", "url": f"{self.hub.url}/{repo_id}"}, 409)
        else:
            private = asked.get("private") is True or asked.get("visibility") == "private"
            self.hub.add(repo_id, {".gitattributes": b""}, private=private)
            self._json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id})

    def _preupload(self, repo_id: str, _revision: str) -> None:
        if self._repo(repo_id) is not None:
            above = self.hub.lfs_above
            asked = json.loads(self.body)["files"]
            large = [above is not None and file["size"] > above and not file["path"].endswith(".md") for file in asked]
            modes = ["lfs" if is_large else "regular" for is_large in large]
            answer = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                for file, mode in zip(asked, modes, strict=True)
            ]
            self._json({"files": answer})

    def _lfs_batch(self, _repo_id: str) -> None:
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}},
            }
            for item in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        self.hub.lfs[oid] = self.body
        self._reply(b"", 200, {})

    def _commit(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        parent = lines[0]["value"].get("parentCommit")
        base = repo.branches.get(revision) or repo.branches["main"]
        if parent is not None and parent != base:
            self._json({"error": "The branch moved on"}, 412)
            return
        files = dict(repo.commits[base])
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        pull_request = None
        if "create_pr" in self.query:
            repo.pull_requests += 1
            revision = f"refs/pr/{repo.pull_requests}"
            pull_request = f"{self.hub.url}/{repo_id}/discussions/{repo.pull_requests}"
        oid = repo.commit(files, revision)
        url = f"{self.hub.url}/{repo_id}/commit/{oid}"
        self._json({"commitOid": oid, "commitUrl": url, "pullRequestUrl": pull_request, "success": True})

    def _apply(self, files: Files, key: str, value: dict[str, str]) -> None:
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.hub.lfs[value["oid"]]
        elif key == "deletedFile":
            files.pop(value["path"], None)

    def _branch(self, repo_id: str, name: str) -> None:
        repo = self._repo(repo_id)
        if repo is not None:
            repo.branches.setdefault(name, repo.branches["main"])
            self._json({})

    def _validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _whoami(self) -> None:
        self._json({"name": "me", "type": "user", "orgs": []})


_REPO = r"([^/]+/[^/]+)"
_ROUTES = [
    ("POST", "/api/repos/create", _Handler._create),
    ("POST", "/api/validate-yaml", _Handler._validate),
    ("GET", "/api/whoami-v2", _Handler._whoami),
    ("GET", rf"/api/models/{_REPO}()", lambda self, repo, _: self._info(repo, None)),
    ("GET", rf"/api/models/{_REPO}/revision/(.+)", _Handler._info),
    ("POST", rf"/api/models/{_REPO}/preupload/(.+)", _Handler._preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(.+)", _Handler._commit),
    ("POST", rf"/api/models/{_REPO}/branch/(.+)", _Handler._branch),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    ("PUT", r"/lfs/(.+)", _Handler._lfs_put),
    ("GET", rf"/{_REPO}/resolve/((?:refs/pr/\d+)|[^/]+)/(.+)", _Handler._resolve),
    ("HEAD", rf"/{_REPO}/resolve/((?:refs/pr/\d+)|[^/]+)/(.+)", _Handler._resolve),
]


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
