"""Search: the documents nearest to a query by vectors, by words (BM25), or by both.

Every search answers with `Hits`. Vectors come in as arrays, so that any engine may make them, and
the asymmetric case (queries by one model, documents by another) is no case of its own.
"""

import sys

import numpy as np

from small_modernbert.data.evaluation_sets import RetrievalSet
from small_modernbert.evaluation.bm25 import WordIndex
from small_modernbert.evaluation.bm25_blocks import search_in_blocks
from small_modernbert.evaluation.rankings import (
    EMPTY,
    NOT_FINITE,
    Hits,
    documents_of,
    keys_of,
    largest,
    scores_of,
)
from small_modernbert.runs.errors import UserError

DEPTH = 100  # documents a query that a set is scored on
QUERY_BLOCK = 256
DOCUMENT_BLOCK = 16_384
LARGEST_IN_MEMORY = 100_000  # documents that BM25 makes an index of; more it reads twice instead


def nearest(query_vectors: np.ndarray, document_vectors: np.ndarray, depth: int) -> Hits:
    """Return the `depth` documents with the largest dot product with each query.

    Block by block, on the GPU where there is one, so memory does not grow with the corpus, whose
    vectors may be a memory map: they are read once. Equal scores rank in the documents' order.

    Args:
        query_vectors: `(queries, width)`.
        document_vectors: `(documents, width)`.
        depth: documents a query; all of them where there are fewer.

    Raises:
        ValueError: widths differ, or a score is not finite.
    """
    if query_vectors.shape[1] != document_vectors.shape[1]:
        raise ValueError(
            f"queries are {query_vectors.shape[1]} wide, documents {document_vectors.shape[1]}"
        )
    queries = np.asarray(query_vectors, dtype=np.float32)
    # A process that has not loaded torch has no GPU in use, and need not wait for it.
    torch = sys.modules.get("torch")
    gpu = torch is not None and torch.cuda.is_available()
    find = _torch_search if gpu else _numpy_search
    keys = find(queries, document_vectors, depth)
    return Hits(documents_of(keys), scores_of(keys))


def _numpy_search(queries: np.ndarray, documents: np.ndarray, depth: int) -> np.ndarray:
    """Return the keys (`rankings.keys_of`) of each query's best documents, the largest first."""
    starts = range(0, len(queries), QUERY_BLOCK)
    best = [np.empty((len(queries[start : start + QUERY_BLOCK]), 0), np.int64) for start in starts]
    for begin in range(0, len(documents), DOCUMENT_BLOCK):
        block = np.asarray(documents[begin : begin + DOCUMENT_BLOCK], dtype=np.float32)
        for place, start in enumerate(starts):
            scores = queries[start : start + QUERY_BLOCK] @ block.T
            best[place] = largest(np.hstack([best[place], keys_of(scores, begin)]), depth)
    return np.concatenate(best)


def _torch_search(
    queries: np.ndarray, documents: np.ndarray, depth: int, device: str = "cuda"
) -> np.ndarray:
    """Do as numpy does, on a device: the same keys, in larger blocks, in fp32 without TF32."""
    import torch

    def keys_on_device(scores: torch.Tensor, start: int) -> torch.Tensor:
        if not torch.isfinite(scores).all():
            raise ValueError(NOT_FINITE)
        bits = (scores + 0.0).view(torch.int32).long()
        ordered = torch.where(bits >= 0, bits, -(2**31) - bits)
        rows = torch.arange(start, start + scores.shape[1], device=device)
        return ordered * 2**32 + (2**32 - 1 - rows)

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        asked = torch.from_numpy(queries).to(device).split(QUERY_BLOCK * 4)
        best = [torch.empty((len(some), 0), dtype=torch.int64, device=device) for some in asked]
        for start in range(0, len(documents), DOCUMENT_BLOCK * 4):
            piece = np.array(documents[start : start + DOCUMENT_BLOCK * 4], dtype=np.float32)
            block = torch.from_numpy(piece).to(device)
            for place, some in enumerate(asked):
                keys = torch.cat([best[place], keys_on_device(some @ block.T, start)], dim=1)
                best[place] = keys.topk(min(depth, keys.shape[1]), dim=1).values
        return torch.cat(best).cpu().numpy()
    finally:
        torch.set_float32_matmul_precision(precision)


def rank(questions: RetrievalSet, query_vectors: np.ndarray, document_vectors: np.ndarray) -> Hits:
    """Rank a set's documents by vectors, each query's own id left out (`RetrievalSet.own_rows`).

    Raises:
        ValueError: the vectors do not fit the set or one another, or are not finite.
    """
    wanted = (len(questions.queries), len(questions.documents))
    if (len(query_vectors), len(document_vectors)) != wanted:
        raise ValueError(
            f"{questions.name} has {wanted[0]} queries and {wanted[1]} documents, "
            f"the vectors are {query_vectors.shape} and {document_vectors.shape}"
        )
    return _leave_out_own(nearest(query_vectors, document_vectors, DEPTH + 1), questions)


def rank_by_words(questions: RetrievalSet) -> Hits:
    """Rank a set's documents by BM25, each query's own id left out.

    Raises:
        UserError: BM25 finds nothing at all.
    """
    documents, queries = questions.documents, questions.queries
    if len(documents) > LARGEST_IN_MEMORY:
        hits = search_in_blocks(documents, queries, DEPTH + 1)
    else:
        hits = WordIndex(documents).search(queries, DEPTH + 1)
    if (hits.rows == EMPTY).all():
        raise UserError(
            f"no query of {questions.name} shares a word with a document (--no-bm25: without BM25)"
        )
    return _leave_out_own(hits, questions)


def combine(first: Hits, second: Hits, weight: float) -> Hits:
    """Mix two searches: the weighted mean of their scores, each scaled to 0-1 for each query.

    The scale is from the least to the greatest score of a query's hits; what one search did not
    find has 0 from it. Equal sums rank in the documents' order.

    Args:
        first: of one search.
        second: of the other, for the same queries.
        weight: of the second, from 0 to 1.
    """
    parts = ((first, 1 - weight), (second, weight))
    weighted = [share * _scaled(hits) for hits, share in parts]
    depth = max(first.rows.shape[1], second.rows.shape[1])
    rows = np.full((len(first.rows), depth), EMPTY, dtype=np.int64)
    scores = np.zeros(rows.shape, dtype=np.float32)
    for query in range(len(rows)):
        hits = np.concatenate([first.rows[query], second.rows[query]])
        values = np.concatenate([part[query] for part in weighted])
        there = hits != EMPTY
        documents, places = np.unique(hits[there], return_inverse=True)
        sums = np.bincount(places, values[there], len(documents)).astype(np.float32)
        order = np.argsort(-sums, kind="stable")[:depth]
        rows[query, : len(order)], scores[query, : len(order)] = documents[order], sums[order]
    return Hits(rows, scores)


def _leave_out_own(hits: Hits, questions: RetrievalSet) -> Hits:
    own = questions.own_rows
    return (hits.without(own) if (own != EMPTY).any() else hits).first(DEPTH)


def _scaled(hits: Hits) -> np.ndarray:
    """Scale each query's scores to 0-1; where all are equal they are 1."""
    there = hits.rows != EMPTY
    low = np.where(there, hits.scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(there, hits.scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    span = high - low
    with np.errstate(invalid="ignore"):
        scaled = np.where(span > 0, (hits.scores - low) / np.where(span > 0, span, 1), 1)
    return np.where(there, scaled, 0)
