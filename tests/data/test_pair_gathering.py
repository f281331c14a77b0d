"""Promises of pair_gathering.py: both sides apart to the last negative, fair caps, nothing lost."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_modernbert.data import pair_gathering
from small_modernbert.data.keys import words_key
from small_modernbert.data.pair_gathering import Gathered
from small_modernbert.data.pairs import Pair
from small_modernbert.runs.errors import UserError

SOURCES = {"large": 300, "medium": 90, "small": 12}


def write_pairs(path: Path, seed: int = 0) -> Path:
    """Write pairs of three sources whose negatives are other rows' anchors and positives."""
    random = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {name: [] for name in ("anchor", "positive", "negatives")}
    sources = [name for name, number in SOURCES.items() for _ in range(number)]
    total = len(sources)
    for row in range(total):
        rows["anchor"].append(f"question {row}")
        # Some positives answer several questions.
        rows["positive"].append(f"answer {row if row % 4 else row // 8}")
        some = random.integers(total, size=3)
        kinds = random.choice(["Question", "Answer", "other text"], size=3)
        rows["negatives"].append([f"{k} {n}!" for k, n in zip(kinds, some, strict=True)])
    pq.write_table(pa.table({**rows, "source": sources}), path)
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of pairs."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


def gather(folder: Path, pairs: Path, **changes: Any) -> Gathered:  # noqa: ANN401  gather's own
    """Gather with settings of this test."""
    settings = {"max_rows": 0, "dev_rows": 40, "pool_texts": 0, "seed": 1, **changes}
    return pair_gathering.gather(folder, [pairs], **settings)


def rows_of(found: Gathered, split: str, rows: int = 7) -> list[Pair]:
    """Return all rows of a split."""
    return [pair for part in found.slices(split, rows) for pair in part]


def keys_of(pairs: list[Pair], *, negatives: bool) -> set[int]:
    """Return the keys of the pairs' texts."""
    return {
        words_key(text)
        for pair in pairs
        for text in (pair.anchor, pair.positive, *(pair.negatives if negatives else ()))
    }


def test_what_a_text_is_goes_with_it(tmp_path: Path) -> None:
    """Rows keep their anchor's role, and a pool knows documents from texts that answer nothing."""
    rows = {name: [f"{name} {row}" for row in range(20)] for name in ("anchor", "positive")}
    roles = ["text" if row % 2 else "query" for row in range(20)]
    pq.write_table(pa.table({**rows, "role": roles}), tmp_path / "pairs.parquet")
    found = gather(tmp_path / "all", tmp_path / "pairs.parquet", dev_rows=4)
    for split in ("train", "dev"):
        assert all(pair.role == roles[int(pair.anchor[7:])] for pair in rows_of(found, split))
        of_pool = zip(found.pool(split), found.pool_roles(split), strict=True)
        answers = {"query": "document", "text": "text"}
        assert all(role == answers[roles[int(text[9:])]] for text, role in of_pool)


def test_no_text_stands_on_both_sides(pairs: Path, tmp_path: Path) -> None:
    """Anchors, positives, negatives and what can be mined: dev and training share no text."""
    found = gather(tmp_path / "all", pairs)
    train, dev = (rows_of(found, split) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (found.rows["train"], found.rows["dev"])
    assert len(dev) == 40 and sum(map(len, (pair.negatives for pair in dev))) > 20
    pools = {split: set(map(words_key, found.pool(split))) for split in ("train", "dev")}
    sides = {
        "train": keys_of(train, negatives=True) | pools["train"],
        "dev": keys_of(dev, negatives=True) | pools["dev"],
    }
    assert not sides["train"] & sides["dev"]
    assert pools["dev"] == {words_key(pair.positive) for pair in dev}
    assert pools["train"] <= {words_key(pair.positive) for pair in train}
    lost = sum(
        counts["negatives_dropped"].get("stands on the other side", 0)
        for counts in found.counts.values()
    )
    kept = sum(len(pair.negatives) for pair in (*train, *dev))
    before = sum(counts["kept"] for counts in found.counts.values()) * 3
    other = sum(
        number
        for counts in found.counts.values()
        for reason, number in counts["negatives_dropped"].items()
        if reason != "stands on the other side"
    )
    assert lost > 10 and kept + lost + other == before


def test_cap_lets_sources_take_turns(pairs: Path, tmp_path: Path) -> None:
    """Under a cap each source has its share, dev rows included; the table says what went."""
    found = gather(tmp_path / "capped", pairs, max_rows=60, dev_rows=10)
    rows = [*rows_of(found, "train"), *rows_of(found, "dev")]
    assert len(rows) == 60 and found.rows["dev"] == 10
    per_source = {name: sum(pair.source == name for pair in rows) for name in SOURCES}
    assert per_source == {"large": 24, "medium": 24, "small": 12}
    for name, counts in found.counts.items():
        assert counts["kept"] == per_source[name]
        assert counts["read"] == SOURCES[name] == counts["kept"] + sum(counts["dropped"].values())


def test_pool_is_larger_than_the_cap(pairs: Path, tmp_path: Path) -> None:
    """What is over the cap can still be mined; the pool has its own bound, distinct texts only."""
    found = gather(tmp_path / "all", pairs, max_rows=60, dev_rows=10)
    assert len(found.pool("train")) > 200
    bound = gather(tmp_path / "bound", pairs, max_rows=60, dev_rows=10, pool_texts=50)
    pool = found.pool("train"), bound.pool("train")
    assert len(pool[1]) == 50 == len(set(map(words_key, pool[1])))
    assert set(pool[1]) < set(pool[0])


def test_answers_are_known_from_both_sides(pairs: Path, tmp_path: Path) -> None:
    """Every pair that was read counts, also those over the cap."""
    found = gather(tmp_path / "known", pairs, max_rows=20, dev_rows=0)
    assert found.answers("QUESTION 9?") == {words_key("answer 9")}
    # 8 // 8, 12 // 8, and row 1 itself.
    assert found.answers("answer 1") == {words_key(f"question {row}") for row in (1, 8, 12)}
    assert found.answers("nothing of the kind") == set()


def test_slices_are_the_rows_in_order(pairs: Path, tmp_path: Path) -> None:
    """Slices have the size asked for, the last one the rest, and never lose a row."""
    found = gather(tmp_path / "sliced", pairs)
    whole = rows_of(found, "train", 10_000)
    parts = list(found.slices("train", 50))
    assert [pair for part in parts for pair in part] == whole
    assert {len(part) for part in parts[:-1]} == {50} and 0 < len(parts[-1]) <= 50


def test_seed_decides(pairs: Path, tmp_path: Path) -> None:
    """Equal seeds gather equal rows, other seeds others."""
    settings = {"max_rows": 60, "dev_rows": 10, "pool_texts": 50}
    one, same, other = (
        gather(tmp_path / name, pairs, seed=seed, **settings)
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    for split in ("train", "dev"):
        assert rows_of(one, split) == rows_of(same, split)
        assert rows_of(one, split) != rows_of(other, split)
        assert one.pool(split) == same.pool(split)


def test_what_is_gathered_is_taken_up(pairs: Path, tmp_path: Path) -> None:
    """A finished folder is not read again; an unfinished one is made anew."""
    folder = tmp_path / "cache"
    first = rows_of(gather(folder, pairs), "train")
    missing = tmp_path / "no longer there.parquet"
    assert rows_of(gather(folder, missing), "train") == first
    (folder / pair_gathering.PAIRS.index).unlink()
    assert rows_of(gather(folder, pairs), "train") == first


def test_sources_can_be_chosen(pairs: Path, tmp_path: Path) -> None:
    """Only the sources named are kept, the others counted; an unknown name is refused."""
    found = gather(tmp_path / "chosen", pairs, only=["medium"], dev_rows=10)
    rows = [*rows_of(found, "train"), *rows_of(found, "dev")]
    assert {pair.source for pair in rows} == {"medium"} and len(rows) == SOURCES["medium"]
    assert found.counts["large"]["dropped"] == {"not asked for": SOURCES["large"]}
    with pytest.raises(UserError, match="source tiny; --sources takes some of: large, medium"):
        gather(tmp_path / "unknown", pairs, only=["medium", "tiny"])


def test_no_pair_at_all_is_refused(tmp_path: Path) -> None:
    """Pairs that cleaning empties are refused with what was dropped."""
    path = tmp_path / "blank.parquet"
    pq.write_table(pa.table({"anchor": [" ", "12"], "positive": ["a", "b"]}), path)
    with pytest.raises(UserError, match="no pair is left .*anchor blank"):
        gather(tmp_path / "cache", path)


def test_damaged_cache_says_what_to_remove(pairs: Path, tmp_path: Path) -> None:
    """A flipped byte in what was gathered is refused, not read."""
    found = gather(tmp_path / "cache", pairs)
    path = tmp_path / "cache" / "train" / "shard-00000.parquet"
    data = bytearray(path.read_bytes())
    data[40] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00000\.parquet is damaged.*; remove .*cache"):
        rows_of(found, "train")
