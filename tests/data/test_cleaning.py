"""cleaning.py: what is taken out of a text."""

import base64
import random

import pytest
from tokenizers import Tokenizer

from small_modernbert.data.chunking import Chunker
from small_modernbert.data.cleaning import Reason, clean

WORDS = ["river", "stone", "light", "green", "paper", "window", "seven", "of", "the", "walks"]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (None, Reason.NOT_TEXT),  # a missing cell
        (b"\xff\xfe", Reason.NOT_TEXT),  # bytes that are no UTF-8
        (3.5, Reason.NOT_TEXT),  # a number
        ("", Reason.BLANK),
        (" \n\t\u00a0", Reason.BLANK),
        ("\x00\x00 \ufeff", Reason.BLANK),  # nothing but controls
        ("divide it.", Reason.TOO_SHORT),
        ("12 + 30 = 42, 10 %, 3.1415", Reason.NO_WORDS),
        ("x" * 6_000_000, Reason.OVER_LONG),  # a row beyond any document
        ("x" * 100_000, Reason.OVER_LONG),  # one word and nothing else
    ],
)
def test_says_why_a_cell_is_dropped(found: object, wanted: Reason) -> None:
    """Each kind of bad cell has its reason; none raises."""
    assert clean(found, 12, "web") is wanted


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("A river \x00of\x07 stone", "A river of stone"),  # NUL and control characters
        ("A river \ud83d of stone", "A river of stone"),  # a lone surrogate
        ("\ufeffA river\u200b of stone", "A river of stone"),  # byte order mark, zero width space
        ("A  river\t of\u00a0stone ", "A river of stone"),  # white space
        ("River\r\n\r\n \r\nstone\rlight", "River\n\nstone\nlight"),  # paragraphs stay
        ("Cafe\u0301 of the river", "Café of the river"),  # composed
        ("A river " + "x" * 5_000 + " of stone", "A river of stone"),  # a word of no language
        ("[header] How to walk [title] Find it! [step] Go .", "How to walk. Find it! Go."),
        ("Rivers[12] are old.[citation needed]", "Rivers are old."),
        ("Persian (/fa/ ( listen)) is old", "Persian (/fa/) is old"),
        (", the river of stone", "the river of stone"),  # an ending without its beginning
        (".NET is one river", ".NET is one river"),  # but a name stays
        ('A " green " river ( of stone ) , too', 'A "green" river (of stone), too'),
        ("Walking: . A river is seen..", "Walking: A river is seen."),
        ("Wait ... for the river...", "Wait ... for the river..."),  # an ellipsis stays
    ],
)
def test_cleans(found: str, wanted: str) -> None:
    """What breaks or misleads a model goes, the text stays; cleaning twice changes nothing."""
    assert clean(found, 5, "web") == wanted
    assert clean(wanted, 5, "web") == wanted


def test_writing_without_spaces_is_no_dump(either_tokenizer: Tokenizer) -> None:
    """A Chinese paragraph stays, and is cut to pieces that fit; base64 of any length does not."""
    paragraph = "".join(random.Random(0).choices("河流在石头之间静静地走过绿色的窗户，。", k=3_000))
    assert clean(paragraph, min_characters=12) == paragraph
    chunks = Chunker(either_tokenizer, 64).chunk([paragraph])[0]
    assert len(chunks) > 1
    assert "".join(piece for piece, _ in chunks) == paragraph
    assert all(either_tokenizer.encode(piece).ids == ids for piece, ids in chunks)
    assert max(len(ids) for _, ids in chunks) <= 64
    dump = base64.b64encode(random.Random(0).randbytes(1_500)).decode()
    assert len(dump) == 2_000
    assert clean(dump, min_characters=12) is Reason.OVER_LONG
    assert clean(f"{paragraph} {dump} {paragraph}", 12, "web") == f"{paragraph} {paragraph}"


def test_a_dump_within_a_dump_leaves_nothing() -> None:
    """What is taken out does not depend on the order of a set, another one in each process."""
    dumps = ["x" * length for length in range(1_001, 1_030)]
    text = f"A river {' '.join(dumps)} of stone"
    assert clean(text, 5, "web") == "A river of stone"
    assert clean(text, 5).split() == ["A", "river", "of", "stone"]


LEFT_ALONE = [
    "def main():\n    print()\n    x = arr[0] + arr[12]\n    return f(x)[3]",
    "call foo() then bar() ; a ? b : c",
    "see http://example.org/a//b and arr[1][2]",
    "git diff HEAD .. main , then git log ...",
    "x = [ 1 , 2 ] ; y = ( a ) ;",
    "Use `ls ..` and `cd ..` to go up.",
    "| a  | b |\n|----|---|\n| 1  | 2 |",
    "    indented at once\n\n\n\n  and again\tby a tab",
    ". and , so on..  [12] [citation needed] ( listen )",
    "Cafe\u0301 wei\xadter ﬁle",
    "ไม่มี ช่องว่าง",
]


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_a_text_is_left_as_it_is(text: str) -> None:
    """Code, tables, indentation, brackets and ellipses survive where nobody asked for cleaning."""
    assert clean(text, 5) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a b\r\nc\rd\u2028e \n\n", "a b\nc\nd\ne"),  # line ends are one, the end is trimmed
        (" \n\n  code()", "  code()"),  # blank lines before it go, the indentation stays
        ("a \x00b\ud800 c", "a  b  c"),  # what breaks Arrow and tokenizers
        ("12 + 30 = 42", Reason.NO_WORDS),
        ("????", Reason.NO_WORDS),
        ("f(1)", "f(1)"),
        (" \n ", Reason.BLANK),
        ("x" * 5_000, Reason.OVER_LONG),
    ],
)
def test_what_would_break_goes_all_the_same(text: str, wanted: str | Reason) -> None:
    """Uncleaned texts are fit for a tokenizer, too."""
    assert clean(text, 2) == wanted
