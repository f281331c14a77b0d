"""Search: the documents nearest to a query by vectors, by words (BM25), or by both.

Every search answers with `Hits`. Vectors come in as arrays, so that any engine may make them, and
the asymmetric case (queries by one model, documents by another) is no case of its own.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from small_modernbert.data.evaluation_sets import RetrievalSet
from small_modernbert.runs.errors import UserError

DEPTH = 100  # documents a query that a set is scored on
QUERY_BLOCK = 256
DOCUMENT_BLOCK = 16_384
# bm25s keeps every word of every document in memory: some 5 GB at this many.
LARGEST_INDEX = 1_000_000
EMPTY = -1  # a place of a ranking that no document takes
# Han with its extensions, kana, Thai, Lao, Tibetan, Burmese, Khmer: written without spaces.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")


@dataclass(frozen=True)
class Hits:
    """What a search found for some queries.

    Attributes:
        rows: `(queries, depth)` int64 row numbers of documents, best first; EMPTY where none.
        scores: `(queries, depth)` float32; 0 where there is no document.
    """

    rows: np.ndarray
    scores: np.ndarray

    def first(self, depth: int) -> "Hits":
        """Return the best `depth` of each query."""
        return Hits(self.rows[:, :depth], self.scores[:, :depth])

    def without(self, own: np.ndarray) -> "Hits":
        """Return the hits without one document a query: `(queries,)` row numbers, EMPTY for none.

        The places behind it move up, and the last one of the query is EMPTY.
        """
        gone = (self.rows == own[:, None]) & (own != EMPTY)[:, None]
        # A stable sort moves the one that goes to the end.
        order = np.argsort(gone, axis=1, kind="stable")
        rows, scores = (
            np.take_along_axis(np.where(gone, nothing, part), order, axis=1)
            for part, nothing in ((self.rows, EMPTY), (self.scores, np.float32(0)))
        )
        return Hits(rows, scores)


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
    starts = range(0, len(queries), QUERY_BLOCK)
    best = [np.empty((len(queries[start : start + QUERY_BLOCK]), 0), np.int64) for start in starts]
    for begin in range(0, len(document_vectors), DOCUMENT_BLOCK):
        block = np.asarray(document_vectors[begin : begin + DOCUMENT_BLOCK], dtype=np.float32)
        for place, start in enumerate(starts):
            scores = _products(queries[start : start + QUERY_BLOCK], block)
            best[place] = _largest(np.hstack([best[place], _keys(scores, begin)]), depth)
    keys = np.concatenate(best)
    return Hits(_documents_of(keys), _scores_of(keys))


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
        UserError: the set is too large, or BM25 finds nothing at all.
    """
    hits = WordIndex(questions.documents).search(questions.queries, DEPTH + 1)
    if (hits.rows == EMPTY).all():
        raise UserError(f"no query of {questions.name} shares a word with a document")
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
        found = np.concatenate([first.rows[query], second.rows[query]])
        values = np.concatenate([part[query] for part in weighted])
        there = found != EMPTY
        documents, places = np.unique(found[there], return_inverse=True)
        sums = np.bincount(places, values[there], len(documents)).astype(np.float32)
        order = np.argsort(-sums, kind="stable")[:depth]
        rows[query, : len(order)], scores[query, : len(order)] = documents[order], sums[order]
    return Hits(rows, scores)


class WordIndex:
    """Documents that can be searched by their words: BM25, by bm25s.

    Lucene's variant with k1 = 1.5 and b = 0.75 (the defaults of bm25s), English stop words, no
    stemming. Words are runs of two letters, digits or marks and more; where a script is written
    without spaces (Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer) they are each two
    characters in a row, as Lucene's CJK analyser takes them.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        """Index documents.

        Raises:
            UserError: there are more than LARGEST_INDEX.
        """
        import bm25s

        if len(documents) > LARGEST_INDEX:
            raise UserError(
                f"BM25 keeps its index in memory, and {len(documents):,} documents are more than "
                f"{LARGEST_INDEX:,}"
            )
        self.documents = len(documents)
        words = _words(documents[:])
        self._index = bm25s.BM25() if any(words) else None
        if self._index is not None:
            self._index.index(words, show_progress=False)

    def search(self, queries: Sequence[str], depth: int = DEPTH) -> Hits:
        """Return the best documents of each query; one without a common word is not found.

        The depth is the number of documents where those are fewer. Equal scores rank in the
        documents' order.
        """
        found = [self._scores(words, depth) for words in _words(queries)]
        rows, scores = (np.stack(part) for part in zip(*found, strict=True))
        return Hits(rows, scores)

    def _scores(self, words: list[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        scores = np.zeros(self.documents, dtype=np.float32)
        if self._index is not None:
            known = [word for word in words if word in self._index.vocab_dict]
            if known:
                scores = self._index.get_scores(known).astype(np.float32)
        rows = _documents_of(_largest(_keys(scores[None], 0), depth))[0]
        best = scores[rows]
        return np.where(best > 0, rows, EMPTY), np.where(best > 0, best, 0)


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


def _products(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return `(queries, documents)` dot products, by the GPU if this process has one in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return queries @ documents.T
    sides = (torch.from_numpy(np.ascontiguousarray(side)).cuda() for side in (queries, documents))
    first, second = sides
    return (first @ second.T).cpu().numpy()


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


def _scores_of(keys: np.ndarray) -> np.ndarray:
    ordered = keys >> 32
    bits = np.where(ordered >= 0, ordered, np.int64(-(2**31)) - ordered)
    return bits.astype(np.int32).view(np.float32)


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    return bm25s.tokenize(
        [_spaced(text) for text in texts],
        token_pattern=_word_pattern(),
        stopwords="en",
        return_ids=False,
        show_progress=False,
    )


def _spaced(text: str) -> str:
    """Write what has no spaces as pairs of neighbouring characters with spaces between."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", text)
    return _UNSPACED_RUN.sub(lambda run: f" {' '.join(_bigrams(run.group()))} ", text)


def _bigrams(run: str) -> list[str]:
    return [run[place : place + 2] for place in range(len(run) - 1)] or [run]


@functools.cache
def _word_pattern() -> str:
    # bm25s' own pattern is \b\w\w+\b, and \w holds no combining mark: it would cut Hindi, Tamil
    # or vocalised Arabic at every vowel sign.
    marks = "".join(
        re.escape(chr(code))
        for code in range(0x300, 0x1E950)
        if unicodedata.category(chr(code)).startswith("M")
    )
    return f"(?u)[\\w{marks}]{{2,}}|[{_UNSPACED}]"
