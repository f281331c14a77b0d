"""triplets.py: judged shards come back as they were written, or not at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_modernbert.data import triplets
from small_modernbert.data.pairs import Pair, read_pairs
from small_modernbert.runs.errors import UserError


def make_row(number: int, **changes: object) -> dict[str, object]:
    """Return one judged row."""
    return {
        "anchor": f"anchor {number}",
        "positive": f"positive {number}",
        "negatives": [f"negative {number} {place}" for place in range(number % 3)],
        "positive_score": 0.75,
        "negative_scores": [0.25] * (number % 3),
        "source": "toy",
        "role": "query",
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three training shards, one of them empty, and one dev shard."""
    rows = [make_row(number) for number in range(60)]
    for split, shards in (("train", [rows[:30], [], rows[30:50]]), ("dev", [rows[50:]])):
        for index, shard in enumerate(shards):
            path = triplets.shard_path(tmp_path, split, index)
            triplets.write_shard(path, shard, {"counts": {"toy": len(shard)}})
    facts = {"judge": "toy judge", "scale": "cosine"}
    triplets.write_index(tmp_path, {"train": 3, "dev": 1}, facts)
    return tmp_path


def test_shards_come_back_in_order(folder: Path) -> None:
    """Rows, their lists, their types and who judged them survive the disk."""
    found = triplets.open_triplets(folder)
    assert (found.judge, found.scale, found.counts) == (
        "toy judge",
        "cosine",
        {"train": 50, "dev": 10},
    )
    rows = [make_row(number) for number in range(60)]
    assert [*found.rows("train"), *found.rows("dev")] == rows
    batch = next(found.batches("dev", ["anchor", "positive_score"]))
    assert batch.schema.names == ["anchor", "positive_score"]
    path = triplets.shard_path(folder, "train", 0)
    assert pq.read_schema(path).equals(triplets.SCHEMA)
    assert triplets.read_facts(path) == {"counts": {"toy": 30}}


def test_judged_triplets_can_be_read_as_pairs(folder: Path) -> None:
    """Their training shards are pairs with negatives, named by the rows' source."""
    pairs = list(read_pairs(folder))
    assert len(pairs) == 50
    assert pairs[5] == Pair("anchor 5", "positive 5", ("negative 5 0", "negative 5 1"), "toy")


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "rows", "column"])
def test_damaged_shard_is_refused(folder: Path, damage: str) -> None:
    """A shard that is not what was written is refused with its name and the cure."""
    path = triplets.shard_path(folder, "train", 2)
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[40] ^= 0x10
        path.write_bytes(data)
    elif damage == "rows":
        triplets.write_shard(path, [make_row(0)], {})
    elif damage == "column":
        pq.write_table(pa.table({"anchor": ["a"]}), path)
    with pytest.raises(UserError, match=r"train.*relabel_triplets\.py --overwrite"):
        list(triplets.open_triplets(folder).rows("train"))


@pytest.mark.parametrize(
    "changes",
    [
        {"positive_score": float("nan")},
        {"positive_score": 1.5},
        {"negatives": ["one"], "negative_scores": [-0.1]},
        {"negatives": ["one", "two"], "negative_scores": [0.5]},
    ],
)
def test_impossible_scores_are_never_written(tmp_path: Path, changes: dict[str, object]) -> None:
    """A score outside 0 to 1, or one too few, is refused with the row."""
    path = triplets.shard_path(tmp_path, "train", 0)
    with pytest.raises(UserError, match=r"shard-00000\.parquet, row 1 .*anchor 1"):
        triplets.write_shard(path, [make_row(0), make_row(1, **changes)], {})
    assert not path.exists()


def test_folder_without_triplets_names_the_command(tmp_path: Path) -> None:
    """A folder that holds none is refused with the command that makes them."""
    with pytest.raises(UserError, match=r"triplets\.json is not there; .*relabel_triplets\.py"):
        triplets.open_triplets(tmp_path)
