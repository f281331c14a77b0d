"""Which of the cleaned rows a corpus keeps, and in which order: duplicates, cap, shuffle.

Everything is decided on fingerprints and sizes; no text is read here. Memory: 33 bytes a row for
keys, tokens, labels, fates and places, beside what `duplicates.near_duplicates` says.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from small_modernbert.data.cleaning import Reason
from small_modernbert.data.corpus_building import Spill
from small_modernbert.data.duplicates import MinHash, exact_duplicates, near_duplicates
from small_modernbert.data.keys import Keys, mix


@dataclasses.dataclass(frozen=True)
class Choice:
    """What becomes of every row of all spills, in their order.

    Attributes:
        labels: names of the labels.
        label: index into `labels`.
        tokens: of the row.
        fate: -1 for kept, else an index into `fates`.
        place: of a kept row in the shuffled order, else -1; the first are held out.
    """

    labels: list[str]
    label: NDArray[np.int32]
    tokens: NDArray[np.int32]
    fate: NDArray[np.int8]
    place: NDArray[np.int64]

    fates: ClassVar = (Reason.EXACT, Reason.NEAR, Reason.CAP)


def choose(
    spills: list[Spill],
    minhash: MinHash | None,
    max_texts: int,
    passage_tokens: int,
    passage_share: float,
    seed: int,
) -> Choice:
    """Decide which rows stay, and in which order.

    Duplicates go first; of equal ones the earliest source's earliest row stays. Then the cap, see
    `rank_for_cap`. The order, and so what is held out, depends on nothing but texts and seed.
    """
    keys = np.concatenate([spill.numbers("key") for spill in spills])
    tokens = np.concatenate([spill.numbers("tokens") for spill in spills])
    # Every label that was read has a line in the table, also if none of its texts is left.
    labels = list(dict.fromkeys(label for spill in spills for label in spill.source_counts))
    label = np.concatenate([spill.label_numbers(labels) for spill in spills])
    fate = np.full(len(keys), -1, dtype=np.int8)
    fate[exact_duplicates(keys)] = Choice.fates.index(Reason.EXACT)
    if minhash is not None:
        near = near_duplicates(
            minhash,
            fate < 0,
            lambda band: np.concatenate([spill.numbers(f"band{band}") for spill in spills]),
            lambda rows: _signatures(spills, rows),
        )
        fate[near] = Choice.fates.index(Reason.NEAR)
    kept = np.flatnonzero(fate < 0)
    if 0 < max_texts < len(kept):
        is_passage, passages = tokens[kept] >= passage_tokens, round(passage_share * max_texts)
        order = rank_for_cap(mix(keys[kept], seed), is_passage, label[kept], passages)
        fate[kept[order[max_texts:]]] = Choice.fates.index(Reason.CAP)
        kept = np.flatnonzero(fate < 0)
    place = np.full(len(keys), -1, dtype=np.int64)
    # Another seed than the cap's: the order must not tell what was taken first.
    place[kept[np.argsort(mix(keys[kept], seed + 1), kind="stable")]] = np.arange(len(kept))
    return Choice(labels, label, tokens, fate, place)


def rank_for_cap(
    lots: Keys,
    passage: NDArray[np.bool_],
    label: NDArray[np.int32],
    max_passages: int,
) -> NDArray[np.int64]:
    """Return the rows in the order in which a cap takes them.

    First passages, until there are `max_passages`; then the short texts; then the passages that
    are left. In each of the three, the labels take turns while they last, so that a large source
    cannot crowd out a small one; which of its rows come first is drawn by lot.

    Args:
        lots: one random number a row.
        passage: whether it is a long text.
        label: of each row.
        max_passages: the most passages to take before short texts.
    """
    turn = np.zeros(len(lots), dtype=np.int64)
    by_lot = np.argsort(lots, kind="stable")
    for kind in (True, False):
        for number in np.unique(label):
            rows = by_lot[(label[by_lot] == number) & (passage[by_lot] == kind)]
            turn[rows] = np.arange(len(rows))
    order = np.lexsort((lots, turn, ~passage))
    long = int(passage.sum())
    first = min(max_passages, long)
    return np.concatenate([order[:first], order[long:], order[first:long]])


def _signatures(spills: list[Spill], rows: NDArray[np.int64]) -> NDArray[np.uint16]:
    parts, begin = [], 0
    for spill in spills:
        end = begin + spill.rows
        low, high = np.searchsorted(rows, (begin, end))
        parts.append(spill.signatures(rows[low:high] - begin))
        begin = end
    return np.concatenate(parts)


def tabulate(spills: list[Spill], choice: Choice, held_out_rows: int) -> dict[str, dict[str, int]]:
    """Return, for every label, what was read, cut, dropped for which reason, and kept.

    For each: read + extra chunks = kept + all that was dropped; kept = train + held out.
    """
    columns = ["read", "extra chunks", *Reason, "kept", "held out", "tokens"]
    table = {label: dict.fromkeys(columns, 0) for label in choice.labels}
    for spill in spills:
        for label, counts in spill.source_counts.items():
            for name, texts in counts.items():
                table[label][name] += texts
    for number, label in enumerate(choice.labels):
        mine = choice.label == number
        kept = mine & (choice.fate < 0)
        for code, reason in enumerate(choice.fates):
            table[label][reason] += int((mine & (choice.fate == code)).sum())
        table[label]["kept"] = int(kept.sum())
        table[label]["held out"] = int((kept & (choice.place < held_out_rows)).sum())
        table[label]["tokens"] = int(choice.tokens[kept].sum())
    return table


def total(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the sums over all labels of what `tabulate` has counted."""
    columns = next(iter(counts.values()), {})
    return {name: sum(row[name] for row in counts.values()) for name in columns}
