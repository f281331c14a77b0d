"""Promises of relabelling.py and judgements.py: wrong labels go, mined ones are safe, all counted.

The judge counts common words and the miner adds up random word vectors: both know exactly as much
about the planted rows as the tests do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_modernbert.data import pair_gathering
from small_modernbert.data.keys import words_key, words_keys, words_of
from small_modernbert.data.pair_gathering import Gathered
from small_modernbert.data.pairs import Pair
from small_modernbert.labelling import judgements, relabelling
from small_modernbert.labelling.judged_rows import Row, Rules, mend
from small_modernbert.labelling.judges import Judge
from small_modernbert.labelling.mining import Pool, Vectors
from small_modernbert.labelling.relabelling import Relabeller
from small_modernbert.models.encoders import Encoder

RULES = Rules(negatives=3, margin=0.05, on_wrong="swap", gap=0.1, top_k=3, depth=20)
TOPICS = 30
SEED = 8


def overlap(first: str, second: str) -> float:
    """Return the share of common words: 1 for the same words, 0 for none in common."""
    one, other = set(words_of(first)), set(words_of(second))
    return len(one & other) / len(one | other)


def word_vector(word: str) -> np.ndarray:
    """Return a word's random vector, always the same."""
    return np.random.default_rng(words_key(word)).normal(size=96)


def make_judge(trap: str = "") -> Judge:
    """Return a judge that counts common words and takes every text with `trap` for perfect."""

    def score(pairs: Sequence[tuple[str, str]], roles: Sequence[str] = ()) -> np.ndarray:
        scores = [1.0 if trap and trap in text else overlap(query, text) for query, text in pairs]
        return np.array(scores, dtype=np.float32)

    return Judge("overlap", "cosine", score)


def topic(number: int) -> str:
    """Return the three words that only one topic has."""
    return f"alpha{number} beta{number} gamma{number}"


# Texts are about the topic of their number; the first rows are planted.
EXCHANGED = Pair(f"where is {topic(0)}", "this answers nothing", (f"{topic(0)} is here",), "own")
UNRELATED = Pair(f"where is {topic(2)}", "delta epsilon zeta", (), "none")
PARAPHRASE = f"{topic(3)} is near"


def make_rows() -> list[Pair]:
    """Return planted rows, then good ones: every third has a negative of its own."""
    rows = [EXCHANGED, UNRELATED, Pair(f"who has {topic(3)}", PARAPHRASE, (), "none")]
    # Three texts of the unrelated row's topic, which its anchor should have been given.
    rows += [
        Pair(f"{word} of {topic(2)} now", f"{topic(2)} {word}", (), "none")
        for word in ("north", "south", "west", "east")
    ]
    for number in range(3, TOPICS):
        own = (f"{topic(number - 1)} is not it",) if number % 3 == 0 else ()
        anchor, positive = f"where is {topic(number)}", f"{topic(number)} is there"
        rows.append(Pair(anchor, positive, own, "own" if own else "none"))
    return rows


@pytest.fixture
def world(tmp_path: Path) -> Gathered:
    """Return the rows as they are gathered."""
    rows = make_rows()
    columns: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in rows] for name in ("anchor", "positive", "source")
    }
    columns["negatives"] = [list(row.negatives) for row in rows]
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table(columns), path)
    found = pair_gathering.gather(
        tmp_path / "cache", [path], max_rows=0, dev_rows=5, pool_texts=0, seed=SEED
    )
    train = {row.anchor for part in found.slices("train", 100) for row in part}
    assert train >= {row.anchor for row in rows[:8]}, "a planted row is held out: change SEED"
    return found


def make_relabeller(world: Gathered, judge: Judge, rules: Rules = RULES) -> Relabeller:
    """Return a relabeller whose miner adds up word vectors."""

    def encode_batch(texts: list[str], prompt: str) -> np.ndarray:
        return np.array([sum(map(word_vector, words_of(text))) for text in texts])

    encoder = Encoder("words", encode_batch, 1_000, 0, 0, 0)
    vectors = Vectors(encoder)
    pools = {}
    for split in ("train", "dev"):
        texts = world.pool(split)
        pools[split] = Pool(texts, words_keys(texts), encoder.encode(texts))
        vectors.add_pool(pools[split])
    return Relabeller(judge, vectors, world, pools, rules)


def relabel(
    world: Gathered, judge: Judge | None = None, rules: Rules = RULES, split: str = "train"
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Relabel a whole split; return its rows by anchor, and the facts."""
    rows = [row for part in world.slices(split, 1_000) for row in part]
    written, facts = make_relabeller(world, judge or make_judge(), rules).relabel(rows, split)
    return {row["anchor"]: row for row in written}, facts


def settle(positive: float, *negatives: float, **changes: Any) -> Row:  # noqa: ANN401  Rules'
    """Return a row after `mend`, its negatives named by their numbers."""
    names = tuple(str(number) for number in range(len(negatives)))
    row = Row(Pair("anchor", "positive", names, "toy"), "positive", positive)
    mend(row, negatives, Rules(**{**vars(RULES), **changes}), make_judge())
    return row


def test_right_labels_stay() -> None:
    """Negatives below the positive stay, the hardest first, as many as are wanted."""
    row = settle(0.8, 0.1, 0.5, 0.3, 0.79)
    assert (row.outcome, row.positive, row.score) == ("kept", "positive", 0.8)
    assert row.negatives == ["3", "1", "2"] and row.scores == [0.79, 0.5, 0.3]


def test_close_negative_goes_alone() -> None:
    """What is not below the positive, by less than the gap, is another right answer."""
    row = settle(0.5, 0.55, 0.5, 0.2)
    assert (row.outcome, row.positive, row.negatives) == ("kept", "positive", ["2"])
    assert settle(0.5, 0.55, on_wrong="drop").outcome == "kept"
    assert settle(0.5, 0.5, gap=0.0).outcome == "kept"


def test_clear_winner_is_swapped() -> None:
    """By the gap or more the labels are exchanged; what was ambiguous beside it goes."""
    row = settle(0.3, 0.9, 0.4, 0.1)
    assert (row.outcome, row.positive, row.score) == ("swapped", "0", 0.9)
    assert row.negatives == ["positive", "2"] and row.scores == [0.3, 0.1]
    assert settle(0.3, 0.9, negatives=1).negatives == ["positive"]


def test_clear_winner_is_dropped_where_asked() -> None:
    """The other rule gives the row up, and remembers why."""
    row = settle(0.3, 0.2, 0.9, on_wrong="drop")
    assert (row.outcome, row.refused) == ("dropped", ("1", 0.9))


def test_planted_bad_negative_is_swapped_or_dropped(world: Gathered) -> None:
    """The exchanged row comes out the right way round, or not at all; it is counted as such."""
    rows, facts = relabel(world)
    mended = rows[EXCHANGED.anchor]
    assert mended["positive"] == EXCHANGED.negatives[0]
    assert EXCHANGED.positive in mended["negatives"]
    assert mended["positive_score"] > 0.5 > max(mended["negative_scores"])
    assert facts["counts"]["own"]["swapped"] == 1
    rows, facts = relabel(world, rules=Rules(**{**vars(RULES), "on_wrong": "drop"}))
    assert EXCHANGED.anchor not in rows
    assert facts["counts"]["own"]["dropped"] == 1
    assert facts["counts"]["own"]["given wrong"] == 1


def test_consistency_filter_removes_a_wrong_pair(world: Gathered) -> None:
    """A pair goes if k texts of the pool are nearer than its positive; 0 switches that off."""
    rows, facts = relabel(world)
    assert UNRELATED.anchor not in rows
    assert facts["counts"]["none"]["inconsistent"] == 1
    example = next(one for one in facts["examples"] if one["outcome"] == "inconsistent")
    assert topic(2) in example["refused"][0]
    for top_k in (0, 30):
        _, facts = relabel(world, rules=Rules(**{**vars(RULES), "top_k": top_k}))
        assert not any(counts.get("inconsistent") for counts in facts["counts"].values())


def test_pairs_without_negatives_get_mined_ones(world: Gathered) -> None:
    """Every row ends with as many negatives as wanted, judged below its positive, hardest first."""
    rows, facts = relabel(world)
    texts = set(world.pool("train"))
    own = {row.anchor: row.negatives for row in make_rows()}
    mined = 0
    for anchor, row in rows.items():
        assert len(row["negatives"]) == len(row["negative_scores"]) == 3
        assert len(set(map(words_key, [row["positive"], *row["negatives"]]))) == 4
        assert max(row["negative_scores"]) < row["positive_score"]
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True)
        found = set(row["negatives"]) - set(own[anchor]) - {EXCHANGED.positive}
        assert found <= texts
        mined += len(found)
    counts = facts["counts"]
    assert mined == counts["own"]["mined"] + counts["none"]["mined"] > 40


def test_paraphrase_of_the_positive_is_not_mined(world: Gathered) -> None:
    """A text as near to the anchor as its positive is another answer, whatever the judge says.

    The judge here finds every paraphrase worthless: only the margin can keep it out.
    """
    anchor = f"where is {topic(3)}"

    def blind(pairs: Sequence[tuple[str, str]], roles: Sequence[str] = ()) -> np.ndarray:
        return np.array([0.0 if "near" in text else overlap(q, text) for q, text in pairs])

    judge = Judge("blind", "cosine", blind)
    rows, _ = relabel(world, judge)
    assert PARAPHRASE not in rows[anchor]["negatives"]
    rules = Rules(**{**vars(RULES), "margin": -1.0})  # what a missing margin would let in
    rows, _ = relabel(world, judge, rules)
    assert PARAPHRASE in rows[anchor]["negatives"]


def test_judge_refuses_mined_texts_and_the_next_is_tried(world: Gathered) -> None:
    """A mined text that the judge puts above the positive is no negative, and no positive."""
    rows, facts = relabel(world, make_judge(trap="is there"))
    assert facts["counts"]["none"]["mined wrong"] > 10
    for row in rows.values():
        assert not any("is there" in text for text in row["negatives"])
        assert row["negatives"]
    positives = {pair.positive for pair in make_rows()} | {EXCHANGED.negatives[0]}
    assert {row["positive"] for row in rows.values()} <= positives


def test_row_that_is_left_without_negatives_is_counted(world: Gathered) -> None:
    """Where nothing fits, the row goes, and says so; it is never written without a negative."""
    always = Judge("yes", "cosine", lambda pairs, _: np.ones(len(pairs), dtype=np.float32))
    rows, facts = relabel(world, always)
    assert rows == {}
    lost = sum(counts["no negative left"] for counts in facts["counts"].values())
    assert lost == world.rows["train"] - 2  # the exchanged row and the unrelated one are filtered


def test_every_row_has_one_outcome(world: Gathered) -> None:
    """Rows that came = the sum of all outcomes; kept and swapped ones are what is written."""
    for split in ("train", "dev"):
        rows, facts = relabel(world, split=split)
        counts = judgements.merge([facts], 3)["counts"]
        outcomes = {
            name: sum(row.get(name, 0) for row in counts.values()) for name in judgements.OUTCOMES
        }
        assert sum(outcomes.values()) == world.rows[split]
        assert sum(outcomes[name] for name in judgements.WRITTEN) == len(rows)


def test_dev_rows_are_given_dev_texts_only(world: Gathered) -> None:
    """A dev row's negatives come from dev rows: training never sees them."""
    rows, _ = relabel(world, split="dev")
    own = {text for row in make_rows() for text in row.negatives}
    assert rows
    for row in rows.values():
        assert set(row["negatives"]) <= set(world.pool("dev")) | own
        assert not set(row["negatives"]) & set(world.pool("train"))


def test_slice_depends_on_nothing_but_itself(world: Gathered) -> None:
    """A slice gives the same rows first, again, and after others."""
    relabeller = make_relabeller(world, make_judge())
    slices = list(world.slices("train", 8))
    first = [relabeller.relabel(part, "train") for part in slices]
    assert [relabeller.relabel(part, "train") for part in reversed(slices)] == first[::-1]
    assert make_relabeller(world, make_judge()).relabel(slices[-1], "train") == first[-1]


def test_report_adds_up_and_shows_examples(world: Gathered) -> None:
    """Facts of shards add up to those of the whole, and the report names outcome and texts."""
    whole = judgements.merge([relabel(world)[1]], 2)
    relabeller = make_relabeller(world, make_judge())
    parts = [relabeller.relabel(part, "train")[1] for part in world.slices("train", 8)]
    merged = judgements.merge(parts, 2)
    assert {name: dict(row) for name, row in merged["counts"].items()} == whole["counts"]
    kinds = [(one["outcome"], one["source"]) for one in merged["examples"]]
    assert max(map(kinds.count, kinds)) == 2
    text = judgements.markdown("Judge overlap.", "| read |", merged)
    for part in ("## Kept", "## Swapped", "## Inconsistent", EXCHANGED.positive, UNRELATED.anchor):
        assert part in text
    assert "## Dropped" not in text


def test_doubtful_judge_is_named() -> None:
    """A source whose labels the judge hardly agrees with is named; few rows say nothing."""
    counts = {
        "coin": {"with negatives": 100, "judge agreed": 52},
        "good": {"with negatives": 100, "judge agreed": 90},
        "tiny": {"with negatives": 5, "judge agreed": 0},
        "pairs": {"kept": 10},
    }
    doubts = judgements.doubts(counts)
    assert len(doubts) == 1 and doubts[0].startswith("coin: the judge agrees with 52%")
    assert judgements.agreement(counts) == pytest.approx(142 / 205)
    assert judgements.agreement({"pairs": {"kept": 10}}) is None


def test_gap_of_logits_is_that_of_their_sigmoids() -> None:
    """Logits of 9 and 7 are hardly apart, no labels are exchanged for that; -1 and 1 are."""
    judge = Judge("raw", "logit", make_judge().score)
    for positive, negative, outcome in ((7.0, 9.0, "kept"), (-1.0, 1.0, "swapped")):
        row = Row(Pair("anchor", "positive", ("other",), "toy"), "positive", positive)
        mend(row, [negative], RULES, judge)
        assert row.outcome == outcome


def test_long_work_says_how_far_it_is(
    world: Gathered,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says the rate and the time left; shards that are there are not judged again."""
    caplog.set_level("INFO", logger="small_modernbert")
    monkeypatch.setattr(relabelling, "LOG_SECONDS", 0)
    relabeller, done = make_relabeller(world, make_judge()), []
    counts = relabeller.write_shards(tmp_path / "out", 8, done.append)
    assert sum(done) == sum(world.rows.values())
    assert counts == {split: -(-rows // 8) for split, rows in world.rows.items()}
    lines = [record.getMessage() for record in caplog.records if "rows/s" in record.getMessage()]
    assert len(lines) == sum(counts.values()) and " 0 rows and about 0 s left" in lines[-1]
    monkeypatch.setattr(relabeller, "relabel", None)
    assert relabeller.write_shards(tmp_path / "out", 8, done.append) == counts
