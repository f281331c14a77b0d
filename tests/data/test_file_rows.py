"""file_rows.py: rows as people keep them are read, or refused with file, row, column and cure."""

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_modernbert.data import file_rows
from small_modernbert.runs.errors import UserError

TEXTS = ["One, and a half.", 'He said "two".', "Three\u2028lines", "四。", "Fünf;\tfive"]
ROWS = [{"text": text, "source": "mine", "url": f"x{place}"} for place, text in enumerate(TEXTS)]


def as_csv(delimiter: str) -> str:
    """Return the rows as a spreadsheet exports them, in Windows' manner."""
    quoted = ['"' + row["text"].replace('"', '""') + '"' for row in ROWS]
    lines = [delimiter.join((text, "mine", "x")) for text in quoted]
    return "\ufeff" + "\r\n".join([delimiter.join(("text", "source", "url")), *lines]) + "\r\n"


def as_lines() -> str:
    """Return JSON lines whose first row lacks a column."""
    first = {"text": TEXTS[0]}
    return "\n".join(json.dumps(row) for row in (first, *ROWS[1:])) + "\n\n"


FORMS: dict[str, str] = {
    "a.jsonl": as_lines(),
    "bom.jsonl": "\ufeff" + as_lines().replace("\n", "\r\n"),
    "a.ndjson": as_lines(),
    "lines.json": as_lines(),
    "list.json": json.dumps(ROWS),
    "data.json": json.dumps({"version": 1, "data": ROWS}),
    "columns.json": json.dumps({"text": TEXTS, "n": [1] * 5}),
    "strings.json": json.dumps(TEXTS),
    "a.csv": as_csv(","),
    "UPPER.CSV": as_csv(","),
    "a.tsv": as_csv("\t"),
    "semicolons.csv": as_csv(";"),  # where the comma is the decimal sign
}


def write(path: Path, text: str, **options: Any) -> Path:  # noqa: ANN401  write_text's own
    """Write a file, its folder included, newlines as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(**options))
    return path


def texts_of(path: Path) -> list[Any]:
    """Return the column `text` of a file."""
    batches = file_rows.read_rows(path, {"text": "texts"}, "mend it", optional=("source",))
    return [cell for batch in batches for cell in batch["text"]]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_kind_gives_the_same_texts(name: str, packed: bool, tmp_path: Path) -> None:
    """Byte order marks, line ends, endings, extra and missing columns change no text."""
    path = write(tmp_path / name, FORMS[name])
    if packed:
        content = gzip.compress(path.read_bytes())
        path = path.with_name(f"{name}.GZ" if name.isupper() else f"{name}.gz")
        path.write_bytes(content)
    assert texts_of(path) == TEXTS
    assert file_rows.count_rows(path, "mend it") == len(TEXTS)
    assert "text" in file_rows.read_columns(path, "mend it")


@pytest.mark.parametrize("name", ["a.parquet", "a.pq", "UPPER.PARQUET"])
def test_parquet_of_any_ending(name: str, tmp_path: Path) -> None:
    """Parquet is Parquet, also with a column that other shards lack and text of another type."""
    table = pa.table({"url": ["x"] * 5, "text": pa.array(TEXTS, pa.large_string())})
    pq.write_table(table, tmp_path / name)
    assert texts_of(tmp_path / name) == TEXTS


def test_plain_text_is_a_text_a_line_and_markdown_one_a_file(tmp_path: Path) -> None:
    """Blank lines of a .txt are none, UTF-16 is read; a note stays whole, its indents too."""
    lines = "One.\r\n\r\n  Two, indented.\r\nThree."
    wanted = ["One.", "  Two, indented.", "Three."]
    assert texts_of(write(tmp_path / "a.txt", lines)) == wanted
    for encoding in ("utf-16", "utf-32"):
        assert texts_of(write(tmp_path / "b.txt", lines, encoding=encoding)) == wanted
    note = "# Title\n\n    code()\n\n- item\n"
    assert texts_of(write(tmp_path / "a.md", note)) == [note]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        # Quotes that are signs: within a cell, around its beginning, never closed, across rows.
        (['a "b" c', '"d" e', '"f'], ['a "b" c', '"d" e', '"f']),
        (['"a begins', "b", 'c ends"'], ['"a begins', "b", 'c ends"']),
        # Quotes that enclose cells, as spreadsheets write them.
        (['"a\nb"', '"c ""d"""'], ["a\nb", 'c "d"']),
    ],
)
def test_quotes_of_tsv_enclose_cells_or_are_signs(
    lines: list[str], wanted: list[str], tmp_path: Path
) -> None:
    """No row swallows those after it, and no text is refused for a quote in it."""
    rows = "".join(f"{line}\tmine\n" for line in lines)
    assert texts_of(write(tmp_path / "a.tsv", f"text\tsource\n{rows}")) == wanted


def test_what_a_folder_holds_beside_its_data_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files of kinds that are not read and links that lead nowhere are named, once."""
    for name in ("a.txt", "b.pdf", "_SUCCESS", ".hidden.pdf", "folder.parquet/part-0.jsonl"):
        write(tmp_path / name, "text")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "nowhere")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            files = file_rows.find_files(tmp_path, cure="x")
    assert [file.path.name for file in files] == ["a.txt", "part-0.jsonl"]
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "left alone, no kind of file that is read: b.pdf, c.jsonl"
    ]


def test_rows_of_one_file_may_be_of_any_type(tmp_path: Path) -> None:
    """What is no text is handed on, so that it is counted with its reason and not in the way."""
    rows = [{"text": 3}, {"text": None}, {"text": ["a"]}, {"source": "x"}, {"text": "good"}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert texts_of(path) == [3, None, ["a"], None, "good"]


def test_a_folder_is_read_to_its_depths(tmp_path: Path) -> None:
    """All kinds at any depth; two files of one name are two sources; cards are no text."""
    write(tmp_path / "a" / "notes.txt", "a")
    write(tmp_path / "b" / "notes.txt", "b")
    write(tmp_path / "c.jsonl.gz", "")
    write(tmp_path / "README.md", "# a card")
    write(tmp_path / ".cache" / "x.txt", "hidden")
    write(tmp_path / "train-00000-of-00002.jsonl", "{}")
    write(tmp_path / "paper.pdf", "")
    files = file_rows.find_files(tmp_path, cure="x")
    assert [file.name for file in files] == ["a/notes", "b/notes", "c", "train"]
    both = file_rows.find_files(*(tmp_path / side / "notes.txt" for side in "ab"), cure="x")
    assert [file.name for file in both] == ["a/notes", "b/notes"]
    (alone,) = file_rows.find_files(tmp_path / "a" / "notes.txt", cure="x")
    assert alone.name == "notes"


def test_a_folder_of_notes_keeps_its_readme(tmp_path: Path) -> None:
    """Where there is nothing but a readme, it is the text."""
    write(tmp_path / "README.md", "# notes")
    assert [file.name for file in file_rows.find_files(tmp_path, cure="x")] == ["README"]


SPLITS = {
    "train": [
        "train.csv",
        "data/train-00000-of-00001.csv",
        "more.csv",
        "latest.csv",
        "a/train/x.csv",
    ],
    "held_out": ["validation.csv", "dev-1.csv", "data/my_val.csv", "held_out/x.csv"],
    "test": [
        "test.csv",
        "test/x.csv",
        "data/test-00000-of-00001.csv",
        "eval.csv",
        "test/train.csv",
    ],
}


@pytest.mark.parametrize("split", SPLITS)
def test_only_the_split_that_is_asked_for_is_read(split: str, tmp_path: Path) -> None:
    """Splits are known by files and by folders; a word inside another one is none."""
    for name in (name for names in SPLITS.values() for name in names):
        write(tmp_path / name, "text\nx\n")
    files = file_rows.select_split(file_rows.find_files(tmp_path, cure="x"), split, "x")
    names = [file.path.relative_to(tmp_path).as_posix() for file in files]
    assert sorted(names) == sorted(SPLITS[split])


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Nothing else is trained on in its place; a file that is named itself is what it is."""
    path = write(tmp_path / "test.csv", "text\nx\n")
    with pytest.raises(UserError, match="no file is of the train split; x"):
        file_rows.select_split(file_rows.find_files(tmp_path, cure="x"), "train", "x")
    assert file_rows.select_split(file_rows.find_files(path, cure="x"), "train", "x")


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "a.pdf": ("%PDF", r"\.pdf is no kind that is .*\.parquet .*\.csv.*save it as one"),
    "a.docx": ("PK", r"\.docx is no kind"),
    "a": ("text", "a file without an ending is no kind"),
    "a.parquet.gz": ("x", r"\.gz is no kind"),
    "a.jsonl": ('{"text": "a"}\n{"text": \n', "row 2 is no JSON"),
    "b.jsonl": ('{"text": "a"}\n["a"]\n', "row 2 is no JSON object but list"),
    "b.json": ('{"text": ["a", "b"], "n": [1]}', r"columns have \[1, 2\] rows"),
    "a.csv": ("text,source\na,b\nc,d,e\n", "row 2 has 3 cells, and there are 2 columns"),
    "b.csv": ('text\n"a" b\n', "line 1"),
    "c.csv": ("text,text\na,b\n", "has the column 'text' 2 times"),
    "d.csv": (
        "body,source\na,b\n",
        "has no column 'text'; it has, by its first line: body, source",
    ),
    "e.csv": ("text\ncaf\u00e9\n".encode("latin1"), "no UTF-8 .*iconv"),
    "a.txt": ("", "it is empty"),
    "b.txt": ('{"text": "a"}\n', r"holds JSON lines; call it \.jsonl"),
    "c.txt": ("half of it is zeros".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
    "d.txt": ("half of it is zeros".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
    "a.jsonl.gz": ("no gzip", "cannot be read"),
    "b.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:-9], "cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    """File, row or column, and what to do; never a traceback, never taken for a hub id."""
    content, message = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"(?s){name}.*{message}.*mend it") as refused:
        file_rows.find_files(path, cure="mend it")
        texts_of(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "number"),
    [
        ("a.csv", "score\n0.5\n\n4\n", [0.5, 4]),  # numbers are spelt in CSV; blank lines are none
        ("a.jsonl", '{"score": 1}\n{"score": null}\n{"score": "4.7"}\n', [1, None, 4.7]),
    ],
)
def test_numbers(name: str, content: str, number: list[Any], tmp_path: Path) -> None:
    """Numbers are numbers however a file spells them."""
    path = write(tmp_path / name, content)
    batches = file_rows.read_rows(path, {"score": "number"}, "mend it")
    assert [cell for batch in batches for cell in batch["score"]] == number


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "score\n0.5\nhigh\n"), ("a.jsonl", '{"score": 0.5}\n{"score": [1]}\n')],
)
def test_words_for_numbers_are_refused(name: str, content: str, tmp_path: Path) -> None:
    """A score that is text is refused with its column and row."""
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=rf"{name}, column 'score', row 2: .* is no number; mend"):
        list(file_rows.read_rows(path, {"score": "number"}, "mend it"))


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., list[tuple[str, str]]]:
    """Return a function that reads places as the source "offline": (text, label) of every row."""
    from dataclasses import replace

    from small_modernbert.data import sources
    from small_modernbert.data.hub_datasets import TEXT_SOURCES

    def read(*places: Path, **changes: Any) -> list[tuple[str, str]]:  # noqa: ANN401  a Source's
        source = replace(TEXT_SOURCES["offline"], id="own", places=places, **changes)
        return [
            (cell.value, cell.label)
            for batch in sources.read_source(source, 1)
            for cell in sources.flatten(source, batch)
        ]

    return read


def test_no_row_of_another_split_is_trained_on(
    tmp_path: Path, corpus: Callable[..., list[tuple[str, str]]]
) -> None:
    """A data set with splits gives its training rows, whichever way its files are laid out."""
    for split in ("train", "validation", "test"):
        write(tmp_path / "flat" / f"{split}.csv", f"text\n{split}\n")
        write(tmp_path / "deep" / split / "x.jsonl", json.dumps({"text": split}))
        path = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [split]}), path)
    for layout in ("flat", "deep", "hub"):
        assert [text for text, _ in corpus(tmp_path / layout)] == ["train"]
        held_out = corpus(tmp_path / layout, split="validation")
        assert [text for text, _ in held_out] == ["validation"]


def test_the_file_is_the_source_where_no_row_says_it(
    tmp_path: Path, corpus: Callable[..., list[tuple[str, str]]]
) -> None:
    """`source` is optional, in a file and in a row; a cap is a choice among all files."""
    first = write(tmp_path / "a" / "x.csv", "text,source\none,mine\ntwo,\n")
    second = write(tmp_path / "b" / "x.txt", "three\nfour\n")
    rows = [("one", "mine"), ("two", "a/x"), ("three", "b/x"), ("four", "b/x")]
    assert corpus(first, second) == rows
    assert corpus(tmp_path) == rows
    assert len(corpus(tmp_path, cap=3)) == 3


def test_places_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path gives the files the names that its whole path gives them."""
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    for name in ("notes/a.txt", "notes/deep/b.txt"):
        (tmp_path / name).write_text("a text\n")
    monkeypatch.chdir(tmp_path)
    for places in (["notes"], ["notes/a.txt"], ["notes/a.txt", "notes/deep"]):
        relative = file_rows.find_files(*map(Path, places), cure="")
        whole = file_rows.find_files(*(tmp_path / place for place in places), cure="")
        assert [file.name for file in relative] == [file.name for file in whole]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "strings.json"])
def test_half_a_character_is_no_text(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A lone surrogate, which JSON can spell and no tokenizer takes, is replaced, and said."""
    rows = ["moon \ud83c and more", "moon \U0001f315"]
    rows = rows if name == "strings.json" else [{"text": text} for text in rows]
    text = "\n".join(map(json.dumps, rows)) if name == "a.jsonl" else json.dumps(rows)
    with caplog.at_level(logging.INFO):
        batches = list(file_rows.read_rows(write(tmp_path / name, text), {"text": "text"}, "cure"))
    assert batches == [{"text": ["moon \ufffd and more", "moon \U0001f315"]}]
    assert "half a character" in caplog.text
