"""Pairs from many sources, gathered on disk: capped, split, and with pools to search.

Two passes, so that memory does not grow with the texts: the first one cleans and writes what can be
used, the second one sorts it into training rows, dev rows and pools, decided on 64-bit keys alone
(some 150 bytes a row).

    pairs.parquet              every cleaned pair
    {train,dev}.parquet        the rows to judge
    {train,dev}_pool.parquet   texts to mine, distinct
    known.npy                  which text answers which, by keys
    gathered.json              counts; written last
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from small_modernbert.data import parquet
from small_modernbert.data.corpora import GROUP_ROWS, READ_ROWS
from small_modernbert.data.corpus_selection import rank_for_cap
from small_modernbert.data.duplicates import Keys, mix
from small_modernbert.data.triplets import (
    NOT_ASKED_FOR,
    SPLITS,
    Pair,
    PairCounts,
    check_sources,
    read_pairs,
    split_dev,
    words_key,
)
from small_modernbert.runs import report, storage
from small_modernbert.runs.errors import UserError

DONE = "gathered.json"
PAIR_SCHEMA = pa.schema(
    [
        ("anchor", pa.string()),
        ("positive", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("source", pa.string()),
    ]
)
POOL_SCHEMA = pa.schema([("text", pa.string())])


@dataclass(frozen=True)
class Gathered:
    """A folder that `gather` has filled.

    Attributes:
        folder: where it is.
        rows: split -> rows to judge.
        counts: source -> rows read, dropped for which reason, and kept; see `PairCounts`.
    """

    folder: Path
    rows: dict[str, int]
    counts: dict[str, dict[str, Any]]

    def slices(self, split: str, rows: int) -> Iterator[list[Pair]]:
        """Yield the pairs of a split in order, `rows` at a time."""
        waiting: list[Pair] = []
        for batch in _read(self.folder / f"{split}.parquet"):
            waiting.extend(_pairs(batch))
            while len(waiting) >= rows:
                yield waiting[:rows]
                waiting = waiting[rows:]
        if waiting:
            yield waiting

    def pool(self, split: str) -> list[str]:
        """Return the texts that a split may be given as negatives."""
        batches = _read(self.folder / f"{split}_pool.parquet")
        return [text for batch in batches for text in batch.column(0).to_pylist()]

    def answers(self, anchor: str) -> set[int]:
        """Return the keys of all texts that some pair joins with this one, on either side."""
        key = np.uint64(words_key(anchor))
        low, high = (np.searchsorted(self._known[0], key, side) for side in ("left", "right"))
        return set(self._known[1, low:high].tolist())

    @cached_property
    def _known(self) -> Keys:
        path = self.folder / "known.npy"
        try:
            known = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            known, why = None, error
        else:
            why = f"{known.dtype} of shape {known.shape}"
        if known is None or known.dtype != np.uint64 or known.ndim != 2 or len(known) != 2:
            raise UserError(
                f"{path} is damaged ({why}); remove {self.folder} and run the same command again"
            )
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
) -> Gathered:
    """Read, clean and sort pairs into `folder`, or take up what is done there.

    No text stands on both sides of the split. Anchors and positives are kept apart by
    `triplets.split_dev`; a negative that is a text of the other side is taken out of its row; the
    training pool holds no text of a dev row, and the dev pool is the dev rows' own positives.

    Args:
        folder: of this stage alone.
        references: see `pair_sources.find_sources`.
        only: sources to keep, as the rows name them; none = all.
        max_rows: rows to judge, dev rows included; 0 = all. Sources take turns while they last.
        dev_rows: of them, for the dev split; a fifth at most.
        pool_texts: positives that training rows are searched among, drawn likewise; 0 = all.
        seed: of every draw.
        max_lost: share of a source's rows that may be no use, see `corpora.check_lost`.

    Raises:
        UserError: a source can't be read, or nothing usable is left.
    """
    done = folder / DONE
    if not done.exists():
        storage.remove(folder)
        folder.mkdir(parents=True)
        counts = PairCounts()
        rows = read_pairs(*references, seed=seed, counts=counts, max_lost=max_lost)
        keys, label, sources = _clean(folder, rows, only, counts)
        check_sources(only, counts)
        if not len(keys):
            raise UserError(
                f"no pair is left (read: {dict(counts.read)}, dropped: {dict(counts.dropped)}); "
                "give others with --pairs"
            )
        _save_known(folder / "known.npy", keys)
        capped = _turns(mix(keys[:, 0] ^ mix(keys[:, 1]), seed), label, max_rows)
        dev = capped[split_dev(keys[capped, 0], keys[capped, 1], dev_rows, seed)]
        fate = np.full(len(keys), -1, dtype=np.int8)
        fate[capped] = SPLITS.index("train")
        fate[dev] = SPLITS.index("dev")
        over = np.bincount(label[fate < 0], minlength=len(sources)).tolist()
        for source, number in zip(sources, over, strict=True):
            counts.move(source, "over the cap", number)
        _sort(folder, keys, label, fate, pool_texts, seed, counts)
        rows = {split: int((fate == number).sum()) for number, split in enumerate(SPLITS)}
        storage.write_json(done, {"rows": rows, "counts": counts.to_json()})
    found = storage.read_json(done, f"remove {folder} and run again")
    return Gathered(folder, found["rows"], found["counts"])


def _clean(
    folder: Path, rows: Iterable[Pair], only: Sequence[str], counts: PairCounts
) -> tuple[Keys, NDArray[np.int32], list[str]]:
    """Write the cleaned pairs.

    Returns:
        Keys of anchors and positives, `(pairs, 2)`; which source each is from, `(pairs,)`; sources.
    """
    keys, label = array("Q"), array("i")
    sources: dict[str, int] = {}
    waiting: list[Pair] = []
    with (
        pq.ParquetWriter(folder / "pairs.parquet", PAIR_SCHEMA, write_page_checksum=True) as writer,
        report.progress(description="read pairs", unit=" pairs") as bar,
    ):
        for pair in rows:
            if only and pair.source not in only:
                counts.move(pair.source, NOT_ASKED_FOR, 1)
                continue
            waiting.append(pair)
            keys.extend((words_key(pair.anchor), words_key(pair.positive)))
            label.append(sources.setdefault(pair.source, len(sources)))
            if len(waiting) == READ_ROWS:
                writer.write_table(_table(waiting))
                bar.update(len(waiting))
                waiting = []
        writer.write_table(_table(waiting))
    found = np.frombuffer(keys, dtype=np.uint64).reshape(-1, 2)
    return found, np.frombuffer(label, dtype=np.int32), list(sources)


def _turns(lots: Keys, label: NDArray[np.int32], number: int) -> NDArray[np.int64]:
    """Return up to `number` rows (0 = all), ascending; labels take turns, the lot decides."""
    if not 0 < number < len(lots):
        return np.arange(len(lots))
    return np.sort(rank_for_cap(lots, np.zeros(len(lots), dtype=np.bool_), label, 0)[:number])


def _save_known(path: Path, keys: Keys) -> None:
    both = np.concatenate([keys, keys[:, ::-1]])
    np.save(path, both[np.argsort(both[:, 0], kind="stable")].T)


def _sort(
    folder: Path,
    keys: Keys,
    label: NDArray[np.int32],
    fate: NDArray[np.int8],
    pool_texts: int,
    seed: int,
    counts: PairCounts,
) -> None:
    """Write rows and pools, and take negatives out that stand on the other side."""
    train, dev = (fate == SPLITS.index(split) for split in SPLITS)
    dev_rows = [pair for batch in _masked(folder, dev) for pair in _pairs(batch)]
    dev_texts = {words_key(text) for pair in dev_rows for text in pair.negatives}
    dev_texts.update(keys[dev].ravel().tolist())
    first = np.unique(keys[:, 1], return_index=True)[1]
    first = np.sort(first[~np.isin(keys[first, 1], np.fromiter(dev_texts, dtype=np.uint64))])
    pool = first[_turns(mix(keys[first, 1], seed + 1), label[first], pool_texts)]
    in_pool = np.zeros(len(keys), dtype=np.bool_)
    in_pool[pool] = True
    train_texts = set(keys[train].ravel().tolist())
    _write(folder, "dev", [dev_rows], lambda key: key in train_texts, counts)
    rows = ([*_pairs(batch)] for batch in _masked(folder, train))
    _write(folder, "train", rows, lambda key: key in dev_texts, counts)
    distinct = {words_key(pair.positive): pair.positive for pair in dev_rows}
    pools = {
        "dev": [list(distinct.values())],
        "train": (batch.column("positive").to_pylist() for batch in _masked(folder, in_pool)),
    }
    for split, batches in pools.items():
        path = folder / f"{split}_pool.parquet"
        with pq.ParquetWriter(path, POOL_SCHEMA, write_page_checksum=True) as writer:
            for texts in batches:
                writer.write_table(pa.table({"text": texts}, schema=POOL_SCHEMA))


def _write(
    folder: Path,
    split: str,
    batches: Iterable[list[Pair]],
    other_side: Callable[[int], bool],
    counts: PairCounts,
) -> None:
    path = folder / f"{split}.parquet"
    with pq.ParquetWriter(path, PAIR_SCHEMA, write_page_checksum=True) as writer:
        for pairs in batches:
            for row, pair in enumerate(pairs):
                kept = tuple(text for text in pair.negatives if not other_side(words_key(text)))
                lost = len(pair.negatives) - len(kept)
                if lost:
                    counts.drop_negatives(pair.source, "stands on the other side", lost)
                    pairs[row] = Pair(pair.anchor, pair.positive, kept, pair.source)
            writer.write_table(_table(pairs), row_group_size=GROUP_ROWS)


def _table(pairs: Iterable[Pair]) -> pa.Table:
    return pa.Table.from_pylist([asdict(pair) for pair in pairs], schema=PAIR_SCHEMA)


def _masked(folder: Path, mask: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    begin = 0
    for batch in _read(folder / "pairs.parquet"):
        end = begin + batch.num_rows
        yield batch.filter(pa.array(mask[begin:end]))
        begin = end


def _pairs(batch: pa.RecordBatch) -> Iterator[Pair]:
    for row in batch.to_pylist():
        yield Pair(**{**row, "negatives": tuple(row["negatives"])})


def _read(path: Path) -> Iterator[pa.RecordBatch]:
    columns: dict[str, parquet.Kind] = dict.fromkeys(
        (POOL_SCHEMA if path.stem.endswith("_pool") else PAIR_SCHEMA).names, "texts"
    )
    cure = f"remove {path.parent} and run the same command again"
    return parquet.read_batches(path, columns, cure, rows=READ_ROWS, own=True)
