"""pairs.py: clean pairs, counted, and splits that share no text."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_modernbert.data import hub_datasets
from small_modernbert.data.keys import words_key, words_keys
from small_modernbert.data.pairs import Pair, PairCounts, read_pairs, split_dev
from small_modernbert.data.sources import PairSource
from small_modernbert.runs.errors import UserError


def write(path: Path, **columns: list[Any]) -> Path:
    """Write a Parquet file, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, write_page_checksum=True)
    return path


def number_pairs(path: Path, rows: int) -> Path:
    """Write numbered pairs without a source."""
    columns = {name: [f"{name} text {row}" for row in range(rows)] for name in ("anchor", "answer")}
    return write(path, anchor=columns["anchor"], positive=columns["answer"])


def test_every_spelling_of_negatives_is_read(tmp_path: Path) -> None:
    """A column, numbered columns and a list of negatives all end up in order; nulls are nothing."""
    path = write(
        tmp_path / "rows.parquet",
        anchor=["what is rain", "what is snow"],
        positive=["Water from clouds.", "Frozen water."],
        negative=["Sand.", None],
        negative_10=["Ten.", None],
        negative_2=["Two.", None],
        negatives=[["Listed.", None, "Also listed."], None],
        source=["weather", ""],
        note=[1, 2],
    )
    assert list(read_pairs(path)) == [
        Pair(
            "what is rain",
            "Water from clouds.",
            ("Sand.", "Two.", "Ten.", "Listed.", "Also listed."),
            "weather",
        ),
        Pair("what is snow", "Frozen water.", (), "rows"),
    ]


def test_whether_an_anchor_asks_is_said_by_row_or_table(tmp_path: Path) -> None:
    """A column `role` says it of each row, the table of each source; who says nothing asks."""
    path = write(
        tmp_path / "rows.parquet",
        anchor=["what is rain", "rain falls", "it rains", "is it rain"],
        positive=["Water.", "Rain is falling.", "There is rain.", "It is."],
        role=["query", "text", "user", None],
    )
    assert [pair.role for pair in read_pairs(path)] == ["query", "text", "query", "query"]
    alike = {
        name for name, source in hub_datasets.PAIR_SOURCES.items() if source.anchor_role == "text"
    }
    assert alike == {"all-nli", "quora-duplicates"}


@pytest.mark.parametrize("missing", ["anchor", "positive"])
def test_missing_column_is_refused_with_file_and_column(tmp_path: Path, missing: str) -> None:
    """What is missing is named before a row of any source is read."""
    good = number_pairs(tmp_path / "good.parquet", 3)
    columns = {name: ["a text"] for name in ("anchor", "positive", "negative") if name != missing}
    bad = write(tmp_path / "bad.parquet", **columns)
    with pytest.raises(UserError, match=rf"bad\.parquet has no column '{missing}'; it has: "):
        next(read_pairs(good, bad))


def test_what_is_no_source_names_the_table(tmp_path: Path) -> None:
    """A name, a file or a folder that is none is refused with the names that there are."""
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    for reference in ("no-such-name", tmp_path / "none.parquet", tmp_path / "folder"):
        with pytest.raises(UserError, match="no such pairs: .*all-nli, quora-duplicates"):
            next(read_pairs(reference))
    with pytest.raises(UserError, match=r"broken\.parquet cannot be read"):
        next(read_pairs(tmp_path))


def test_cleaning_counts_every_reason(tmp_path: Path) -> None:
    """What can't be used goes, with its reason; read = kept + dropped, by source."""
    rows = [
        ("is water wet", "Yes, it is.", ["No."]),
        ("is water wet", " ", ["No."]),
        (None, "Yes.", ["No."]),
        ("12 + 12", "Twenty-four.", ["No."]),
        ("Is it so?", "is it SO", ["No."]),
        ("Is water wet?", "yes it is!", ["No."]),
        ("is fire hot", "Very\x00 hot.", ["IS FIRE HOT?", "very hot", "Cold.", "cold", "", "42"]),
    ]
    path = write(
        tmp_path / "rows.parquet",
        **dict(zip(("anchor", "positive", "negatives"), zip(*rows, strict=True), strict=True)),
        source=["a", "a", "a", "b", "b", "b", "b"],
    )
    counts = PairCounts()
    assert list(read_pairs(path, counts=counts, cleaning="web")) == [
        Pair("is water wet", "Yes, it is.", ("No.",), "a"),
        Pair("is fire hot", "Very hot.", ("Cold.",), "b"),
    ]
    assert counts.to_json() == {
        "a": {
            "read": 3,
            "kept": 1,
            "dropped": {"anchor not text": 1, "positive blank": 1},
            "negatives_dropped": {},
        },
        "b": {
            "read": 4,
            "kept": 1,
            "dropped": {
                "anchor no words": 1,
                "positive repeats the anchor": 1,
                "repeated pair": 1,
            },
            "negatives_dropped": {"repeats a text of its row": 3, "blank": 1, "no words": 1},
        },
    }


def test_cap_is_a_seeded_choice(tmp_path: Path) -> None:
    """A cap takes rows from everywhere, the same for a seed; 0 takes all."""
    path = number_pairs(tmp_path / "rows.parquet", 100)
    first, again, other = (list(read_pairs(path, cap=10, seed=seed)) for seed in (1, 1, 2))
    assert first == again and first != other
    assert len(first) == 10 and max(int(pair.anchor.split()[-1]) for pair in first) > 30
    assert len(list(read_pairs(path, cap=0))) == 100


def test_hub_rows_are_read_by_the_tables_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of the table renames columns, takes its split, and a wrong column is named."""
    for split, text in (("train", "Trained."), ("dev", "Measured.")):
        write(tmp_path / "hub" / f"{split}.parquet", question=["why is it so"], answer=[text])
    row = PairSource(name="toy", id=str(tmp_path / "hub"), anchor="question", positive="answer")
    monkeypatch.setitem(hub_datasets.PAIR_SOURCES, "toy", row)
    assert list(read_pairs("toy")) == [Pair("why is it so", "Trained.", (), "toy")]
    row = PairSource(name="toy", id=str(tmp_path / "hub"), anchor="question", positive="reply")
    monkeypatch.setitem(hub_datasets.PAIR_SOURCES, "toy", row)
    with pytest.raises(UserError, match="no column 'reply'; it has: question, answer"):
        next(read_pairs("toy"))


def test_table_is_complete() -> None:
    """Every row of the table has an id of the hub and says what may be done with its texts."""
    for name, row in hub_datasets.PAIR_SOURCES.items():
        assert row.name == name
        assert row.id.count("/") == 1
        assert row.licence


def make_keys(pairs: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of both sides."""
    anchors, positives = zip(*pairs, strict=True)
    return words_keys(anchors), words_keys(positives)


def test_dev_split_shares_no_text() -> None:
    """No anchor and no positive of a dev row stands in a training row, on whichever side."""
    random = np.random.default_rng(0)
    drawn = random.integers(900, size=(600, 2))
    pairs = [(f"text {first}", f"Text {second}!") for first, second in drawn if first != second]
    # Words of texts that half the rows share: a group that is too large to hold out.
    pairs += [(f"question {row}", "happy") for row in range(600)]
    anchors, positives = make_keys(pairs)
    dev = split_dev(anchors, positives, 60, seed=3)
    assert 40 <= dev.sum() <= 60
    sides = [set(np.concatenate([anchors[rows], positives[rows]]).tolist()) for rows in (dev, ~dev)]
    assert not sides[0] & sides[1]
    assert words_key("happy") not in sides[0]
    assert (split_dev(anchors, positives, 60, seed=3) == dev).all()
    assert (split_dev(anchors, positives, 60, seed=4) != dev).any()


def test_dev_split_takes_whole_groups() -> None:
    """Rows that share a text only through others stay together."""
    chain = [("a", "b"), ("c", "b"), ("c", "d"), ("d", "e")]
    pairs = [(f"{text}{row}", f"{other}{row}") for row in range(50) for text, other in chain]
    dev = split_dev(*make_keys(pairs), 20, seed=0)
    assert dev.sum() == 20
    assert set(dev.reshape(50, 4).sum(axis=1).tolist()) == {0, 4}


@pytest.mark.parametrize(("pairs", "rows", "taken"), [(10, 9, 2), (10, 0, 0), (4, 5, 0)])
def test_dev_split_is_a_fifth_at_most(pairs: int, rows: int, taken: int) -> None:
    """Few pairs are not held out to the last one."""
    keys = make_keys([(f"anchor {row}", f"positive {row}") for row in range(pairs)])
    assert split_dev(*keys, rows, seed=0).sum() == taken


def test_pairs_go_by_what_others_call_them(tmp_path: Path) -> None:
    """Questions and answers, queries and passages are pairs; of two that fit none is guessed."""
    path = tmp_path / "qa.csv"
    path.write_text("question,answer,negative\nwho asks?,she asks,he answers\n")
    (pair,) = read_pairs(path)
    assert (pair.anchor, pair.positive) == ("who asks?", "she asks")
    assert pair.negatives == ("he answers",)
    path.write_text("query,passage,document\na b,c d,e f\n")
    with pytest.raises(UserError, match="no column 'positive'; it has: query, passage, document"):
        list(read_pairs(path))
