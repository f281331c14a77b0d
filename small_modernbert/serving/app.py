"""The search page and its JSON: an application for any ASGI server, on starlette.

    GET /                             the page
    GET /api/search?q=…&top_k=5       {"question", "ways": {label: [{"row", "score", "text"}]}}
    GET /api/about                    labels, number of passages, what is missing and why
    GET /health                       "ok" as soon as it answers

Every refusal is JSON, {"error": what is wrong and what works}. Texts are sent as text, and the page
shows them as text.
"""

import asyncio
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.serving.passage_search import PassageSearch

STATIC = Path(__file__).with_name("static")
FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
LONGEST_QUESTION = 2_000  # characters; a model reads a few hundred tokens of it
MOST_HITS = 50
AT_ONCE = 4  # questions that wait for their turn; beyond, the answer is 503
A_MINUTE = 240  # questions; beyond, the answer is 429
# Nothing is fetched from elsewhere, and nothing of a passage is ever run.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_app(searcher: "PassageSearch", weight: float, hosts: list[str]) -> Starlette:
    """Return the application.

    Args:
        searcher: what answers.
        weight: of BM25 beside a model.
        hosts: names under which it may be asked; another one is refused (DNS rebinding).
    """
    search = _Search(searcher, weight)
    return Starlette(
        routes=[
            Route("/api/search", search.answer),
            Route("/api/about", search.about),
            Route("/health", _health),
            *(Route(path, _file) for path in FILES),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={404: _missing, 405: _method},
    )


class _Search:
    """Questions that come in, a few at once and so many a minute."""

    def __init__(self, searcher: "PassageSearch", weight: float) -> None:
        self.searcher, self.weight = searcher, weight
        self.waiting = asyncio.Semaphore(AT_ONCE)
        self.asked: deque[float] = deque(maxlen=A_MINUTE)

    async def answer(self, request: Request) -> Response:
        """Answer a question, or say why not."""
        question, top_k, problem = _read(request)
        if problem:
            return _refuse(400, problem)
        now = time.monotonic()
        if len(self.asked) == A_MINUTE and now - self.asked[0] < 60:
            return _refuse(429, f"more than {A_MINUTE} questions a minute; wait a little")
        if self.waiting.locked():
            return _refuse(503, f"{AT_ONCE} questions are being answered; ask again")
        self.asked.append(now)
        searcher = self.searcher
        async with self.waiting:
            try:
                answers = await run_in_threadpool(searcher.find, question, top_k, self.weight)
            except UserError as error:
                return _refuse(422, str(error))
        ways = {
            label: [
                {"row": hit.row, "score": round(hit.score, 4), "text": searcher.texts[hit.row]}
                for hit in hits
            ]
            for label, hits in answers.items()
        }
        return JSONResponse({"question": question, "ways": ways}, headers=HEADERS)

    async def about(self, _: Request) -> Response:
        """Say what is searched, and by what."""
        facts: dict[str, Any] = {
            "models": list(self.searcher.encoders),
            "passages": len(self.searcher.texts),
            "bm25_weight": self.weight,
            "no_bm25": self.searcher.no_words,
        }
        return JSONResponse(facts, headers=HEADERS)


async def _file(request: Request) -> Response:
    return FileResponse(STATIC / FILES[request.url.path], headers=HEADERS)


async def _health(_: Request) -> Response:
    return PlainTextResponse("ok")


async def _missing(request: Request, _: Exception) -> Response:
    return _refuse(404, f"{request.url.path[:80]} is not here; ask /api/search?q=…")


async def _method(request: Request, _: Exception) -> Response:
    return _refuse(405, f"{request.method} is not answered; use GET")


def _read(request: Request) -> tuple[str, int, str]:
    """Return question and number of hits, and what is wrong with them; empty where nothing is."""
    question = request.query_params.get("q", "")
    # Bytes that are no text come as lone surrogates, which no tokenizer takes.
    question = question.encode("utf-8", "replace").decode("utf-8").replace("\0", " ").strip()
    given = request.query_params.get("top_k", "5")
    if not question:
        return "", 0, "the question is empty; ask something: /api/search?q=why is the sky blue"
    if len(question) > LONGEST_QUESTION:
        return "", 0, f"the question has {len(question):,} characters; at most {LONGEST_QUESTION:,}"
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:9]) <= MOST_HITS:
        return "", 0, f"top_k is {given[:20]!r}; a whole number from 1 to {MOST_HITS}"
    return question, int(given), ""


def _refuse(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status_code=status, headers=HEADERS)
