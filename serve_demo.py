"""Serve a search page over passages: student, teacher, BM25 and both together, side by side.

Reads:  a model (the recipe's result), its teacher, passages (files of any common kind)
Writes: runs/<recipe>/serve_demo/ with the passages' vectors; what is new is added to them

    python serve_demo.py
    python serve_demo.py --recipe mine --passages runs/mine/prepare_documents/final/passages
    python serve_demo.py --teacher "" --port 9000

The page is at http://127.0.0.1:8090/; its JSON at /api/search?q=why+is+the+sky+blue&top_k=5
"""

from pathlib import Path
from typing import TYPE_CHECKING

from small_modernbert.runs import references, settings
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.serving.passage_search import PassageSearch

# Inputs
MODEL: str = ""  # a stage, folder or hub id; "" is the recipe's result, as in try_it.py
TEACHER: str = "assets/models/all-MiniLM-L6-v2"  # beside it; "" for none: it reads every passage
PASSAGES: str = "assets/retrieval/corpus"  # a file, a folder of them, or mlm/create_dataset
RECIPE: str = "offline"  # the run whose model answers
QUERY_PROMPT: str = ""  # for a model whose folder names none (E5, BGE, DenseOn: "query: ")
DOCUMENT_PROMPT: str = ""  # likewise (E5: "passage: ", DenseOn: "document: ")

# Search
BM25_WEIGHT: float = 0.5  # of word matches beside a model, both scaled to 0-1; 0 for none
MAX_PASSAGES: int = 200_000  # the first ones; an exact search of these takes 20 to 35 ms

# Server
HOST: str = "127.0.0.1"  # this machine alone; "0.0.0.0" lets the network ask, without a password
PORT: int = 8090  # 0 takes a free one, and says which


def main() -> None:
    """Load models and passages, then answer until Ctrl-C."""
    check_settings()
    import uvicorn

    from small_modernbert.serving import app

    searcher = load()
    hosts = ["*"] if HOST == "0.0.0.0" else [HOST, "127.0.0.1", "localhost"]
    made = app.make_app(searcher, BM25_WEIGHT, hosts)
    server = uvicorn.Server(
        uvicorn.Config(made, HOST, PORT, log_level="warning", limit_concurrency=64)
    )
    socket = server.config.bind_socket()
    print(f"search at http://{HOST}:{socket.getsockname()[1]}/ ; Ctrl-C ends", flush=True)
    server.run(sockets=[socket])


def check_settings() -> None:
    """Refuse constants that cannot be obeyed, before anything is loaded.

    Raises:
        UserError: with the flag that works.
    """
    if not 0 <= BM25_WEIGHT <= 1:
        raise UserError(f"BM25_WEIGHT is {BM25_WEIGHT}; from 0 to 1: --bm25-weight 0.5")
    if MAX_PASSAGES < 1:
        raise UserError(f"MAX_PASSAGES is {MAX_PASSAGES}; at least 1: --max-passages 200000")
    if not 0 <= PORT < 65536:
        raise UserError(f"PORT is {PORT}; from 0 to 65535: --port 8090")


def load() -> "PassageSearch":
    """Load the models, and encode the passages that were not encoded before.

    Raises:
        UserError: a model or the passages are not there.
    """
    model = references.find_result(MODEL, RECIPE)
    passages = references.find_passages(PASSAGES, RECIPE)
    from small_modernbert.serving import passage_search

    texts = passage_search.read_passages(passages)
    if len(texts) > MAX_PASSAGES:
        print(f"the first {MAX_PASSAGES:,} of {len(texts):,} passages (--max-passages)")
        texts = texts[:MAX_PASSAGES]
    models: dict[str, Path | str] = {"student": model}
    if TEACHER:
        models["teacher"] = references.locate(TEACHER, RECIPE) or TEACHER
    searcher = passage_search.load_search(
        texts,
        models,
        references.runs_folder() / RECIPE / "serve_demo",
        query_prompt=QUERY_PROMPT,
        document_prompt=DOCUMENT_PROMPT,
        by_words=BM25_WEIGHT > 0,
    )
    if searcher.no_words:
        print(f"without BM25: {searcher.no_words}")
    return searcher


if __name__ == "__main__":
    settings.run(globals())
