"""The page and its JSON: answers, and refusals that say what works."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from browser import browse, needs_browser

from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT
from small_modernbert.serving import app
from small_modernbert.serving.passage_search import Hit

HOSTILE = "<img src=x onerror=alert(1)> & <b>bold</b>"
Get = Callable[..., tuple[int, dict[str, str], str]]


class Searcher:
    """Finds the same two passages always."""

    texts = ("plain text", HOSTILE)
    encoders = {"student": None}
    no_words = ""

    def find(self, question: str, top_k: int, weight: float) -> dict[str, list[Hit]]:
        """Return them; a question that says so fails as a model can."""
        del weight
        if question == "fail":
            raise UserError("the model gives NaN")
        return {"student": [Hit(1, 0.75), Hit(0, 0.5)][:top_k], "BM25": [Hit(0, 3.25)]}


@pytest.fixture
def get() -> Get:
    """Return a function that asks the application without a network."""
    made = app.make_app(Searcher(), 0.5, ["localhost"])  # type: ignore[arg-type]

    def ask(
        path: str, host: str = "localhost", method: str = "GET", **query: str
    ) -> tuple[int, dict[str, str], str]:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": urlencode(query, errors="surrogateescape").encode(),
            "headers": [(b"host", host.encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        sent: list[dict[str, Any]] = []

        given = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not given:
                await asyncio.Event().wait()  # whoever asked stays until the answer is there
            return given.pop()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(made(scope, receive, send))
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], headers, body.decode()

    return ask


def test_an_answer_has_every_way(get: Get) -> None:
    """Rows, scores and texts by label; a question in any script."""
    status, headers, body = get("/api/search", q="天気は?", top_k="1")
    answer = json.loads(body)
    assert status == 200
    assert answer["question"] == "天気は?"
    assert answer["ways"]["student"] == [{"row": 1, "score": 0.75, "text": HOSTILE}]
    assert headers["content-type"] == "application/json"
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ({}, 400, "empty"),
        ({"q": "  \t"}, 400, "empty"),
        ({"q": "x" * 1_000_000}, 400, "1,000,000 characters; at most 2,000"),
        ({"q": "a", "top_k": "0"}, 400, "from 1 to 50"),
        ({"q": "a", "top_k": "1e9"}, 400, "from 1 to 50"),
        ({"q": "a", "top_k": "9" * 40}, 400, "from 1 to 50"),
        ({"q": "a", "top_k": "²"}, 400, "from 1 to 50"),
        ({"q": "fail"}, 422, "NaN"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_json(
    get: Get, query: dict[str, str], status: int, said: str
) -> None:
    """Whatever is wrong, the answer says what works."""
    code, _, body = get("/api/search", **query)
    assert code == status
    assert said in json.loads(body)["error"]


@pytest.mark.parametrize("question", ["\udcff\udcfe", "a\0b", HOSTILE, "' OR 1=1 --", "../../etc"])
def test_strange_questions_are_questions(get: Get, question: str) -> None:
    """Bytes that are no text, zeros, markup: asked as they are, never run, never a 500."""
    status, _, body = get("/api/search", q=question)
    assert status == 200
    assert json.loads(body)["ways"]["student"]


def test_other_paths_methods_and_hosts_are_refused(get: Get) -> None:
    """Nothing outside of the listed files is read; a page of another name gets no answer."""
    assert get("/../app.py")[0] == 404
    assert get("/static/page.html")[0] == 404
    assert get("/api/search", method="POST", q="a")[0] == 405
    assert get("/api/search", host="evil.example", q="a")[0] == 400


def test_too_many_questions_are_told_to_wait(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is bounded, and says so."""
    del monkeypatch
    codes = [get("/api/search", q="a")[0] for _ in range(app.A_MINUTE + 1)]
    assert codes[-2:] == [200, 429]


def test_the_page_and_its_files_are_there(get: Get) -> None:
    """The page names its own files alone, and no script stands in it."""
    status, _, page = get("/")
    assert status == 200
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert get(name)[0] == 200
    assert "<script>" not in page
    assert "innerHTML" not in get("/page.js")[2]


SERVER = """
import sys, uvicorn
sys.path[:0] = [{tests!r}, {root!r}]
from serving.test_app import Searcher
from small_modernbert.serving import app
config = uvicorn.Config(app.make_app(Searcher(), 0.5, ["127.0.0.1"]), port=0, log_level="error")
socket = config.bind_socket()
print(socket.getsockname()[1], flush=True)
uvicorn.Server(config).run(sockets=[socket])
"""


@needs_browser
def test_a_browser_shows_passages_as_text(tmp_path: Path) -> None:
    """Both ways stand side by side; markup in a passage is read, not obeyed; no console error."""
    source = SERVER.format(tests=str(ROOT / "tests"), root=str(ROOT))
    server = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        address = f"http://127.0.0.1:{port}/?q=rain"
        dom = browse(address, tmp_path, "--virtual-time-budget=5000")
    finally:
        server.kill()
        server.wait()
    assert re.findall(r"<h2>(.*?)</h2>", dom) == ["student", "BM25"]
    assert "&lt;img src=x onerror=alert(1)&gt;" in dom
    assert "<img" not in dom
    assert "0.750" in dom
