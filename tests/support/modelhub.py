"""A hub of models on a loopback port: real HTTP, as the real `huggingface_hub` client asks for it, and faults at will.

    with ModelHub() as hub:
        commit = hub.add("org/name", folder, licence="mit")
        snapshot_download("org/name", endpoint=hub.endpoint, cache_dir=...)
        assert hub.sent["org/name/model.safetensors"] == size

It runs in a thread of its own. `python -m tests.support.modelhub ORG/NAME=FOLDER ...` serves some folders.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.support.hubbodies import Fault, FileBody, span
from tests.support.hubrepos import HubFile, Repo, commit_name, files_of

NAME = r"(?P<name>[^/]+(?:/[^/]+)?)"
INFO = re.compile(rf"/api/models/{NAME}(?:/revision/(?P<revision>[^/]+))?")
TREE = re.compile(rf"/api/models/{NAME}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
FILE = re.compile(rf"(?P<cdn>/cdn)?/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
Parts = dict[str, str | None]


class ModelHub:
    """The hub: what it serves, what is to go wrong, and what it has sent."""

    def __init__(self, *, page: int = 1000, redirects: bool = False) -> None:
        """`page`: most entries of an answer; `redirects`: large files are told to be elsewhere."""
        self.sent: Counter[str] = Counter()
        """Bytes of files that were sent, by `org/name/path`."""
        self.asked: Counter[str] = Counter()
        """Requests by method and address without query, as `GET /api/models/org/name`."""
        self.authorized: dict[str, str | None] = {}
        """What the last request to each address had as its `Authorization`, by the names of `asked`."""
        self.unknown_tokens: set[str] = set()
        """Tokens that the hub refuses, whatever is asked."""
        self.stalled: Counter[str] = Counter()
        """Answers that stall now, by `org/name/path`."""
        self.faults: list[Fault] = []
        self._repos: dict[str, Repo] = {}
        self._page, self._redirects = page, redirects
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def endpoint(self) -> str:
        """Address for clients, as `HF_ENDPOINT`; the same after each start."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    @property
    def total_sent(self) -> int:
        """Bytes of files that were sent, all together."""
        return sum(self.sent.values())

    def add(self, name: str, folder: Path, revision: str = "main", **card: Any) -> str:
        """Serve a folder as a commit, which becomes the branch's last; returns the commit.

        The folder is read when it is added, and must stay as it is. `card`: fields of `Repo`, as `licence="mit"`.
        """
        repo = self._repos.setdefault(name, Repo(name))
        for key, value in card.items():
            getattr(repo, key)  # a typo fails
            setattr(repo, key, value)
        files = files_of(folder)
        commit = commit_name(name, revision, files)
        repo.commits[commit] = files
        repo.branches[revision] = commit
        return commit

    def move(self, name: str, branch: str, commit: str) -> None:
        """Have a branch or tag stand for another commit."""
        assert commit in self._repos[name].commits
        self._repos[name].branches[branch] = commit

    def fault(self, **fields: Any) -> Fault:
        """Have something go wrong from now on; returns the fault, for `mend`."""
        fault = Fault(**fields)
        self.faults.append(fault)
        return fault

    def mend(self, fault: Fault | None = None) -> None:
        """Let one fault be over, or all."""
        self.faults = [other for other in self.faults if fault is not None and other is not fault]

    def start(self) -> None:
        """Begin to answer."""
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "HEAD"])])
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._socket.listen(2048)  # from now on clients wait rather than fail
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket.dup()]}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more: connections are refused. It can be started again."""
        assert self._server is not None
        assert self._thread is not None
        address = self._socket.getsockname()
        self._socket.close()
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(address)  # keeps the port, without answering on it

    def __enter__(self) -> ModelHub:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()
        self._socket.close()

    async def _answer(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode().partition("?")[0]
        asked = f"{request.method} {unquote(path)}"
        self.asked[asked] += 1
        self.authorized[asked] = request.headers.get("authorization")
        if _token(request) in self.unknown_tokens:
            return _error(401, None, "Invalid credentials in Authorization header")
        if path == "/api/models":
            return self._fail(path) or self._list(request)
        for pattern, answer in ((TREE, self._tree), (INFO, self._info), (FILE, self._file)):
            if found := pattern.fullmatch(path):
                parts = {key: value and unquote(value) for key, value in found.groupdict().items()}
                return answer(request, parts)
        return _error(404, None, "no such address")

    def _info(self, request: Request, parts: Parts) -> Response:
        repo, commit, refused = self._find(request, parts)
        whole = request.query_params.get("blobs", "").lower() == "true"
        return refused or JSONResponse(repo.info(commit, whole=whole), headers={"X-Repo-Commit": commit})

    def _tree(self, request: Request, parts: Parts) -> Response:
        repo, commit, refused = self._find(request, parts)
        if refused:
            return refused
        folder = parts["folder"]
        entries = [entry for entry in repo.listing(commit) if not folder or entry["path"].startswith(f"{folder}/")]
        if folder and not entries:
            return _error(404, "EntryNotFound", f"{folder} does not exist", commit)
        if request.query_params.get("recursive", "").lower() != "true":
            depth = folder.count("/") + 1 if folder else 0
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
        return self._paged(request, entries)

    def _list(self, request: Request) -> Response:
        asked = request.query_params
        repos = [repo for repo in self._repos.values() if asked.get("search", "").lower() in repo.name.lower()]
        if kind := asked.get("pipeline_tag"):
            repos = [repo for repo in repos if repo.pipeline_tag == kind]
        shown = [repo.info(repo.branches["main"], files="full" in asked) for repo in repos if not repo.private]
        shown = [each for each in shown if set(asked.getlist("filter")) <= {*each["tags"], each["pipeline_tag"]}]
        shown.sort(key=lambda each: each.get(asked.get("sort", "downloads"), 0), reverse=True)
        if fields := asked.getlist("expand"):
            shown = [{key: value for key, value in each.items() if key in {"id", *fields}} for each in shown]
        return self._paged(request, shown, int(asked.get("limit", self._page)))  # of a page, not of all

    def _file(self, request: Request, parts: Parts) -> Response:
        repo, commit, refused = self._find(request, parts, content=True)
        if refused:
            return refused
        file = repo.commits[commit].get(parts["path"] or "")
        if file is None:
            return _error(404, "EntryNotFound", f"{parts['path']} is not in {repo.name}", commit)
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.sha256 is not None:
            headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        if self._redirects and file.sha256 is not None and not parts["cdn"]:
            other = self.endpoint.replace("127.0.0.1", "localhost")
            return RedirectResponse(f"{other}/cdn{request.url.path}", 302, headers)
        return self._send(request, f"{repo.name}/{file.path}", file, headers)

    def _send(self, request: Request, name: str, file: HubFile, headers: dict[str, str]) -> Response:
        fault = self._take(name) if request.method == "GET" else None
        asked = None if fault and fault.whole else request.headers.get("range")
        start, stop = span(asked, file.size)
        if start is None:
            return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{file.size}"})
        status = 200 if asked is None else 206
        headers |= {"Content-Length": str(stop - start), "Content-Type": "application/octet-stream"}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return FileBody(self, name, file.place, (start, stop), fault, status, headers)

    def _find(self, request: Request, parts: Parts, *, content: bool = False) -> tuple[Repo, str, Response | None]:
        """Find the commit that is meant, or an answer that says why not: then the others are of no use."""
        name, revision = parts["name"] or "", parts.get("revision") or "main"
        token = _token(request)
        repo, failed = self._repos.get(name), self._fail(f"{name}/{parts['path']}" if content else request.url.path)
        if failed:
            return Repo(name), "", failed
        if repo is None or (repo.private and token not in repo.tokens):
            return Repo(name), "", _error(404 if token else 401, "RepoNotFound", "Repository not found")
        if content and repo.gated and token not in repo.tokens and not parts["cdn"]:
            return repo, "", _error(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        commit = repo.commit_of(revision)
        if commit is None:
            return repo, "", _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit, None

    def _paged(self, request: Request, entries: list[dict[str, Any]], most: int | None = None) -> Response:
        start, page = int(request.query_params.get("cursor", 0)), min(most or self._page, self._page)
        headers: dict[str, str] = {}
        if start + page < len(entries):
            query = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
            url = f"{self.endpoint}{request.url.path}?{urlencode([*query, ('cursor', start + page)])}"
            headers["Link"] = f'<{url}>; rel="next"'
        return JSONResponse(entries[start : start + page], headers=headers)

    def _fail(self, path: str) -> Response | None:
        fault = next((fault for fault in self._fitting(path) if fault.status), None)
        if fault is None:
            return None
        status, body = _spent(fault).status or 500, fault.body
        answer = _error(status, None, "the hub has a fault") if body is None else Response(body, status)
        answer.headers.update(fault.headers)
        return answer

    def _take(self, path: str) -> Fault | None:
        fault = next((fault for fault in self._fitting(path) if not fault.status), None)
        return _spent(fault) if fault else None

    def _fitting(self, path: str) -> Iterator[Fault]:
        return (fault for fault in self.faults if fault.times != 0 and fnmatchcase(path, fault.path))


def _token(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")


def _spent(fault: Fault) -> Fault:
    fault.times = fault.times and fault.times - 1
    return fault


def _error(status: int, code: str | None, message: str, commit: str | None = None) -> Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, headers | ({"X-Repo-Commit": commit} if commit else {}))


async def _serve(folders: list[str]) -> None:
    with ModelHub() as hub:
        for text in folders:
            name, _, folder = text.partition("=")
            hub.add(name, Path(folder))
        sys.stdout.write(json.dumps({"endpoint": hub.endpoint}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
