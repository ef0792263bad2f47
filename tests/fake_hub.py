"""The part of the hub's HTTP interface that huggingface_hub calls to make, fill and read model repositories."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """Branches (and pull requests) to commits, and the files of each commit."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)

    def commit(self, branch: str, files: Files) -> str:
        commit = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        return commit


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class FakeHub:
    """Serves on loopback until it is closed. ``hf_writer`` may write, ``hf_reader`` read what is private."""

    user = "user"
    tokens = ("hf_writer", "hf_reader")
    large = (".safetensors", ".bin")  # names of what goes over git LFS, whatever its size

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.messages: list[str] = []
        hub = self

        class Handler(_Handler):
            def answer(self, body: bytes) -> None:
                _route(hub, self, body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo_id: str, branch: str = "main") -> Files:
        repository = self.repositories[repo_id]
        return repository.commits[repository.branches[branch]]

    def put(self, repo_id: str, files: Files) -> None:
        """As if someone had committed the files to main in a browser."""
        repository = self.repositories[repo_id]
        repository.commit("main", {**self.files(repo_id), **files})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self.answer(body)
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    do_GET = do_HEAD = do_PUT = do_POST

    def answer(self, body: bytes) -> None:
        raise NotImplementedError

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Tests read standard error."""


def _route(hub: FakeHub, request: _Handler, body: bytes) -> None:
    url = urlsplit(request.path)
    parts = [unquote(part) for part in url.path.strip("/").split("/")]
    match request.command, parts:
        case "POST", ["api", "repos", "create"]:
            _create(hub, request, json.loads(body))
        case "POST", ["api", "validate-yaml"]:
            _validate(request, json.loads(body)["content"])
        case "POST", ["api", "models", user, name, "branch", branch]:
            repository = _writable(hub, request, f"{user}/{name}")
            if branch in repository.branches:
                raise Refusal(409)
            repository.branches[branch] = repository.branches["main"]
            request.send_json({})
        case "POST", ["api", "models", user, name, "preupload", branch]:
            _commit_of(_writable(hub, request, f"{user}/{name}"), branch)
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "lfs" if path.endswith(hub.large) else "regular"} for path in paths]
            request.send_json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        case "POST", [user, name, "info", "lfs", "objects", "batch"]:
            _writable(hub, request, f"{user}/{name.removesuffix('.git')}")
            objects = json.loads(body)["objects"]
            links = [{"actions": {"upload": {"href": f"{hub.endpoint}/large/{item['oid']}"}}} for item in objects]
            request.send_json({"objects": [{**item, **link} for item, link in zip(objects, links, strict=True)]})
        case "PUT", ["large", oid]:
            assert hashlib.sha256(body).hexdigest() == oid
            hub.large_files[oid] = body
            request.send_json({})
        case "POST", ["api", "models", user, name, "commit", branch]:
            _commit(hub, request, f"{user}/{name}", branch, body, "create_pr" in parse_qs(url.query))
        case "GET", ["api", "models", user, name, "revision", branch]:
            repository = _readable(hub, request, f"{user}/{name}")
            request.send_json({"id": f"{user}/{name}", "sha": _commit_of(repository, branch)})
        case "GET", ["api", "models", user, name]:
            repository = _readable(hub, request, f"{user}/{name}")
            request.send_json({"id": f"{user}/{name}", "sha": repository.branches["main"]})
        case "GET", ["api", "models", user, name, "tree", branch, *folder]:
            repository = _readable(hub, request, f"{user}/{name}")
            files = repository.commits[_commit_of(repository, branch)]
            items = [{"path": path, "size": len(data), "oid": _etag(data)} for path, data in files.items()]
            within = "".join(f"{part}/" for part in folder)
            request.send_json([{"type": "file", **item} for item in items if item["path"].startswith(within)])
        case (("GET" | "HEAD"), [user, name, "resolve", branch, *path]):
            repository = _readable(hub, request, f"{user}/{name}")
            commit = _commit_of(repository, branch)
            data = repository.commits[commit].get("/".join(path))
            if data is None:
                raise Refusal(404, "EntryNotFound", "Entry not found")
            request.send(200, data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit})
        case _:
            raise Refusal(404, message=f"the fake hub has no {request.command} {url.path}")


def _create(hub: FakeHub, request: _Handler, asked: dict[str, Any]) -> None:
    repo_id = f"{asked.get('organization') or hub.user}/{asked['name']}"
    _check_writer(hub, request)
    known = repo_id in hub.repositories
    if not known:
        hub.repositories[repo_id] = Repository(private=asked.get("visibility") == "private")
        hub.repositories[repo_id].commit("main", {".gitattributes": b""})
    request.send_json({"url": f"{hub.endpoint}/{repo_id}"}, 409 if known else 200)


def _validate(request: _Handler, card: str) -> None:
    """Refuses one license for all that the hub does not know."""
    errors = [{"message": '"license" must be one of [apache-2.0, mit, …]'}] if "license: mine" in card else []
    request.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)


def _commit(hub: FakeHub, request: _Handler, repo_id: str, branch: str, body: bytes, as_pull_request: bool) -> None:
    repository = _writable(hub, request, repo_id)
    files = dict(repository.commits[_commit_of(repository, branch)])
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        match item["key"]:
            case "header":
                hub.messages.append(value["summary"])
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                files[value["path"]] = hub.large_files[value["oid"]]
    commit = repository.commit("refs/pr/1" if as_pull_request else branch, files)
    answer = {"commitUrl": f"{hub.endpoint}/{repo_id}/commit/{commit}", "commitOid": commit}
    request.send_json({**answer, "pullRequestUrl": f"{hub.endpoint}/{repo_id}/discussions/1"})


def _check_writer(hub: FakeHub, request: _Handler) -> None:
    if request.token not in hub.tokens:
        raise Refusal(401, message="Invalid username or password.")
    if request.token != "hf_writer":
        raise Refusal(403, message="You don't have the rights to create a model under this namespace")


def _writable(hub: FakeHub, request: _Handler, repo_id: str) -> Repository:
    _check_writer(hub, request)
    return _readable(hub, request, repo_id)


def _readable(hub: FakeHub, request: _Handler, repo_id: str) -> Repository:
    """As the hub does, what is private is as good as not there."""
    repository = hub.repositories.get(repo_id)
    if repository is None or (repository.private and request.token not in hub.tokens):
        raise Refusal(404 if request.token in hub.tokens else 401, "RepoNotFound", "Repository not found")
    return repository


def _commit_of(repository: Repository, revision: str) -> str:
    if revision in repository.commits:
        return revision
    if revision not in repository.branches:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return repository.branches[revision]


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
