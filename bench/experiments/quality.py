"""How good and how fast a row's model is, on documents that are drawn once."""

import dataclasses
import random
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import exported

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
    vocabulary: frozenset[str],
    *,
    with_words: bool,
) -> dict[str, Any]:
    """Measure a model: retrieval, sentence pairs, speed.

    Args:
        model: its folder.
        teacher: folder of the teacher, whose pace it is compared with.
        assets: folder of get_offline_assets.py.
        documents: set -> how many of its documents are drawn.
        vocabulary: the words of all training texts, see `vocabulary_of`.
        with_words: whether to search together with BM25, too, at each of WEIGHTS.
    """
    from small_modernbert.evaluation import metrics, search
    from small_modernbert.models import encoders

    encoder = exported.load_encoder(model)
    figures: dict[str, Any] = {"retrieval": {}, "new_words": {}, "known_words": {}}
    mixed: dict[str, dict[str, float]] = {}
    seconds, drawn = 0.0, list[str]()
    for name, number in documents.items():
        questions = draw(evaluation_sets.load_retrieval_set(assets / "retrieval", name), number)
        drawn += questions.documents
        begun = time.process_time()
        held = encoder.encode_documents(questions.documents)
        seconds += time.process_time() - begun
        hits = search.rank(questions, encoder.encode_queries(questions.queries), held)
        figures["retrieval"][name] = mean_ndcg(hits, questions)
        figures["new_words"][name], figures["known_words"][name] = by_words(
            hits, questions, vocabulary
        )
        words = search.rank_by_words(questions) if with_words else None
        for weight in WEIGHTS if words else ():
            both = search.combine(hits, words, weight)
            mixed.setdefault(str(weight), {})[name] = mean_ndcg(both, questions)
    pairs = evaluation_sets.load_sentence_pairs("mrpc", assets / "sentence_pairs/mrpc.parquet")
    halves = [encoder.encode(side) for side in (pairs.first, pairs.second)]
    return figures | {
        "with_bm25": mixed,
        "mrpc": round([*metrics.pair_figures(*halves, pairs).values()][-1], 5),
        "documents_per_second": round(sum(documents.values()) / seconds, 2),
        "pace": round(pace(encoder, encoders.load_encoder(teacher), drawn), 3),
        "parameters": encoder.parameters,
        "parameters_without_embeddings": encoder.parameters_without_embeddings,
    }


def mean_ndcg(hits: "Hits", questions: "RetrievalSet") -> float:
    """Return nDCG@10 over all queries of a set."""
    from small_modernbert.evaluation import metrics

    return round(metrics.ranking_metrics(hits.rows, questions)["ndcg@10"], 5)


def vocabulary_of(texts: Iterable[str]) -> frozenset[str]:
    """Return the words of some texts, without stop words."""
    from small_modernbert.evaluation import bm25

    return frozenset().union(*bm25.words_of_texts(list(texts)))


def by_words(
    hits: "Hits", questions: "RetrievalSet", vocabulary: frozenset[str]
) -> tuple[list[float], list[float]]:
    """Tell queries with a new word, one that no training text holds, from the others.

    Returns:
        mean nDCG@10 and number of the queries with such a word of letters; likewise of the others.
    """
    from small_modernbert.evaluation import bm25, metrics

    per_query = metrics.query_metrics(hits.rows, questions)["ndcg@10"]
    parts: tuple[list[float], list[float]] = ([], [])
    for figure, words in zip(per_query, bm25.words_of_texts(questions.queries), strict=True):
        new = any(word.isalpha() and word not in vocabulary for word in words)
        parts[0 if new else 1].append(float(figure))
    new_words, known_words = (
        [round(statistics.mean(part or [0.0]), 5), len(part)] for part in parts
    )
    return new_words, known_words


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
