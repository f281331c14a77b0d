"""How good rankings and scores are: retrieval, agreement with people, and signs of collapse.

numpy only; scipy and scikit-learn are imported by the functions that use them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from small_modernbert.data.evaluation_sets import SentencePairs
from small_modernbert.data.retrieval_sets import RetrievalSet

METRICS = ("ndcg@10", "map@100", "recall@10", "recall@100", "mrr@10")


def ranking_metrics(ranking: np.ndarray, questions: RetrievalSet) -> dict[str, float]:
    """Score a ranking `(queries, depth)` of document row numbers; -1 is an empty place.

    As trec_eval does: nDCG's gains are the judged grades, linear, its ideal is of all judged
    documents; the others take relevance as yes or no, and recall and average precision divide by
    all the relevant documents of a query, not by the depth. A relevant document that the corpus
    lacks counts as one that was not returned.

    Returns:
        The METRICS, each a mean over the queries.
    """
    per_query = query_metrics(ranking, questions)
    return {name: float(per_query[name].mean()) for name in METRICS}


def query_metrics(ranking: np.ndarray, questions: RetrievalSet) -> dict[str, np.ndarray]:
    """Return the METRICS of each query, `(queries,)`; see `ranking_metrics`."""
    row_of = {document: row for row, document in enumerate(questions.document_ids)}
    gains = np.zeros(ranking.shape)
    ideal = np.zeros(len(ranking))
    totals = np.zeros(len(ranking))
    discounts = 1 / np.log2(np.arange(2, 12))
    for place, query in enumerate(questions.query_ids):
        grades = questions.relevant[query]
        rows = np.array([row_of.get(document, -2) for document in grades])
        values = np.array(list(grades.values()), dtype=np.float64)
        order = np.argsort(rows)
        spots = np.searchsorted(rows[order], ranking[place]).clip(max=len(rows) - 1)
        hit = rows[order][spots] == ranking[place]
        gains[place] = np.where(hit, values[order][spots], 0)
        best = np.sort(values)[::-1][: len(discounts)]
        ideal[place], totals[place] = best @ discounts[: len(best)], len(rows)
    hits = gains > 0
    ranks = np.arange(1, hits.shape[1] + 1)
    precision = np.cumsum(hits[:, :100], axis=1) / ranks[:100]
    first = np.where(hits[:, :10].any(axis=1), hits[:, :10].argmax(axis=1) + 1, np.inf)
    return {
        "ndcg@10": (gains[:, :10] * discounts[: gains.shape[1]]).sum(axis=1) / ideal,
        "map@100": (precision * hits[:, :100]).sum(axis=1) / totals,
        "recall@10": hits[:, :10].sum(axis=1) / totals,
        "recall@100": hits[:, :100].sum(axis=1) / totals,
        "mrr@10": 1 / first,
    }


def ranking_agreement(ranking: np.ndarray, wanted: np.ndarray, depth: int = 10) -> float:
    """Return the mean share of `wanted`'s first documents that are among `ranking`'s first.

    Args:
        ranking: `(queries, ≥ depth)` document row numbers, -1 for an empty place.
        wanted: the teacher's, likewise.
        depth: places compared; fewer where the corpus is smaller.
    """
    shares = []
    for ours, theirs in zip(ranking[:, :depth], wanted[:, :depth], strict=True):
        there = theirs[theirs >= 0]
        shares.append(np.isin(there, ours).mean() if len(there) else 1.0)
    return float(np.mean(shares))


def pearson(scores: Sequence[float] | np.ndarray, gold: Sequence[float] | np.ndarray) -> float:
    """Return the linear correlation with gold scores; NaN where one side has one value alone."""
    sides = np.stack([np.asarray(scores, dtype=np.float64), np.asarray(gold, dtype=np.float64)])
    sides -= sides.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(sides, axis=1)
    return float(sides[0] @ sides[1] / lengths.prod()) if lengths.all() else math.nan


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


def pair_figures(first: np.ndarray, second: np.ndarray, pairs: SentencePairs) -> dict[str, float]:
    """Return the figures of a set of sentence pairs by name, the one that counts last.

    Args:
        first: `(pairs, width)` unit vectors of one side.
        second: of the other.
        pairs: the set.

    Returns:
        pearson and spearman of scores; average_precision of labels.
    """
    cosines = pair_scores(first, second)
    if not pairs.graded:
        return {"average_precision": average_precision(cosines, pairs.gold)}
    return {
        "pearson": pearson(cosines, pairs.gold),
        "spearman": spearman(cosines, pairs.gold),
    }


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
    """Return the quality that tables rank by: nDCG@10, averaged over `independent_sets`.

    Raises:
        ValueError: there is no set.
    """
    if not per_set:
        raise ValueError("no retrieval set to average")
    return float(np.mean([per_set[name]["ndcg@10"] for name in independent_sets(per_set)]))


def independent_sets(names: Iterable[str]) -> list[str]:
    """Return the sets without NanoBEIR's samples of sets that are there themselves.

    NanoHotpotQA asks 50 of hotpotqa's questions: averaging both would count it twice.
    """
    names = list(names)
    whole = {name.lower() for name in names if not name.startswith("Nano")}
    sampled = {name for name in names if name.removeprefix("Nano").lower() in whole}
    return [name for name in names if not (name.startswith("Nano") and name in sampled)]
