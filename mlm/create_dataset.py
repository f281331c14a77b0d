r"""Flatten many sources of text to one corpus: cleaned, cut to size, without duplicates, shuffled.

Reads: the SOURCES (datasets of the hub, streamed, or the offline text) and TOKENIZER.
Writes: runs/<recipe>/mlm/create_dataset/final/: train/ and held_out/ Parquet shards with columns
text, source, role, tokens; corpus.json with their checksums; corpus.md: what became of every row.

    python mlm/create_dataset.py --recipe small_v2
    python mlm/create_dataset.py --recipe offline --sources offline --max-texts 30000 \
        --tokenizer assets/models/all-MiniLM-L6-v2 --max-tokens 256
"""

import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from small_modernbert.runs import places, references, report, settings, stages, storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.data.corpus_building import Preparation, Spill
    from small_modernbert.data.executors import Executor
    from small_modernbert.data.outlets import Outlet
    from small_modernbert.data.sources import TextSource

# Inputs
SOURCES: list[str] = ["msmarco", "philosophy", "npr", "finewiki"]  # rows of TEXT_SOURCES
OFFLINE_TEXT: list[str] = ["assets/text/train.parquet"]  # "offline": files, folders or URLs
# Parquet, JSON lines, JSON, CSV, TSV, text (one a line), Markdown (one a file), gzipped or not.
TEXT_COLUMN: str = "text"  # of OFFLINE_TEXT: what the column with the texts is called
FINEWIKI_CAP: int = 500_000  # articles: of some 7M, most teach so small a model no more; 0 = all
LEAK_SETS: list[str] = ["NanoMSMARCO", "NanoHotpotQA", "NanoNQ"]  # none of their texts may train
# They leave the hub's sources, and one's own text where RETRIEVAL_FOLDER is given.
RETRIEVAL_FOLDER: str = ""  # local sets in NanoBEIR's or BEIR's layout; empty = from the hub
TOKENIZER: str = "answerdotai/ModernBERT-base"  # counts tokens: a stage, a folder or a hub id
TOKENIZER_REVISION: str = ""  # of a hub id; empty takes the newest

# Texts
CLEANING: Literal["none", "web"] = "none"  # "web" takes markup and tokenisation out of prose
MAX_TOKENS: int = 1024  # longer documents are cut between sentences; special tokens included
MIN_CHARACTERS: int = 12  # shorter texts are fragments ("divide it."), not queries
MAX_TEXTS: int = 0  # kept in all, held-out ones included: passages first; 0 keeps everything
PASSAGE_TOKENS: int = 64  # a text of so many tokens is a passage
PASSAGE_SHARE: float = 0.6  # of MAX_TEXTS; the rest are short: a student needs queries too (LEAF)
HELD_OUT_ROWS: int = 1000  # never trained on, and near no training text
MAX_LOST_SHARE: float = 0.5  # of a source's texts that may be no use; beyond it the run is refused

# Near duplicates
DEDUPLICATE_NEAR: bool = True  # by MinHash over runs of three tokens
NEAR_THRESHOLD: float = 0.8  # Jaccard index from which two texts are one
NUM_PERMUTATIONS: int = 64  # the index is estimated to about 0.05

# Run
WORKERS: int = 0  # processes that clean and cut; 0 = as many as there are processors
EXECUTOR: Literal["plain", "local", "slurm", "ray"] = "plain"  # the others are datatrove's
SLURM: list[str] = []  # options of sbatch: partition=cpu time=08:00:00 and any other, NAME=VALUE
TASK_ROWS: int = 100_000  # of a Parquet file; what an executor's task takes

# Output
SHARD_ROWS: int = 100_000  # what is held in memory at once while the shards are written
OUTPUT_URL: str = ""  # shards go there (s3://bucket/corpus), one by one; empty = they stay
RECIPE: str = "small_v2"  # folder below runs/
VARIANT: str = ""  # a folder of its own for a run with other settings
OVERWRITE: bool = False  # redo a finished run
SEED: int = 42  # of the choice, the held-out part and the order

# Fewer are done before a process has started.
FEW_ROWS = 10_000

logger = logging.getLogger("small_modernbert.create_dataset")


def main() -> None:
    """Clean and spill every source, drop duplicates, choose, shuffle, write shards."""
    check_settings()
    from small_modernbert.data import executors

    executor = executors.Executor(EXECUTOR, WORKERS, tuple(SLURM))
    executor.check()
    sources = resolve_sources()
    inputs = find_inputs(sources)
    with stages.Stage(globals(), inputs=inputs) as stage:
        if stage.finished:
            return
        from small_modernbert.data import corpus_building, duplicates, outlets

        outlet = outlets.open_outlet(
            OUTPUT_URL, "corpus.json", stage.resumed, stage.scratch / "sent"
        )
        near = duplicates.MinHash(NUM_PERMUTATIONS, NEAR_THRESHOLD, SEED)
        minhash = near if DEDUPLICATE_NEAR else None
        leaks = write_leaks(stage.scratch / "leaks.json", sources, inputs.get("retrieval"))
        tokenizer_file = inputs["tokenizer"]
        preparations = [
            corpus_building.Preparation(
                source, tokenizer_file, MAX_TOKENS, minhash, MIN_CHARACTERS, CLEANING, leaks
            )
            for source in sources
        ]
        spills = spill_sources(preparations, stage.scratch, executor)
        if spills is not None:
            stage.record.facts["kept_apart_from"] = LEAK_SETS if leaks else []
            write_corpus(stage, preparations, spills, outlet)


def write_corpus(
    stage: stages.Stage,
    preparations: "list[Preparation]",
    spills: "list[Spill]",
    outlet: "Outlet",
) -> None:
    """Choose among the rows of all sources, write them and the card, and close the stage."""
    from small_modernbert.data import corpus, corpus_building, corpus_selection, leaks

    sources = [preparation.source for preparation in preparations]
    minhash, tokenizer_file = preparations[0].minhash, preparations[0].tokenizer_file
    choice = corpus_selection.choose(
        spills, minhash, MAX_TEXTS, PASSAGE_TOKENS, PASSAGE_SHARE, SEED
    )
    counts = corpus_selection.tabulate(spills, choice, HELD_OUT_ROWS)
    check_enough(counts)
    storage.remove(stage.building)
    shards = corpus_building.write_shards(
        spills,
        choice.place,
        HELD_OUT_ROWS,
        SHARD_ROWS,
        stage.building,
        stage.scratch / "scatter",
        outlet,
    )
    write_card(stage.building, sources, counts)
    total = corpus_selection.total(counts)
    evaluation_texts = preparations[0].leaks
    corpus.write_index(
        stage.building,
        shards,
        counts,
        total["tokens"],
        MAX_TOKENS,
        tokenizer_file,
        kept_apart=leaks.short_keys(evaluation_texts) if evaluation_texts else (),
        outlet=outlet,
    )
    stage.record.rows = counts
    stage.finish(
        f"{total['read']:,} texts → {total['kept']:,} of {total['tokens']:,} tokens",
        verify=lambda folder: corpus.open_corpus(folder).verify_made(),
    )


def check_settings() -> None:
    """Refuse settings that make no sense, before anything is read.

    Raises:
        UserError: with the flag to change.
    """
    if not 0.0 < NEAR_THRESHOLD <= 1.0:
        raise UserError(f"--near-threshold {NEAR_THRESHOLD} is not in (0, 1]")
    if not 0.0 <= PASSAGE_SHARE <= 1.0:
        raise UserError(f"--passage-share {PASSAGE_SHARE} is not in [0, 1]")
    if not 0.0 <= MAX_LOST_SHARE <= 1.0:
        raise UserError(f"--max-lost-share {MAX_LOST_SHARE} is not in [0, 1]")
    for flag, value, least in (
        ("--shard-rows", SHARD_ROWS, 1),
        ("--num-permutations", NUM_PERMUTATIONS, 1),
        ("--held-out-rows", HELD_OUT_ROWS, 0),
        ("--max-texts", MAX_TEXTS, 0),
        ("--finewiki-cap", FINEWIKI_CAP, 0),
        ("--task-rows", TASK_ROWS, 1),
    ):
        if value < least:
            raise UserError(f"{flag} {value} is too small; give at least {least}")


def resolve_sources() -> "list[TextSource]":
    """Return the rows of the table of sources, "offline" with the places of OFFLINE_TEXT.

    Raises:
        UserError: a source is not known, or a file is not there.
    """
    from small_modernbert.data import hub_datasets, offline_assets

    sources = [
        dataclasses.replace(source, cap=FINEWIKI_CAP) if source.name == "finewiki" else source
        for source in hub_datasets.select_texts(SOURCES)
    ]
    if "offline" not in SOURCES:
        return sources
    files = [file for text in OFFLINE_TEXT for file in find_texts(text)]
    own = {"places": tuple(files), "id": ", ".join(OFFLINE_TEXT), "texts": (TEXT_COLUMN,)}
    if not all(map(offline_assets.is_asset, files)):
        own["licence"] = "yours to state"
    return [
        dataclasses.replace(source, **own) if source.name == "offline" else source
        for source in sources
    ]


def find_texts(text: str) -> list[Path]:
    """Return the file or folder of an entry of OFFLINE_TEXT, of a URL with wildcards its files.

    Raises:
        UserError: it is not there.
    """
    cure = f"{references.ASSETS}, or give your own text"
    if places.is_url(text):
        return places.find(text, "OFFLINE_TEXT", cure)
    if (place := references.find(text)) is None:
        raise UserError(f"OFFLINE_TEXT: {text} is not there; {cure}")
    return [place]


def find_inputs(sources: "list[TextSource]") -> dict[str, Path | str]:
    """Return what the stage reads: places of the sources, or hub ids with their revisions.

    Files come first: the tokenizer may have to be fetched.

    Raises:
        UserError: a file is not there, or of a kind that is not read.
    """
    from small_modernbert.data.sources import find_files

    inputs: dict[str, Path | str] = {}
    for source in sources:
        if find_files(source) is None:
            inputs[f"source {source.name}"] = f"{source.id}@{source.revision or 'newest'}"
        for number, place in enumerate(source.places, 1):
            inputs[f"source {source.name}" + (f" {number}" if number > 1 else "")] = place
    inputs |= references.need_evaluation(RECIPE, RETRIEVAL_FOLDER)
    inputs["tokenizer"] = find_tokenizer()
    return inputs


def find_tokenizer() -> Path:
    """Return the tokenizer.json of TOKENIZER, fetched if that is a hub id."""
    folder = references.locate(TOKENIZER, RECIPE)
    if folder is not None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path} is not there; --tokenizer takes a folder that has one")
        return path
    from small_modernbert.runs import hub

    return hub.fetch_file(TOKENIZER, TOKENIZER_REVISION or None, "tokenizer.json")


def write_leaks(path: Path, sources: "list[TextSource]", folder: Path | None) -> Path | None:
    """Write the texts of LEAK_SETS down; None where there is nothing to keep out.

    The offline text was kept apart from its evaluation sets as it was made.
    """
    from small_modernbert.data import evaluation_sets, leaks
    from small_modernbert.data.sources import find_files

    of_hub = any(find_files(source) is None for source in sources)
    if not LEAK_SETS or not (of_hub or folder):
        return None
    if not path.exists():
        sets = evaluation_sets.load_named(LEAK_SETS, folder)
        leaks.write_filter(path, {each.name: [*each.queries, *each.documents] for each in sets})
    return path


def spill_sources(
    preparations: "list[Preparation]", folder: Path, executor: "Executor"
) -> "list[Spill] | None":
    """Clean, cut and fingerprint every source; None while jobs elsewhere do so.

    What is done is taken up.
    """
    from small_modernbert.data import corpus_building, sources, workers
    from small_modernbert.data.cleaning import USELESS

    def check_lost(name: str, spill: "Spill") -> None:
        counts = spill.source_counts.values()
        lost = {reason: sum(row.get(reason, 0) for row in counts) for reason in USELESS}
        read = sum(row["read"] + row.get("extra chunks", 0) for row in counts)
        sources.check_lost(f"source {name}", read, lost, MAX_LOST_SHARE)

    if executor.kind != "plain":
        from small_modernbert.data import corpus_tasks

        spills = corpus_tasks.write_spills(executor, folder, preparations, TASK_ROWS, SEED)
        for preparation, spill in zip(preparations, spills or (), strict=spills is not None):
            check_lost(preparation.source.name, spill)
        return spills
    counted = [sources.count_source(preparation.source) for preparation in preparations]
    few = None not in counted and sum(counted) < FEW_ROWS
    processes = 1 if few else WORKERS or workers.processors()
    spills = []
    with workers.pool(processes) as pool:
        for preparation in preparations:
            begun, source = time.monotonic(), preparation.source
            spill = corpus_building.write_spill(folder / source.name, preparation, SEED, pool)
            check_lost(source.name, spill)
            spills.append(spill)
            logger.info(
                "%s: %s rows in %.1f s · %s",
                *(source.name, f"{spill.rows:,}", time.monotonic() - begun, source.licence),
            )
    return spills


def check_enough(counts: dict[str, dict[str, int]]) -> None:
    """Refuse a corpus of which nothing is left to train on.

    Raises:
        UserError: with the flags to change.
    """
    kept = sum(row["kept"] for row in counts.values())
    if not any(row["read"] for row in counts.values()):
        raise UserError("no source has a text: their files are blank; give other --offline-text")
    if kept <= HELD_OUT_ROWS:
        raise UserError(
            f"{kept:,} texts are left, and {HELD_OUT_ROWS:,} are to be held out; "
            f"lower --held-out-rows or --min-characters, or add sources"
        )


def write_card(
    folder: Path, sources: "list[TextSource]", counts: dict[str, dict[str, int]]
) -> None:
    """Write corpus.md, and log its table."""
    from small_modernbert.data import corpus_selection

    total = corpus_selection.total(counts)
    # A column of zeros says nothing; the JSON has them all.
    shown = [name for name in total if total[name] or name in ("read", "kept", "tokens")]
    rows = [[label, *(row[name] for name in shown)] for label, row in counts.items()]
    table = report.table(["source", *shown], [*rows, ["all", *(total[name] for name in shown)]])
    for line in table.splitlines():
        logger.info("%s", line)
    licences = "\n".join(f"- {source.name} ({source.id}): {source.licence}" for source in sources)
    sizes = f"Texts of at most {MAX_TOKENS:,} tokens of {TOKENIZER}."
    storage.write_text(
        folder / "corpus.md", f"# Corpus\n\n{sizes}\n\n{table}\n\nLicences:\n\n{licences}\n"
    )


if __name__ == "__main__":
    settings.run(globals())
