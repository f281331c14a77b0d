"""How good and how fast a row's model is, on documents that are drawn once."""

import dataclasses
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_modernbert.data import evaluation_sets

if TYPE_CHECKING:
    from small_modernbert.data.retrieval_sets import RetrievalSet

SEED = 42  # draws the documents
WEIGHTS = tuple(round(0.1 * tenth, 1) for tenth in range(11))  # of BM25 beside a model


def evaluate(
    model: Path, assets: Path, documents: Mapping[str, int], *, with_words: bool
) -> dict[str, Any]:
    """Measure a model: retrieval, sentence pairs, speed.

    Args:
        model: its folder.
        assets: folder of get_offline_assets.py.
        documents: set -> how many of its documents are drawn.
        with_words: whether to search together with BM25, too, at each of WEIGHTS.
    """
    from small_modernbert.evaluation import metrics, search
    from small_modernbert.models import encoders

    encoder = encoders.load_encoder(model)
    retrieval: dict[str, float] = {}
    mixed: dict[str, dict[str, float]] = {}
    seconds = 0.0
    for name, number in documents.items():
        questions = draw(evaluation_sets.load_retrieval_set(assets / "retrieval", name), number)
        begun = time.process_time()
        held = encoder.encode_documents(questions.documents)
        seconds += time.process_time() - begun
        hits = search.rank(questions, encoder.encode_queries(questions.queries), held)
        retrieval[name] = round(metrics.ranking_metrics(hits.rows, questions)["ndcg@10"], 5)
        words = search.rank_by_words(questions) if with_words else None
        for weight in WEIGHTS if words else ():
            both = search.combine(hits, words, weight)
            figure = metrics.ranking_metrics(both.rows, questions)["ndcg@10"]
            mixed.setdefault(str(weight), {})[name] = round(figure, 5)
    pairs = evaluation_sets.load_sentence_pairs("mrpc", assets / "sentence_pairs/mrpc.parquet")
    halves = [encoder.encode(side) for side in (pairs.first, pairs.second)]
    return {
        "retrieval": retrieval,
        "with_bm25": mixed,
        "mrpc": round([*metrics.pair_figures(*halves, pairs).values()][-1], 5),
        "documents_per_second": round(sum(documents.values()) / seconds, 2),
        "parameters": encoder.parameters,
        "parameters_without_embeddings": encoder.parameters_without_embeddings,
    }


def draw(whole: "RetrievalSet", number: int) -> "RetrievalSet":
    """Return some of a set's documents, and the queries whose every answer is among them."""
    kept = sorted(random.Random(SEED).sample(range(len(whole.document_ids)), number))
    ids = [whole.document_ids[place] for place in kept]
    there = set(ids)
    asked = [
        place
        for place, query in enumerate(whole.query_ids)
        if there.issuperset(whole.relevant[query])
    ]
    queries = [whole.query_ids[place] for place in asked]
    return dataclasses.replace(
        whole,
        query_ids=queries,
        queries=[whole.queries[place] for place in asked],
        document_ids=ids,
        documents=[whole.documents[place] for place in kept],
        relevant={query: whole.relevant[query] for query in queries},
    )
