"""Pairs from many sources, gathered on disk: capped, split, and with pools to search.

Two passes, so that memory does not grow with the texts: the first one cleans and writes what can be
used, the second one sorts it into training rows, dev rows and pools, decided on 64-bit keys alone
(some 150 bytes a row).

    {train,dev}/shard-*.parquet        the rows to judge
    pools/{train,dev}/shard-*.parquet  texts to mine, distinct
    known.npy                          which text answers which, by keys
    gathered.json                      counts; written last
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from small_modernbert.data import parquet, shards
from small_modernbert.data.cleaning import Cleaning
from small_modernbert.data.corpus_selection import rank_for_cap
from small_modernbert.data.keys import Keys, mix, words_key
from small_modernbert.data.pairs import (
    NOT_ASKED_FOR,
    Pair,
    PairCounts,
    check_sources,
    read_pairs,
    split_dev,
)
from small_modernbert.data.sources import READ_ROWS, Role, answer_role
from small_modernbert.data.triplets import SPLITS
from small_modernbert.runs import report, storage
from small_modernbert.runs.errors import UserError

CURE = "remove {folder} and run the same command again"
PAIR_SCHEMA = pa.schema(
    [
        ("anchor", pa.string()),
        ("positive", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("source", pa.string()),
        ("role", pa.string()),
    ]
)
PAIRS = shards.Layout(
    index="gathered.json",
    columns={
        "anchor": "text",
        "positive": "text",
        "negatives": "texts",
        "source": "text",
        "role": "text",
    },
    splits=SPLITS,
    cure=CURE,
    facts={"counts": dict},
)
POOL_SCHEMA = pa.schema([("text", pa.string()), ("role", pa.string())])
POOLS = shards.Layout(
    index="pools.json", columns={"text": "text", "role": "text"}, splits=SPLITS, cure=CURE
)


@dataclass(frozen=True)
class Gathered:
    """A folder that `gather` has filled.

    Attributes:
        pairs: the rows to judge.
        pools: what can be mined.
    """

    pairs: shards.ShardFolder
    pools: shards.ShardFolder

    @property
    def rows(self) -> dict[str, int]:
        """Split -> rows to judge."""
        return self.pairs.counts

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Source -> rows read, dropped for which reason, and kept; see `PairCounts`."""
        return self.pairs.index["counts"]

    def slices(self, split: str, rows: int) -> Iterator[list[Pair]]:
        """Yield the pairs of a split in order, `rows` at a time."""
        waiting: list[Pair] = []
        for batch in self.pairs.batches(split, rows=READ_ROWS):
            waiting.extend(_pairs(batch))
            while len(waiting) >= rows:
                yield waiting[:rows]
                waiting = waiting[rows:]
        if waiting:
            yield waiting

    def pool(self, split: str) -> list[str]:
        """Return the texts that a split may be given as negatives."""
        return list(self.pools.column(split, "text"))

    def pool_roles(self, split: str) -> list[Role]:
        """Return the role of each of these texts in the pair that it is from."""
        return list(self.pools.column(split, "role"))

    def answers(self, anchor: str) -> set[int]:
        """Return the keys of all texts that some pair joins with this one, on either side."""
        key = np.uint64(words_key(anchor))
        low, high = (np.searchsorted(self._known[0], key, side) for side in ("left", "right"))
        return set(self._known[1, low:high].tolist())

    @cached_property
    def _known(self) -> Keys:
        path = self.pairs.folder / "known.npy"
        try:
            known = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            known, why = None, error
        else:
            why = f"{known.dtype} of shape {known.shape}"
        if known is None or known.dtype != np.uint64 or known.ndim != 2 or len(known) != 2:
            raise UserError(f"{path} is damaged ({why}); {self.pairs.cure}")
        return known


def gather(
    folder: Path,
    references: Sequence[str | Path],
    *,
    only: Sequence[str] = (),
    max_rows: int,
    dev_rows: int,
    pool_texts: int,
    seed: int,
    max_lost: float = 1.0,
    cleaning: Cleaning = "none",
) -> Gathered:
    """Read, clean and sort pairs into `folder`, or take up what is done there.

    No text stands on both sides of the split. Anchors and positives are kept apart by
    `pairs.split_dev`; a negative that is a text of the other side is taken out of its row; the
    training pool holds no text of a dev row, and the dev pool is the dev rows' own positives.

    Args:
        folder: of this stage alone.
        references: see `pairs.find_sources`.
        only: sources to keep, as the rows name them; none = all.
        max_rows: rows to judge, dev rows included; 0 = all. Sources take turns while they last.
        dev_rows: of them, for the dev split; a fifth at most.
        pool_texts: positives that training rows are searched among, drawn likewise; 0 = all.
        seed: of every draw.
        max_lost: share of a source's rows that may be no use, see `sources.check_lost`.
        cleaning: see `cleaning.clean`.

    Raises:
        UserError: a source can't be read, or nothing usable is left.
    """
    if not (folder / PAIRS.index).exists():
        storage.remove(folder)
        folder.mkdir(parents=True)
        counts = PairCounts()
        rows = read_pairs(
            *references, seed=seed, counts=counts, max_lost=max_lost, cleaning=cleaning
        )
        cleaned = shards.shard_path(folder, "cleaned", 0)
        keys, label, sources = _clean(cleaned, rows, only, counts)
        check_sources(only, counts)
        if not len(keys):
            raise UserError(
                f"no pair is left (read: {dict(counts.read)}, dropped: {dict(counts.dropped)}); "
                "give others with --pairs"
            )
        _save_known(folder / "known.npy", keys)
        fate = _decide(keys, label, max_rows, dev_rows, seed)
        over = np.bincount(label[fate < 0], minlength=len(sources)).tolist()
        for source, number in zip(sources, over, strict=True):
            counts.move(source, "over the cap", number)
        dev_texts = _dev_texts(cleaned, keys, fate)
        pool = _choose_pool(keys, label, dev_texts, pool_texts, seed)
        _sort(folder, cleaned, keys, fate, dev_texts, counts)
        _write_pools(folder / "pools", cleaned, fate, pool)
        shards.write_index(folder, PAIRS, dict.fromkeys(SPLITS, 1), {"counts": counts.to_json()})
        storage.remove(cleaned.parent)
    return Gathered(shards.open_shards(folder, PAIRS), shards.open_shards(folder / "pools", POOLS))


def _decide(
    keys: Keys, label: NDArray[np.int32], max_rows: int, dev_rows: int, seed: int
) -> NDArray[np.int8]:
    """Return every pair's split as its place in SPLITS; -1 where the cap leaves it out."""
    capped = _turns(mix(keys[:, 0] ^ mix(keys[:, 1]), seed), label, max_rows)
    dev = capped[split_dev(keys[capped, 0], keys[capped, 1], dev_rows, seed)]
    fate = np.full(len(keys), -1, dtype=np.int8)
    fate[capped] = SPLITS.index("train")
    fate[dev] = SPLITS.index("dev")
    return fate


def _clean(
    path: Path, rows: Iterable[Pair], only: Sequence[str], counts: PairCounts
) -> tuple[Keys, NDArray[np.int32], list[str]]:
    """Write the cleaned pairs.

    Returns:
        Keys of anchors and positives, `(pairs, 2)`; which source each is from, `(pairs,)`; sources.
    """
    keys, label = array("Q"), array("i")
    sources: dict[str, int] = {}

    def tables() -> Iterator[pa.Table]:
        waiting: list[Pair] = []
        with report.progress(description="read pairs", unit=" pairs") as bar:
            for pair in rows:
                if only and pair.source not in only:
                    counts.move(pair.source, NOT_ASKED_FOR, 1)
                    continue
                waiting.append(pair)
                keys.extend((words_key(pair.anchor), words_key(pair.positive)))
                label.append(sources.setdefault(pair.source, len(sources)))
                if len(waiting) == READ_ROWS:
                    yield _table(waiting)
                    bar.update(len(waiting))
                    waiting = []
            yield _table(waiting)

    shards.write_shard(path, tables(), PAIR_SCHEMA)
    sides = np.frombuffer(keys, dtype=np.uint64).reshape(-1, 2)
    return sides, np.frombuffer(label, dtype=np.int32), list(sources)


def _turns(lots: Keys, label: NDArray[np.int32], number: int) -> NDArray[np.int64]:
    """Return up to `number` rows (0 = all), ascending; labels take turns, the lot decides."""
    if not 0 < number < len(lots):
        return np.arange(len(lots))
    return np.sort(rank_for_cap(lots, np.zeros(len(lots), dtype=np.bool_), label, 0)[:number])


def _save_known(path: Path, keys: Keys) -> None:
    both = np.concatenate([keys, keys[:, ::-1]])
    np.save(path, both[np.argsort(both[:, 0], kind="stable")].T)


def _dev_texts(cleaned: Path, keys: Keys, fate: NDArray[np.int8]) -> set[int]:
    """Return the keys of all texts of the dev rows, negatives included."""
    dev = fate == SPLITS.index("dev")
    texts = {
        words_key(text)
        for batch in _masked(cleaned, dev)
        for pair in _pairs(batch)
        for text in pair.negatives
    }
    return texts | set(keys[dev].ravel().tolist())


def _choose_pool(
    keys: Keys, label: NDArray[np.int32], dev_texts: set[int], pool_texts: int, seed: int
) -> NDArray[np.bool_]:
    """Say of every pair whether its positive is in the training pool: distinct, none of dev."""
    first = np.unique(keys[:, 1], return_index=True)[1]
    first = np.sort(first[~np.isin(keys[first, 1], np.fromiter(dev_texts, dtype=np.uint64))])
    chosen = first[_turns(mix(keys[first, 1], seed + 1), label[first], pool_texts)]
    in_pool = np.zeros(len(keys), dtype=np.bool_)
    in_pool[chosen] = True
    return in_pool


def _sort(
    folder: Path,
    cleaned: Path,
    keys: Keys,
    fate: NDArray[np.int8],
    dev_texts: set[int],
    counts: PairCounts,
) -> None:
    """Write the rows of both splits without negatives that stand on the other side."""
    train_texts = set(keys[fate == SPLITS.index("train")].ravel().tolist())
    for split, other_side in (("dev", train_texts), ("train", dev_texts)):
        tables = (
            _table(_keep_apart(batch, other_side, counts))
            for batch in _masked(cleaned, fate == SPLITS.index(split))
        )
        shards.write_shard(shards.shard_path(folder, split, 0), tables, PAIR_SCHEMA)


def _write_pools(
    folder: Path, cleaned: Path, fate: NDArray[np.int8], in_pool: NDArray[np.bool_]
) -> None:
    """Write the texts that each split can be given: those of `in_pool`, and dev's own positives."""
    answers: dict[int, tuple[str, Role]] = {}
    for batch in _masked(cleaned, fate == SPLITS.index("dev")):
        answers |= {words_key(text): (text, role) for text, role in _answers(batch)}
    pools = {
        "dev": [_pool_table(answers.values())],
        "train": (_pool_table(_answers(batch)) for batch in _masked(cleaned, in_pool)),
    }
    for split, tables in pools.items():
        shards.write_shard(shards.shard_path(folder, split, 0), tables, POOL_SCHEMA)
    shards.write_index(folder, POOLS, dict.fromkeys(SPLITS, 1))


def _answers(batch: pa.RecordBatch) -> Iterator[tuple[str, Role]]:
    roles = map(answer_role, batch.column("role").to_pylist())
    return zip(batch.column("positive").to_pylist(), roles, strict=True)


def _pool_table(rows: Iterable[tuple[str, Role]]) -> pa.Table:
    named = [dict(zip(POOL_SCHEMA.names, row, strict=True)) for row in rows]
    return pa.Table.from_pylist(named, schema=POOL_SCHEMA)


def _keep_apart(batch: pa.RecordBatch, other_side: set[int], counts: PairCounts) -> Iterator[Pair]:
    for pair in _pairs(batch):
        kept = tuple(text for text in pair.negatives if words_key(text) not in other_side)
        if lost := len(pair.negatives) - len(kept):
            counts.drop_negatives(pair.source, "stands on the other side", lost)
        yield replace(pair, negatives=kept)


def _table(pairs: Iterable[Pair]) -> pa.Table:
    return pa.Table.from_pylist([asdict(pair) for pair in pairs], schema=PAIR_SCHEMA)


def _masked(cleaned: Path, mask: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    begin, cure = 0, CURE.format(folder=cleaned.parent.parent)
    for batch in parquet.read_batches(cleaned, PAIRS.columns, cure, rows=READ_ROWS, own=True):
        end = begin + batch.num_rows
        yield batch.filter(pa.array(mask[begin:end]))
        begin = end


def _pairs(batch: pa.RecordBatch) -> Iterator[Pair]:
    for row in batch.to_pylist():
        yield Pair(**{**row, "negatives": tuple(row["negatives"])})
