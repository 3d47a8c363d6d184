"""The smallest hub that a push and a download need, on the loopback interface.

Files are answered as "regular" in the preupload call, so that their content comes with the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit|revision|tree)(?:/.*)?)?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)")


class LoopbackHub:
    """Repositories by id, each a mapping of path to content; the newest commit alone is kept."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, Any] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = unquote(urlparse(self.path).path)
                allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
                status, content, headers = hub.answer(path, body, allowed)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_HEAD = do_POST = do_PUT = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, body: bytes, allowed: bool) -> tuple[int, Any, dict[str, str]]:
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}, {}
        if path == "/api/repos/create":
            return self.create(json.loads(body), allowed)
        if found := MODEL.fullmatch(path):
            return self.model(found[1], found[2], body)
        if found := FILE.fullmatch(path):
            return self.file(found[1], found[2])
        return 404, {"error": f"no route {path}"}, {}

    def create(self, wish: dict[str, Any], allowed: bool) -> tuple[int, Any, dict[str, str]]:
        repo = f"{wish.get('organization') or 'user'}/{wish['name']}"
        if not allowed:
            return 401, {"error": "no token"}, {}
        self.private[repo] = wish.get("visibility", wish.get("private"))
        status = 409 if repo in self.repos else 200
        self.repos.setdefault(repo, {})
        return status, {"url": f"{self.url}/{repo}", "id": repo}, {}

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo])).encode()).hexdigest()

    def model(self, repo: str, verb: str | None, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if repo not in self.repos:
            return 404, {"error": "no repository"}, {"X-Error-Code": "RepoNotFound"}
        files = self.repos[repo]
        if verb == "preupload":
            wanted = [entry["path"] for entry in json.loads(body)["files"]]
            plan = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return 200, {"files": [{"path": path, **plan} for path in wanted]}, {}
        if verb == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    files[value["path"]] = base64.b64decode(value["content"])
            address = f"{self.url}/{repo}/commit/{self.commit(repo)}"
            done = {"success": True, "commitOid": self.commit(repo), "commitUrl": address}
            return 200, {**done, "hookOutput": ""}, {}
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in sorted(files.items())
        ]
        if verb == "tree":
            return 200, entries, {}
        names = [{"rfilename": entry["path"]} for entry in entries]
        about = {"id": repo, "modelId": repo, "sha": self.commit(repo), "siblings": names}
        return 200, {**about, "private": False, "tags": [], "downloads": 0, "likes": 0}, {}

    def file(self, repo: str, path: str) -> tuple[int, Any, dict[str, str]]:
        if path not in self.repos.get(repo, {}):
            return 404, {"error": "no entry"}, {"X-Error-Code": "EntryNotFound"}
        data = self.repos[repo][path]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return 200, data, {"ETag": etag, "X-Repo-Commit": self.commit(repo)}
