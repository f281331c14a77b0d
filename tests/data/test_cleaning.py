"""cleaning.py: what is taken out of a text, and where it is cut."""

import base64
import random
from pathlib import Path

import pytest
from miniature import make_bpe_tokenizer, make_wordpiece_tokenizer
from tokenizers import Tokenizer

from small_modernbert.data.cleaning import Chunker, Reason, clean, split_sentences
from small_modernbert.runs.errors import UserError

WORDS = ["river", "stone", "light", "green", "paper", "window", "seven", "of", "the", "walks"]


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    """A tokenizer of either family."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "wordpiece":
        make_wordpiece_tokenizer(folder, WORDS)
    else:
        make_bpe_tokenizer(folder, [" ".join(WORDS)] * 50)
    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def document(sentences: int, seed: int = 0) -> str:
    """Return sentences of 3 to 12 words."""
    chooser = random.Random(seed)
    return " ".join(
        " ".join(chooser.choices(WORDS, k=chooser.randint(3, 12))).capitalize() + "."
        for _ in range(sentences)
    )


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
    assert clean(found, min_characters=12) is wanted


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
    assert clean(found, min_characters=5) == wanted
    assert clean(wanted, min_characters=5) == wanted


def test_writing_without_spaces_is_no_dump(tokenizer: Tokenizer) -> None:
    """A Chinese paragraph stays, and is cut to pieces that fit; base64 of any length does not."""
    paragraph = "".join(random.Random(0).choices("河流在石头之间静静地走过绿色的窗户，。", k=3_000))
    assert clean(paragraph, min_characters=12) == paragraph
    chunks = Chunker(tokenizer, 64).chunk([paragraph])[0]
    assert len(chunks) > 1
    assert "".join(piece for piece, _ in chunks) == paragraph
    assert all(len(tokenizer.encode(piece).ids) == tokens <= 64 for piece, tokens in chunks)
    dump = base64.b64encode(random.Random(0).randbytes(1_500)).decode()
    assert len(dump) == 2_000
    assert clean(dump, min_characters=12) is Reason.OVER_LONG
    assert clean(f"{paragraph} {dump} {paragraph}", 12) == f"{paragraph} {paragraph}"


def test_a_dump_within_a_dump_leaves_nothing() -> None:
    """What is taken out does not depend on the order of a set, another one in each process."""
    dumps = ["x" * length for length in range(1_001, 1_030)]
    assert clean(f"A river {' '.join(dumps)} of stone", min_characters=5) == "A river of stone"


def test_sentences_are_the_text_again() -> None:
    """Boundaries are where sentences end; abbreviations and numbers are not."""
    text = 'Dr. Stone walks 3.5 miles. "Is it far?" he asks, e.g. today.\nYes! The end (it is).'
    sentences = list(split_sentences(text))
    assert "".join(sentences) == text
    assert [sentence.strip() for sentence in sentences] == [
        "Dr. Stone walks 3.5 miles.",
        '"Is it far?" he asks, e.g. today.',
        "Yes!",
        "The end (it is).",
    ]


@pytest.mark.parametrize("max_tokens", [16, 40, 128])
def test_chunks_fit_and_lose_nothing(tokenizer: Tokenizer, max_tokens: int) -> None:
    """No chunk exceeds the limit, special tokens included; joined, they have every word."""
    texts = [document(1), document(60, seed=1), "", document(400, seed=2), "river " * 500]
    pieces = Chunker(tokenizer, max_tokens).chunk(texts)
    assert len(pieces) == len(texts)
    for text, chunks in zip(texts, pieces, strict=True):
        assert " ".join(piece for piece, _ in chunks).split() == text.split()
        for piece, tokens in chunks:
            assert tokens == len(tokenizer.encode(piece).ids)
            assert tokens <= max_tokens


def test_chunks_end_with_sentences_and_are_even(tokenizer: Tokenizer) -> None:
    """A long document is cut between sentences, and no piece is a scrap."""
    chunks = Chunker(tokenizer, 128).chunk([document(200)])[0]
    assert len(chunks) > 5
    assert all(piece[0].isupper() and piece.endswith(".") for piece, _ in chunks)
    assert min(tokens for _, tokens in chunks) > 40


def test_counting_anew_cuts_alike(tokenizer: Tokenizer) -> None:
    """The memo of words changes no cut."""
    texts = [document(1), document(60, seed=1), document(400, seed=2), "river " * 500]
    anew = Chunker(tokenizer, 40, memo=False).chunk(texts)
    assert Chunker(tokenizer, 40).chunk(texts) == anew


def test_text_that_fits_is_unchanged(tokenizer: Tokenizer) -> None:
    """A text within the limit is its only piece, as it was."""
    text = document(2)
    assert [piece for piece, _ in Chunker(tokenizer, 512).chunk([text])[0]] == [text]


def test_a_line_of_megabytes_does_not_stall(tokenizer: Tokenizer) -> None:
    """A line of a megabyte without a full stop, and one without a space, are cut all the same."""
    spaced, solid = "river stone " * 80_000, "riverstone" * 5_000
    chunker = Chunker(tokenizer, 256)
    for text in (spaced, solid):
        chunks = chunker.chunk([text])[0]
        assert "".join("".join(piece.split()) for piece, _ in chunks) == "".join(text.split())
        assert max(tokens for _, tokens in chunks) <= 256


def test_refuses_a_limit_without_room(tokenizer: Tokenizer) -> None:
    """A limit that leaves no room for text is the user's to mend."""
    with pytest.raises(UserError, match="--max-tokens"):
        Chunker(tokenizer, 5)
