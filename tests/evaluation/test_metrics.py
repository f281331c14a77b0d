"""Promises of small_modernbert.evaluation.metrics."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import pytrec_eval

from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.evaluation import metrics, search


def make_set(queries: int, documents: int, seed: int, most: int = 12) -> RetrievalSet:
    """Make a set with one to `most` relevant documents per query, of grades 1 to 3."""
    random = np.random.default_rng(seed)
    relevant = {
        f"q{i}": {
            f"d{j}": float(random.integers(1, 4))
            for j in random.choice(documents, random.integers(1, most + 1), False)
        }
        for i in range(queries)
    }
    return RetrievalSet(
        name="made",
        query_ids=[f"q{i}" for i in range(queries)],
        queries=[f"question {i}" for i in range(queries)],
        document_ids=[f"d{j}" for j in range(documents)],
        documents=[f"document {j}" for j in range(documents)],
        relevant=relevant,
    )


def unit(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Make random unit vectors."""
    vectors = random.standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("queries", "documents", "width"),
    [
        (40, 400, 16),  # more documents than the depth
        (300, 90, 8),  # fewer documents than the depth, more queries than a block
        (5, 12, 4),  # barely more than ten
    ],
)
def test_metrics_equal_trec_eval(
    queries: int, documents: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every metric equals that of trec_eval on random vectors, whatever the block sizes."""
    monkeypatch.setattr(search, "QUERY_BLOCK", 64)
    monkeypatch.setattr(search, "DOCUMENT_BLOCK", 37)
    random = np.random.default_rng(queries)
    made = make_set(queries, documents, seed=documents, most=min(12, documents))
    query_vectors, document_vectors = unit(random, queries, width), unit(random, documents, width)
    ranking = search.rank(made, query_vectors, document_vectors).rows
    ours = metrics.ranking_metrics(ranking, made)

    scores = query_vectors @ document_vectors.T
    run = {
        query: {d: float(s) for d, s in zip(made.document_ids, row, strict=True)}
        for query, row in zip(made.query_ids, scores, strict=True)
    }
    qrels = {
        query: {document: int(grade) for document, grade in grades.items()}
        for query, grades in made.relevant.items()
    }
    names = {"ndcg_cut_10", "map_cut_100", "recall_10", "recall_100"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
    top = {
        query: dict(sorted(found.items(), key=lambda item: -item[1])[:10])
        for query, found in run.items()
    }
    first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(top)
    for mine, name in [
        ("ndcg@10", "ndcg_cut_10"),
        ("map@100", "map_cut_100"),
        ("recall@10", "recall_10"),
        ("recall@100", "recall_100"),
    ]:
        oracle = np.mean([theirs[query][name] for query in made.query_ids])
        assert ours[mine] == pytest.approx(oracle, abs=1e-9), mine
    oracle = np.mean([first[query]["recip_rank"] for query in made.query_ids])
    assert ours["mrr@10"] == pytest.approx(oracle, abs=1e-9)


def test_missing_documents_and_own_ids_count_as_in_trec_eval() -> None:
    """A judged document that the corpus lacks lowers the figures; an own id is never ranked."""
    random = np.random.default_rng(7)
    made = make_set(12, 40, seed=3)
    relevant = {query: dict(grades) for query, grades in made.relevant.items()}
    relevant["q0"]["d99"] = 3.0
    relevant["q1"] = {"d98": 2.0}
    ids = [f"q{row}" if row < 5 else f"d{row}" for row in range(40)]
    for query in relevant:
        relevant[query] = {d: g for d, g in relevant[query].items() if d not in ("d0", "d1")} or {
            "d30": 1.0
        }
    texts = [*made.queries[:5], *made.documents[5:]]
    made = dataclasses.replace(made, relevant=relevant, document_ids=ids, documents=texts)
    query_vectors, document_vectors = unit(random, 12, 6), unit(random, 40, 6)
    query_vectors[:5] = document_vectors[:5]  # each would find itself first
    ours = metrics.ranking_metrics(search.rank(made, query_vectors, document_vectors).rows, made)
    run = {
        query: {d: float(s) for d, s in zip(ids, row, strict=True) if d != query}
        for query, row in zip(made.query_ids, query_vectors @ document_vectors.T, strict=True)
    }
    qrels = {query: {d: int(g) for d, g in grades.items()} for query, grades in relevant.items()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10", "map_cut_100"}).evaluate(run)
    for mine, name in (("ndcg@10", "ndcg_cut_10"), ("map@100", "map_cut_100")):
        oracle = np.mean([theirs[query][name] for query in made.query_ids])
        assert ours[mine] == pytest.approx(oracle, abs=1e-9), mine


def test_quality_counts_no_set_twice() -> None:
    """NanoBEIR's sample of a set that is there itself is shown, and not averaged."""
    per_set = {
        name: {"ndcg@10": value}
        for name, value in (("NanoMSMARCO", 0.4), ("NanoHotpotQA", 0.9), ("hotpotqa", 0.6))
    }
    assert metrics.mean_ndcg(per_set) == pytest.approx(0.5)
    assert metrics.independent_sets(["sciq", "NanoSciQ2", "boolq"]) == [
        "sciq",
        "NanoSciQ2",
        "boolq",
    ]


def test_agreement_is_of_the_first_ten() -> None:
    """The share of the teacher's documents that are found, whatever their order."""
    teacher = np.array([[0, 1, 2, 3], [4, 5, -1, -1], [-1, -1, -1, -1]])
    ours = np.array([[3, 9, 1, 8], [4, 7, 6, 0], [1, 2, 3, 4]])
    assert metrics.ranking_agreement(ours, teacher) == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_spearman_and_average_precision() -> None:
    """Only the order counts; a perfect order gives 1."""
    assert metrics.spearman([0.1, 0.2, 0.9], [0, 1, 5]) == pytest.approx(1)
    assert metrics.spearman([0.9, 0.2, 0.1], [0, 1, 5]) == pytest.approx(-1)
    assert metrics.average_precision([0.9, 0.8, 0.1], [1, 1, 0]) == pytest.approx(1)
    # label 1 at ranks 1 and 3: (1 + 2/3) / 2
    assert metrics.average_precision([0.9, 0.8, 0.1], [1, 0, 1]) == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("vectors", "cosine", "rank"),
    [
        (np.tile([[0.6, 0.8, 0.0]], (50, 1)), 1.0, 1.0),  # all one
        (np.eye(6), 0.0, 6.0),  # as spread as can be
        (np.repeat(np.eye(4), 25, axis=0), 24 / 99, 4.0),  # four clusters
    ],
)
def test_collapse_at_its_extremes(vectors: np.ndarray, cosine: float, rank: float) -> None:
    """Mean cosine and effective rank are what theory says, for tall and for wide matrices."""
    found = metrics.collapse(vectors)
    assert found["mean_cosine"] == pytest.approx(cosine, abs=1e-6)
    assert found["effective_rank"] == pytest.approx(rank, rel=1e-4)


def test_mean_cosine_equals_the_definition() -> None:
    """The shortcut over sums equals the mean over all pairs."""
    vectors = unit(np.random.default_rng(3), 30, 5)
    pairs = (vectors @ vectors.T)[np.triu_indices(30, 1)]
    assert metrics.collapse(vectors)["mean_cosine"] == pytest.approx(pairs.mean(), abs=1e-6)


def test_import_is_light() -> None:
    """Evaluation can be imported without torch or sentence-transformers."""
    code = (
        "import sys, small_modernbert.evaluation.metrics, small_modernbert.models.encoders;"
        "heavy = {'torch', 'sentence_transformers', 'sklearn', 'scipy', 'datasets'};"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
