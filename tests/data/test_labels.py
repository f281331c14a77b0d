"""Promises of labels.py: vectors come back as they were written, or not at all."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_modernbert.data import labels
from small_modernbert.runs.errors import UserError

ROWS, WIDTH = (70, 50, 9), 24
ALL = sum(ROWS)


def make_vectors() -> np.ndarray:
    """Return unit vectors."""
    vectors = np.random.default_rng(0).normal(size=(ALL, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_texts() -> list[str]:
    """Return texts, odd ones among them."""
    return ["?", "naïve – “quoted”", "two\nlines", *(f"text {number}" for number in range(ALL - 3))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three training shards and no held-out row."""
    texts, vectors, begin = make_texts(), make_vectors(), 0
    for index, rows in enumerate(ROWS):
        part = slice(begin, begin + rows)
        labels.write_shard(labels.shard_path(tmp_path, "train", index), texts[part], vectors[part])
        begin += rows
    labels.write_index(tmp_path, WIDTH, {"train": len(ROWS)})
    return tmp_path


def read_all(folder: Path) -> tuple[list[str], np.ndarray]:
    """Read texts and vectors without the memory map."""
    found = labels.open_labels(folder)
    rows = [
        row for batch in found.batches("train", ["label"]) for row in batch.column(0).to_pylist()
    ]
    return list(found.texts("train")), np.array(rows, dtype=np.float32)


def test_round_trip(folder: Path) -> None:
    """Texts come back exactly, vectors within half precision, in order over all shards."""
    texts, vectors = read_all(folder)
    assert texts == make_texts()
    np.testing.assert_allclose(vectors, make_vectors(), atol=2**-11, rtol=0)
    assert np.array_equal(vectors, make_vectors().astype(np.float16).astype(np.float32))


def test_stored_type(folder: Path) -> None:
    """The label column is a fixed-size list of fp16, which datasets reads as it is."""
    schema = pq.read_schema(labels.shard_path(folder, "train", 0))
    assert schema.field("label").type == pa.list_(pa.float16(), WIDTH)
    assert schema.field("text").type == pa.string()


def test_memory_map_equals_the_shards(folder: Path, tmp_path: Path) -> None:
    """The memory-mapped vectors are those of the shards; a second call reads the same file."""
    found = labels.open_labels(folder)
    cache = tmp_path / "cache" / "train.f16"
    mapped = found.vectors("train", cache)
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == np.float16
    assert np.array_equal(mapped.astype(np.float32), read_all(folder)[1])
    labels.shard_path(folder, "train", 0).unlink()
    assert np.array_equal(found.vectors("train", cache), mapped)
    assert found.vectors("held_out", tmp_path / "none").shape == (0, WIDTH)


def test_half_written_memory_map_is_made_again(folder: Path, tmp_path: Path) -> None:
    """A cache file of another size is not taken for the vectors."""
    cache = tmp_path / "train.f16"
    cache.write_bytes(b"1234")
    mapped = labels.open_labels(folder).vectors("train", cache)
    assert np.array_equal(mapped.astype(np.float32), read_all(folder)[1])


def test_flipped_byte_is_refused(folder: Path) -> None:
    """No flipped byte of a shard ever changes a text or a vector in silence.

    Not even one in padding: what is read is what was written.
    """
    path = labels.shard_path(folder, "train", 1)
    data = path.read_bytes()
    refused = 0
    places = range(0, len(data), 97)
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            read_all(folder)
        except UserError as error:
            assert path.name in str(error)
            assert "create_distil_dataset.py" in str(error)
            refused += 1
    assert refused == len(places)


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_broken_shard_is_refused(folder: Path, damage: str) -> None:
    """A shard that is missing or cut short is refused with its name and the cure."""
    path = labels.shard_path(folder, "train", 2)
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    with pytest.raises(UserError, match=rf"{path.name} .*create_distil_dataset\.py"):
        list(labels.open_labels(folder).texts("train"))


def test_missing_column_is_named(folder: Path) -> None:
    """A shard without labels is refused with the file and the column."""
    path = labels.shard_path(folder, "train", 1)
    pq.write_table(pa.table({"text": ["a"]}), path)
    labels.write_index(folder, WIDTH, {"train": len(ROWS)})
    with pytest.raises(UserError, match=rf"{path.name} has no column 'label'"):
        list(labels.open_labels(folder).batches("train", ["text", "label"]))


def test_exchanged_shard_is_refused(folder: Path) -> None:
    """A shard that is not the one which the index describes is refused, whole as it may be."""
    path = labels.shard_path(folder, "train", 2)
    labels.write_shard(path, ["a"], make_vectors()[:1])
    with pytest.raises(UserError, match=r"shard-00002\.parquet is damaged: .* bytes, not"):
        labels.open_labels(folder)
    labels.write_index(folder, WIDTH, {"train": len(ROWS)})
    assert labels.open_labels(folder).counts == {"train": 121, "held_out": 0}


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_non_finite_vector_is_never_written(tmp_path: Path, value: float) -> None:
    """NaN, infinity, or what half precision makes infinite, is refused with the row."""
    vectors = make_vectors()[:5]
    vectors[3, 7] = value
    path = labels.shard_path(tmp_path, "train", 0)
    with np.errstate(over="ignore"), pytest.raises(UserError, match="shard-00000.parquet, row 3"):
        labels.write_shard(path, list("abcde"), vectors)
    assert not path.exists()
    with pytest.raises(ValueError, match="4 texts for 5 vectors"):
        labels.write_shard(path, list("abcd"), make_vectors()[:5])


def test_folder_without_labels_names_the_command(tmp_path: Path) -> None:
    """A folder that holds no labels is refused with the command that makes them."""
    with pytest.raises(UserError, match=r"labels\.json is not there; .*create_distil_dataset\.py"):
        labels.open_labels(tmp_path)
