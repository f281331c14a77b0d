"""Documents as people keep them, as titles, headings and the text below each.

    .md .markdown                headings by # or by a line below; the title of front matter
    .txt .text .rst              headings by a line below them; a mailbox where it is one
    .eml .mbox, a maildir        a message a document, its subject the title, see `mail`
    .html .htm .docx .pdf        through markitdown, which requirements-documents.txt installs
    .jsonl .json .csv .tsv .parquet ...   a row a document: `text`, and `title` where it is there

Everything else is counted, and left alone.
"""

import dataclasses
import functools
import importlib.util
import io
import logging
import os
import random
import re
import shlex
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from small_modernbert.data import file_rows, mail
from small_modernbert.data.asset_writing import clean_text
from small_modernbert.data.row_formats import ending_of, open_text
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from markitdown import MarkItDown

CONVERTED = (".html", ".htm", ".docx", ".pdf")
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".pq")
INSTALL = "pip install -r requirements-documents.txt"
LARGEST_BYTES = 64 << 20  # of a file that is one document; what is larger is no prose
LONGEST_HEADING = 120  # characters
_HASHES = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t]*#*$")
FENCE = re.compile(r"[ \t]*(```|~~~)")
_UNDERLINE = re.compile(r"([=\-~^\"'*+#`:.])\1{2,}$")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)\n", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*(['\"]?)(.+?)\1[ \t]*$", re.MULTILINE | re.IGNORECASE)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_ROLE = re.compile(r":[a-z:+-]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`")
# Not inside of a word: some_name and C# keep their signs.
_MARKS = re.compile(
    r"[*`|]{1,3}(?=\S)|(?<=\S)[*`|]{1,3}|(?<![^\W_])_{1,3}(?=\S)|(?<=\S)_{1,3}(?![^\W_])"
    r"|(?<!\w)#{1,3}(?=\S)|\{#[^}]*\}|<[^>]+>|[¶]"
)
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|<>~])")
_MAGIC = {".pdf": b"%PDF", ".docx": b"PK\x03\x04"}
_NO_FORMAT = re.compile(r"\.(pdf|docx)$", re.IGNORECASE)
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Section:
    """The text below a heading, up to the next one.

    Attributes:
        heading: without markup; empty for what stands before the first.
        text: as it was written.
    """

    heading: str
    text: str


@dataclasses.dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        name: its path below the folder, with the row or message where a file holds several.
        title: its first heading, or its subject; empty where it has none.
        sections: in order; at least one, each with text.
        thread: the same for messages that answer each other; empty for what is no message.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    thread: str = ""


def list_files(folder: Path, most: int, seed: int, counts: Counter[str]) -> list[Path]:
    """Return the files of a folder (or the one file) that are read, in order.

    Args:
        folder: where; hidden files and folders are left alone.
        most: beyond so many files, a seeded sample of them; 0 for all.
        seed: of the sample.
        counts: what was left out is added to it, by reason.

    Raises:
        UserError: there is none.
    """
    files, converted = [], Counter[str]()
    for path in [folder] if folder.is_file() else sorted(_walk(folder, counts)):
        ending = ending_of(path)
        if ending in CONVERTED and not can_convert():
            converted[ending] += 1
        elif ending in (*CONVERTED, *_READERS, *TABLES) or mail.is_message(path):
            files.append(path)
        else:
            counts["files of other kinds"] += 1
    if converted:
        listed = ", ".join(f"{number:,} {ending}" for ending, number in sorted(converted.items()))
        logger.warning("left out: %s files, which need a reader; %s", listed, INSTALL)
        counts["files whose reader is not installed"] += converted.total()
    if not files:
        cure = INSTALL if converted else "name a folder of documents: --documents"
        raise UserError(f"{folder} holds no document that is read ({kinds()}); {cure}")
    if most and len(files) > most:
        counts["files beyond the sample"] += len(files) - most
        files = sorted(random.Random(seed).sample(files, most))
    return files


def _walk(folder: Path, counts: Counter[str]) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden; links to folders are counted."""

    def refused(error: OSError) -> None:
        counts["folders that could not be read"] += 1
        logger.warning("left out: %s", error)

    for place, folders, files in os.walk(folder, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := sum(Path(place, name).is_symlink() for name in folders):
            counts["links to folders, not followed"] += links
        for name in files:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path


def read_documents(file: Path, folder: Path, counts: Counter[str]) -> Iterator[Document]:
    """Yield the documents of a file; what cannot be read is counted, and told in the log.

    Args:
        file: one of `list_files`.
        folder: what names are relative to.
        counts: what was left out is added to it, by reason.
    """
    name = file.name if file == folder else file.relative_to(folder).as_posix()
    # A name may hold bytes that are no UTF-8, and no table could.
    name = name.encode(errors="surrogateescape").decode(errors="replace")
    try:
        if ending_of(file) in TABLES:
            read = _rows(file, name)
        elif file.stat().st_size > LARGEST_BYTES and not mail.is_mailbox(file):
            raise UserError(f"it has more than {LARGEST_BYTES >> 20} MiB; divide it")
        else:
            other = _mail if mail.is_message(file) else _converted
            read = iter(_READERS.get(ending_of(file), other)(file, name, counts))
        for document in read:
            sections = tuple(section for section in document.sections if section.text.strip())
            if sections:
                yield dataclasses.replace(document, sections=sections)
            else:
                counts["documents without text"] += 1
    except (UserError, OSError, ValueError, LookupError, EOFError, zlib.error) as error:
        counts["files that could not be read"] += 1
        logger.warning("left out: %s: %s", name, error)


def kinds() -> str:
    """Return the endings that are read, for a message."""
    return " ".join((*_READERS, *CONVERTED, *TABLES))


def can_convert() -> bool:
    """Say whether markitdown is installed."""
    return importlib.util.find_spec("markitdown") is not None


def parse_markdown(text: str, name: str) -> Document:
    """Return a text as a document, cut at its headings: Markdown's, or lines with a line below.

    Code between fences holds no heading. A heading keeps its words and loses its markup.
    """
    title, front = "", _FRONT_MATTER.match(text)
    if front:
        text = text[front.end() :]
        if match := _FRONT_TITLE.search(front[1]):
            title = match[2]
    sections: list[Section] = []
    heading, below, fenced = "", list[str](), False
    lines = text.split("\n")
    for number, line in enumerate(lines):
        fenced ^= bool(FENCE.match(line))
        hashes = None if fenced else _HASHES.match(line)
        if hashes:
            sections.append(Section(heading, "\n".join(below).strip("\n")))
            heading, below = plain_text(hashes[2]), []
        elif not fenced and _is_underline(lines, number):
            # The line above was the heading; one like this over it belongs to it, too.
            above = below.pop()
            if below and _UNDERLINE.match(below[-1].strip()):
                below.pop()
            sections.append(Section(heading, "\n".join(below).strip("\n")))
            heading, below = plain_text(above), []
        else:
            below.append(line)
    sections.append(Section(heading, "\n".join(below).strip("\n")))
    title = title or next((section.heading for section in sections if section.heading), "")
    return Document(name, title, tuple(sections))


def plain_text(text: str) -> str:
    """Return a text on one line, without the markup of Markdown and reStructuredText."""
    text = _ROLE.sub(r"\1", _LINK.sub(r"\1", text))
    return " ".join(_MARKS.sub("", _ESCAPED.sub(r"\1", text)).split())


def _is_underline(lines: list[str], number: int) -> bool:
    line, above = lines[number].strip(), lines[number - 1].strip() if number else ""
    if not _UNDERLINE.match(line) or not 0 < len(above) <= LONGEST_HEADING:
        return False
    if _UNDERLINE.match(above) or above.startswith(("|", ">", "-", "*", "..")):
        return False
    # A rule below a paragraph, or a table's, is no heading's.
    before = lines[number - 2].strip() if number > 1 else ""
    alone = not before or bool(_UNDERLINE.match(before))
    return alone and len(line) >= min(len(above), 4) and " " not in line


def _read(file: Path) -> str:
    try:
        with open_text(file) as stream:
            return clean_text(stream.read())
    except UnicodeDecodeError as error:
        cure = f"convert it: iconv -f LATIN1 -t UTF-8 {shlex.quote(str(file))} > NEW"
        raise UserError(f"it is no UTF-8 ({error}); {cure}") from None


def _text(file: Path, name: str, counts: Counter[str]) -> Iterator[Document]:
    if mail.is_mailbox(file):
        yield from _mailbox(file, name, counts)
    else:
        yield parse_markdown(_read(file), name)


def _mail(file: Path, name: str, counts: Counter[str]) -> Iterator[Document]:
    for number, message in enumerate(_reader(counts).read_file(file), 1):
        yield _of_message(message, name if number == 1 else f"{name}#{number}")


def _mailbox(file: Path, name: str, counts: Counter[str]) -> Iterator[Document]:
    for number, message in enumerate(_reader(counts).read_mailbox(file), 1):
        yield _of_message(message, f"{name}#{number}")


def _reader(counts: Counter[str]) -> mail.Reader:
    return mail.Reader(counts, _html_text if can_convert() else None)


def _of_message(message: mail.Message, name: str) -> Document:
    section = Section(message.subject, message.text)
    return Document(name, message.subject, (section,), thread=message.thread)


def _rows(file: Path, name: str) -> Iterator[Document]:
    cure = "give the texts a column `text`"
    row = 0
    for batch in file_rows.read_rows(file, {"text": "any"}, cure, optional=("title",)):
        titles = batch.get("title") or [None] * len(batch["text"])
        for text, title in zip(batch["text"], titles, strict=True):
            row += 1
            heading = " ".join(clean_text(title).split()) if isinstance(title, str) else ""
            body = clean_text(text) if isinstance(text, str) else ""
            yield Document(f"{name}#{row}", heading, (Section(heading, body),))


def _converted(file: Path, name: str, counts: Counter[str]) -> Iterator[Document]:
    # markitdown goes by what it guesses a file to be: a broken PDF would come back as its bytes.
    magic = _MAGIC.get(ending_of(file), b"")
    with file.open("rb") as stream:
        if magic not in stream.read(1024):
            raise UserError(
                f"it is no {ending_of(file)} file; save it again, or rename it to what it is"
            )
    document = parse_markdown(clean_text(_convert(file)), name)
    if _NO_FORMAT.search(name) and not any(section.heading for section in document.sections):
        # A page of a PDF says nothing of its headings.
        document = dataclasses.replace(document, title=plain_text(Path(name).stem))
    yield document


def _html_text(html: str) -> str:
    return _convert(io.BytesIO(html.encode("utf-8", "replace")))


def _convert(source: Path | io.BytesIO) -> str:
    from markitdown import MarkItDownException, StreamInfo

    try:
        if isinstance(source, Path):
            text = _converter().convert_local(str(source)).text_content
        else:
            page = StreamInfo(extension=".html", charset="utf-8")
            text = _converter().convert_stream(source, stream_info=page).text_content
    except MarkItDownException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"markitdown cannot read it ({reason}); save it as text") from None
    return _LINK.sub(r"\1", text)  # where a link leads is not on the page that a reader sees


@functools.cache
def _converter() -> "MarkItDown":
    from markitdown import MarkItDown

    return MarkItDown(enable_plugins=False)


_READERS: dict[str, Callable[[Path, str, Counter[str]], Iterator[Document]]] = {
    ".md": _text,
    ".markdown": _text,
    ".txt": _text,
    ".text": _text,
    ".rst": _text,
    ".eml": _mail,
    ".mbox": _mailbox,
}
