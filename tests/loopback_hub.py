"""A hub on the loopback interface: repositories with commits and branches, storage of large files.

It speaks what huggingface_hub asks when a model is published and loaded: create, branch, settings,
preupload, Git LFS's batch, upload and verification, commit, model info, tree and files. Faults are
injected at any request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/(.*))?)?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
OBJECT = re.compile(r"/storage/([0-9a-f]{64})(/verify)?")

DROP, LOSE, HANG, CUT = "drop", "lose", "hang", "cut"
"""Faults besides a status: no answer; done, and no answer; no answer for long; half an answer."""

Reply = tuple[int, Any, dict[str, str]]
Fault = Callable[[int, str, str], int | str | None]
"""From number, method and path of a request to what goes wrong: a status, or one of the above."""

NOT_FOUND: Reply = (404, {"error": "no repository"}, {"X-Error-Code": "RepoNotFound"})


@dataclass
class Repo:
    """A repository: branch to commit, and commit to the files by path."""

    private: bool = True
    gated: Any = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)

    def add(self, branch: str, files: dict[str, bytes]) -> str:
        about = repr([len(self.commits), branch, sorted(files.items())])
        commit = hashlib.sha1(about.encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        return commit

    def configure(self, wish: dict[str, Any]) -> None:
        """Changes what versions 1 and 2 of huggingface_hub ask for, each by its own key."""
        self.gated = wish.get("gated", self.gated)
        self.private = bool(wish.get("private", self.private))
        if "visibility" in wish:
            self.private = wish["visibility"] == "private"

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, and answers it as its server's hub does, or as a fault has it."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def answer(self) -> None:
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        length = int(self.headers.get("Content-Length") or 0)
        body = b"".join(self.chunks()) if chunked else self.rfile.read(length)
        path = unquote(urlparse(self.path).path)
        self.hub.log.append((self.command, path))
        fault = self.hub.fault(len(self.hub.log), self.command, path)
        if fault == HANG:
            self.hub.patience.wait(120)
        if fault in (DROP, HANG):
            self.close_connection = True
            return
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        status, content, headers = (
            (fault, {"error": f"fault, {self.headers.get('Authorization')}"}, {})
            if isinstance(fault, int)
            else self.hub.answer(self.command, path, body, allowed)
        )
        if fault == 429:
            headers = {"Retry-After": "3"}
        if fault == LOSE:
            self.close_connection = True
            return
        self.send(status, content, headers, cut=fault == CUT)

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().strip() or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def send(self, status: int, content: Any, headers: dict[str, str], cut: bool) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    do_GET = do_HEAD = do_POST = do_PUT = answer


class LoopbackHub:
    """Repositories by id; `log` holds method and path of each request.

    Attributes:
        foreign: repositories that this token may not write to, by the status of the refusal.
        slept: for how many seconds those that ask it would have waited.
        before_commit: is called when a commit has arrived and nothing of it is done.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.all: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.fault: Fault = lambda *_: None
        self.foreign: dict[str, int] = {}
        self.before_commit: Callable[[], None] = lambda: None
        self.patience = threading.Event()
        self.slept: list[float] = []
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": self})
        )
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign] # a caller that left
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.patience.set()
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Returns what lies in a branch or a commit, but for what the hub has put there."""
        commit = self.all[repo].at(revision)
        assert commit is not None
        return {
            path: data
            for path, data in self.all[repo].commits[commit].items()
            if path != ".gitattributes"
        }

    def answer(self, method: str, path: str, body: bytes, allowed: bool) -> Reply:
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}, {}
        if found := OBJECT.fullmatch(path):
            if not found[2]:
                self.storage[hashlib.sha256(body).hexdigest()] = body
            return (200 if found[1] in self.storage else 404), {}, {}
        if not allowed:
            error = "Invalid credentials in Authorization header"
            return 401, {"error": error}, {"X-Error-Message": error}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if found := BATCH.fullmatch(path):
            return self.batch(json.loads(body))
        if found := MODEL.fullmatch(path):
            return self.model(method, found[1], found[2], found[3] or "main", body)
        if found := FILE.fullmatch(path):
            return self.file(found[1], found[2], found[3])
        return 404, {"error": f"no route {path}"}, {}

    def create(self, wish: dict[str, Any]) -> Reply:
        repo = f"{wish.get('organization') or 'user'}/{wish['name']}"
        if self.foreign.get(repo, 404) != 404:  # what may not be seen is there
            return self.foreign[repo], {"error": "you may not write here"}, {}
        status = 409 if repo in self.all else 200
        if status == 200:
            self.all[repo] = Repo()
            self.all[repo].configure({"private": False, **wish})
            self.all[repo].add("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return status, {"url": f"{self.url}/{repo}", "id": repo}, {}

    def batch(self, wish: dict[str, Any]) -> Reply:
        objects = []
        for wanted in wish["objects"]:
            address = f"{self.url}/storage/{wanted['oid']}"
            actions = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
            known = wanted["oid"] in self.storage
            objects.append({**wanted, **({} if known else {"actions": actions})})
        return 200, {"objects": objects, "transfer": "basic"}, {}

    def model(self, method: str, name: str, verb: str | None, argument: str, body: bytes) -> Reply:
        repo = self.all.get(name)
        if repo is None or (self.foreign.get(name) == 404):
            return NOT_FOUND
        if method != "GET" and name in self.foreign:
            return self.foreign[name], {"error": "you may not write here"}, {}
        if verb == "settings":
            repo.configure(json.loads(body))
            return 200, {}, {}
        if verb == "branch":
            status = 409 if argument in repo.branches else 201
            repo.branches.setdefault(argument, repo.branches["main"])
            return status, {}, {}
        commit = repo.at(argument)
        if commit is None:
            return 404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"}
        if verb == "commit":
            return self.commit(name, argument, body)
        if verb == "preupload":
            return self.preupload(json.loads(body)["files"])
        return self.about(name, commit, verb)

    def about(self, name: str, commit: str, verb: str | None) -> Reply:
        repo = self.all[name]
        entries = [self.entry(repo, path, data) for path, data in repo.commits[commit].items()]
        if verb == "tree":
            return 200, entries, {}
        siblings = [
            {"rfilename": one["path"], "blobId": one["oid"], "size": one["size"]}
            | ({"lfs": one["lfs"]} if "lfs" in one else {})
            for one in entries
        ]
        about = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
        shown = {"private": repo.private, "gated": repo.gated, "tags": [], "downloads": 0}
        return 200, {**about, **shown, "likes": 0}, {}

    def entry(self, repo: Repo, path: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        about: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
        if path in repo.large:
            digest = hashlib.sha256(data).hexdigest()
            # As in LFS's batch and in the tree, whose keys differ.
            lfs = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 134}
            about |= {"oid": hashlib.sha1(digest.encode()).hexdigest(), "lfs": lfs}
        return about

    def preupload(self, wanted: list[dict[str, Any]]) -> Reply:
        plan = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in wanted
        ]
        return 200, {"files": plan}, {}

    def commit(self, name: str, branch: str, body: bytes) -> Reply:
        self.before_commit()
        repo = self.all[name]
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, repo.branches[branch]):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(repo.commits[repo.branches[branch]])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.storage[value["oid"]]
                repo.large.add(value["path"])
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        commit = repo.add(branch, files)
        address = f"{self.url}/{name}/commit/{commit}"
        return 200, {"success": True, "commitOid": commit, "commitUrl": address}, {}

    def file(self, name: str, revision: str, path: str) -> Reply:
        repo = self.all.get(name)
        if repo is None:
            return NOT_FOUND
        commit = repo.at(revision)
        if commit is None:
            return 404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"}
        headers = {"X-Repo-Commit": commit}
        if path not in repo.commits[commit]:
            return 404, {"error": "no entry"}, headers | {"X-Error-Code": "EntryNotFound"}
        data = repo.commits[commit][path]
        entry = self.entry(repo, path, data)
        etag = f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"'
        return 200, data, headers | {"ETag": etag}


@contextmanager
def serving(token: str, patch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Yields a hub that huggingface_hub asks in this process, with a token."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    hub = LoopbackHub(token)
    patch.setenv("HF_TOKEN", token)
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    try:
        yield hub
    finally:
        hub.close()
        close_session()
