"""How good vectors are: retrieval, agreement with people, and signs of collapse.

Vectors come in as arrays, so that any engine may make them and the asymmetric case (queries by one
model, documents by another) is no case of its own. numpy only; scipy and scikit-learn are imported
by the functions that use them.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from small_modernbert.data.evaluation_sets import RetrievalSet

METRICS = ("ndcg@10", "map@100", "recall@10", "recall@100", "mrr@10")
DEPTH = 100
QUERY_BLOCK = 256
DOCUMENT_BLOCK = 16_384

Encode = Callable[[list[str]], np.ndarray]


def evaluate_retrieval(
    encode: Encode, questions: RetrievalSet, encode_documents: Encode | None = None
) -> dict[str, float]:
    """Encode a set and score it.

    Args:
        encode: texts -> `(texts, width)` unit vectors; for queries, and for documents too unless
            `encode_documents` is given.
        questions: the set.
        encode_documents: another model for the documents, of the same width: the asymmetric case.

    Returns:
        The METRICS, each a mean over the queries.
    """
    queries = encode(list(questions.queries))
    documents = (encode_documents or encode)(list(questions.documents))
    return retrieval_metrics(queries, documents, questions)


def retrieval_metrics(
    query_vectors: np.ndarray, document_vectors: np.ndarray, questions: RetrievalSet
) -> dict[str, float]:
    """Score vectors of a set's queries and documents: `(queries, width)`, `(documents, width)`.

    Raises:
        ValueError: the vectors do not fit the set or one another, or are not finite.
    """
    wanted = (len(questions.queries), len(questions.documents))
    if (len(query_vectors), len(document_vectors)) != wanted:
        raise ValueError(
            f"{questions.name} has {wanted[0]} queries and {wanted[1]} documents, "
            f"the vectors are {query_vectors.shape} and {document_vectors.shape}"
        )
    return ranking_metrics(nearest(query_vectors, document_vectors, DEPTH), questions)


def nearest(query_vectors: np.ndarray, document_vectors: np.ndarray, depth: int) -> np.ndarray:
    """Return the row numbers of the `depth` best documents of each query, best first.

    The score is the dot product, taken block by block, so memory does not grow with the corpus
    (whose vectors may be a memory map). Equal scores rank in the documents' order.

    Returns:
        `(queries, min(depth, documents))` int64.

    Raises:
        ValueError: widths differ, or a score is not finite.
    """
    if query_vectors.shape[1] != document_vectors.shape[1]:
        raise ValueError(
            f"queries are {query_vectors.shape[1]} wide, documents {document_vectors.shape[1]}"
        )
    found = []
    for begin in range(0, len(query_vectors), QUERY_BLOCK):
        queries = np.asarray(query_vectors[begin : begin + QUERY_BLOCK], dtype=np.float32)
        best = np.empty((len(queries), 0), dtype=np.int64)
        for start in range(0, len(document_vectors), DOCUMENT_BLOCK):
            block = np.asarray(document_vectors[start : start + DOCUMENT_BLOCK], dtype=np.float32)
            best = _largest(np.hstack([best, _keys(queries @ block.T, start)]), depth)
        found.append(_documents_of(best))
    return np.concatenate(found)


def best_scores(scores: np.ndarray, depth: int) -> np.ndarray:
    """Return the row numbers of the `depth` highest of `(documents,)` scores, best first.

    Documents that score 0 are not found at all, as in lexical search, and stand as -1.
    """
    best = _documents_of(_largest(_keys(scores[None].astype(np.float32), 0), depth))[0]
    return np.where(scores[best] > 0, best, -1)


def ranking_metrics(ranking: np.ndarray, questions: RetrievalSet) -> dict[str, float]:
    """Score a ranking `(queries, depth)` of document row numbers; -1 is an empty place.

    Relevance is yes or no. Recall and average precision divide by all the relevant documents of a
    query, as trec_eval does, not by the depth.
    """
    row_of = {document: row for row, document in enumerate(questions.document_ids)}
    relevant = [
        np.array([row_of[document] for document in questions.relevant[query]])
        for query in questions.query_ids
    ]
    hits = np.stack([np.isin(found, rows) for found, rows in zip(ranking, relevant, strict=True)])
    totals = np.array([len(rows) for rows in relevant])
    ranks = np.arange(1, hits.shape[1] + 1)

    discounts = 1 / np.log2(ranks[:10] + 1)
    # A ranking shorter than ten (a tiny corpus) still has its ideal among the ranks it offers.
    ideal = np.cumsum(discounts)[np.minimum(totals, len(discounts)) - 1]
    precision = np.cumsum(hits[:, :100], axis=1) / ranks[:100]
    first = np.where(hits[:, :10].any(axis=1), hits[:, :10].argmax(axis=1) + 1, np.inf)
    per_query = {
        "ndcg@10": (hits[:, :10] * discounts).sum(axis=1) / ideal,
        "map@100": (precision * hits[:, :100]).sum(axis=1) / totals,
        "recall@10": hits[:, :10].sum(axis=1) / totals,
        "recall@100": hits[:, :100].sum(axis=1) / totals,
        "mrr@10": 1 / first,
    }
    return {name: float(per_query[name].mean()) for name in METRICS}


def spearman(scores: Sequence[float] | np.ndarray, gold: Sequence[float] | np.ndarray) -> float:
    """Return the rank correlation of a model's scores with people's, from -1 to 1."""
    from scipy.stats import spearmanr

    return float(spearmanr(scores, gold).statistic)


def average_precision(
    scores: Sequence[float] | np.ndarray, labels: Sequence[float] | np.ndarray
) -> float:
    """Return the average precision of scores that should rank label 1 before label 0."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(np.asarray(labels) > 0, scores))


def pair_scores(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the dot products of `(pairs, width)` unit vectors, row by row: their cosines."""
    return np.einsum("ij,ij->i", first, second, dtype=np.float32)


def collapse(vectors: np.ndarray) -> dict[str, float]:
    """Measure whether embeddings fall together: `(texts, width)` unit vectors.

    Returns:
        mean_cosine: over all pairs of different texts; near 1 when all vectors are one.
        effective_rank: exp of the entropy of the normalised singular values, from 1 to the width
            (Roy and Vetterli, The effective rank, EUSIPCO 2007).

    Raises:
        ValueError: there are fewer than two vectors.
    """
    if len(vectors) < 2:
        raise ValueError("collapse needs at least two vectors")
    wide = np.asarray(vectors, dtype=np.float64)
    number = len(wide)
    total = wide.sum(axis=0)
    mean_cosine = (total @ total - (wide * wide).sum()) / (number * (number - 1))
    # The singular values from the smaller Gram matrix: width x width whatever the texts.
    gram = wide.T @ wide if wide.shape[1] <= number else wide @ wide.T
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    shares = singular / singular.sum() if singular.sum() > 0 else np.ones(1)
    shares = shares[shares > 0]
    return {
        "mean_cosine": float(mean_cosine),
        "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())),
    }


def mean_ndcg(per_set: Mapping[str, Mapping[str, float]]) -> float:
    """Return the quality that tables rank by: nDCG@10, averaged over sets, each weighing the same.

    Raises:
        ValueError: there is no set.
    """
    if not per_set:
        raise ValueError("no retrieval set to average")
    return float(np.mean([metrics["ndcg@10"] for metrics in per_set.values()]))


def _keys(scores: np.ndarray, start: int) -> np.ndarray:
    # One int64 a document that sorts by score, then by place: the float's bits made monotone in
    # the upper half, the row number counted down in the lower. All keys differ, so neither the
    # partition nor the size of the blocks can change the order of ties.
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: the model gave NaN or infinite vectors")
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0
    ordered = np.where(bits >= 0, bits, np.int64(-(2**31)) - bits)
    rows = np.arange(start, start + scores.shape[1], dtype=np.int64)
    return ordered * 2**32 + (2**32 - 1 - rows)


def _largest(keys: np.ndarray, depth: int) -> np.ndarray:
    if keys.shape[1] > depth:
        keys = np.partition(keys, keys.shape[1] - depth, axis=1)[:, -depth:]
    return np.sort(keys, axis=1)[:, ::-1]


def _documents_of(keys: np.ndarray) -> np.ndarray:
    return 2**32 - 1 - (keys & (2**32 - 1))
