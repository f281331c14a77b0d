"""What an index of smaller vectors loses: fewer dimensions, a byte a number, or a bit.

Documents are what an index holds, so they are stored small, by sentence-transformers'
`quantize_embeddings`; a query keeps its full numbers, which costs an index nothing. A bit is read
as -1 or 1; a byte stands for its part of the range that the documents have in its dimension.
"""

from collections.abc import Sequence

import numpy as np
from sentence_transformers.util.quantization import quantize_embeddings

from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.evaluation import metrics, search
from small_modernbert.models.encoders import Encoder
from small_modernbert.models.vectors import shorten
from small_modernbert.runs import report

# A number's form -> bits of it.
FORMS = {"float32": 32, "int8": 8, "binary": 1}


def measure(encoder: Encoder, sets: Sequence[RetrievalSet], dimensions: Sequence[int]) -> str:
    """Return a table of nDCG@10 by dimension and form, and its share of the whole vectors'.

    Args:
        encoder: the model.
        sets: to search.
        dimensions: shorter ones than the model's; it is measured at its own in any case.
    """
    encoded = [
        (each, encoder.encode_queries(each.queries), encoder.encode_documents(each.documents))
        for each in sets
    ]
    width = encoded[0][1].shape[1]
    rows, whole = [], 0.0
    for dimension in [width, *sorted({each for each in dimensions if each < width}, reverse=True)]:
        for form, bits in FORMS.items():
            scores = [_ndcg(*each, dimension, form) for each in encoded]
            mean = float(np.mean(scores))
            whole = whole or mean
            share = f"{100 * mean / whole:.1f} %" if whole else None
            rows.append([dimension, form, dimension * bits // 8, *scores, share])
    names = [f"{each.name}, nDCG@10" for each in sets]
    return report.table(["dimensions", "a number", "bytes a vector", *names, "kept"], rows)


def as_read(documents: np.ndarray, form: str) -> np.ndarray:
    """Return what an index reads of vectors that it stored in a form: `(n, d)` float32.

    Args:
        documents: `(n, d)` unit vectors.
        form: a key of FORMS.
    """
    if form == "float32":
        return documents
    if form == "binary":
        bits = np.unpackbits(quantize_embeddings(documents, "ubinary"), axis=1)
        return 2.0 * bits[:, : documents.shape[1]].astype(np.float32) - 1
    low, high = documents.min(axis=0), documents.max(axis=0)
    high = np.where(high > low, high, low + 1)  # a dimension in which all are equal
    stored = quantize_embeddings(documents, "int8", ranges=np.stack([low, high]))
    return low + (stored.astype(np.float32) + 128) * (high - low) / 255


def _ndcg(
    questions: RetrievalSet, queries: np.ndarray, documents: np.ndarray, dimension: int, form: str
) -> float:
    index = as_read(shorten(documents, dimension), form)
    hits = search.rank(questions, shorten(queries, dimension), index)
    return metrics.ranking_metrics(hits.rows, questions)["ndcg@10"]
