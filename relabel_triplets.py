r"""Let a judge score pairs and triplets, mend or drop the wrong ones, and mine hard negatives.

Reads: pairs (hub datasets by their names in small_modernbert/data/source_tables.py, Parquet files
    with anchor and positive, or folders of them), a judge, and a miner.
Writes: final/{train,dev}/shard-*.parquet with anchor, positive, negatives, positive_score,
    negative_scores (0 to 1) and source; final/triplets.json; final/examples.md.

    python relabel_triplets.py
    python relabel_triplets.py --recipe offline --pairs assets/pairs/train.parquet --miner "" \
        --judge assets/models/all-MiniLM-L6-v2 --max-triplets 1000 --dev-rows 100 --pool 5000

Where a negative beats its positive, the two are swapped or the row is dropped; a pair whose
positive the miner does not rank among the first of a pool is dropped; pairs with room for
negatives get mined ones. Shard i depends on nothing but its pairs, the models and the pools, so a
killed run goes on at the first missing shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from small_modernbert.runs import references, settings, stages

if TYPE_CHECKING:
    from collections.abc import Callable

    from small_modernbert.data.pair_gathering import Gathered
    from small_modernbert.labelling.judges import Judge
    from small_modernbert.labelling.mining import Pool
    from small_modernbert.labelling.relabelling import Relabeller, Rules
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
MINER: str = "Alibaba-NLP/gte-modernbert-base"  # bi-encoder; empty = the judge, if it is one
MINER_REVISION: str = ""  # likewise

# Pairs
SOURCES: list[str] = []  # only rows of these sources, as the rows name them; empty = all
MAX_LOST_SHARE: float = 0.5  # of a source's rows that may be no use; beyond it the run is refused
MAX_TRIPLETS: int = 0  # rows to judge, sources by turns, dev rows included; 0 = all
DEV_ROWS: int = 1_000  # of them, held out: no text of theirs stands on the training side
POOL: int = 100_000  # positives, by turns, to mine and to rank among; 0 = all of the training side

# Judging
ON_WRONG: Literal["swap", "drop"] = "swap"  # a row whose own negative wins by SWAP_GAP or more
SWAP_GAP: float = 0.1  # on the judge's scale; by less, the negative alone goes
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

ASSETS = "run: python get_offline_assets.py"
EXAMPLES = 3  # of an outcome and a source, in examples.md


def main() -> None:
    """Gather the pairs, encode the pools, relabel every shard, and say what became of them."""
    check_settings()
    pairs = [find_pairs(reference) for reference in PAIRS]
    judge_place, miner_place = (find_model(name) for name in (JUDGE, MINER))
    inputs: dict[str, Path | str] = {"judge": judge_place, "miner": miner_place}
    for reference, place in zip(PAIRS, pairs, strict=True):
        inputs[f"pairs {reference}"] = place if isinstance(place, Path) else hub_id(place)
    with stages.Stage(globals(), inputs) as stage:
        if stage.finished:
            return
        from small_modernbert.data import offline_assets, pair_gathering, triplets
        from small_modernbert.labelling import judgements
        from small_modernbert.labelling.judges import load_judge
        from small_modernbert.runs import report, storage

        judge = load_judge(judge_place, JUDGE_REVISION or None)
        encoder = load_miner(judge, miner_place)
        work = stage.scratch
        found = pair_gathering.gather(
            work / "pairs",
            pairs,
            only=SOURCES,
            max_rows=MAX_TRIPLETS,
            dev_rows=DEV_ROWS,
            pool_texts=POOL,
            seed=SEED,
            max_lost=MAX_LOST_SHARE,
        )
        relabeller = prepare(judge, encoder, found, work)
        total = sum(found.rows.values())
        shards, facts = {}, []
        with report.progress(description="judge", total=total, unit=" rows") as bar:
            for split in triplets.SPLITS:
                paths = write_shards(stage, relabeller, found, split, bar.update)
                facts += [triplets.read_facts(path) for path in paths]
                shards[split] = len(paths)
        merged = judgements.merge(facts, EXAMPLES)
        read = offline_assets.counts_table(found.counts)
        heading = f"Judge {JUDGE}; miner {MINER or JUDGE}."
        storage.write_text(
            stage.building / "examples.md", judgements.markdown(heading, read, merged)
        )
        triplets.write_index(
            stage.building,
            shards,
            {
                "judge": judge.name,
                "scale": judge.scale,
                "read": found.counts,
                "judged": merged["counts"],
            },
        )
        rows = triplets.open_triplets(stage.building).counts
        stage.record.rows = {**rows, "read": found.counts, "judged": merged["counts"]}
        stage.record.metrics = {"judge_agreement": judgements.agreement(merged["counts"])}
        for line in (*read.splitlines(), *judgements.table(merged["counts"]).splitlines()):
            stages.logger.info("%s", line)
        for doubt in judgements.doubts(merged["counts"]):
            stages.logger.warning("%s", doubt)
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
            raise UserError(f"{flag} {value} is too small; at least {least}")


def find_pairs(reference: str) -> Path | str:
    """Return a file, a folder, or the name of a row in the table; its columns are checked.

    Raises:
        UserError: it is none of these, or a file lacks a column.
    """
    from small_modernbert.data import pairs, source_tables

    place: Path | str = reference
    if reference not in source_tables.PAIR_SOURCES:
        found = references.find_file(reference, "PAIRS", ASSETS) or references.locate(
            reference, RECIPE
        )
        place = found or reference
    pairs.find_sources(place)
    return place


def hub_id(name: str) -> str:
    """Return what the stage remembers of a row in the table: its id, config and revision."""
    from small_modernbert.data.source_tables import PAIR_SOURCES

    source = PAIR_SOURCES[name]
    return f"{source.id}/{source.config or ''}@{source.revision or 'newest'}"


def find_model(reference: str) -> Path | str:
    """Return the folder of a model, or its hub id; "" stays.

    Raises:
        UserError: it is one of the assets, and not there.
    """
    from small_modernbert.runs.errors import UserError

    found = references.locate(reference, RECIPE)
    if found is None and reference.startswith("assets/"):
        raise UserError(
            f"{reference} is not there; {ASSETS} (all-mpnet-base-v2 needs --strong-teacher)"
        )
    return found or reference


def load_miner(judge: Judge, place: Path | str) -> Encoder:
    """Return the bi-encoder that mines: the judge itself, or a model of its own.

    Raises:
        UserError: the judge is to mine, and is a cross-encoder.
    """
    from small_modernbert.models import encoders
    from small_modernbert.runs.errors import UserError

    if not place or (MINER == JUDGE and MINER_REVISION == JUDGE_REVISION and judge.encoder):
        if judge.encoder is None:
            raise UserError(
                f"the judge {judge.name} is a cross-encoder, which cannot mine; name a bi-encoder "
                "with --miner"
            )
        return judge.encoder
    if isinstance(place, str):
        place = encoders.fetch(f"{place}@{MINER_REVISION}" if MINER_REVISION else place)
    return encoders.load_encoder(place)


def rules() -> Rules:
    """Return the constants as the rules of relabelling."""
    from small_modernbert.labelling.relabelling import Rules

    return Rules(
        negatives=NEGATIVES_PER_ANCHOR,
        margin=MARGIN,
        on_wrong=ON_WRONG,
        gap=SWAP_GAP,
        top_k=CONSISTENCY_TOP_K,
        depth=MINE_DEPTH,
    )


def prepare(judge: Judge, encoder: Encoder, found: Gathered, work: Path) -> Relabeller:
    """Encode the pools, once, and index their words."""
    import dataclasses

    from small_modernbert.data import keys, triplets
    from small_modernbert.labelling import judges, mining, relabelling

    vectors = mining.Vectors(encoder)
    pools: dict[str, Pool] = {}
    for split in triplets.SPLITS:
        texts = found.pool(split)
        if texts:
            encoded = encoder.encode_to(work / f"{split}_pool.npy", texts, f"encode {split} pool")
            pools[split] = mining.Pool(texts, keys.words_keys(texts), encoded)
            vectors.add_pool(pools[split])
    if judge.encoder is encoder:
        # One model: what it has encoded to mine with, it need not encode again to judge.
        judge = dataclasses.replace(judge, score=judges.cosine_scores(vectors.encode))
    return relabelling.Relabeller(judge, vectors, found, pools, rules())


def write_shards(
    stage: stages.Stage,
    relabeller: Relabeller,
    found: Gathered,
    split: str,
    advance: Callable[[int], Any],
) -> list[Path]:
    """Write the missing shards of a split; return the paths of all."""
    from small_modernbert.data import triplets

    paths = []
    for index, pairs in enumerate(found.slices(split, ROWS_PER_SHARD)):
        paths.append(triplets.shard_path(stage.building, split, index))
        if not paths[-1].exists():
            triplets.write_shard(paths[-1], *relabeller.relabel(pairs, split))
        advance(len(pairs))
    return paths


if __name__ == "__main__":
    settings.run(globals())
