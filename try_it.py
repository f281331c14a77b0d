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
from typing import TYPE_CHECKING, NamedTuple

from small_modernbert.runs import references, settings
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from small_modernbert.evaluation.bm25 import WordIndex
    from small_modernbert.models.encoders import Encoder

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

RESULTS = ("sts_fine_tuning", "distil_modernbert")
SHOWN_CHARACTERS = 300  # of a question that is repeated above its answers


class Searcher(NamedTuple):
    """What answers: a model with its passages' vectors, and their words.

    Attributes:
        encoder: the model.
        texts: the passages.
        vectors: `(passages, width)`, of unit length.
        index: of their words; None where BM25 does not take part.
    """

    encoder: "Encoder"
    texts: list[str]
    vectors: "np.ndarray"
    index: "WordIndex | None"


def main() -> None:
    """Load model and passages while the first question is typed, then answer each question."""
    check_settings()
    model, passages = find_model(), find_passages()
    # torch takes seconds to import: as long as it takes to type. A daemon does not hold up "quit".
    loading: Future[Searcher] = Future()
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


def find_model() -> Path | str:
    """Return the folder of the model that answers, or its hub id.

    Raises:
        UserError: nothing has been trained yet.
    """
    if MODEL:
        return references.locate(MODEL, RECIPE) or MODEL
    for script in RESULTS:
        try:
            folder = references.locate(script, RECIPE)
        except UserError:
            continue
        if folder is not None:
            return folder
    raise UserError(f"the recipe {RECIPE!r} has no trained model yet; run: make run")


def find_passages() -> list[Path]:
    """Return the files that hold the passages, sorted.

    Raises:
        UserError: there are none, or one is of no kind that is read.
    """
    from small_modernbert.data import file_rows

    cure = "run: python get_offline_assets.py"
    place = references.find_file(PASSAGES, "PASSAGES", cure)
    place = place or references.need(PASSAGES, RECIPE, "PASSAGES", cure)
    return [file.path for file in file_rows.find_files(place, cure=f"PASSAGES: {cure}")]


def load_into(future: "Future[Searcher]", model: Path | str, passages: list[Path]) -> None:
    """Run `load` for whoever waits on the future; an error is raised there."""
    try:
        future.set_result(load(model, passages))
    except BaseException as error:
        future.set_exception(error)


def load(model: "Path | str", passages: list[Path]) -> Searcher:
    """Load the model and the distinct passages, and encode those unless they were encoded before.

    The vectors are kept under the digests of model and text, so another model or another text
    never meets them.
    """
    from small_modernbert.data import evaluation_sets
    from small_modernbert.evaluation.bm25 import WordIndex
    from small_modernbert.models import encoders
    from small_modernbert.runs import storage

    texts = evaluation_sets.read_texts(passages)
    folder = model if isinstance(model, Path) else encoders.fetch(model)
    encoder = encoders.load_encoder(folder, MODEL or "the model", QUERY_PROMPT, DOCUMENT_PROMPT)
    key = [encoders.digest_model(folder), encoder.prompts.document, storage.digest_json(texts)]
    path = references.runs_folder() / RECIPE / "try_it" / f"{storage.digest_json(key)[:16]}.npy"
    vectors = encoder.encode_to(path, texts, f"encoding {len(texts):,} passages", "document")
    index = None
    if BM25_WEIGHT:
        try:
            index = WordIndex(texts)
        except UserError as error:
            print(f"by the model alone: {error}")
    return Searcher(encoder, texts, vectors, index)


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


def show(question: str, searcher: Searcher) -> None:
    """Print the best passages with their scores, wrapped to the terminal."""
    width = max(40, min(shutil.get_terminal_size().columns, 110))
    shown = " ".join(question[: SHOWN_CHARACTERS + 1].split())
    print(f"\n{shown[:SHOWN_CHARACTERS]}{' …' * (len(question) > SHOWN_CHARACTERS)}")
    for row, score in answer(question, searcher):
        text = textwrap.fill(
            " ".join(searcher.texts[row].split()),
            width,
            initial_indent=f"  {score:.3f} ",
            subsequent_indent=" " * 8,
            max_lines=LINES,
            placeholder=" …",
        )
        print(text)


def answer(question: str, searcher: Searcher) -> list[tuple[int, float]]:
    """Return the rows of the best passages with their scores: cosines, or those of both searches.

    The score of both is the mean of the two, each scaled to 0-1 over its best passages.
    """
    from small_modernbert.evaluation import search
    from small_modernbert.evaluation.hits import EMPTY

    vector = searcher.encoder.encode_queries([question])
    depth = max(TOP_K, search.DEPTH)
    hits = search.nearest(vector, searcher.vectors, depth)
    if searcher.index is not None:
        words = searcher.index.search([question], depth)
        if (words.rows != EMPTY).any():
            hits = search.combine(hits, words, BM25_WEIGHT)
    best = hits.first(TOP_K)
    return list(zip(best.rows[0].tolist(), best.scores[0].tolist(), strict=True))


if __name__ == "__main__":
    settings.run(globals())
