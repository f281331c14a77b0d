r"""Corpus building, ours against load_dataset, map, concatenate, shuffle, to_parquet; rows/s.

Reads: assets/text/train.parquet and the tokenizer of assets/models (make assets).
Writes: runs/bench/corpus.json; prints the table.

    python bench/corpus.py
    python bench/corpus.py --quick

Two sources are cleaned, cut to size and shuffled into one corpus. The peer calls our cleaning and
our rules of cutting inside its map, and the tokenizer on every text, as one does; ours asks the
tokenizer once a word and spreads the rows over the processors. Ours runs the whole of
mlm/create_dataset.py, its checksums and its reading back included, without near duplicates; exact
ones it always drops, which costs it a hash a row. Its memory is that of all its processes.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import inputs
import measure
from measure import Contender, Work

from small_modernbert.runs import settings

# Data
ROWS: int = 88_000  # of each of the two sources: nearly all of the offline text
MAX_TOKENS: int = 128  # of a chunk: some texts are longer
MIN_CHARACTERS: int = 12  # shorter texts are dropped

# Rounds
ROUNDS: int = 3  # counted, after one warm-up
THREADS: int = 0  # 0 = all processors
QUICK: bool = False  # one round of few rows, to see that it works
SEED: int = 42  # of the shuffle

PEER = (
    "datasets",
    "`load_dataset` → `map(flatten, batched=True)` → `concatenate_datasets` → `shuffle` → "
    "`to_parquet`, one process.",
)
# From profiles on the machine of docs/BENCHMARKS.md; shown where the bound is missed.
REASON = (
    "each process starts, and fills a memo of words of its own, which few rows do not earn back; "
    "cleaning in Python, which both sides share, is a third of the rest"
)


def main() -> None:
    """Cut the offline text in two sources, let both build a corpus, compare them, publish."""
    begun = time.monotonic()
    if QUICK:
        globals().update(ROWS=500, ROUNDS=1)
    tokenizer = str(inputs.locate(inputs.TEACHER))
    text = inputs.locate(inputs.TEXT)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sources = write_sources(text, folder, ROWS)
        common = {
            "folder": place,
            "sources": sources,
            "tokenizer": tokenizer,
            "max_tokens": MAX_TOKENS,
            "min_characters": MIN_CHARACTERS,
            "seed": SEED,
        }
        contenders = [Contender("ours", ours, common), Contender("peer", peer, common)]
        done = measure.run(contenders, ROUNDS, THREADS)
        alone = texts_of_one(folder)
    same = measure.check("texts that only one of the two corpora has", alone, most=0)
    claims = [
        measure.versus(
            "corpus building, rows/s",
            *(done, ("ours", "peer"), PEER),
            least=2.0,
            checks=[same],
            reason=REASON,
        )
    ]
    setting = (
        f"2 × {ROWS:,} rows of the offline text, chunks of at most {MAX_TOKENS} tokens; that "
        "memory is flat is shown by `bench/scaling.py`."
    )
    measure.publish(__file__, claims, setting=setting, begun=begun)


def write_sources(text: Path, folder: Path, rows: int) -> list[str]:
    """Write two Parquet files of `rows` rows each; return their paths."""
    import pyarrow.parquet as pq

    # The file's sources lie one after the other: every so-many-th row is a fair mixture.
    table = pq.read_table(text)
    stride = max(1, table.num_rows // (2 * rows))
    paths = []
    for number in range(2):
        path = folder / f"source-{number}.parquet"
        numbers = range(number * stride, table.num_rows, 2 * stride)
        pq.write_table(table.take(list(numbers)[:rows]), path)
        paths.append(str(path))
    return paths


def described(paths: list[str]) -> list[Any]:
    """Return the sources as rows of our table."""
    import dataclasses

    from small_modernbert.data.hub_datasets import TEXT_SOURCES

    offline = TEXT_SOURCES["offline"]
    # The files have no column of roles, which our reader fills in and the peer's does not.
    return [
        dataclasses.replace(offline, name=Path(path).stem, id=path, role=None) for path in paths
    ]


def ours(
    folder: str,
    sources: list[str],
    tokenizer: str,
    max_tokens: int,
    min_characters: int,
    seed: int,
) -> measure.Round:
    """Prepare mlm/create_dataset.py; each round is a recipe of its own below `folder`."""
    import os

    import pyarrow.parquet as pq

    from small_modernbert.data.hub_datasets import TEXT_SOURCES

    os.environ["RUNS"] = f"{folder}/runs"
    table = {source.name: source for source in described(sources)}
    TEXT_SOURCES.update(table)
    rows = sum(pq.read_metadata(path).num_rows for path in sources)

    def work(number: int) -> Work:
        begun = time.perf_counter()
        inputs.run_stage(
            "mlm/create_dataset",
            f"round-{number}",
            tokenizer=tokenizer,
            max_tokens=max_tokens,
            min_characters=min_characters,
            held_out_rows=0,
            seed=seed,
            deduplicate_near=False,
            sources=list(table),
        )
        return Work(rows, time.perf_counter() - begun)

    return work


def peer(
    folder: str,
    sources: list[str],
    tokenizer: str,
    max_tokens: int,
    min_characters: int,
    seed: int,
) -> measure.Round:
    """Prepare the pipeline of the datasets library; each round has a cache of its own."""
    import pyarrow.parquet as pq
    from datasets import concatenate_datasets, load_dataset
    from tokenizers import Tokenizer

    from small_modernbert.data.chunking import Chunker
    from small_modernbert.data.cleaning import Reason, clean
    from small_modernbert.data.sources import flatten as texts_of

    chunker = Chunker(Tokenizer.from_file(f"{tokenizer}/tokenizer.json"), max_tokens, memo=False)
    rows = sum(pq.read_metadata(path).num_rows for path in sources)

    def flatten(batch: dict[str, list[Any]], source: Any) -> dict[str, list[Any]]:  # noqa: ANN401  a Source
        texts, labels = [], []
        for cell in texts_of(source, batch):
            text = clean(cell.value, min_characters)
            if not isinstance(text, Reason):
                texts.append(text)
                labels.append(cell.label)
        made: dict[str, list[Any]] = {"text": [], "source": [], "tokens": []}
        for pieces, label in zip(chunker.chunk(texts), labels, strict=True):
            for text, ids in pieces:
                made["text"].append(text)
                made["source"].append(label)
                made["tokens"].append(len(ids))
        return made

    def work(number: int) -> Work:
        parts = []
        for source in described(sources):
            loaded = load_dataset(
                "parquet",
                data_files=source.id,
                split="train",
                cache_dir=f"{folder}/cache-{number}",
            )
            parts.append(
                loaded.map(
                    flatten,
                    batched=True,
                    remove_columns=loaded.column_names,
                    fn_kwargs={"source": source},
                )
            )
        whole = concatenate_datasets(parts).shuffle(seed=seed)
        whole.to_parquet(f"{folder}/peer-{number}.parquet")
        return Work(rows)

    return work


def texts_of_one(folder: Path) -> int:
    """Return how many distinct texts only one of the first round's two corpora has.

    Distinct up to case and white space: that is what ours takes for exact duplicates.
    """
    import pyarrow.parquet as pq

    from small_modernbert.data.corpus import open_corpus
    from small_modernbert.data.keys import text_key

    built = folder / "runs" / "round-1" / "mlm" / "create_dataset" / "final"
    mine = {text_key(text) for text in open_corpus(built).texts()}
    table = pq.read_table(folder / "peer-1.parquet", columns=["text"])
    return len(mine ^ {text_key(text) for text in table["text"].to_pylist()})


if __name__ == "__main__":
    settings.run(globals())
