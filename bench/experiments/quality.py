"""How good and how fast a row's model is, on documents that are drawn once."""

import dataclasses
import random
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_modernbert.data import evaluation_sets

if TYPE_CHECKING:
    from small_modernbert.data.retrieval_sets import RetrievalSet
    from small_modernbert.evaluation.rankings import Hits
    from small_modernbert.models.encoders import Encoder

SEED = 42  # draws the documents
WEIGHTS = tuple(round(0.1 * tenth, 1) for tenth in range(11))  # of BM25 beside a model
ROUNDS, ROUND_TEXTS = 5, 64  # in which a model's pace is taken, in turn with the teacher's


def evaluate(
    model: Path,
    teacher: Path,
    assets: Path,
    documents: Mapping[str, int],
    training_texts: Iterable[str],
    *,
    with_words: bool,
) -> dict[str, Any]:
    """Measure a model: retrieval, sentence pairs, speed.

    Args:
        model: its folder, or a form of an export.
        teacher: folder of the teacher, whose pace it is compared with.
        assets: folder of get_offline_assets.py.
        documents: set -> how many of its documents are drawn.
        training_texts: all of them; queries with a word of none are told apart.
        with_words: whether to search together with BM25, too, at each of WEIGHTS.
    """
    from small_modernbert.evaluation import metrics, new_words, search
    from small_modernbert.models import encoders

    encoder = encoders.load_encoder(model)
    figures: dict[str, Any] = {"retrieval": {}, "new_words": {}, "known_words": {}}
    mixed: dict[str, dict[str, float]] = {}
    sets = [
        draw(evaluation_sets.load_retrieval_set(assets / "retrieval", name), number)
        for name, number in documents.items()
    ]
    has_new_word = new_words.tell_apart(sets, training_texts)
    seconds = 0.0
    for questions in sets:
        name = questions.name
        begun = time.process_time()
        held = encoder.encode_documents(questions.documents)
        seconds += time.process_time() - begun
        hits = search.rank(questions, encoder.encode_queries(questions.queries), held)
        figures["retrieval"][name] = mean_ndcg(hits, questions)
        scores = metrics.query_metrics(hits.rows, questions)["ndcg@10"]
        for kind, part in new_words.split(scores, has_new_word[name]).items():
            figures[f"{kind}_words"][name] = [round(part["ndcg@10"] or 0.0, 5), part["queries"]]
        words = search.rank_by_words(questions) if with_words else None
        for weight in WEIGHTS if words else ():
            both = search.combine(hits, words, weight)
            mixed.setdefault(str(weight), {})[name] = mean_ndcg(both, questions)
    texts = [text for questions in sets for text in questions.documents]
    pairs = evaluation_sets.load_sentence_pairs("mrpc", assets / "sentence_pairs/mrpc.parquet")
    halves = [encoder.encode(side) for side in (pairs.first, pairs.second)]
    return figures | {
        "with_bm25": mixed,
        "mrpc": round([*metrics.pair_figures(*halves, pairs).values()][-1], 5),
        "documents_per_second": round(sum(documents.values()) / seconds, 2),
        "pace": round(pace(encoder, encoders.load_encoder(teacher), texts), 3),
        "parameters": encoder.parameters,
        "parameters_without_embeddings": encoder.parameters_without_embeddings,
    }


def mean_ndcg(hits: "Hits", questions: "RetrievalSet") -> float:
    """Return nDCG@10 over all queries of a set."""
    from small_modernbert.evaluation import metrics

    return round(metrics.ranking_metrics(hits.rows, questions)["ndcg@10"], 5)


def pace(encoder: "Encoder", teacher: "Encoder", texts: Sequence[str]) -> float:
    """Return how many times the teacher's texts a second a model encodes.

    By turns on the same texts, in processor seconds; the median of ROUNDS: what else runs on the
    machine slows both alike.
    """
    ratios = []
    sample = random.Random(SEED)
    for _ in range(ROUNDS + 1):
        some = sample.sample(texts, ROUND_TEXTS)
        spent = []
        for each in (teacher, encoder):
            begun = time.process_time()
            each.encode_documents(some)
            spent.append(time.process_time() - begun)
        ratios.append(spent[0] / spent[1])
    return statistics.median(ratios[1:])  # the first warms both


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
