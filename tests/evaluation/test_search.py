"""Promises of small_modernbert.evaluation.search."""

import numpy as np
import pytest

from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.evaluation import bm25, bm25_blocks, search
from small_modernbert.evaluation.bm25 import WordIndex
from small_modernbert.evaluation.rankings import Hits
from small_modernbert.runs.errors import UserError


def make_set(
    documents: list[str], queries: list[str], ids: list[str] | None = None
) -> RetrievalSet:
    """Make a set whose first documents answer its queries, one each."""
    names = ids or [f"q{row}" for row in range(len(queries))]
    return RetrievalSet(
        name="made",
        query_ids=names,
        queries=queries,
        document_ids=[f"d{row}" for row in range(len(documents))],
        documents=documents,
        relevant={name: {f"d{row}": 1} for row, name in enumerate(names)},
    )


@pytest.mark.parametrize("block", [3, 7, 1000])
def test_equal_scores_rank_in_document_order(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, negative scores and both zeros have one order, independent of the blocks."""
    monkeypatch.setattr(search, "DOCUMENT_BLOCK", block)
    documents = np.array([[0.0], [-0.5], [0.5], [-0.0], [0.5], [-0.5], [1.0], [0.0]], np.float32)
    hits = search.nearest(np.array([[1.0], [-1.0]], np.float32), documents, 8)
    assert hits.rows.tolist() == [[6, 2, 4, 0, 3, 7, 1, 5], [1, 5, 0, 3, 7, 2, 4, 6]]
    assert hits.scores[0].tolist() == [1, 0.5, 0.5, 0, 0, 0, -0.5, -0.5]
    assert search.nearest(np.ones((1, 1)), documents, 3).rows.tolist() == [[6, 2, 4]]


def test_a_gpu_ranks_as_a_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same documents in the same order from the other code, ties and blocks included."""
    monkeypatch.setattr(search, "QUERY_BLOCK", 3)
    monkeypatch.setattr(search, "DOCUMENT_BLOCK", 11)
    random = np.random.default_rng(2)
    queries = random.integers(-2, 3, (20, 6)).astype(np.float32)  # exact, many equal
    documents = random.integers(-2, 3, (150, 6)).astype(np.float32)
    for depth in (1, 7, 200):
        ours = search._torch_search(queries, documents, depth, "cpu")
        assert (ours == search._numpy_search(queries, documents, depth)).all()
    with pytest.raises(ValueError, match="not finite"):
        search._torch_search(queries * np.inf, documents, 3, "cpu")


def test_vectors_that_are_not_finite_are_refused() -> None:
    """A model that gives NaN gets no score."""
    with pytest.raises(ValueError, match="not finite"):
        search.nearest(np.full((1, 2), np.nan), np.ones((3, 2)), 2)


def test_vectors_must_fit_the_set() -> None:
    """A vector too few is an error, not a shifted ranking."""
    made = make_set([f"text {row}" for row in range(30)], ["a?", "b?", "c?", "d?"])
    with pytest.raises(ValueError, match="4 queries and 30 documents"):
        search.rank(made, np.ones((4, 2)), np.ones((29, 2)))


def test_words_prefer_rare_ones_and_find_nothing_without_a_common_one() -> None:
    """A document with the query's words comes first; a query of unknown words finds none."""
    index = WordIndex(["rain bread", "honey bread", "rain snow"])
    hits = index.search(["honey bread", "unheard"], 3)
    assert hits.rows.tolist() == [[1, 0, -1], [-1, -1, -1]]
    assert hits.scores[0, 0] > hits.scores[0, 1] > hits.scores[0, 2] == 0


@pytest.mark.parametrize(
    ("documents", "query"),
    [
        (
            ["我喜欢喝茶", "今天下雨了", "河流"],
            "下雨",
        ),  # Chinese
        (
            ["私は猫", "インド料理", "雨"],
            "料理は",
        ),  # Japanese
        (
            [
                "ฝนตก",
                "แม่น้ำยาว",
                "ข้าว",
            ],
            "แม่น้ำ",
        ),  # Thai
        (
            [
                "पानी",
                "हिन्दी भाषा",
                "घर",
            ],
            "हिन्दी",
        ),  # Hindi
        (["one", "水", "two"], "水"),  # a single character is a word there
    ],
)
def test_words_of_other_scripts_are_found(documents: list[str], query: str) -> None:
    """Scripts without spaces, and scripts with vowel signs, have words too."""
    assert WordIndex(documents).search([query], 2).rows[0].tolist() == [1, -1]


def test_a_set_without_a_common_word_has_a_reason_and_no_figures() -> None:
    """A row of zeros would be read as a result."""
    with pytest.raises(UserError, match="no query of made shares a word"):
        search.rank_by_words(make_set(["rain", "snow"], ["wind", "hill"]))
    with pytest.raises(UserError, match="no query of made"):
        search.rank_by_words(make_set(["!", "?"], [".", ";"]))


def test_documents_that_are_read_in_blocks_rank_as_an_index_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """BM25 over more documents than an index takes: the same scores, whatever a block is."""
    random = np.random.default_rng(3)
    words = [f"word{number}" for number in range(40)]
    documents = [" ".join(random.choice(words, random.integers(0, 12))) for _ in range(90)]
    queries = [" ".join(random.choice(words, 4)) for _ in range(20)]
    queries += ["word1 word1 word2", "unheard", "the"]
    wanted = WordIndex(documents).search(queries, 12)
    monkeypatch.setattr(bm25_blocks, "BLOCK", 17)
    monkeypatch.setattr(bm25_blocks, "QUERY_BLOCK", 5)
    hits = bm25_blocks.search_in_blocks(documents, queries, 12)
    np.testing.assert_allclose(hits.scores, wanted.scores, rtol=1e-5)
    # Only where two scores are one but for their last bits may the order differ.
    close = np.abs(np.diff(wanted.scores, axis=1)) < 1e-4
    alone = ~np.pad(close, ((0, 0), (0, 1))) & ~np.pad(close, ((0, 0), (1, 0)))
    assert (hits.rows == wanted.rows)[alone].all() and alone.mean() > 0.5
    assert (hits.rows[-2:] == -1).all()
    made = make_set(documents, queries)
    monkeypatch.setattr(search, "LARGEST_IN_MEMORY", 10)
    assert search.rank_by_words(made).rows.shape == (len(queries), len(documents))


def test_an_index_too_large_for_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a size there is the reason, before any text is read."""
    monkeypatch.setattr(bm25, "LARGEST_INDEX", 2)
    with pytest.raises(UserError, match="3 documents are more than 2"):
        WordIndex(["a", "b", "c"])


def test_both_searches_together() -> None:
    """Scores are scaled for each query and search, and weighed; what one did not find has 0."""
    vectors = Hits(np.array([[0, 1, 2]]), np.array([[0.9, 0.6, 0.5]], np.float32))
    words = Hits(np.array([[3, 1, -1]]), np.array([[8.0, 4.0, 0.0]], np.float32))
    mixed = search.combine(vectors, words, 0.25)
    # 0: 0.75 x 1; 1: 0.75 x 0.25; 2: 0; 3: 0.25 x 1
    assert mixed.rows.tolist() == [[0, 3, 1]]
    assert mixed.scores[0] == pytest.approx([0.75, 0.25, 0.1875])
    nothing = Hits(np.full((1, 2), -1), np.zeros((1, 2), np.float32))
    assert search.combine(vectors, nothing, 0.5).rows.tolist() == [[0, 1, 2]]
    lone = Hits(np.array([[2, -1]]), np.array([[3.0, 0.0]], np.float32))
    assert search.combine(vectors, lone, 0.6).rows[0, 0] == 2


def test_a_query_in_the_corpus_is_left_out_of_its_own_ranking() -> None:
    """As BEIR does; one that is judged to answer stays, and so does another text of equal id."""
    made = make_set(["a", "b", "The  x"], ["X", "b"], ids=["d2", "d1"])  # d1 answers d1
    assert made.own_rows.tolist() == [2, -1]
    assert make_set(["a", "b", "c"], ["x", "y"], ids=["d2", "d1"]).own_rows.tolist() == [-1, -1]
    ranked = search.rank(made, np.eye(2, 3, dtype=np.float32)[:, ::-1], np.eye(3, dtype=np.float32))
    assert ranked.rows.tolist() == [[0, 1, -1], [1, 0, 2]]
