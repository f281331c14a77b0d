r"""Let a judge score pairs and triplets, mend or drop the wrong ones, and mine hard negatives.

Reads: pairs (hub datasets by their names in small_modernbert/data/hub_datasets.py, Parquet files
    with anchor and positive, or folders of them), a judge, and a miner.
Writes: final/{train,dev}/shard-*.parquet with anchor, positive, negatives, positive_score,
    negative_scores and source; final/triplets.json, which names the kind of the scores;
    final/examples.md.

    python relabel_triplets.py
    python relabel_triplets.py --recipe offline --pairs assets/pairs/train.parquet --miner "" \
        --judge assets/models/all-MiniLM-L6-v2 --max-triplets 1000 --dev-rows 100 --pool 5000

Where a negative beats its positive, the two are swapped or the row is dropped; a pair whose
positive the miner does not rank among the first of a pool is dropped; pairs with room for
negatives get mined ones. As far as a model's prompts go, anchors are queries and all other texts
documents, or all are plain texts: the source says which, or a column `role` of a file. Shard i
depends on nothing but its pairs, the models and the pools, so a killed run goes on at the first
missing shard.

The six sources have 1.57 million rows after their own caps: eight million pairs for the judge,
most of a day on one GPU. MAX_TRIPLETS takes an eighth of them, so two to three hours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from small_modernbert.runs import references, settings, stages

if TYPE_CHECKING:
    from small_modernbert.labelling.judged_rows import Rules
    from small_modernbert.labelling.judges import Judge
    from small_modernbert.models.encoders import Encoder

# Inputs
PAIRS: list[str] = [  # names in the table, Parquet files, folders
    "all-nli",
    "quora-duplicates",
    "natural-questions",
    "trivia-qa",
    "gooaq",
    "msmarco",
]
JUDGE: str = "BAAI/bge-reranker-base"  # cross-encoder or bi-encoder: a folder or hub id
JUDGE_REVISION: str = ""  # 40 hex digits pin a hub judge; empty warns
MINER: str = (
    "Alibaba-NLP/gte-modernbert-base@e7f32e3c00f91d699e8c43b53106206bcc72bb22"  # "" = the judge
)
MINER_REVISION: str = ""  # likewise
QUERY_PROMPT: str = ""  # in front of anchors, for a bi-encoder whose folder names none
DOCUMENT_PROMPT: str = ""  # in front of positives and negatives, likewise

# Pairs
SOURCES: list[str] = []  # only rows of these sources, as the rows name them; empty = all
CLEANING: Literal["none", "web"] = "none"  # "web" takes markup and tokenisation out of prose
MAX_LOST_SHARE: float = 0.5  # of a source's rows that may be no use; beyond it the run is refused
MAX_TRIPLETS: int = 200_000  # rows to judge, sources by turns, dev rows included; 0 = all, see top
DEV_ROWS: int = 1_000  # of them, held out: no text of theirs stands on the training side
POOL: int = 100_000  # positives, by turns, to mine and to rank among; 0 = all of the training side

# Judging
SCORES: Literal["sigmoid", "logit"] = "sigmoid"  # what is stored of a cross-encoder's judgement
PRECISION: Literal["auto", "fp32"] = "auto"  # auto: half precision on a GPU
ON_WRONG: Literal["swap", "drop"] = "swap"  # a row whose own negative wins by SWAP_GAP or more
SWAP_GAP: float = 0.1  # of scores from 0 to 1; by less, the negative alone goes
CONSISTENCY_TOP_K: int = 10  # the miner must rank the positive so high in the pool; 0 = off

# Mining
NEGATIVES_PER_ANCHOR: int = 4  # a row has at most, its own included
MARGIN: float = 0.05  # a mined one must score less than 1 - MARGIN of the positive (miner's cosine)
MINE_DEPTH: int = 50  # candidates an anchor from the miner, and as many from BM25
ROWS_PER_SHARD: int = 2_048  # what a kill can cost

# Output
SEED: int = 42  # of the caps, the pool and the dev split
RECIPE: str = "small_v2"  # runs/<recipe>/relabel_triplets
VARIANT: str = ""  # a second run in the same recipe: runs/<recipe>/relabel_triplets@<variant>
OVERWRITE: bool = False  # redo a finished stage

EXAMPLES = 3  # of an outcome and a source, in examples.md


def main() -> None:
    """Gather the pairs, encode the pools, relabel every shard, and say what became of them."""
    check_settings()
    pairs = [find_pairs(reference) for reference in PAIRS]
    inputs = find_inputs(pairs)
    with stages.Stage(globals(), inputs) as stage:
        if stage.finished:
            return
        from small_modernbert.data import pair_gathering, triplets
        from small_modernbert.labelling import judgements, relabelling
        from small_modernbert.runs import report

        judge, miner = load_models(inputs["judge"], inputs["miner"])
        gathered = pair_gathering.gather(
            stage.scratch / "pairs",
            pairs,
            only=SOURCES,
            max_rows=MAX_TRIPLETS,
            dev_rows=DEV_ROWS,
            pool_texts=POOL,
            seed=SEED,
            max_lost=MAX_LOST_SHARE,
            cleaning=CLEANING,
        )
        half = PRECISION == "auto"
        relabeller = relabelling.prepare(judge, miner, gathered, rules(), stage.scratch, half=half)
        total = sum(gathered.rows.values())
        with report.progress(description="judge", total=total, unit=" rows") as bar:
            shards = relabeller.write_shards(stage.building, ROWS_PER_SHARD, bar.update)
        counts = judgements.conclude(
            stage.building, shards, judge, MINER or JUDGE, gathered.counts, EXAMPLES
        )
        rows = triplets.open_triplets(stage.building).counts
        stage.record.rows = {**rows, "read": gathered.counts, "judged": counts}
        stage.record.metrics = {"judge_agreement": judgements.agreement(counts)}
        stage.finish(
            f"{total:,} rows judged by {judge.name} -> {sum(rows.values()):,} "
            f"({rows['dev']:,} of them dev)",
            verify=lambda folder: triplets.open_triplets(folder).verify(),
        )


def check_settings() -> None:
    """Refuse settings that make no sense, before anything is read.

    Raises:
        UserError: with the flag to change.
    """
    from small_modernbert.runs.errors import UserError

    if not PAIRS or len(set(PAIRS)) < len(PAIRS):
        raise UserError("--pairs: name at least one source, and each of them once")
    if not 0 <= MARGIN < 1:
        raise UserError(f"--margin {MARGIN} is not in [0, 1)")
    if not 0 <= SWAP_GAP <= 1:
        raise UserError(f"--swap-gap {SWAP_GAP} is not in [0, 1]")
    for flag, value, least in (
        ("--max-triplets", MAX_TRIPLETS, 0),
        ("--dev-rows", DEV_ROWS, 0),
        ("--pool", POOL, 0),
        ("--consistency-top-k", CONSISTENCY_TOP_K, 0),
        ("--negatives-per-anchor", NEGATIVES_PER_ANCHOR, 1),
        ("--mine-depth", MINE_DEPTH, 1),
        ("--rows-per-shard", ROWS_PER_SHARD, 1),
    ):
        if value < least:
            raise UserError(f"{flag} {value} is too small; give at least {least}")


def find_inputs(pairs: list[Path | str]) -> dict[str, Path | str]:
    """Return what the stage remembers: the models, and the files or hub ids of the pairs."""
    inputs = {"judge": find_model(JUDGE), "miner": find_model(MINER)}
    for reference, place in zip(PAIRS, pairs, strict=True):
        inputs[f"pairs {reference}"] = place if isinstance(place, Path) else hub_id(place)
    return inputs


def find_pairs(reference: str) -> Path | str:
    """Return a file, a folder, or the name of a row in the table; its columns are checked.

    Raises:
        UserError: it is none of these, or a file lacks a column.
    """
    from small_modernbert.data import hub_datasets, pairs

    place: Path | str = reference
    if reference not in hub_datasets.PAIR_SOURCES:
        file = references.find_file(reference, "PAIRS", references.ASSETS)
        place = file or references.locate(reference, RECIPE) or reference
    pairs.find_sources(place)
    return place


def hub_id(name: str) -> str:
    """Return what the stage remembers of a row in the table: its id, config and revision."""
    from small_modernbert.data.hub_datasets import PAIR_SOURCES

    source = PAIR_SOURCES[name]
    return f"{source.id}/{source.config or ''}@{source.revision or 'newest'}"


def find_model(reference: str) -> Path | str:
    """Return the folder of a model, or its hub id; "" stays.

    Raises:
        UserError: it is one of the assets, and not there.
    """
    from small_modernbert.runs.errors import UserError

    folder = references.locate(reference, RECIPE)
    if folder is None and reference.startswith("assets/"):
        raise UserError(
            f"{reference} is not there; {references.ASSETS} (all-mpnet-base-v2 needs "
            "--strong-teacher)"
        )
    return folder or reference


def load_models(judge_place: Path | str, miner_place: Path | str) -> tuple[Judge, Encoder]:
    """Load the judge and the bi-encoder that mines: the judge itself, or a model of its own.

    Raises:
        UserError: the judge is to mine, and is a cross-encoder.
    """
    from small_modernbert.labelling.judges import load_judge
    from small_modernbert.models import encoders
    from small_modernbert.runs.errors import UserError

    judge = load_judge(
        judge_place,
        JUDGE_REVISION or None,
        scale=SCORES,
        half=PRECISION == "auto",
        query_prompt=QUERY_PROMPT,
        document_prompt=DOCUMENT_PROMPT,
    )
    same = MINER == JUDGE and MINER_REVISION == JUDGE_REVISION and judge.encoder
    if not miner_place or same:
        if judge.encoder is None:
            raise UserError(
                f"the judge {judge.name} is a cross-encoder, which cannot mine; name a bi-encoder "
                "with --miner"
            )
        return judge, judge.encoder
    name = miner_place.name if isinstance(miner_place, Path) else miner_place
    if isinstance(miner_place, str):
        pinned = f"{miner_place}@{MINER_REVISION}" if MINER_REVISION else miner_place
        miner_place = encoders.fetch(pinned)
    return judge, encoders.load_encoder(miner_place, name, QUERY_PROMPT, DOCUMENT_PROMPT)


def rules() -> Rules:
    """Return the constants as the rules of relabelling."""
    from small_modernbert.labelling.judged_rows import Rules

    return Rules(
        negatives=NEGATIVES_PER_ANCHOR,
        margin=MARGIN,
        on_wrong=ON_WRONG,
        gap=SWAP_GAP,
        top_k=CONSISTENCY_TOP_K,
        depth=MINE_DEPTH,
    )


if __name__ == "__main__":
    settings.run(globals())
