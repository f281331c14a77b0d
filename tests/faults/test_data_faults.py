"""Data that is wrong: rows that are no text, files that are no Parquet, labels that are no vectors.

Every bad row is counted with its reason and its source, or refused with file, row and column.
"""

import ast
import importlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_modernbert.data import (
    corpus,
    evaluation_sets,
    graded_pairs,
    hub_datasets,
    labels,
    pairs,
    parquet,
    shards,
    sources,
    triplets,
)
from small_modernbert.data.cleaning import Reason, clean
from small_modernbert.runs import settings, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT

Survived = Callable[..., None]
GOOD = "A text that everybody can use."
MEGABYTE = 1 << 20


def write(path: Path, columns: Any, **options: Any) -> Path:  # noqa: ANN401  columns, a table; pq's
    """Write a Parquet file with page checksums; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, write_page_checksum=True, **options)
    return path


def no_utf8(*cells: bytes | None) -> pa.Array:
    """Return a string column whose bytes nobody has checked."""
    binary = pa.array(cells, pa.binary())
    return pa.StringArray.from_buffers(len(cells), *binary.buffers()[1:], binary.buffers()[0])


def read_source(path: Path, *columns: str) -> list[Any]:
    """Return the cells of a source as mlm/create_dataset.py gets them."""
    source = sources.TextSource(name="mine", id=str(path), texts=columns or ("text",))
    batches = sources.read_source(source, 1)
    return [cell.value for batch in batches for cell in sources.flatten(source, batch)]


ODD_ROWS = {
    "a row that is None": (None, Reason.NOT_TEXT),
    "an empty row": (b"", Reason.BLANK),
    "a blank row": (" \n\t\u3000".encode(), Reason.BLANK),
    "a row of control characters": (b"\x01\x02\x1b\x7f" * 9, Reason.BLANK),
    "a row of NUL": (b"\0" * 100, Reason.BLANK),
    "a lone surrogate in a row": (b"so \xed\xa0\x80 it is", Reason.NOT_TEXT),
    "bytes that are no UTF-8 in a row": (b"\xff\xfe\x00w", Reason.NOT_TEXT),
    "one character a million times": (b"x" * MEGABYTE, Reason.OVER_LONG),
    "a line of 10 MB": (b"a line without an end " * (MEGABYTE // 2), Reason.OVER_LONG),
}


@pytest.mark.parametrize("fault", ODD_ROWS)
def test_odd_row_is_counted_and_its_neighbours_stay(
    fault: str, tmp_path: Path, survived: Survived
) -> None:
    """A row that is no use is dropped for its own reason; the rows around it are kept."""
    cell, reason = ODD_ROWS[fault]
    column = no_utf8(GOOD.encode(), cell, GOOD[::-1].encode())
    cells = read_source(write(tmp_path / "rows.parquet", {"text": column}))
    assert [clean(one, 5) for one in cells] == [GOOD, reason, GOOD[::-1]]
    survived(fault, "mlm/create_dataset", "the other rows; the row is counted", exit_code=0)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("So it\0is,\x1b\x07 they say.", "So it is, they say."),  # control characters inside
        ("So it \ud83d is, they say.", "So it is, they say."),  # half of an emoji
        ("So it is, " + "x" * MEGABYTE + " they say.", "So it is, they say."),  # one huge word
    ],
)
def test_what_harms_inside_a_text_is_taken_out(text: str, kept: str) -> None:
    """The rest of the text is worth keeping, and is fit for Arrow and for a tokenizer."""
    assert clean(text, 5, "web") == kept
    pa.array([clean(text, 5)])


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_source_that_loses_too_much_is_refused(
    share: float, tmp_path: Path, survived: Survived
) -> None:
    """More bad rows than the stated share: refused, with the reasons' counts and the flag."""
    positives = ["An answer.", None, " ", "\0", "Another answer."]
    path = write(tmp_path / "p.parquet", {"anchor": list("abcde"), "positive": positives})
    counts = pairs.PairCounts()
    if share > 0.6:
        assert len(list(pairs.read_pairs(path, counts=counts, max_lost=share))) == 2
        return
    with pytest.raises(UserError) as refused:
        list(pairs.read_pairs(path, counts=counts, max_lost=share))
    said = str(refused.value)
    assert "3 of 5 rows" in said
    assert "positive not text 1, positive blank 2" in said
    assert "--max-lost-share" in said
    graded = {"sentence1": ["a b"] * 4, "sentence2": ["c", "", None, " "], "score": [0.1] * 4}
    write(tmp_path / "graded.parquet", graded)
    with pytest.raises(UserError, match=r"3 of 4 rows .*--max-lost-share"):
        graded_pairs.read_files(tmp_path / "graded.parquet", 0, 1, share)
    survived("a source that loses most of its rows", "any reader of rows", "nothing is trained on")


def test_corpus_of_useless_rows_is_refused(
    tmp_path: Path, wordpiece_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlm/create_dataset.py counts what is no use; duplicates are not among it."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    numbers = " and ".join(["word"] * 6)
    texts = [*(f"Text {i} has {numbers}." for i in range(20)), *["The same text again."] * 60]
    path = write(tmp_path / "t.parquet", {"text": [*texts, *[" "] * 90], "source": ["x"] * 170})
    script = importlib.reload(importlib.import_module("mlm.create_dataset"))
    flags = ["--recipe", "r", "--sources", "offline", "--offline-text", str(path)]
    flags += ["--tokenizer", str(wordpiece_folder), "--held-out-rows", "2", "--max-tokens", "64"]
    settings.override(vars(script), [*flags, "--no-deduplicate-near"])
    with pytest.raises(UserError, match=r"source offline: 90 of 170 rows are no use .blank 90."):
        script.main()
    settings.override(vars(script), ["--max-lost-share", "0.6", "--overwrite"])
    script.main()
    built = corpus.open_corpus(tmp_path / "runs/r/mlm/create_dataset/final")
    assert built.counts == {"train": 19, "held_out": 2}


def test_loss_counts_no_duplicates() -> None:
    """The stated share is of what was read, and the border itself is accepted."""
    sources.check_lost("mine", 10, {"blank": 5}, 0.5)
    with pytest.raises(UserError, match="mine: 6 of 10 rows are no use .blank 6."):
        sources.check_lost("mine", 10, {"blank": 6, "not text": 0}, 0.5)
    sources.check_lost("empty", 0, {}, 0.5)


# Every reader of a user's Parquet file: its columns, and how a stage reads it.
READERS: dict[str, tuple[dict[str, Any], Callable[[Path], Any]]] = {
    "source": ({"text": [GOOD] * 50}, read_source),
    "pairs": (
        {"anchor": [f"What is {i}?" for i in range(50)], "positive": [f"{i}." for i in range(50)]},
        lambda path: list(pairs.read_pairs(path)),
    ),
    "graded pairs": (
        {"sentence1": ["a b"] * 50, "sentence2": ["c d"] * 50, "score": [0.5] * 50},
        lambda path: graded_pairs.read_files(path, 5, 1),
    ),
    "sentence pairs": (
        {"sentence1": ["a b"] * 50, "sentence2": ["c d"] * 50, "label": [1] * 50},
        lambda path: evaluation_sets.load_sentence_pairs("mine", path),
    ),
    "texts": ({"text": [GOOD] * 50}, lambda path: evaluation_sets.read_texts([path])),
}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
NOT_PARQUET = {
    "an empty file": (b"", "is empty"),
    "a git-lfs pointer": (LFS.encode(), "git-lfs pointer.*git lfs pull"),
    "an HTML error page": (b"<!DOCTYPE html><html>404</html>", "an HTML"),
    "a CSV file": (b"text,source\na text,mine\n", "CSV"),
    "a JSON file": (b'[{"text": "a"}]', "JSON"),
    "a gzip file": (b"\x1f\x8b\x08\x00" + bytes(90), "a gzip file"),
    "zeros, as a crash leaves them": (bytes(4096), "unknown kind"),
}


@pytest.mark.parametrize("fault", NOT_PARQUET)
def test_what_is_no_parquet_file_is_called_what_it_is(
    fault: str, tmp_path: Path, survived: Survived
) -> None:
    """Every reader says which file it is, what it is instead, and what to do."""
    content, message = NOT_PARQUET[fault]
    path = tmp_path / "given.parquet"
    path.write_bytes(content)
    for _, read in READERS.values():
        with pytest.raises(UserError, match=rf"given\.parquet cannot be read: it .*{message}.*; "):
            read(path)
    survived(f"{fault} for a Parquet file", "any reader of rows", "refused by name")


@pytest.mark.parametrize("reader", READERS)
def test_damaged_parquet_is_never_read_in_silence(
    reader: str, tmp_path: Path, survived: Survived
) -> None:
    """Cut anywhere, or with a bit flipped in a page, a file is refused or gives what it held."""
    columns, read = READERS[reader]
    path = write(tmp_path / "given.parquet", columns, compression="none", use_dictionary=False)
    whole, expected = path.read_bytes(), repr(read(path))
    (footer,) = np.frombuffer(whole[-8:-4], "<u4").tolist()
    for size in np.linspace(1, len(whole) - 1, 25, dtype=int).tolist():
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"given\.parquet cannot be read: it"):
            read(path)
    refused = 0
    pages = range(4, len(whole) - footer - 8)
    for place in list(pages)[:: max(1, len(pages) // 120)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert repr(read(path)) == expected
        except UserError as error:
            assert "given.parquet" in str(error)
            refused += 1
    assert refused > 60  # the rest hit statistics, which nobody reads
    survived(f"a flipped bit in a page of {reader}", "any reader of rows", "refused by name")
    survived(f"{reader} cut short", "any reader of rows", "refused by name")


@pytest.mark.parametrize("reader", READERS)
def test_wrong_columns_are_named(reader: str, tmp_path: Path, survived: Survived) -> None:
    """A column that is missing, doubled, or of another type is refused before a row is read."""
    columns, read = READERS[reader]
    name = next(iter(columns))
    path = tmp_path / "given.parquet"
    write(path, {("other" if key == name else key): cells for key, cells in columns.items()})
    with pytest.raises(UserError, match=rf"given\.parquet has no column '{name}'; it has: .*other"):
        read(path)
    arrays = [pa.array(cells) for cells in columns.values()]
    twice = pa.Table.from_arrays([arrays[0], *arrays], names=[name, *columns])
    write(path, twice)
    with pytest.raises(UserError, match=rf"given\.parquet has the column '{name}' 2 times"):
        read(path)
    for cells in ([3] * 50, [b"raw"] * 50, [{"a": 1}] * 50, [True] * 50):
        write(path, {**columns, name: cells})
        with pytest.raises(UserError, match=rf"given\.parquet, column '{name}' holds .*, not text"):
            read(path)
    survived(f"missing, doubled, mistyped columns of {reader}", "any reader of rows", "refused")


@pytest.mark.parametrize("reader", READERS)
def test_file_without_rows_gives_none(reader: str, tmp_path: Path) -> None:
    """No row is no crash: a reader gives nothing, or says that there is nothing."""
    columns, read = READERS[reader]
    path = write(tmp_path / "given.parquet", pa.table(columns).slice(0, 0))
    try:
        read(path)
    except UserError as error:
        assert "given.parquet" in str(error)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("sentence1", None),
        ("sentence2", " \n"),
        ("score", None),
        ("score", float("nan")),
        ("score", float("inf")),
    ],
)
def test_graded_pair_that_is_no_use(
    column: str, value: object, tmp_path: Path, survived: Survived
) -> None:
    """Trained on: dropped and counted by its reason. Measured on: refused with row and column."""
    rows = {name: list(cells) for name, cells in READERS["graded pairs"][0].items()}
    rows[column][6] = value
    path = write(tmp_path / "given.parquet", rows)
    found = graded_pairs.read_files(path, 5, 1)
    assert len(found.train) + len(found.held_out) == 49
    assert sum(found.dropped.values()) == 1
    with pytest.raises(UserError, match=rf"given\.parquet, column {column}, row 7: "):
        evaluation_sets.load_sentence_pairs("mine", path)
    survived(f"a graded pair whose {column} is {value!r}", "sts_fine_tuning", "the other pairs")


def test_label_that_is_neither_0_nor_1(tmp_path: Path, survived: Survived) -> None:
    """GLUE's hidden labels are -1: an average precision over them would be a lie."""
    columns = READERS["sentence pairs"][0]
    path = write(tmp_path / "given.parquet", {**columns, "label": [1] * 49 + [-1]})
    with pytest.raises(UserError, match=r"column label: 0 and 1 are wanted, not \[-1, 1\]"):
        evaluation_sets.load_sentence_pairs("mine", path)
    survived("hidden labels (-1) in sentence pairs", "benchmark_hotpotqa", "refused")


def write_set(folder: Path, **tables: dict[str, Any]) -> Path:
    """Write a retrieval set of three documents, some of its tables replaced."""
    ids = ["d0", "d1", "d2"]
    whole = {
        "corpus": {"_id": ids, "text": ["one", "two", "three"]},
        "queries": {"_id": ["q0", "q1"], "text": ["first?", "second?"]},
        "qrels": {"query-id": ["q0", "q1"], "corpus-id": ["d0", "d1"], "score": [1, 1]},
    }
    for part, columns in (whole | tables).items():
        write(folder / part / "toy.parquet", columns)
    return folder


def test_blank_document_never_becomes_a_vector(tmp_path: Path, survived: Survived) -> None:
    """Blank documents are left out and counted; one that answers counts as missed."""
    ids = ["d0", "d1", "d2"]
    folder = write_set(tmp_path, corpus={"_id": ids, "text": ["one", "two", " "]})
    found = evaluation_sets.load_retrieval_set(folder, "toy")
    assert found.document_ids == ["d0", "d1"]
    assert list(found.documents) == ["one", "two"]
    assert found.counts["blank_documents"] == 1
    write_set(tmp_path, corpus={"_id": ids, "text": ["one", "", "three"]})
    found = evaluation_sets.load_retrieval_set(folder, "toy")
    assert (found.document_ids, found.relevant["q1"]) == (["d0", "d2"], {"d1": 1})
    assert found.counts["judgements_of_missing_documents"] == 1
    write_set(tmp_path, queries={"_id": ["q0", "q1"], "text": ["first?", "\t"]})
    found = evaluation_sets.load_retrieval_set(folder, "toy")
    assert (found.query_ids, found.counts["blank_queries"]) == (["q0"], 1)
    survived("blank documents in a retrieval set", "benchmark_hotpotqa", "the others", exit_code=0)


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_judgement_that_is_no_number(
    score: float | None, tmp_path: Path, survived: Survived
) -> None:
    """NaN is not above zero and not below: it must not count as relevant."""
    qrels = {"query-id": ["q0", "q1"], "corpus-id": ["d0", "d1"], "score": [1.0, score]}
    with pytest.raises(UserError, match="set toy, qrels, column score, row 2: a number is wanted"):
        evaluation_sets.load_retrieval_set(write_set(tmp_path, qrels=qrels), "toy")
    survived("a judgement without a number", "benchmark_hotpotqa", "refused with its row")


# Label shards
WIDTH = 4


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Return labels of three rows in two shards."""
    vectors = np.eye(3, WIDTH, dtype=np.float32)
    for index, part in enumerate((slice(0, 2), slice(2, 3))):
        path = labels.shard_path(tmp_path, "train", index)
        labels.write_shard(path, ["one", "two", "three"][part], vectors[part])
    labels.write_index(tmp_path, WIDTH, {"train": 2})
    return tmp_path


def rewrite(folder: Path, index: int = 0, **columns: Any) -> None:  # noqa: ANN401  arrays or lists
    """Replace columns of a shard, as somebody who edits one would."""
    path = labels.shard_path(folder, "train", index)
    table = pq.read_table(path)
    kept = {name: table[name] for name in table.column_names}
    write(path, {**kept, **columns})


def test_edited_shard_is_refused(labelled: Path, survived: Survived) -> None:
    """A shard that is not the one that was written is refused as such, whatever it holds now."""
    rewrite(labelled, text=["one", "six"])
    with pytest.raises(UserError, match=r"shard-00000\.parquet is damaged.*create_distil_dataset"):
        list(labels.open_labels(labelled).texts("train"))
    survived("a label shard that was edited", "distil_modernbert", "refused by name")


def fixed(rows: Any) -> pa.Array:  # noqa: ANN401  nested lists
    """Return vectors as our shards store them."""
    return pa.array(rows, pa.list_(pa.float16(), len(rows[0])))


def half(*values: float) -> list[np.float16]:
    """Return numbers in half precision."""
    return [np.float16(value) for value in values]


NAN, INFINITE = half(0, 0, np.nan, 0), half(0, np.inf, 0, 0)
LABEL_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN in a label": (
        {"label": fixed([half(1, 0, 0, 0), NAN])},
        r"shard-00000\.parquet, row 2, column 'label': a number is NaN or infinite",
    ),
    "infinity in a label": (
        {"label": fixed([INFINITE, half(1, 0, 0, 0)])},
        r"shard-00000\.parquet, row 1, column 'label': a number is NaN or infinite",
    ),
    "ragged vectors": (
        {"label": pa.array([half(1, 0, 0, 0), half(1, 0)], pa.list_(pa.float16()))},
        r"shard-00000\.parquet, column 'label': a vector of 2 numbers, not 4",
    ),
    "vectors of another width": (
        {"label": fixed([half(1, 0, 0), half(0, 1, 0)])},
        r"shard-00000\.parquet, column 'label': a vector of 3 numbers, not 4",
    ),
    "a vector that is missing": (
        {"label": pa.array([half(1, 0, 0, 0), None], pa.list_(pa.float16(), WIDTH))},
        r"shard-00000\.parquet, row 2, column 'label': there is no value",
    ),
    "words for vectors": (
        {"label": ["a", "b"]},
        r"shard-00000\.parquet, column 'label' holds string, not lists of numbers",
    ),
    "a text that is None": ({"text": ["one", None]}, r"row 2, column 'text': there is no value"),
    "a text that is blank": ({"text": ["\n", "b"]}, r"row 1, column 'text': the text is blank"),
    "a text that is no UTF-8": ({"text": no_utf8(b"a", b"\xed\xa0\x80")}, r"is damaged .*UTF"),
}


@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_label_that_is_none_is_refused(fault: str, labelled: Path, survived: Survived) -> None:
    """No wrong label of another engine is trained on: refused with shard, row, column, cure."""
    columns, message = LABEL_FAULTS[fault]
    rewrite(labelled, **columns)
    labels.write_index(labelled, WIDTH, {"train": 2})
    found = labels.open_labels(labelled)
    with pytest.raises(UserError, match=rf"{message}.*create_distil_dataset\.py"):
        (list(found.texts("train")), found.vectors("train", labelled / "cache.f16"))
    assert not (labelled / "cache.f16").exists()
    survived(f"{fault} (labels)", "distil_modernbert", "refused with shard and row")


@pytest.mark.parametrize(
    ("fault", "index", "message"),
    [
        ("labels.json of another width", {"dimension": 5}, "of 4 numbers, not 5"),
        ("labels.json with more rows", {"rows": {"train": 4, "held_out": 0}}, "of train is '4'"),
        ("labels.json with other shards", {"shards": {"train": 3}}, "'train' is none of ours"),
        ("labels.json with fewer shards", {"shards": {}}, "of train is '3', and .* have 0"),
        ("labels.json with odd values", {"dimension": "4"}, "'dimension' is '4', nothing of ours"),
        ("labels.json without a split", {"rows": {"train": 3}}, "'rows' of held_out is 'None'"),
    ],
)
def test_index_that_does_not_fit_its_shards(
    fault: str, index: dict[str, Any], message: str, labelled: Path, survived: Survived
) -> None:
    """What the index says is compared with what the shards hold."""
    path = labelled / labels.LAYOUT.index
    storage.write_json(path, json.loads(path.read_text()) | index)
    with pytest.raises(UserError, match=message):
        labels.open_labels(labelled).vectors("train", labelled / "cache.f16")
    survived(fault, "distil_modernbert", "refused by name")


def test_extra_shard_is_named_and_not_read(
    labelled: Path, caplog: pytest.LogCaptureFixture, survived: Survived
) -> None:
    """A shard that the index does not count stays out of training, and is said to."""
    extra = labels.shard_path(labelled, "train", 2)
    labels.write_shard(extra, ["stranger"], np.ones((1, WIDTH)))
    with caplog.at_level("WARNING", logger="small_modernbert"):
        shards.logger.addHandler(caplog.handler)
        try:
            texts = list(labels.open_labels(labelled).texts("train"))
        finally:
            shards.logger.removeHandler(caplog.handler)
    assert texts == ["one", "two", "three"]
    assert "1 files are not read, labels.json does not count them: train/shard-00002" in caplog.text
    survived("a label shard too many", "distil_modernbert", "the counted shards", exit_code=0)


ENTRY = {"rows": 1, "bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"train/../../../etc/x.parquet": ENTRY}, "is none of ours"),
        ({"/etc/x.parquet": ENTRY}, "is none of ours"),
        ({"elsewhere/shard-00000.parquet": ENTRY}, "is none of ours"),
        ({"train/shard-00000.parquet": ENTRY | {"rows": "many"}}, "is none of ours"),
        ({"train/shard-00000.parquet": 1}, "is none of ours"),
        ([], "'shards' is '.*', nothing of ours"),
    ],
)
def test_corpus_index_leads_nowhere_else(
    named: object, message: str, tmp_path: Path, survived: Survived
) -> None:
    """A corpus.json from elsewhere can't make a stage read other files."""
    facts = {"tokens": 1, "max_tokens": 9, "sources": {}, "columns": {}}
    index = {**facts, "rows": {"train": 1, "held_out": 0}, "shards": named}
    storage.write_json(tmp_path / corpus.LAYOUT.index, index)
    with pytest.raises(UserError, match=message):
        list(corpus.open_corpus(tmp_path).texts())
    survived("a corpus.json with foreign paths", "create_distil_dataset", "refused by name")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive_score": [float("nan")] * 2}, "column 'positive_score': a score is not"),
        ({"negative_scores": [[0.5], [1.5]]}, "column 'negative_scores': a score is not"),
        ({"negative_scores": [[0.5], [0.5, 0.5]]}, "has not one score for each negative"),
        ({"anchor": ["a", None]}, "row 2, column 'anchor': there is no value"),
        ({"negatives": [["no"], [" "]]}, "row 2, column 'negatives': the text is blank"),
    ],
)
def test_judged_triplets_are_checked_again(
    change: dict[str, Any], message: str, tmp_path: Path, survived: Survived
) -> None:
    """Scores and texts that somebody has edited are refused, not trained on."""
    row = {"anchor": "a", "positive": "p", "negatives": ["no"], "source": "toy"}
    scored = {**row, "positive_score": 0.9, "negative_scores": [0.5]}
    path = triplets.shard_path(tmp_path, "train", 0)
    triplets.write_shard(path, [scored] * 2, {})
    facts = {"judge": "toy", "scale": "cosine"}
    triplets.write_index(tmp_path, {"train": 1}, facts)
    assert len(list(triplets.open_triplets(tmp_path).rows("train"))) == 2
    table = pq.read_table(path).to_pydict() | change
    write(path, pa.table(table, schema=triplets.SCHEMA))
    with pytest.raises(UserError, match="is damaged"):
        list(triplets.open_triplets(tmp_path).rows("train"))
    triplets.write_index(tmp_path, {"train": 1}, facts)
    with pytest.raises(UserError, match=message):
        list(triplets.open_triplets(tmp_path).rows("train"))
    survived("judged triplets that were edited", "post_train_distilled_model", "refused by row")


def test_batches_add_up_to_the_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that gives fewer rows than its footer says is damaged, not short."""
    path = write(tmp_path / "given.parquet", {"text": [GOOD] * 9})
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, *given, **named: list(real(self, 3))[:2]
    )
    with pytest.raises(UserError, match="is damaged: 6 rows of 9; mend it"):
        list(parquet.read_batches(path, {"text": "text"}, "mend it"))


def test_parquet_is_written_and_read_with_checksums() -> None:
    """No module or script opens or writes a Parquet file without its page checksums."""
    wanted = {
        "write_table": "write_page_checksum",
        "ParquetWriter": "write_page_checksum",
        "ParquetFile": "page_checksum_verification",
        "read_table": "page_checksum_verification",
    }
    seen: Counter[str] = Counter()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("small_modernbert/*/*.py"), *ROOT.glob("mlm/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            match = re.fullmatch(rf"(?:pq|pyarrow\.parquet)\.({'|'.join(wanted)})", name)
            if match is None:
                continue
            seen[match[1]] += 1
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            assert given.get(wanted[match[1]]) == "True", f"{path}:{node.lineno}: {name}"
    assert seen["ParquetWriter"] >= 1
    assert seen["ParquetFile"] >= 1


def test_sources_of_the_hub_go_through_the_same_cleaning(tmp_path: Path) -> None:
    """Rows of JSON lines can hold anything at all; what is no text is counted as such."""
    odd = [GOOD, None, 3, 0.5, ["a"], {"b": 1}, True, ""]
    source = replace(hub_datasets.TEXT_SOURCES["npr"], texts=("text",), join="each", roles=())
    cells = [cell.value for cell in sources.flatten(source, {"text": odd})]
    reasons = [clean(cell, 5) for cell in cells]
    assert reasons == [GOOD, *[Reason.NOT_TEXT] * 6, Reason.BLANK]
