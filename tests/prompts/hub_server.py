"""A small HTTP server on localhost that answers like the Hugging Face Hub, as far as prompts need it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

TOKEN = "hf_right"
OWNER = "tester"


@dataclass
class Repo:
    """A repository: its commits, each a complete set of files, and the branches that name them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files on top of a branch; returns the commit's hash."""
        merged = {**self.files(branch), **files}
        state = repr((len(self.commits), branch, sorted(merged.items()))).encode()
        sha = hashlib.sha1(state).hexdigest()
        self.commits[sha] = merged
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, or the hash of a commit, names."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str) -> dict[str, bytes]:
        """The files of a revision; none if it does not exist."""
        sha = self.resolve(revision)
        return self.commits[sha] if sha else {}


@dataclass
class Hub:
    """The server's repositories, and what it was asked."""

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failing: bool = False

    def create(self, repo_id: str, files: dict[str, bytes], **settings: bool) -> Repo:
        """Add a repository with one commit."""
        repo = self.repos[repo_id] = Repo(**settings)
        repo.commit(files)
        return repo


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self._resolve(with_body=False)

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        else:
            self._resolve(with_body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlparse(self.path)
        self.hub.requests.append(("POST", url.path))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._fail(401, "", "Invalid username or password.")
            return
        parts = unquote(url.path).strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
            return
        repo = self.hub.repos.get("/".join(parts[2:4]))
        if repo is None:
            self._fail(404, "RepoNotFound", "Repository not found")
            return
        action, revision = parts[4], "/".join(parts[5:])
        if action == "branch":
            taken = revision in repo.branches
            repo.branches.setdefault(revision, repo.branches.get("main", ""))
            self._json({}, status=409 if taken else 200)
        elif repo.resolve(revision) is None and repo.commits:
            self._fail(404, "RevisionNotFound", "Invalid rev id")
        elif action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        else:
            self._commit(repo, parts, revision, body, parse_qs(url.query))

    def _describe(self, repo_id: str, rest: list[str]) -> None:
        """``/api/models/owner/name``, and ``.../tree/revision/folder`` after it."""
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            self._fail(401, "RepoNotFound", "Repository not found")
        elif rest[:1] == ["tree"]:
            folder = "".join(f"{part}/" for part in rest[2:])
            files = [name for name in repo.files(rest[1]) if name.startswith(folder)]
            if files:
                self._json([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files])
            else:
                self._fail(404, "EntryNotFound", "Entry not found")
        else:
            siblings = [{"rfilename": name} for name in repo.files("main")]
            self._json({"id": repo_id, "sha": repo.branches["main"], "siblings": siblings, "tags": []})

    def _create(self, wanted: dict[str, Any]) -> None:
        owner = wanted.get("organization") or OWNER
        repo_id = f"{owner}/{wanted['name']}"
        if owner != OWNER:
            self._fail(403, "", "You don't have the rights to create a model under this namespace")
            return
        exists = repo_id in self.hub.repos
        if not exists:
            self.hub.create(repo_id, {".gitattributes": b""}, private=wanted.get("visibility") == "private")
        self._json({"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}, status=409 if exists else 200)

    def _commit(self, repo: Repo, parts: list[str], revision: str, body: bytes, query: dict[str, list[str]]) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        is_request = "create_pr" in query
        if is_request:
            repo.branches["refs/pr/1"] = repo.branches["main"]
        sha = repo.commit(files, "refs/pr/1" if is_request else revision)
        repo_id = "/".join(parts[2:4])
        answer = {"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{sha}", "commitOid": sha}
        if is_request:
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo_id}/discussions/1"
        self._json(answer)

    def _resolve(self, with_body: bool) -> None:
        """``/owner/name/resolve/revision/path``."""
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path))
        if self.hub.failing:
            self._fail(418, "", "the hub is a teapot")
            return
        parts = path.strip("/").split("/")
        repo = self.hub.repos.get("/".join(parts[:2]))
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not is_known):
            self._fail(404 if is_known else 401, "RepoNotFound", "Repository not found")
            return
        if repo.gated:
            self._fail(403, "GatedRepo", "Access to this model is restricted")
            return
        sha = repo.resolve(parts[3])
        if sha is None:
            self._fail(404, "RevisionNotFound", "Invalid rev id")
            return
        content = repo.commits[sha].get("/".join(parts[4:]))
        if content is None:
            self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
            return
        headers = {
            "X-Repo-Commit": sha,
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
        }
        self._send(200, content, {"Content-Type": "application/octet-stream", **headers}, with_body)

    def _json(self, content: dict[str, Any] | list[Any], status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        errors = {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message}
        self._send(status, b"", {**errors, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub on a free port of localhost until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
