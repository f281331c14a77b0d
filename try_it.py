"""Type a question, see the nearest real passages, by the model just trained.

Reads:  a model (the recipe's result), passages (Parquet files with a `text` column), questions
        (standard input, one a line, until its end or "quit")
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

from small_modernbert.runs import references, settings
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from small_modernbert.models.encoders import Encoder

# Inputs
MODEL: str = (
    ""  # a stage, folder or hub id; "" is the recipe's result: the last stage that is there
)
PASSAGES: str = "assets/retrieval/corpus"  # a Parquet file, a folder of them, or mlm/create_dataset
QUESTION: str = ""  # answer this one and stop; "" reads questions from the terminal
RECIPE: str = "offline"  # the run whose model answers

# Output
TOP_K: int = 5  # passages shown per question
LINES: int = 6  # of each passage; the rest is cut

RESULTS = ("sts_fine_tuning", "distil_modernbert")


def main() -> None:
    """Load model and passages while the first question is typed, then answer each question."""
    model, passages = find_model(), find_passages()
    # torch takes seconds to import: as long as it takes to type. A daemon does not hold up "quit".
    loading: Future[tuple[Encoder, list[str], np.ndarray]] = Future()
    Thread(target=load_into, args=(loading, model, passages), daemon=True).start()
    for question in read_questions():
        show(question, *loading.result())


def find_model() -> Path | str:
    """Return the folder of the model that answers, or its hub id.

    Raises:
        UserError: nothing has been trained yet.
    """
    if MODEL:
        return references.locate(MODEL, RECIPE) or MODEL
    for script in RESULTS:
        try:
            found = references.locate(script, RECIPE)
        except UserError:
            continue
        if found is not None:
            return found
    raise UserError(f"the recipe {RECIPE!r} has no trained model yet; run: make run")


def find_passages() -> list[Path]:
    """Return the Parquet files that hold the passages, sorted.

    Raises:
        UserError: there are none.
    """
    cure = "run: python get_offline_assets.py"
    if file := references.find_file(PASSAGES, "PASSAGES", cure):
        return [file]
    folder = references.need(PASSAGES, RECIPE, "PASSAGES", cure)
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise UserError(f"PASSAGES: no Parquet file below {folder}")
    return files


def load_into(
    future: "Future[tuple[Encoder, list[str], np.ndarray]]", model: Path | str, passages: list[Path]
) -> None:
    """Run `load` for whoever waits on the future; an error is raised there."""
    try:
        future.set_result(load(model, passages))
    except BaseException as error:
        future.set_exception(error)


def load(model: "Path | str", passages: list[Path]) -> "tuple[Encoder, list[str], np.ndarray]":
    """Load the model and the distinct passages, and encode those unless they were encoded before.

    The vectors are kept under the digests of model and text, so another model or another text
    never meets them.
    """
    from small_modernbert.data import evaluation_sets
    from small_modernbert.models import encoders
    from small_modernbert.runs import lineage, storage

    texts = evaluation_sets.read_texts(passages)
    digest = storage.digest_json([lineage.digest_input(model), storage.digest_json(texts)])[:16]
    path = references.runs_folder() / RECIPE / "try_it" / f"{digest}.npy"
    folder = model if isinstance(model, Path) else encoders.fetch(model)
    encoder = encoders.load_encoder(folder, MODEL or "the model")
    return encoder, texts, encoder.encode_to(path, texts, f"encoding {len(texts):,} passages")


def read_questions() -> Iterator[str]:
    """Yield QUESTION alone, or questions from standard input, a terminal or not."""
    if QUESTION:
        yield QUESTION
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


def show(question: str, encoder: "Encoder", texts: list[str], vectors: "np.ndarray") -> None:
    """Print the nearest passages with their cosines, wrapped to the terminal."""
    from small_modernbert.evaluation import metrics

    vector = encoder.encode([question])
    width = max(40, min(shutil.get_terminal_size().columns, 110))
    print(f"\n{question}")
    for row in metrics.nearest(vector, vectors, TOP_K)[0]:
        score = float(vector[0] @ vectors[row])
        text = textwrap.fill(
            " ".join(texts[row].split()),
            width,
            initial_indent=f"  {score:.3f} ",
            subsequent_indent=" " * 8,
            max_lines=LINES,
            placeholder=" …",
        )
        print(text)


if __name__ == "__main__":
    settings.run(globals())
