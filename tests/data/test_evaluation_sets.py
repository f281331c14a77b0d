"""Promises of small_modernbert.data.evaluation_sets."""

import gzip
import json
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_modernbert.data import evaluation_sets, retrieval_sets, retrieval_tables
from small_modernbert.runs.errors import UserError

CORPUS = {"_id": ["d1", "d2", "d3"], "text": ["rain", "snow", "sun"]}
QUERIES = {"_id": ["q1", "q2"], "text": ["wet?", "white?"]}
QRELS = {"query-id": ["q1", "q2"], "corpus-id": ["d1", "d2"]}


def write(folder: Path, name: str = "made", **tables: dict[str, list[Any]]) -> Path:
    """Write a set in the NanoBEIR layout."""
    parts = {"corpus": CORPUS, "queries": QUERIES, "qrels": QRELS} | tables
    for part, columns in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        path = folder / part / f"{name}.parquet"
        pq.write_table(pa.table(columns), path, write_page_checksum=True)
    return folder


def test_a_set_comes_back_as_written(tmp_path: Path) -> None:
    """Ids, texts and judgements are read in order; queries without a judgement are counted."""
    queries = {"_id": ["q0", "q1", "q2"], "text": ["?", "wet?", "white?"]}
    made = evaluation_sets.load_retrieval_set(write(tmp_path, queries=queries), "made")
    assert made.query_ids == ["q1", "q2"]
    assert made.queries == ["wet?", "white?"]
    assert list(made.documents) == ["rain", "snow", "sun"]
    assert made.relevant == {"q1": {"d1": 1}, "q2": {"d2": 1}}
    assert made.counts["unjudged_queries"] == 1
    assert evaluation_sets.list_retrieval_sets(tmp_path) == ["made"]


def test_titles_stand_before_the_text_and_zero_scores_do_not_count(tmp_path: Path) -> None:
    """BEIR's columns mean what they mean there."""
    corpus = CORPUS | {"title": ["Weather", None, ""]}
    qrels = {"query-id": ["q1", "q1", "q2"], "corpus-id": ["d1", "d3", "d2"], "score": [1, 0, 1]}
    made = evaluation_sets.load_retrieval_set(write(tmp_path, corpus=corpus, qrels=qrels), "made")
    assert list(made.documents) == ["Weather rain", "snow", "sun"]
    assert made.documents[0] == "Weather rain"
    assert made.documents[1:] == ["snow", "sun"]
    assert made.relevant["q1"] == {"d1": 1}
    assert made.counts["irrelevant_judgements"] == 1


def test_fewer_queries_keep_all_documents(tmp_path: Path) -> None:
    """A cap on the questions takes the first ones and says how many are left out."""
    made = evaluation_sets.load_retrieval_set(write(tmp_path), "made").first_queries(1)
    assert (made.query_ids, len(made.documents)) == (["q1"], 3)
    assert made.relevant == {"q1": {"d1": 1}}
    assert made.counts["queries_left_out"] == 1


# What people's sets look like: tables, and what is counted of them.
FOUND_IN_THE_WILD = {
    "a column of floats": ({"qrels": {"query-id": [1.0, 2.0], "corpus-id": [1.0, 2.0]}}, {}),
    "floats spelt out": ({"qrels": {"query-id": ["1.0", "2.0"], "corpus-id": ["1", "2.0"]}}, {}),
    "scores spelt out": (
        {"qrels": {"query-id": [1, 2, 2], "corpus-id": [1, 2, 3], "score": ["1", "2", "0"]}},
        {"irrelevant_judgements": 1},
    ),
    "a query twice": (
        {"queries": {"_id": [1, 1, 2], "text": ["wet?", "wet?", "white?"]}},
        {"repeated_queries": 1},
    ),
    "a document twice": (
        {"corpus": {"_id": [1, 2, 3, 2], "text": ["rain", "snow", "sun", "snow"]}},
        {"repeated_documents": 1},
    ),
    "a judgement twice": (
        {"qrels": {"query-id": [1, 2, 2], "corpus-id": [1, 2, 2]}},
        {},
    ),
    "a query that is not there": (
        {"qrels": {"query-id": [1, 2, 9], "corpus-id": [1, 2, 3]}},
        {"judgements_of_missing_queries": 1},
    ),
    "two grades of one document": (
        {"qrels": {"query-id": [1, 2, 2], "corpus-id": [1, 2, 2], "score": [1, 0.5, 1]}},
        {"contradicting_judgements": 1},
    ),
    "a query without an answer": (
        {
            "queries": {"_id": [1, 2, 3], "text": ["wet?", "white?", "warm?"]},
            "qrels": {"query-id": [1, 2, 3], "corpus-id": [1, 2, 3], "score": [1, 1, -1]},
        },
        {"irrelevant_judgements": 1, "unanswered_queries": 1},
    ),
    "a blank query": (
        {
            "queries": {"_id": [1, 2, 3], "text": ["wet?", "white?", " "]},
            "qrels": {"query-id": [1, 2, 3], "corpus-id": [1, 2, 3]},
        },
        {"blank_queries": 1, "judgements": 3},
    ),
    "blanks around ids": (
        {"qrels": {"query-id": ["1 ", " 2.0"], "corpus-id": ["1", " 2"]}},
        {},
    ),
    "a query that nobody judged": (
        {"queries": {"_id": [1, 2, 3], "text": ["wet?", "white?", "warm?"]}},
        {"unjudged_queries": 1},
    ),
}


@pytest.mark.parametrize("name", FOUND_IN_THE_WILD)
def test_sets_as_they_are_found_are_read_and_counted(tmp_path: Path, name: str) -> None:
    """Ids of any type are one, what stands twice counts once, and what is left out is counted."""
    tables, counted = FOUND_IN_THE_WILD[name]
    plain = {
        "corpus": CORPUS | {"_id": [1, 2, 3]},
        "queries": QUERIES | {"_id": [1, 2]},
        "qrels": {"query-id": [1, 2], "corpus-id": [1, 2]},
    }
    made = evaluation_sets.load_retrieval_set(write(tmp_path, **(plain | tables)), "made")
    assert (made.query_ids, made.document_ids) == (["1", "2"], ["1", "2", "3"])
    assert (made.queries, list(made.documents)) == (QUERIES["text"], CORPUS["text"])
    relevant = {query: set(answers) for query, answers in made.relevant.items()}
    assert relevant == {"1": {"1"}, "2": {"2"}}
    sizes = {"queries": 2, "documents": 3, "judgements": 2}
    assert {name: count for name, count in made.counts.items() if count} == sizes | counted


def test_a_column_goes_by_what_others_call_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Anserini's, TREC's and MS MARCO's names are known, and said; two that fit are none."""
    tables = {
        "corpus": {"docid": ["d1", "d2", "d3"], "contents": CORPUS["text"]},
        "queries": {"qid": ["q1", "q2"], "query": QUERIES["text"]},
        "qrels": {"Query ID": ["q1", "q2"], "docno": ["d1", "d2"], "relevance": [2, 1]},
    }
    with caplog.at_level(logging.INFO):
        made = evaluation_sets.load_retrieval_set(write(tmp_path, **tables), "made")
    assert made.relevant == {"q1": {"d1": 2}, "q2": {"d2": 1}}
    assert list(made.documents) == CORPUS["text"]
    assert "the column 'contents' is read as 'text'" in caplog.text
    doubtful = {"_id": ["d1"], "content": ["rain"], "body": ["rain"]}
    with pytest.raises(UserError, match="no column 'text'; it has: _id, content, body"):
        evaluation_sets.load_retrieval_set(write(tmp_path, corpus=doubtful), "made")


# Judgements as TREC writes them: the file's name, its lines.
TREC = {
    "four columns": ("test.tsv", "q1 0 d1 2\n\n q2 0 d2 1 \n"),
    "tabs": ("test.tsv", "q1\t0\td1\t2\nq2\t0\td2\t1\n"),
    "other splits": ("dev.tsv", "q1\td1\t2\nq2\td2\t1e0\n"),
    "a name of one's own": ("mine.qrels", "q1 0 d1 2\nq2 0 d2 1\n"),
    "plain text": ("test.txt", "q1 d1 2\nq2 d2 1\n"),
    "commas": ("test.csv", "q1,0,d1,2\nq2,0,d2,1\n"),
    "a first line": ("test.txt", "qid iter docno rel\nq1 0 d1 2\nq2 0 d2 1\n"),
    "a first line, tabs": ("test.tsv", "qid\titer\tdocno\trel\nq1\t0\td1\t2\nq2\t0\td2\t1\n"),
    "beside": ("../qrels.tsv", "q1\td1\t2\nq2\td2\t1\n"),
}


@pytest.mark.parametrize("name", TREC)
def test_judgements_as_trec_writes_them(tmp_path: Path, name: str) -> None:
    """With and without iterations, a first line, tabs; whatever the file is called."""
    file, lines = TREC[name]
    folder = tmp_path / "mine"
    (folder / "qrels").mkdir(parents=True)
    for part, columns in (("corpus", CORPUS), ("queries", QUERIES)):
        rows = [json.dumps(row) for row in pa.table(columns).to_pylist()]
        (folder / f"{part}.jsonl").write_text("\n".join(rows))
    (folder / "qrels" / file).write_text(lines)
    made = evaluation_sets.load_retrieval_set(tmp_path, "mine")
    assert made.relevant == {"q1": {"d1": 2}, "q2": {"d2": 1}}


def test_ids_may_hold_blanks_where_tabs_part_them(tmp_path: Path) -> None:
    """An id is what stands between tabs, also without a first line."""
    corpus = {"_id": ["a b", " c"], "text": ["rain", "snow"]}
    folder = write(tmp_path, corpus=corpus)
    (folder / "qrels" / "made.parquet").unlink()
    (folder / "qrels" / "made.tsv").write_text("q1\ta b\t1\nq2\t c\t1\n")
    made = evaluation_sets.load_retrieval_set(folder, "made")
    assert made.relevant == {"q1": {"a b": 1}, "q2": {" c": 1}}


def test_a_first_line_without_rows_is_told(tmp_path: Path) -> None:
    """No traceback: the file is named."""
    folder = write(tmp_path)
    (folder / "qrels" / "made.parquet").unlink()
    (folder / "qrels" / "made.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(UserError, match=r"made\.tsv has no rows, and no column 'query-id'; mend"):
        evaluation_sets.load_retrieval_set(folder, "made")


@pytest.mark.parametrize("layout", ["beir", "nanobeir"])
def test_a_table_may_be_a_folder_of_files(tmp_path: Path, layout: str) -> None:
    """Shards in a folder are one table, in both layouts; the set is in the list of sets."""
    place = {"beir": "mine/{part}", "nanobeir": "{part}/mine"}[layout]
    for part, columns in (("corpus", CORPUS), ("queries", QUERIES)):
        folder = tmp_path / place.format(part=part)
        folder.mkdir(parents=True)
        table = pa.table(columns)
        for number in range(2):
            shard = table.slice(number, 1 if number == 0 else None)
            pq.write_table(shard, folder / f"{part}-{number:05d}-of-00002.parquet")
    path = tmp_path / {"beir": "mine/qrels/test.tsv", "nanobeir": "qrels/mine.tsv"}[layout]
    path.parent.mkdir(parents=True)
    path.write_text("q1\td1\t1\nq2\td2\t1\n")
    assert evaluation_sets.list_retrieval_sets(tmp_path) == ["mine"]
    made = evaluation_sets.load_retrieval_set(tmp_path, "mine")
    assert (made.queries, list(made.documents)) == (QUERIES["text"], CORPUS["text"])


def test_the_split_of_the_judgements_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of several splits the test's judgements count, and the log names those that do not."""
    folder = tmp_path / "mine"
    (folder / "qrels").mkdir(parents=True)
    for part, columns in (("corpus", CORPUS), ("queries", QUERIES)):
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")
    (folder / "qrels" / "dev.tsv").write_text("q1\td3\t1\n")
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    with caplog.at_level(logging.INFO):
        assert evaluation_sets.load_retrieval_set(folder, "mine").relevant == {"q1": {"d1": 1}}
    assert "judgements of the test split are read, those of dev left alone" in caplog.text


def test_a_judged_document_that_is_not_there_counts_as_missed(tmp_path: Path) -> None:
    """As trec_eval has it: it stays relevant, nothing returns it, and the count is said."""
    qrels = {"query-id": ["q1", "q1", "q2"], "corpus-id": ["d1", "d9", "d9"], "score": [2, 1, 3]}
    made = evaluation_sets.load_retrieval_set(write(tmp_path, qrels=qrels), "made")
    assert made.relevant == {"q1": {"d1": 2, "d9": 1}, "q2": {"d9": 3}}
    assert made.counts["judgements_of_missing_documents"] == 2
    assert made.graded


def write_beir(folder: Path, corpus: list[dict[str, Any]]) -> Path:
    """Write a set in BEIR's layout whose one query is answered by d1."""
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps(row) for row in corpus]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "wet?"}), "utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n", "utf-8")
    return folder


@pytest.mark.parametrize("titled", [True, False])
def test_a_large_corpus_is_the_same_set(
    tmp_path: Path, titled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On disk or in memory: the same ids, texts, counts and refusals."""
    texts = ["rain", None, "snow", "snow", " ", "sun"]
    names = ["d1", "d2", "d3", "d3", "d4", "d5"]
    corpus = [{"_id": name, "text": text} for name, text in zip(names, texts, strict=True)]
    if titled:
        corpus = [{**row, "title": None if row["_id"] == "d5" else ""} for row in corpus]
    folder = write_beir(tmp_path / "mine", corpus)
    small = evaluation_sets.load_retrieval_set(tmp_path, "mine")
    monkeypatch.setattr(retrieval_tables, "LARGE_BYTES", 0)
    large = evaluation_sets.load_retrieval_set(tmp_path, "mine")
    assert not isinstance(large.documents, list)
    assert large.documents[:] == list(large.documents) == small.documents == ["rain", "snow", "sun"]
    assert (large.documents[-1], large.documents[::2]) == ("sun", ["rain", "sun"])
    assert (large.document_ids, large.counts) == (small.document_ids, small.counts)
    assert large.counts["blank_documents"] == 2 and large.counts["repeated_documents"] == 1
    corpus[2]["text"] = 7
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)), encoding="utf-8")
    with pytest.raises(UserError, match="text"):
        evaluation_sets.load_retrieval_set(tmp_path, "mine")


def test_a_large_corpus_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its texts are read, checked and given a window at a time: Python holds a fraction of them."""
    monkeypatch.setattr(retrieval_tables, "LARGE_BYTES", 0)
    monkeypatch.setattr(retrieval_sets, "WINDOW", 1_000)
    rows, words = 12_000, "drizzle over the hills and down to the sea " * 28
    corpus = [{"_id": f"d{row}", "title": f"{row}", "text": words} for row in range(rows)]
    write_beir(tmp_path / "mine", corpus)
    del corpus
    tracemalloc.start()
    try:
        made = evaluation_sets.load_retrieval_set(tmp_path, "mine")
        seen = sum(len(made.documents[start]) for start in range(0, rows, 1_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(made.documents) == rows and seen > 6 * len(words)
    assert peak < 0.6 * rows * len(words)  # half of it is one batch of rows, twice


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("header", [True, False])
def test_the_layout_of_beir_is_read(tmp_path: Path, packed: bool, header: bool) -> None:
    """corpus.jsonl, queries.jsonl and qrels/test.tsv, compressed or not, or TREC's own qrels."""
    folder = tmp_path / "mine"
    qrels = ["query-id\tcorpus-id\tscore", "q1\td1\t2"] if header else ["q1 0 d1 2"]
    corpus = [
        {"_id": "d1", "title": "Weather", "text": "rain", "metadata": {}},
        {"_id": "d2", "title": "", "text": "snow"},
    ]
    files = {
        "corpus.jsonl": [json.dumps(row) for row in corpus],
        "queries.jsonl": [json.dumps({"_id": "q1", "text": "wet?"})],
        "qrels/test.tsv": qrels,
    }
    for name, lines in files.items():
        path = folder / (name + ".gz" * packed)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = "\ufeff" + "\r\n".join(lines) + "\r\n"  # as spreadsheets save it
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    for place in (tmp_path, folder):  # the folder of the set, and the folder of all sets
        assert evaluation_sets.list_retrieval_sets(place) == ["mine"]
        assert evaluation_sets.has_retrieval_set(place, "mine")
        made = evaluation_sets.load_retrieval_set(place, "mine")
        assert list(made.documents) == ["Weather rain", "snow"]
        assert made.relevant == {"q1": {"d1": 2}}


def test_tables_may_be_of_any_kind(tmp_path: Path) -> None:
    """A set in the NanoBEIR layout out of CSV, JSON lines and Parquet is the same set."""
    write(tmp_path)
    for part, ending, content in (
        ("queries", "csv", "_id,text\nq1,wet?\nq2,white?\n"),
        ("qrels", "jsonl", "\n".join(json.dumps(row) for row in pa.table(QRELS).to_pylist())),
    ):
        (tmp_path / part / "made.parquet").unlink()
        (tmp_path / part / f"made.{ending}").write_text(content)
    assert evaluation_sets.list_retrieval_sets(tmp_path) == ["made"]
    made = evaluation_sets.load_retrieval_set(tmp_path, "made")
    assert made.relevant == {"q1": {"d1": 1}, "q2": {"d2": 1}}


def test_broken_files_of_beirs_layout_are_named(tmp_path: Path) -> None:
    """A line that is no JSON, a column that is not there, a missing file: each by its name."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1")
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "rain"}')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "wet?"}\n{')
    with pytest.raises(UserError, match=r"queries\.jsonl cannot be read \(row 2 is no JSON"):
        evaluation_sets.load_retrieval_set(tmp_path, "mine")
    (folder / "queries.jsonl").write_text('{"number": "q1", "text": "wet?"}')
    with pytest.raises(UserError, match="has no column '_id'; it has: number, text"):
        evaluation_sets.load_retrieval_set(tmp_path, "mine")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "wet?"}')
    assert evaluation_sets.load_retrieval_set(tmp_path, "mine").relevant == {"q1": {"d1": 1}}
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(UserError, match=r"has queries \(queries\.jsonl\), and no corpus"):
        evaluation_sets.load_retrieval_set(tmp_path, "mine")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        # no judgement of what is there
        (
            {"qrels": {"query-id": ["q1", "q2"], "corpus-id": ["d8", "d9"]}},
            "no query has a relevant document.*'d8'",
        ),
        (
            {"qrels": {"query-id": ["q8", "q9"], "corpus-id": ["d1", "d2"]}},
            "no query has a relevant document.*'q8'",
        ),
        ({"corpus": {"_id": ["d1", "d2", "d1"], "text": ["a", "b", "c"]}}, "row 3.*stands twice"),
        ({"queries": {"_id": ["q1", "q2"], "text": [None, " "]}}, "queries that were judged are b"),
        ({"queries": {"no": ["q1"], "text": ["a"]}}, "has no column '_id'; it has: no, text"),
        # judged, but nothing relevant
        (
            {"qrels": {"query-id": ["q1"], "corpus-id": ["d1"], "score": [0]}},
            "no query has a relevant document",
        ),
    ],
)
def test_broken_sets_are_refused_by_name(
    tmp_path: Path, tables: dict[str, dict[str, list[Any]]], message: str
) -> None:
    """A set that would give a wrong figure gives an error that says what and where."""
    with pytest.raises(UserError, match=message):
        evaluation_sets.load_retrieval_set(write(tmp_path, **tables), "made")


def test_a_missing_set_names_those_there_and_the_cure(tmp_path: Path) -> None:
    """The message of a missing file has the command that makes it."""
    with pytest.raises(UserError, match=r"sets in this folder: made.*get_offline_assets\.py"):
        evaluation_sets.load_retrieval_set(write(tmp_path), "boolq")


def test_a_bit_flip_is_noticed(tmp_path: Path) -> None:
    """Parquet pages are checked, so damaged text does not become an odd score."""
    corpus = {"_id": [f"d{i}" for i in range(1, 400)], "text": ["text"] * 399}
    folder = write(tmp_path, corpus=corpus)
    path = folder / "corpus" / "made.parquet"
    pq.write_table(pa.table(corpus), path, write_page_checksum=True, compression="none")
    content = bytearray(path.read_bytes())
    content[content.index(b"d200")] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="cannot be read"):
        evaluation_sets.load_retrieval_set(folder, "made")


def test_distractors_are_seeded_and_never_gold() -> None:
    """All gold documents stay; the sample is a function of the seed alone."""
    ids, gold = [f"d{i}" for i in range(1000)], {"d3", "d500", "d999"}
    rows, chosen = evaluation_sets.choose_documents(ids, gold, 50, seed=1)
    assert len(rows) == 53
    assert {ids[row] for row in rows} == gold | set(chosen)
    assert not gold & set(chosen)
    assert rows == sorted(rows)
    assert evaluation_sets.choose_documents(ids, gold, 50, seed=1)[1] == chosen
    assert evaluation_sets.choose_documents(ids, gold, 50, seed=2)[1] != chosen
    assert len(evaluation_sets.choose_documents(ids, gold, 5000, seed=1)[0]) == 1000


@pytest.mark.parametrize(
    ("column", "values", "graded"),
    [("score", [0.1, 0.9], True), ("label", [0, 1], False)],  # STS-B and MRPC
)
def test_sentence_pairs_know_their_kind(
    tmp_path: Path, column: str, values: list[float], graded: bool
) -> None:
    """Scores are ranked, labels retrieved; the column's name decides."""
    path = tmp_path / "pairs.parquet"
    pq.write_table(
        pa.table({"sentence1": ["a", "b"], "sentence2": ["c", "d"], column: values}), path
    )
    pairs = evaluation_sets.load_sentence_pairs("pairs", path)
    assert (pairs.name, pairs.graded, pairs.gold) == ("pairs", graded, [float(v) for v in values])
    table = pa.table({"text1": ["a", "b"], "text2": ["c", "d"], column: values})
    pq.write_table(table, tmp_path / "others.parquet")  # as others call them
    others = evaluation_sets.load_sentence_pairs("others", tmp_path / "others.parquet")
    assert (others.first, others.graded, others.gold) == (pairs.first, graded, pairs.gold)
    with pytest.raises(UserError, match="has no column 'label'"):
        pq.write_table(pa.table({"sentence1": ["a"], "sentence2": ["b"]}), path)
        evaluation_sets.load_sentence_pairs("pairs", path)


def test_hotpotqa_reads_beir_and_samples_its_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only test queries, all gold documents, seeded distractors whose ids come back."""
    import datasets

    tables = {
        "queries": {"_id": ["a", "b", "c"], "text": ["qa", "qb", "qc"]},
        "corpus": {
            "_id": [str(i) for i in range(100)],
            "title": [f"T{i}" for i in range(100)],
            "text": [f"t{i}" for i in range(100)],
        },
        # BeIR's qrels hold document ids as numbers
        "test": {"query-id": ["a", "c"], "corpus-id": [7, 90], "score": [1, 1]},
    }

    def hub(repository: str, config: str | None, split: str, revision: str | None) -> Any:  # noqa: ANN401  a Dataset
        return datasets.Dataset.from_dict(tables[split])

    monkeypatch.setattr(evaluation_sets, "load_hub_split", hub)
    made, chosen = evaluation_sets.load_hotpotqa("BeIR/hotpotqa", "BeIR/hotpotqa-qrels", 10, seed=4)
    assert (made.queries, len(made.documents), len(chosen)) == (["qa", "qc"], 12, 10)
    assert made.documents[made.document_ids.index("90")] == "T90 t90"
    full, none = evaluation_sets.load_hotpotqa("BeIR/hotpotqa", "BeIR/hotpotqa-qrels", 0, seed=4)
    assert (len(full.documents), full.documents[5], none) == (100, "T5 t5", [])


def test_an_unreachable_hub_names_make_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the user learns of the way that needs none, on one line."""
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match="^dataset sentence-transformers/NanoBEIR-en cannot be reached .*make run$"
    ):
        evaluation_sets.load_nanobeir("NanoMSMARCO")


@pytest.mark.parametrize(
    "text",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_other_types_are_read(tmp_path: Path, text: pa.DataType) -> None:
    """Text as polars and pandas write it, and scores as DuckDB does, are texts and numbers."""
    scores = pa.array([1.0, 0.0, 1.0]).cast(pa.decimal128(3, 2))
    qrels = {"query-id": ["q1", "q1", "q2"], "corpus-id": ["d1", "d3", "d2"]}
    tables = {
        part: {name: pa.array(values).cast(text) for name, values in columns.items()}
        for part, columns in {"corpus": CORPUS, "queries": QUERIES, "qrels": qrels}.items()
    }
    tables["qrels"]["score"] = scores
    made = evaluation_sets.load_retrieval_set(write(tmp_path, **tables), "made")
    assert (made.queries, list(made.documents)) == (QUERIES["text"], CORPUS["text"])
    assert made.relevant == {"q1": {"d1": 1}, "q2": {"d2": 1}}
    assert made.counts["irrelevant_judgements"] == 1


def test_a_text_of_which_nothing_is_seen_is_blank(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Zero-width spaces, a byte order mark, a NUL: every model gives them a vector all the same."""
    corpus = {"_id": ["d1", "d2", "d3"], "text": ["rain", "snow", "\u200b\ufeff \x00\n"]}
    made = evaluation_sets.load_retrieval_set(write(tmp_path, corpus=corpus), "made")
    assert made.counts["blank_documents"] == 1
    with caplog.at_level(logging.INFO):
        assert evaluation_sets.read_texts([tmp_path / "corpus/made.parquet"]) == ["rain", "snow"]
    assert "1 rows left out" in caplog.text


def test_only_what_we_laid_out_comes_again(tmp_path: Path) -> None:
    """A damaged file of somebody's own is not to be removed: no script of ours makes it."""
    for folder, again in (("assets", True), ("mine", False)):
        path = tmp_path / folder / "a.parquet"
        path.parent.mkdir()
        path.write_bytes(b"PAR1")
        with pytest.raises(UserError) as refused:
            evaluation_sets.read_texts([path])
        assert ("get_offline_assets" in str(refused.value)) is again
