"""What a search found, and the order of equal scores: one for every search and size of block."""

from dataclasses import dataclass

import numpy as np

EMPTY = -1  # a place of a ranking that no document takes
NOT_FINITE = "a score is not finite: the model gave NaN or infinite vectors"


@dataclass(frozen=True)
class Hits:
    """What a search found for some queries.

    Attributes:
        rows: `(queries, depth)` int64 row numbers of documents, best first; EMPTY where none.
        scores: `(queries, depth)` float32; 0 where there is no document.
    """

    rows: np.ndarray
    scores: np.ndarray

    def first(self, depth: int) -> "Hits":
        """Return the best `depth` of each query."""
        return Hits(self.rows[:, :depth], self.scores[:, :depth])

    def without(self, own: np.ndarray) -> "Hits":
        """Return the hits without one document a query: `(queries,)` row numbers, EMPTY for none.

        The places behind it move up, and the last one of the query is EMPTY.
        """
        gone = (self.rows == own[:, None]) & (own != EMPTY)[:, None]
        # A stable sort moves the one that goes to the end.
        order = np.argsort(gone, axis=1, kind="stable")
        rows, scores = (
            np.take_along_axis(np.where(gone, nothing, part), order, axis=1)
            for part, nothing in ((self.rows, EMPTY), (self.scores, np.float32(0)))
        )
        return Hits(rows, scores)


def keys_of(scores: np.ndarray, start: int) -> np.ndarray:
    """Return one int64 for each score that sorts by it, then by its document's row.

    Args:
        scores: `(queries, documents)` float32.
        start: row of the first document.

    Raises:
        ValueError: a score is not finite.
    """
    # The float's bits made monotone in
    # the upper half, the row number counted down in the lower. All keys differ, so neither the
    # partition nor the size of the blocks can change the order of ties.
    if not np.isfinite(scores).all():
        raise ValueError(NOT_FINITE)
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0
    ordered = np.where(bits >= 0, bits, np.int64(-(2**31)) - bits)
    rows = np.arange(start, start + scores.shape[1], dtype=np.int64)
    return ordered * 2**32 + (2**32 - 1 - rows)


def largest(keys: np.ndarray, depth: int) -> np.ndarray:
    """Return the `depth` largest keys of each query, the largest first."""
    if keys.shape[1] > depth:
        keys = np.partition(keys, keys.shape[1] - depth, axis=1)[:, -depth:]
    return np.sort(keys, axis=1)[:, ::-1]


def documents_of(keys: np.ndarray) -> np.ndarray:
    """Return the row numbers of the documents that keys stand for."""
    return 2**32 - 1 - (keys & (2**32 - 1))


def scores_of(keys: np.ndarray) -> np.ndarray:
    """Return the scores that keys stand for, float32."""
    ordered = keys >> 32
    bits = np.where(ordered >= 0, ordered, np.int64(-(2**31)) - ordered)
    return bits.astype(np.int32).view(np.float32)
