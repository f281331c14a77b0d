"""Passages keep every word; queries are made of what stands in them."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from small_modernbert.data import passages
from small_modernbert.data.chunking import Chunker
from small_modernbert.data.documents import Document, Section
from small_modernbert.data.passages import Passage

WORDS = "the river bank was flooded after heavy rain and nobody could cross the old bridge "


def cut(document: Document, folder: Path, most: int = 32) -> list[Passage]:
    """Cut a document by the miniature tokenizer."""
    return passages.cut_document(
        document, Chunker(Tokenizer.from_file(str(folder / "tokenizer.json")), most)
    )


def test_no_word_of_a_document_is_lost(wordpiece_folder: Path) -> None:
    """Long sections are cut, short ones join the next under their heading."""
    document = Document(
        "a.md",
        "Floods",
        (Section("", "Short."), Section("Rain", WORDS * 6), Section("End", "Last words.")),
    )
    pieces = cut(document, wordpiece_folder)
    joined = " ".join(piece.text for piece in pieces)
    assert joined.split() == f"Short. {WORDS * 6} Last words.".split()
    assert [piece.first for piece in pieces if piece.heading == "Rain"][:2] == [True, False]
    assert pieces[-1].titled == "Floods › End\nLast words."


def test_wrapped_prose_is_joined_and_nothing_else() -> None:
    """Lines cut at a width are one paragraph; lists, code and verse stay."""
    wrapped = "A sentence that somebody has cut at a width of seventy\ncharacters. And another."
    assert passages.unwrap(wrapped) == wrapped.replace("\n", " ")
    listed = "- an entry of a list that is long enough to have been cut\n- another entry"
    code = "```\nx = a_function_with_a_long_name(of_an_argument, another_one)\ny = 1\n```"
    verse = "Roses are red\nviolets are blue"
    table = "| a long cell of a table with many words in it | another |\n| b | c |"
    for text in (listed, code, verse, table):
        assert passages.unwrap(text) == text


def test_headings_that_say_nothing_stand_below_their_title() -> None:
    """A heading of many documents, or of one word, asks with its title or not at all."""
    many = [Passage(f"{n}.md", f"Guide {n}", "See also", "Text.", True) for n in range(5)]
    common = passages.common_headings(many)
    assert common == {"see also"}
    assert passages.heading_query(many[2], common) == "Guide 2 See also"
    assert passages.heading_query(Passage("a", "A", "Notes", "x", True), set()) == "A Notes"
    assert passages.heading_query(Passage("a", "", "Notes", "x", True), set()) == ""
    assert passages.heading_query(Passage("a", "A", "How to swim", "x", True), set()) == (
        "How to swim"
    )
    assert passages.heading_query(Passage("a", "A", "How to swim", "x", False), set()) == ""


@pytest.mark.parametrize(
    ("heading", "query"),
    [
        ("5.24. Local options of a source", "Local options of a source"),
        ("3. How to swim", "How to swim"),
        ("A.1 How to dive", "How to dive"),
        ("2024 in review", "2024 in review"),
        ("3 ways to swim", "3 ways to swim"),
        ("I think so", "I think so"),
    ],
)
def test_the_number_of_a_section_is_no_part_of_its_query(heading: str, query: str) -> None:
    """Nobody types it; a year, or a number of things, is what the heading says."""
    assert passages.heading_query(Passage("a", "A", heading, "x", True), set()) == query


def test_queries_come_from_the_words() -> None:
    """First sentences, questions and setting-apart phrases, without their markup."""
    texts = [
        "The :ref:`river bank <x>` was flooded after the rain. Why did nobody see it? "
        + WORDS.capitalize(),
        "Photosynthesis turns light into sugar inside the leaves of plants. " + WORDS,
        "Volcanic eruptions darkened the sky over the island for weeks. " + WORDS,
    ]
    pieces = [Passage(f"{n}", "", "", text, True) for n, text in enumerate(texts)]
    made = passages.make_queries(pieces)
    by_kind = {(query.kind, query.passage): query.text for query in made}
    assert by_kind["first sentence", 0] == "The river bank was flooded after the rain."
    assert by_kind["question", 0] == "Why did nobody see it?"
    assert "photosynthesis" in by_kind["phrase", 1]
    assert "volcanic" in by_kind["phrase", 2] or "eruptions" in by_kind["phrase", 2]


def test_a_script_without_spaces_has_sentences_but_no_phrases() -> None:
    """Nobody can tell the words of Chinese by spaces: no phrase is better than a wrong one."""
    text = "光合作用是植物利用阳光把二氧化碳和水变成糖的过程。" + "树叶在春天长出来并且变绿。" * 12
    query, following = passages.first_sentence(text)
    assert query == "光合作用是植物利用阳光把二氧化碳和水变成糖的过程。"
    assert following.startswith("树叶")
    assert passages.phrases_of([text, text[::-1]]) == ["", ""]


@pytest.mark.parametrize(
    "line",
    [
        "unregister_key_type(&key_type_dns_resolver);",
        "@@ -949,8 +954,10 @@ init_cifs(void)",
        "| a table's | row |",
        "fs/sysv.c:248: error: 'x' (8) [-W]",
    ],
)
def test_code_is_no_sentence(line: str) -> None:
    """Nobody asks for a passage by a line of a patch."""
    assert passages.first_sentence(f"{line}\n{WORDS * 3}") == ("", "")
