"""Documents kept apart: whole, disjoint, the user's own queries first."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from small_modernbert.data import own_sets
from small_modernbert.data.documents import Document, Section
from small_modernbert.data.own_sets import UserQuery
from small_modernbert.data.passages import Passage, common_headings
from small_modernbert.runs.errors import UserError


def document(name: str, text: str = "") -> Document:
    """Return a document of one section."""
    return Document(name, name, (Section(name, text or f"Text of {name}."),))


def divide(
    documents: list[Document], queries: list[UserQuery], share: float, most: int = 99, seed: int = 3
) -> own_sets.Parts:
    """Divide documents of one passage each."""
    pieces = dict.fromkeys((document.name for document in documents), 1)
    return own_sets.divide(documents, queries, pieces, share, most, seed)


def test_parts_are_disjoint_and_copies_stay_together() -> None:
    """Every document serves one purpose; a copy of a held-out one does not train."""
    some = [document(f"{n}.md", f"The text number {n // 2}.") for n in range(40)]
    parts = divide(some, [], 0.6, seed=3)
    groups = [parts.training, parts.validation, parts.reported]
    assert sorted(name for names in groups for name in names) == sorted(d.name for d in some)
    assert [len(names) for names in groups] == [16, 12, 12]
    purpose = {name: number for number, names in enumerate(groups) for name in names}
    assert all(purpose[f"{n}.md"] == purpose[f"{n + 1}.md"] for n in range(0, 40, 2))
    assert divide(some, [], 0.6, seed=3) == parts
    assert divide(some, [], 0.6, seed=4) != parts


@pytest.mark.parametrize(("number", "trained"), [(3, 1), (20, 10), (300, 200), (900, 720)])
def test_a_hundred_documents_are_held_out_where_half_allow_it(number: int, trained: int) -> None:
    """A fifth of few documents would give no figure."""
    parts = divide([document(str(row)) for row in range(number)], [], 0.2)
    assert len(parts.training) == trained
    assert abs(len(parts.validation) - len(parts.reported)) <= 1


def test_a_set_that_has_its_passages_takes_no_more_documents() -> None:
    """What a benchmark takes is bounded, however many documents there are: the others train."""
    some = [document(str(row)) for row in range(900)]
    parts = divide(some, [], 0.2, most=30)
    assert [len(parts.reported), len(parts.validation), len(parts.training)] == [30, 30, 840]


def test_a_thread_stays_together_and_a_long_one_trains() -> None:
    """Answers to a held-out message do not train; a set is not one thread."""

    def message(number: int, thread: str) -> Document:
        text = (Section("Re", f"Text of {number}."),)
        return Document(str(number), "Re", text, thread)

    some = [message(n, f"<{n // 3}>") for n in range(30)] + [
        message(n, "<x>") for n in range(30, 40)
    ]
    parts = divide(some, [], 0.5)
    groups = [parts.training, parts.validation, parts.reported]
    assert sorted(name for names in groups for name in names) == sorted(d.name for d in some)
    purpose = {name: number for number, names in enumerate(groups) for name in names}
    assert all(purpose[str(n)] == purpose[str(n - n % 3)] for n in range(30))
    assert {str(n) for n in range(30, 40)} <= set(parts.training)
    assert abs(len(parts.validation) - len(parts.reported)) <= 3
    assert len(parts.validation) + len(parts.reported) >= 18


def test_two_documents_are_refused() -> None:
    """There is nothing to train on beside two sets."""
    with pytest.raises(UserError, match="three at least"):
        divide([document("a"), document("b"), document("c", "Text of a.")], [], 0.2)


def test_documents_that_users_asked_for_are_held_out_first() -> None:
    """A judged query is worth most where it measures."""
    some = [document(f"{n}.md") for n in range(20)]
    asked = [UserQuery("where is it?", "7.md"), UserQuery("and this?", "13.md")]
    parts = divide(some, asked, 0.2, seed=5)
    assert {"7.md", "13.md"} <= {*parts.reported, *parts.validation}


def test_a_file_alone_is_divided_at_its_headings() -> None:
    """A book's chapters can be kept apart; where there are files enough they stay whole."""
    chapters = tuple(Section(f"Chapter {n}", f"Text of {n}.") for n in range(6))
    book = Document("book.md", "Book", chapters)
    cut = own_sets.by_sections([book])
    assert [each.name for each in cut] == [f"book.md#{n}" for n in range(1, 7)]
    assert {each.title for each in cut} == {"Book"}
    assert own_sets.by_sections([book] * 3) == [book] * 3


def test_queries_name_documents_by_path_or_last_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be told apart, or is not there, is counted and its query kept as text."""
    file = tmp_path / "asked.csv"
    file.write_text(
        "query,document\nwhere?,b/x.md\nwhen?,/home/me/notes/y.md\nwho?,x.md\nwhat?,z.md\n"
        " ,y.md\nfree,\n"
    )
    counts = Counter[str]()
    queries = own_sets.read_queries(file, ["a/x.md", "b/x.md", "a/y.md"], counts)
    assert queries == [
        UserQuery("where?", "b/x.md"),
        UserQuery("when?", "a/y.md"),
        UserQuery("who?", ""),
        UserQuery("what?", ""),
        UserQuery("free", ""),
    ]
    assert counts == {
        "queries whose answer names several documents": 1,
        "queries whose answer names no document": 1,
        "blank queries": 1,
    }
    assert "2 of 5 queries name no document, or several ('x.md', 'z.md')" in caplog.text


LONG = "It follows that much water flows under the bridge of the town every day of the year."


def test_a_set_asks_headings_of_all_pieces_and_first_sentences_of_the_rest() -> None:
    """A first sentence that asks is taken out of its passage: nothing answers itself."""
    pieces = [
        Passage("a", "A", "How to swim", "First piece.", True),
        Passage("a", "A", "How to swim", "Second piece.", False),
        Passage("b", "", "", f"The bridge is very old indeed. {LONG}", True),
    ]
    made, kind = own_sets.make_set("mine", pieces, set(), [], 10, 1)
    assert made is not None
    assert kind == own_sets.MADE
    asked = {
        query: set(made.relevant[key])
        for key, query in zip(made.query_ids, made.queries, strict=True)
    }
    assert asked == {"How to swim": {"p0", "p1"}, "The bridge is very old indeed.": {"p2"}}
    assert made.documents[2] == LONG


def test_a_thread_is_asked_by_its_subject_and_by_its_answers() -> None:
    """However long it is; five documents under one heading are no thread, and none of them asks."""
    answers = [
        Passage(f"{n}", "Bad brakes", "Bad brakes", f"Answer {n} says to wait. {LONG}", True, "<1>")
        for n in range(5)
    ]
    made, _ = own_sets.make_set("mine", answers, common_headings(answers), [], 10, 1)
    assert made is not None
    relevant = {
        query: len(made.relevant[key])
        for key, query in zip(made.query_ids, made.queries, strict=True)
    }
    assert relevant == {"Bad brakes": 5} | {f"Answer {n} says to wait.": 1 for n in range(5)}
    assert common_headings([dataclasses.replace(each, thread="") for each in answers])


def test_queries_of_the_user_make_the_set_alone() -> None:
    """Where somebody asked for these documents, nothing made stands beside it."""
    pieces = [Passage("a", "A", "How to swim", "Text.", True), Passage("b", "B", "Run", "X.", True)]
    queries = [UserQuery("can I swim here?", "a"), UserQuery("elsewhere", "c")]
    made, kind = own_sets.make_set("mine", pieces, set(), queries, 10, 1)
    assert made is not None
    assert (kind, made.queries, made.relevant) == (
        own_sets.NAMED, ["can I swim here?"], {"q0": {"p0": 1.0}},
    )  # fmt: skip


def test_training_texts_are_half_passages_and_fill_up() -> None:
    """Each half is a seeded choice; what one leaves free serves the other."""
    pieces = [
        Passage(f"{n}", f"Title {n}", f"About thing {n}", f"Thing {n} is here. {LONG}", True)
        for n in range(30)
    ]
    rows, counts = own_sets.training_texts(pieces, [UserQuery("mine?", "")], 20, 1)
    assert len(rows) == 20
    assert counts["passage"] == 10
    assert ("mine?", "user's query", "query") in rows
    rows, counts = own_sets.training_texts(pieces, [], 1000, 1)
    assert counts["passage"] == 30
    assert {role for _, source, role in rows if source != "passage"} == {"query"}
