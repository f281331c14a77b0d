"""Hard negatives, and pairs that are consistent: what else in a pool is near to an anchor.

Candidates come from an embedding model and from BM25. One that is nearly as near as the positive
may well be another right answer, so a relative margin keeps it out (NV-Retriever, arXiv 2407.15831,
"TopK-PercPos"). The same search says whether the positive itself is among the first k of the pool
(the consistency filter of E5, arXiv 2212.03533, section 3).

Matrix products run block by block (`search.nearest`): memory grows with the anchors at hand
and the depth, not with the pool, whose vectors may be a memory map.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from small_modernbert.evaluation.search import nearest
from small_modernbert.labelling.judges import half_precision
from small_modernbert.models.encoders import Encoder
from small_modernbert.models.prompts import Role


@dataclass(frozen=True)
class Pool:
    """Texts that can be mined.

    Attributes:
        texts: distinct ones.
        keys: `keys.words_key` of each, `(texts,)`.
        vectors: `(texts, width)`, of unit length.
        roles: of each; none given = documents.
    """

    texts: Sequence[str]
    keys: NDArray[np.uint64]
    vectors: np.ndarray
    roles: Sequence[Role] = ()


class Vectors:
    """A bi-encoder that does not encode twice what it has seen: pools for good, others until told.

    The same words in another role are another text where the model has prompts.

    Raises:
        ValueError: from `encode`, if no text is given.
    """

    def __init__(self, encoder: Encoder, *, half: bool = True) -> None:
        """Keep vectors of an encoder; `half`: half precision on a GPU."""
        self.encoder, self.half = encoder, half
        self._pools: list[tuple[dict[tuple[str, str], int], np.ndarray]] = []
        self._fresh: dict[tuple[str, str], np.ndarray] = {}

    def add_pool(self, pool: Pool) -> None:
        """Take the vectors of a pool's texts from the pool from now on."""
        prompts = map(self.encoder.prompts.of, pool.roles or ["document"] * len(pool.texts))
        keys = zip(prompts, pool.texts, strict=True)
        self._pools.append(({key: row for row, key in enumerate(keys)}, pool.vectors))

    def encode_pool(
        self, texts: Sequence[str], roles: Sequence[Role], path: Path, description: str
    ) -> np.ndarray:
        """Encode a pool's texts into a file unless it is there; return it as a memory map."""
        with half_precision(self.encoder.model, self.half):
            return self.encoder.encode_to(path, texts, description, roles)

    def forget(self) -> None:
        """Drop what is in no pool, so that memory stays flat."""
        self._fresh.clear()

    def encode(self, texts: Sequence[str], role: Role = "document") -> np.ndarray:
        """Return `(texts, width)` float32 unit vectors."""
        prompt = self.encoder.prompts.of(role)
        unknown = [text for text in dict.fromkeys(texts) if self._find(text, prompt) is None]
        if unknown:
            with half_precision(self.encoder.model, self.half):
                vectors = self.encoder.encode(unknown, role=role)
            keys = [(prompt, text) for text in unknown]
            self._fresh.update(zip(keys, vectors, strict=True))
        return np.stack([self._find(text, prompt) for text in texts])

    def _find(self, text: str, prompt: str) -> np.ndarray | None:
        for rows, vectors in self._pools:
            if (prompt, text) in rows:
                return np.asarray(vectors[rows[prompt, text]], dtype=np.float32)
        return self._fresh.get((prompt, text))


@dataclass(frozen=True)
class Neighbours:
    """What of a pool is near to some anchors.

    Attributes:
        rows: `(anchors, depth)` of the pool, nearest first.
        scores: `(anchors, depth)` cosines.
        allowed: `(anchors, depth)`, false where the text is a known right answer or the anchor.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    allowed: NDArray[np.bool_]

    def of(self, anchors: Sequence[int]) -> "Neighbours":
        """Return those of some of the anchors."""
        return Neighbours(self.rows[anchors], self.scores[anchors], self.allowed[anchors])


def find_neighbours(
    anchors: np.ndarray, known: Sequence[Collection[int]], pool: Pool, depth: int
) -> Neighbours:
    """Search a pool so deep that `depth` texts remain beside an anchor's known answers.

    Args:
        anchors: `(anchors, width)` unit vectors.
        known: keys of each anchor's texts that are no rivals: itself, and what answers it.
        pool: what to search.
        depth: texts wanted; all of the pool where that is smaller.
    """
    deepest = min(depth + max(map(len, known), default=0), len(pool.texts))
    hits = nearest(anchors, pool.vectors, deepest)
    return Neighbours(hits.rows, hits.scores, _allowed(hits.rows, known, pool))


def cosines_of(anchors: np.ndarray, rows: NDArray[np.int64], pool: Pool) -> NDArray[np.float32]:
    """Return the cosines of each anchor with its rows of the pool; -1 where a row is -1."""
    cosines = np.full(rows.shape, -1, dtype=np.float32)
    for number, (anchor, places) in enumerate(zip(anchors, rows, strict=True)):
        there = places >= 0
        cosines[number, there] = np.asarray(pool.vectors[places[there]], dtype=np.float32) @ anchor
    return cosines


def _allowed(
    rows: NDArray[np.int64], known: Sequence[Collection[int]], pool: Pool
) -> NDArray[np.bool_]:
    keys = pool.keys[np.maximum(rows, 0)]
    forbidden = [np.fromiter(own, dtype=np.uint64, count=len(own)) for own in known]
    same = [np.isin(own, others) for own, others in zip(keys, forbidden, strict=True)]
    return (rows >= 0) & ~np.array(same, dtype=np.bool_).reshape(rows.shape)


def ranks(neighbours: Neighbours, positive_scores: np.ndarray) -> NDArray[np.int64]:
    """Return each positive's rank among the pool, 1 for the first, exact up to the depth.

    Args:
        neighbours: of the anchors.
        positive_scores: `(anchors,)` cosines of anchor and positive.
    """
    nearer = (neighbours.scores > np.asarray(positive_scores)[:, None]) & neighbours.allowed
    return 1 + nearer.sum(axis=1)


def ceilings(positive_scores: np.ndarray, margin: float) -> np.ndarray:
    """Return what a candidate's cosine must stay below: the positive's, less a share of it."""
    # Below zero a share of the score would raise the bar; such a positive is no yardstick at all.
    return positive_scores - margin * np.abs(positive_scores)


def choose_negatives(
    sources: Sequence[Neighbours], positive_scores: np.ndarray, margin: float, number: int
) -> list[list[int]]:
    """Choose rows of the pool as hard negatives, the sources by turns, each's first ones first.

    Args:
        sources: candidates of one pool from several searches, with the miner's cosines.
        positive_scores: `(anchors,)` the miner's cosines of anchor and positive.
        margin: a candidate must score less than (1 - margin) of the positive.
        number: rows an anchor at most.

    Returns:
        For every anchor its rows, without repetition.
    """
    limits = ceilings(np.asarray(positive_scores), margin)[:, None]
    fit = [(near.scores < limits) & near.allowed for near in sources]
    chosen = []
    for anchor in range(len(limits)):
        lists = [
            near.rows[anchor][mask[anchor]].tolist()
            for near, mask in zip(sources, fit, strict=True)
        ]
        turns = (row for rows in zip_longest(*lists) for row in rows if row is not None)
        chosen.append(list(dict.fromkeys(turns))[:number])
    return chosen


def lexical_neighbours(
    rows: NDArray[np.int64], anchors: np.ndarray, known: Sequence[Collection[int]], pool: Pool
) -> Neighbours:
    """Return what BM25 found, with the miner's cosines: a word match is held to the same margin.

    Args:
        rows: of the pool, `(anchors, depth)`, from `bm25.WordIndex.search`.
        anchors: `(anchors, width)` unit vectors.
        known: see `find_neighbours`.
        pool: that was searched.
    """
    return Neighbours(rows, cosines_of(anchors, rows, pool), _allowed(rows, known, pool))
