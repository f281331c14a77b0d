"""Folders of documents: headings, mailboxes, rows, and what is left out said."""

import gzip
import os
from collections import Counter
from pathlib import Path

import pytest

from small_modernbert.data import documents
from small_modernbert.runs.errors import UserError


def read(folder: Path) -> tuple[list[documents.Document], Counter[str]]:
    """Return all documents of a folder, and what was left out."""
    counts = Counter[str]()
    files = documents.list_files(folder, 0, 1, counts)
    return [
        document for file in files for document in documents.read_documents(file, folder, counts)
    ], counts


def test_markdown_is_cut_at_its_headings(tmp_path: Path) -> None:
    """Both kinds of heading count, none inside a fence; front matter gives the title."""
    (tmp_path / "a.md").write_text(
        "---\ntitle: 'The guide'\n---\nBefore.\n\n# `Install` **it**\nRun this:\n```sh\n# no"
        " heading\n```\n\nUse it\n------\nLike so.\n\n## See [the page](x.html) ##\nMore.\n"
    )
    ((document,), counts) = read(tmp_path)
    assert document.title == "The guide"
    assert [section.heading for section in document.sections] == [
        "", "Install it", "Use it", "See the page",
    ]  # fmt: skip
    assert "# no heading" in document.sections[1].text
    assert not counts


def test_restructured_text_and_plain_text(tmp_path: Path) -> None:
    """Lines below a title (and above it) make it one; rules, tables and code do not."""
    (tmp_path / "a.rst").write_text(
        "=======\nModels\n=======\n\nA model is :class:`~x.Model`.\n\nFields\n======\n\nText "
        "here\nand here.\n\n====  ====\na     b\n====  ====\n\n    code\n    ----\n"
    )
    ((document,), _) = read(tmp_path)
    assert document.title == "Models"
    assert [section.heading for section in document.sections] == ["Models", "Fields"]
    assert "a     b" in document.sections[1].text


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("The `is_open` flag of **C#**", "The is_open flag of C#"),
        ("_Notes_ on dh\\_install(1) *", "Notes on dh_install(1) *"),
        ("See :func:`~a.b_c` and name_.", "See a.b_c and name."),
    ],
)
def test_markup_goes_and_words_stay(written: str, plain: str) -> None:
    """A sign inside of a word is the word's; one that was escaped is text."""
    assert documents.plain_text(written) == plain


def test_rows_are_documents(tmp_path: Path) -> None:
    """A table's rows are read with their titles; a row without text is counted."""
    (tmp_path / "rows.csv").write_text("title,text,other\nOne,First text,x\n,Second,y\nThree,,z\n")
    read_back, counts = read(tmp_path)
    assert [(document.title, document.name) for document in read_back] == [
        ("One", "rows.csv#1"), ("", "rows.csv#2"),
    ]  # fmt: skip
    assert counts == {"documents without text": 1}


def test_what_cannot_be_read_is_counted_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other kinds, broken encodings and tables without text cost their file alone."""
    (tmp_path / "a.txt").write_text("Fine.\n")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 au lait\n")
    (tmp_path / "c.csv").write_text("x,y\n1,2\n")
    (tmp_path / "d.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "e.txt").write_text("Not for us.\n")
    read_back, counts = read(tmp_path)
    assert [document.name for document in read_back] == ["a.txt"]
    assert counts == {"files of other kinds": 1, "files that could not be read": 2}
    assert "iconv" in caplog.text


def test_html_needs_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTML comes with its headings; without markitdown the cure is named."""
    page = tmp_path / "page.html"
    page.write_text(
        "<html><body><h1>Title</h1><p>Some <a href='x.html'>text</a>.</p><h2>Next</h2><p>More.</p>"
    )
    ((document,), _) = read(tmp_path)
    assert document.title == "Title"
    assert [section.heading for section in document.sections] == ["Title", "Next"]
    assert document.sections[0].text.strip() == "Some text."
    monkeypatch.setattr(documents, "can_convert", lambda: False)
    with pytest.raises(UserError, match="requirements-documents"):
        read(tmp_path)


def test_a_broken_pdf_costs_itself_alone(tmp_path: Path) -> None:
    """A file that its reader cannot parse is counted, whatever the reader raises."""
    (tmp_path / "a.pdf").write_bytes(b"no pdf at all")
    (tmp_path / "b.docx").write_bytes(b"no archive")
    (tmp_path / "c.md").write_text("# Fine\nText.\n")
    read_back, counts = read(tmp_path)
    assert [document.name for document in read_back] == ["c.md"]
    assert counts == {"files that could not be read": 2}


def test_a_cut_archive_costs_itself_alone(tmp_path: Path) -> None:
    """A file whose gzip ends too soon is counted, as other broken ones are."""
    whole = gzip.compress(b"# Title\n" + bytes(range(256)).hex().encode() * 99)
    (tmp_path / "a.md.gz").write_bytes(whole[:-20])
    (tmp_path / "b.md").write_text("# Fine\nText.\n")
    read_back, counts = read(tmp_path)
    assert [document.name for document in read_back] == ["b.md"]
    assert counts == {"files that could not be read": 1}


def test_odd_names_and_links(tmp_path: Path) -> None:
    """Names of any bytes are read; links to folders (circles, maybe) are counted."""
    (tmp_path / "a b\n'ü\".md").write_text("# One\nText.\n")
    (tmp_path / "bad\udcff.md").write_text("# Two\nText.\n")
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.md")
    read_back, counts = read(tmp_path)
    assert [document.name for document in read_back] == ["a b\n'ü\".md", "bad\ufffd.md"]
    assert counts == {"links to folders, not followed": 1}


def test_a_folder_that_may_not_be_read_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are read."""
    (tmp_path / "a.md").write_text("# One\nText.\n")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(place: object) -> object:
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    read_back, counts = read(tmp_path)
    assert (len(read_back), counts) == (1, {"folders that could not be read": 1})


def test_a_sample_is_seeded_and_said(tmp_path: Path) -> None:
    """Beyond the most that is asked for, files are drawn by the seed, and the rest counted."""
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("Text.\n")
    counts = Counter[str]()
    first = documents.list_files(tmp_path, 4, 7, counts)
    assert first == documents.list_files(tmp_path, 4, 7, Counter())
    assert first != documents.list_files(tmp_path, 4, 8, Counter())
    assert (len(first), counts) == (4, {"files beyond the sample": 5})
