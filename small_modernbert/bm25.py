"""Lexical search as a yardstick: BM25 over the words of the documents, by bm25s."""

import numpy as np

from small_modernbert.evaluation import DEPTH, best_scores
from small_modernbert.retrieval import RetrievalSet


def rank(questions: RetrievalSet, depth: int = DEPTH) -> np.ndarray:
    """Return row numbers of the best documents per query, `(queries, depth)`, -1 where none.

    Lucene's variant with k1 = 1.5 and b = 0.75 (the defaults of bm25s), English stop words, no
    stemming. Equal scores rank in the documents' order.
    """
    import bm25s

    def words(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)

    index = bm25s.BM25()
    index.index(words(list(questions.documents)), show_progress=False)
    empty = np.zeros(len(questions.documents), dtype=np.float32)
    found = []
    for query in words(questions.queries):
        known = [word for word in query if word in index.vocab_dict]
        found.append(best_scores(index.get_scores(known) if known else empty, depth))
    return np.stack(found)
