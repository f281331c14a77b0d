"""Type a question, see the best real passages, by the model just trained and by their words.

Reads:  a model (the recipe's result), passages (files of any common kind with a column `text`),
        questions (standard input, one a line, until its end or "quit")
Writes: runs/<recipe>/try_it/ with the passages' vectors, so that the next start is quick

    python try_it.py
    python try_it.py --question "why is the sky blue"
    python try_it.py --model assets/models/all-MiniLM-L6-v2 --passages mlm/create_dataset
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from small_modernbert.data import cleaning
from small_modernbert.runs import references, settings
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.serving.passage_search import PassageSearch

# Inputs
MODEL: str = (
    ""  # a stage, folder or hub id; "" is the recipe's result: the last stage that is there
)
PASSAGES: str = "assets/retrieval/corpus"  # a file, a folder of them, or mlm/create_dataset
QUESTION: str = ""  # answer this one and stop; "" reads questions from the terminal
RECIPE: str = "offline"  # the run whose model answers
QUERY_PROMPT: str = ""  # for a model whose folder names none (E5, BGE, DenseOn: "query: ")
DOCUMENT_PROMPT: str = ""  # likewise (E5: "passage: ", DenseOn: "document: ")

# Search
BM25_WEIGHT: float = 0.5  # of word matches beside the model, both scaled to 0-1; 0 for the model

# Output
TOP_K: int = 5  # passages shown per question
LINES: int = 6  # of each passage; the rest is cut

SHOWN_CHARACTERS = 300  # of a question that is repeated above its answers


def main() -> None:
    """Load model and passages while the first question is typed, then answer each question."""
    check_settings()
    model = references.find_result(MODEL, RECIPE)
    passages = references.find_passages(PASSAGES, RECIPE)
    # torch takes seconds to import: as long as it takes to type. A daemon does not hold up "quit".
    loading: Future[PassageSearch] = Future()
    Thread(target=load_into, args=(loading, model, passages), daemon=True).start()
    for question in read_questions():
        show(question, loading.result())


def check_settings() -> None:
    """Refuse constants that cannot be obeyed, before anything is loaded.

    Raises:
        UserError: with the flag that works.
    """
    if TOP_K < 1 or LINES < 1:
        raise UserError(f"TOP_K is {TOP_K}, LINES {LINES}; at least 1 of each: --top-k 5 --lines 6")
    if not 0 <= BM25_WEIGHT <= 1:
        raise UserError(f"BM25_WEIGHT is {BM25_WEIGHT}; from 0 to 1: --bm25-weight 0.5")
    if QUESTION and not QUESTION.strip():
        raise UserError("QUESTION is blank; ask something: --question 'why is the sky blue'")


def load_into(future: "Future[PassageSearch]", model: Path | str, passages: Path) -> None:
    """Run `load` for whoever waits on the future; an error is raised there."""
    try:
        future.set_result(load(model, passages))
    except BaseException as error:
        future.set_exception(error)


def load(model: "Path | str", passages: Path) -> "PassageSearch":
    """Load the model and the distinct passages, and encode those that were not encoded before."""
    from small_modernbert.serving import passage_search

    searcher = passage_search.load_search(
        passage_search.read_passages(passages),
        {MODEL or "the model": model},
        references.runs_folder() / RECIPE / "try_it",
        query_prompt=QUERY_PROMPT,
        document_prompt=DOCUMENT_PROMPT,
        by_words=BM25_WEIGHT > 0,
    )
    if searcher.no_words:
        print(f"by the model alone: {searcher.no_words}")
    return searcher


def read_questions() -> Iterator[str]:
    """Yield QUESTION alone, or questions from standard input, a terminal or not."""
    if QUESTION:
        # Bytes that are no text come as lone surrogates, which no tokenizer takes.
        yield QUESTION.encode("utf-8", "replace").decode("utf-8").strip()
        return
    sys.stdin.reconfigure(errors="replace")  # bytes that are no text must not stop the tokenizer
    if sys.stdin.isatty():
        print('Ask a question; "quit" or Ctrl-D ends.')
    while True:
        if sys.stdin.isatty():
            print("\n> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip().lower() in {"quit", "exit"}:
            return
        if line.strip():
            yield line.strip()


def show(question: str, searcher: "PassageSearch") -> None:
    """Print the best passages with their scores, wrapped to the terminal.

    A score is a cosine, or where words take part the mean of both, each scaled to 0-1.
    """
    width = max(40, min(shutil.get_terminal_size().columns, 110))
    shown = cleaning.show(question[: SHOWN_CHARACTERS + 1])
    print(f"\n{shown[:SHOWN_CHARACTERS]}{' …' * (len(question) > SHOWN_CHARACTERS)}")
    (label,) = searcher.encoders
    ways = searcher.find(question, TOP_K, BM25_WEIGHT)
    for hit in ways.get(f"{label} + BM25", ways[label]):
        text = textwrap.fill(
            cleaning.show(searcher.texts[hit.row]),
            width,
            initial_indent=f"  {hit.score:.3f} ",
            subsequent_indent=" " * 8,
            max_lines=LINES,
            placeholder=" …",
        )
        print(text)


if __name__ == "__main__":
    settings.run(globals())
