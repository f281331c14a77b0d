"""A hub on the loopback address: folders served to the hub's own client libraries.

It answers what huggingface_hub and datasets ask (information, trees, files, ranges of files), with
the hub's headers and the hub's error codes, and it can fail as the hub fails.

    <root>/models/<owner>/<name>/...
    <root>/datasets/<owner>/<name>/...
"""

import functools
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

KINDS = ("models", "datasets")
DATE = "2026-01-01T00:00:00.000Z"
PIECE = 1 << 20  # bytes written at once
_API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|refs)(/.*)?)?"
)
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Faults:
    """What goes wrong with a repository.

    Attributes:
        gated: its files are refused until terms are accepted.
        drops: connections to cut in the middle of a file; -1 for every one.
        busy: requests to answer with 503 before the first good answer.
    """

    gated: bool = False
    drops: int = 0
    busy: int = 0


@dataclass
class Repository:
    """One model or data set.

    Attributes:
        kind: "models" or "datasets".
        id: owner/name.
        folder: with its files.
        commits: that are known; the last one is the newest, and all hold the same files.
        faults: what goes wrong.
    """

    kind: str
    id: str
    folder: Path
    commits: list[str]
    faults: Faults = field(default_factory=Faults)

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a revision means; None if there is none."""
        return self.commits[-1] if revision == "main" else self.known(revision)

    def known(self, revision: str) -> str | None:
        """Return a commit by itself or by its beginning."""
        return next((commit for commit in self.commits if commit.startswith(revision)), None)

    def files(self) -> list[Path]:
        """Return its files, relative to its folder, in order."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder) for path in paths)


class LocalHub:
    """A server for the repositories below a folder; use as a context manager.

    Attributes:
        endpoint: for HF_ENDPOINT.
        repositories: by (kind, id).
        requests: method and path of every request, in order.
    """

    def __init__(self, root: Path, commits: dict[str, str] | None = None) -> None:
        """Find the repositories; `commits` gives the pinned ones by id."""
        self.repositories: dict[tuple[str, str], Repository] = {}
        for kind in KINDS:
            for folder in sorted(path for path in (root / kind).glob("*/*") if path.is_dir()):
                id = f"{folder.parent.name}/{folder.name}"
                made = hashlib.sha1(f"{kind}/{id}".encode()).hexdigest()
                commit = (commits or {}).get(id, made)
                self.repositories[kind, id] = Repository(kind, id, folder, [commit])
        self.requests: list[str] = []
        hub = self

        class Bound(_Handler):
            pass

        Bound.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        """Start answering."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:  # noqa: ANN401  of http.server
        """Say nothing on standard error."""

    def do_HEAD(self) -> None:  # noqa: N802  http.server's name
        self._answer()

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def do_POST(self) -> None:  # noqa: N802
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if path == "/":
            return self._send(200, b"a hub\n", "text/plain")
        if match := _API.fullmatch(path):
            kind, id, what, rest = match.groups()
            return self._with_repository(kind, id, lambda found: self._inform(found, what, rest))
        if match := _FILE.fullmatch(path):
            kind, id, revision, name = match.groups()
            return self._with_repository(
                kind or "models", id, lambda found: self._file(found, revision, name)
            )
        return self._fail(404, "EntryNotFound", f"nothing at {path}")

    def _with_repository(self, kind: str, id: str, then: Any) -> None:  # noqa: ANN401  a method
        repository = self.hub.repositories.get((kind, id))
        if repository is None:
            # As the hub has it: who has no token is not told whether there is such a thing.
            return self._fail(401, "RepoNotFound", "Repository not found")
        if repository.faults.busy > 0:
            repository.faults.busy -= 1
            return self._fail(503, "", "Service Unavailable")
        return then(repository)

    def _inform(self, repository: Repository, what: str | None, rest: str | None) -> None:
        """Answer a request for information, a tree, or what stands at some paths."""
        first, _, below = (rest or "/main").removeprefix("/").partition("/")
        if what == "refs":
            branch = {"name": "main", "ref": "refs/heads/main"}
            branch["targetCommit"] = repository.commits[-1]
            return self._json({"branches": [branch], "tags": [], "converts": []})
        commit = repository.resolve(first)
        if commit is None:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {first}")
        if what == "tree":
            query = parse_qs(urlsplit(self.path).query)
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = list_tree(repository, below, recursive)
            if entries is None:
                return self._fail(404, "EntryNotFound", f"{below} does not exist on {first}")
            return self._json(entries)
        if what == "paths-info":
            asked = json.loads(self.body) if self.body[:1] == b"{" else None
            paths = asked["paths"] if asked else parse_qs(self.body.decode())["paths"]
            described = [describe(repository, path.strip("/")) for path in paths]
            return self._json([entry for entry in described if entry])
        return self._json(
            {
                "_id": repository.id,
                "id": repository.id,
                "modelId": repository.id,
                "author": repository.id.partition("/")[0],
                "sha": commit,
                "lastModified": DATE,
                "createdAt": DATE,
                "private": False,
                "disabled": False,
                "gated": "auto" if repository.faults.gated else False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path.as_posix()} for path in repository.files()],
            }
        )

    def _file(self, repository: Repository, revision: str, name: str) -> None:
        """Send a file, or a range of it."""
        commit = repository.resolve(revision)
        if commit is None:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if repository.faults.gated:
            text = f"Access to {repository.id} is restricted and you are not in the authorized list"
            return self._fail(403, "GatedRepo", text)
        path = repository.folder / name
        if not path.is_file():
            headers = {"X-Repo-Commit": commit}
            return self._fail(404, "EntryNotFound", "Entry not found", headers)
        size = path.stat().st_size
        begin, end = 0, size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            begin, end = int(asked[1]), min(size, int(asked[2] or size - 1) + 1)
            if begin >= size:
                return self._fail(416, "", "Range Not Satisfiable")
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{digest(path, size, path.stat().st_mtime_ns)}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command != "HEAD":
            self._stream(repository, path, begin, end)
        return None

    def _stream(self, repository: Repository, path: Path, begin: int, end: int) -> None:
        cut = end
        if repository.faults.drops and end - begin > 1:
            repository.faults.drops -= 1
            cut = (begin + end) // 2
        with path.open("rb") as stream:
            stream.seek(begin)
            while begin < cut:
                piece = stream.read(min(PIECE, cut - begin))
                try:
                    self.wfile.write(piece)
                except OSError:  # the client has what it wanted
                    self.close_connection = True
                    return
                begin += len(piece)
        if cut < end:
            self.close_connection = True

    def _json(self, value: Any) -> None:  # noqa: ANN401  anything that JSON can carry
        self._send(200, json.dumps(value).encode(), "application/json")

    def _fail(
        self, status: int, code: str, text: str, headers: dict[str, str] | None = None
    ) -> None:
        told = {"X-Error-Code": code, "X-Error-Message": text} if code else {}
        body = json.dumps({"error": text}).encode()
        self._send(status, body, "application/json", {**told, **(headers or {})})

    def _send(
        self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def describe(repository: Repository, name: str) -> dict[str, Any] | None:
    """Return what a tree says of a path: a file or a directory; None if it is neither."""
    path = repository.folder / name
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()}
    if not path.is_file():
        return None
    size = path.stat().st_size
    oid = digest(path, size, path.stat().st_mtime_ns)
    return {"type": "file", "path": name, "size": size, "oid": oid[:40]}


def list_tree(repository: Repository, below: str, recursive: bool) -> list[dict[str, Any]] | None:
    """Return the entries below a path, as the hub lists them; None if there is no such folder."""
    folder = repository.folder / below
    if not folder.is_dir():
        return None
    paths = folder.rglob("*") if recursive else folder.iterdir()
    names = sorted(path.relative_to(repository.folder).as_posix() for path in paths)
    entries = [describe(repository, name) for name in names]
    return [entry for entry in entries if entry is not None]


@functools.cache
def digest(path: Path, size: int, time: int) -> str:
    """Return the sha256 of a file; its size and time say whether it is still the same."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
