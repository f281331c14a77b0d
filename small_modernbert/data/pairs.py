"""Pairs of texts: an anchor (question, goal, sentence), its positive, and negatives if any.

Read from the sources of `sources.py`, cleaned, counted, and split so that no text stands on both
sides.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from small_modernbert.data import file_rows, sources
from small_modernbert.data.cleaning import Cleaning, Reason, clean
from small_modernbert.data.hub_datasets import PAIR_SOURCES
from small_modernbert.data.keys import text_key, words_key
from small_modernbert.data.leaks import RowCounts
from small_modernbert.data.sources import ANCHOR_ROLES, PairSource, Role
from small_modernbert.runs.errors import UserError

REPEATED = "repeated pair"
NOT_ASKED_FOR = "not asked for"
IN_ORDER = frozenset({REPEATED, NOT_ASKED_FOR})  # reasons that say nothing against a source
# A dev split of a few large groups would measure a few texts many times over.
SMALL_GROUP = 8
# What else the columns of pairs are called, see `file_rows.name_columns`.
NAMES = {
    "anchor": {"anchor", "query", "question"},
    "positive": {"positive", "answer", "document", "passage"},
}
_NEGATIVE = re.compile(r"negative(?:_(\d+))?")


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """An anchor with its positive, negatives if any came along, and where it is from.

    The role is the anchor's, see `sources.PairSource`.
    """

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    source: str
    role: Role = "query"


class PairCounts(RowCounts):
    """Pairs read, kept and dropped, and negatives taken out of kept ones, by source and reason."""

    def __init__(self) -> None:
        super().__init__()
        self.negatives: dict[str, Counter[str]] = {}

    def move(self, source: str, reason: str, number: int) -> None:
        """Count kept rows as dropped after all."""
        self.kept[source] -= number
        if number:
            self.dropped.setdefault(source, Counter())[reason] += number

    def drop_negatives(self, source: str, reason: str, number: int = 1) -> None:
        """Count negatives that were taken out of a row that stays."""
        self.negatives.setdefault(source, Counter())[reason] += number

    def check_lost(self, what: str, share: float) -> None:
        """Refuse sources of whose rows more than a share is no use; see `sources.check_lost`."""
        for source, read in self.read.items():
            lost = self.dropped.get(source, Counter())
            lost = {reason: number for reason, number in lost.items() if reason not in IN_ORDER}
            sources.check_lost(f"{what}, source {source!r}", read, lost, share)

    def to_json(self) -> dict[str, dict[str, object]]:
        """Return what `RowCounts` does, with `negatives_dropped` for every source."""
        return {
            source: {**row, "negatives_dropped": dict(self.negatives.get(source, Counter()))}
            for source, row in super().to_json().items()
        }


def check_sources(only: Sequence[str], counts: PairCounts) -> None:
    """Refuse sources that no row read was of.

    Raises:
        UserError: naming them, and those that there are.
    """
    if unknown := [source for source in only if source not in counts.read]:
        raise UserError(
            f"no row is of the source {', '.join(unknown)}; --sources takes some of: "
            f"{', '.join(counts.read)}"
        )


def find_sources(reference: str | Path, split: str = "train") -> list[PairSource]:
    """Turn a reference into rows like those of the table.

    Args:
        reference: a name in PAIR_SOURCES, a file with the columns anchor and positive (and, if it
            has them, negative, negative_1 ... or the list negatives, source, and role: "query", or
            "text" where both sides are alike), or a folder of such files, see `file_rows`.
        split: of a folder that has splits.

    Raises:
        UserError: it is none of these, or a file lacks a column.
    """
    if str(reference) in PAIR_SOURCES:
        return [PAIR_SOURCES[str(reference)]]
    place = Path(reference).expanduser()
    cure = f"give other pairs: files, folders, or names of: {', '.join(PAIR_SOURCES)}"
    if not place.exists():
        raise UserError(f"no such pairs: {reference}; {cure}")
    files = file_rows.find_files(place, cure=cure)
    wanted = file_rows.split_named(split) or "train"
    return [_describe(file, cure) for file in file_rows.select_split(files, wanted, cure)]


def _describe(file: file_rows.DataFile, cure: str) -> PairSource:
    names = file_rows.read_columns(file.path, cure)
    called = file_rows.name_columns(file.path, NAMES, names, NAMES)
    for column in NAMES:
        if called[column] not in names:
            there = ", ".join(names)
            raise UserError(f"{file.path} has no column {column!r}; it has: {there}; {cure}")
    numbered = [(name, _NEGATIVE.fullmatch(name)) for name in names if name != "negatives"]
    columns = sorted((int(match[1] or 0), name) for name, match in numbered if match)
    listed = ["negatives"] if "negatives" in names else []
    return PairSource(
        name=file.name,
        id=str(file.path),
        anchor=called["anchor"],
        positive=called["positive"],
        negatives=tuple([name for _, name in columns] + listed),
        label="source" if "source" in names else None,
        role="role" if "role" in names else None,
        licence=f"of the texts in {file.path.name}: yours to state",
    )


def read_pairs(
    *references: str | Path,
    seed: int = 42,
    split: str | None = None,
    cap: int | None = None,
    counts: PairCounts | None = None,
    max_lost: float = 1.0,
    cleaning: Cleaning = "none",
) -> Iterator[Pair]:
    """Yield the cleaned pairs of some sources, one after the other, in their order.

    Texts are cleaned as `cleaning.clean` does. Dropped, and counted, are rows whose anchor or
    positive is no usable text, whose positive is the anchor again, and pairs that came before.
    Negatives that are no usable text, or equal the anchor, the positive or one another, are taken
    out of their row.

    Args:
        references: see `find_sources`; all are validated before the first row is read.
        seed: of the choice where a source is capped.
        split: of hub datasets, instead of the table's.
        cap: rows to read of every source, instead of the table's; 0 = all.
        counts: what was read, kept and dropped is added here.
        max_lost: share of a source's rows that may be no use, see `sources.check_lost`.
        cleaning: see `cleaning.clean`.

    Raises:
        UserError: a source is not there, can't be reached, has other columns, or too many rows
            that are no use.
    """
    counts = PairCounts() if counts is None else counts
    changes = {"split": split, "cap": cap}
    changes = {name: value for name, value in changes.items() if value is not None}
    chosen = [
        dataclasses.replace(source, **changes)
        for reference in references
        for source in find_sources(reference, split or "train")
    ]
    seen: set[int] = set()
    for source in chosen:
        for pair in _clean_source(source, seed, counts, cleaning):
            key = pair_key(pair)
            if key in seen:
                counts.drop(pair.source, REPEATED)
                continue
            seen.add(key)
            counts.kept[pair.source] += 1
            yield pair
        counts.check_lost(f"pairs of {source.id}", max_lost)


def _clean_source(
    source: PairSource, seed: int, counts: PairCounts, cleaning: Cleaning
) -> Iterator[Pair]:
    for batch in sources.read_source(source, seed):
        columns = [batch[name] for name in source.columns]
        labels = batch[source.label] if source.label else [source.name] * len(columns[0])
        stated = batch[source.role] if source.role else [None] * len(columns[0])
        for label, role, anchor, positive, *negatives in zip(labels, stated, *columns, strict=True):
            label = label if isinstance(label, str) and label else source.name
            pair = clean_pair(anchor, positive, _flat(negatives), label, counts, cleaning)
            if pair is not None:
                role = role if role in ANCHOR_ROLES else source.anchor_role
                yield dataclasses.replace(pair, role=role)


def _flat(cells: Iterable[Any]) -> Iterator[Any]:
    for cell in cells:
        if isinstance(cell, list):
            yield from cell
        else:
            yield cell


def clean_pair(
    anchor: object,
    positive: object,
    negatives: Iterable[object],
    source: str,
    counts: PairCounts,
    cleaning: Cleaning = "none",
) -> Pair | None:
    """Return one row cleaned, or None after counting why it is dropped; see `read_pairs`."""
    counts.read[source] += 1
    texts = []
    for column, cell in (("anchor", anchor), ("positive", positive)):
        text = clean(cell, 1, cleaning)
        if isinstance(text, Reason):
            counts.drop(source, f"{column} {text}")
            return None
        texts.append(text)
    known = {words_key(text) for text in texts}
    if len(known) == 1:
        counts.drop(source, "positive repeats the anchor")
        return None
    kept = _clean_negatives(negatives, known, source, counts, cleaning)
    return Pair(texts[0], texts[1], tuple(kept), source)


def _clean_negatives(
    cells: Iterable[object],
    known: set[int],
    source: str,
    counts: PairCounts,
    cleaning: Cleaning,
) -> Iterator[str]:
    for cell in cells:
        if cell is None:
            continue
        text = clean(cell, 1, cleaning)
        if isinstance(text, Reason):
            counts.drop_negatives(source, str(text))
        elif (key := words_key(text)) in known:
            counts.drop_negatives(source, "repeats a text of its row")
        else:
            known.add(key)
            yield text


def pair_key(pair: Pair) -> int:
    """Return 64 bits that are equal for pairs of the same normalised anchor and positive."""
    return text_key(f"{words_key(pair.anchor):x} {words_key(pair.positive):x}")


def split_dev(
    anchors: NDArray[np.uint64], positives: NDArray[np.uint64], rows: int, seed: int
) -> NDArray[np.bool_]:
    """Choose a dev split that shares no anchor and no positive with the other rows.

    Rows that share a text, directly or through others, form a group, and only whole groups are
    drawn: those of at most a tenth of the rows wanted (or SMALL_GROUP), so that a text that
    thousands of rows share stays in training. A text counts on either side: an anchor that is
    another row's positive joins the two.

    Args:
        anchors: `words_keys` of the anchors, `(pairs,)`.
        positives: of the positives, `(pairs,)`.
        rows: dev rows wanted; a fifth of the pairs at most. Fewer come where groups are large.
        seed: of the draw.

    Returns:
        `(pairs,)`, true for dev rows.
    """
    left = min(rows, len(anchors) // 5)
    if left <= 0:
        return np.zeros(len(anchors), dtype=np.bool_)
    group = _groups(anchors, positives)
    sizes = np.bincount(group)
    largest = max(SMALL_GROUP, left // 10)
    taken = np.zeros(len(sizes), dtype=np.bool_)
    for number in np.random.default_rng(seed).permutation(len(sizes)):
        if 0 < sizes[number] <= min(left, largest):
            taken[number] = True
            left -= int(sizes[number])
            if left == 0:
                break
    return taken[group]


def _groups(anchors: NDArray[np.uint64], positives: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Return for each pair the number of its group: pairs that share a text, or do so by others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, place = np.unique(np.concatenate([anchors, positives]), return_inverse=True)
    ends = place.reshape(2, -1)
    edges = (np.ones(len(anchors), dtype=np.bool_), (ends[0], ends[1]))
    _, group_of_node = connected_components(
        coo_array(edges, shape=(len(nodes), len(nodes))), directed=False
    )
    return group_of_node[ends[0]]
