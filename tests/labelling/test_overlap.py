"""Promises of create_distil_dataset.py's overlap: the same shards, the same errors, same resume."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import create_distil_dataset
from small_modernbert.data import corpora, labels
from small_modernbert.labelling import overlap
from small_modernbert.models.teachers import load_teacher
from small_modernbert.runs import report, stages, storage
from small_modernbert.runs.errors import UserError

WIDTH = 16  # of the labels; the teacher is 48 wide


@pytest.fixture
def corpus(texts: list[str], tmp_path: Path) -> Path:
    """Return a corpus of 50 training texts and 10 held-out ones."""
    shards = {}
    for split, some in (("train", texts[:50]), ("held_out", texts[50:])):
        rows = [{"text": text, "source": "toy", "tokens": 3} for text in some]
        name = f"{split}/shard-00000.parquet"
        table = pa.Table.from_pylist(rows, schema=corpora.shard_schema())
        shards[name] = corpora.write_shard(tmp_path / "corpus" / name, table)
    storage.write_json(tmp_path / "corpus" / corpora.MANIFEST, {"shards": shards})
    return tmp_path / "corpus"


@pytest.fixture
def label(
    corpus: Path,
    teacher_folder: Path,
    open_stage: Callable[..., stages.Stage],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], tuple[dict[str, bytes], int]]:
    """Return a function that labels the corpus: the files by name, and the tokens counted."""
    monkeypatch.setattr(create_distil_dataset, "ROWS_PER_SHARD", 8)
    monkeypatch.setattr(create_distil_dataset, "PCA_TEXTS", 20)

    def run(variant: str) -> tuple[dict[str, bytes], int]:
        with open_stage(VARIANT=variant) as stage:
            teacher = load_teacher(teacher_folder)
            work = create_distil_dataset.Labelling(stage, corpus, teacher, "fp32")
            with report.progress(description="labelling", total=work.rows) as work.bar:
                projection = work.fit(WIDTH)
                counts = {split: work.label(split, projection) for split in work.splits}
            assert counts == {"train": 7, "held_out": 2}
            assert work.bar.n >= work.rows
            files = storage.list_files(stage.building)
            found = {str(path.relative_to(stage.building)): path.read_bytes() for path in files}
            assert not any("partial" in name for name in found)
            return found, stage.record["tokens"]

    return run


class Directly:
    """`overlap.Behind` without a thread."""

    def do(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Do it."""
        work()
        then()

    def __enter__(self) -> "Directly":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


def test_overlapped_shards_equal_those_made_one_after_the_other(
    label: Callable[[str], tuple[dict[str, bytes], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading ahead and writing behind change no byte of any file, and no count."""
    writers = set()
    write = labels.write_shard

    def watch(*arguments: object) -> None:
        writers.add(threading.current_thread() is threading.main_thread())
        write(*arguments)

    monkeypatch.setattr(labels, "write_shard", watch)
    overlapped = label("overlapped")
    assert writers == {False}
    monkeypatch.setattr(overlap, "Behind", Directly)
    monkeypatch.setattr(overlap, "ahead", lambda items: (item for item in items))
    assert label("direct") == overlapped
    assert writers == {True, False}


def test_the_vectors_of_the_fit_need_room_too(
    label: Callable[[str], tuple[dict[str, bytes], int]],
    corpus: Path,
    teacher_folder: Path,
    open_stage: Callable[..., stages.Stage],
) -> None:
    """The space that is asked for is that of the vectors which `fit` leaves, and of the labels."""
    vectors = [data for name, data in label("whole")[0].items() if name.endswith(".npy")]
    assert len(vectors) == 3  # 20 texts, in slices of 8
    with open_stage(VARIANT="space") as stage:
        teacher = load_teacher(teacher_folder)
        work = create_distil_dataset.Labelling(stage, corpus, teacher, "fp32")
        headers = 128 * len(vectors)
        assert work.space(WIDTH) == 2 * WIDTH * 60 + sum(map(len, vectors)) - headers
        assert work.space(48) == 2 * 48 * 60  # nothing to fit


def test_a_failed_write_surfaces_and_the_same_command_goes_on(
    label: Callable[[str], tuple[dict[str, bytes], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is reported as itself; shards before it stand, and a rerun ends as if whole."""
    whole = label("whole")
    write = labels.write_shard

    def fail(path: Path, *rest: object) -> None:
        if path.name == "shard-00004.parquet":
            raise OSError(28, "No space left on device")
        write(path, *rest)

    monkeypatch.setattr(labels, "write_shard", fail)
    with pytest.raises(UserError, match="the disk is full"):
        label("broken")
    monkeypatch.setattr(labels, "write_shard", write)
    made: list[str] = []

    def watch(path: Path, *rest: object) -> None:
        made.append(f"{path.parent.name}/{path.name}")
        write(path, *rest)

    monkeypatch.setattr(labels, "write_shard", watch)
    assert label("broken") == whole
    # Slices 0 to 2 have the vectors of the fit, so they may be written again; 3 stood.
    assert "train/shard-00003.parquet" not in made
    assert "train/shard-00004.parquet" in made


def test_an_error_of_the_reader_surfaces(
    label: Callable[[str], tuple[dict[str, bytes], int]],
    corpus: Path,
) -> None:
    """A damaged corpus is refused by the name of its file, as without a thread."""
    path = corpus / "held_out" / "shard-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="held_out/shard-00000.parquet is damaged"):
        label("damaged")


def test_one_item_is_made_ahead_and_no_more() -> None:
    """While an item is used the next is made, and never the one after it: memory is flat."""
    made: list[int] = []
    begun = [threading.Event() for _ in range(5)]

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            begun[number].set()
            yield number

    for number in overlap.ahead(items()):
        if number < 3:
            assert begun[number + 1].wait(10)
        assert len(made) <= number + 2


def test_behind_keeps_the_order_and_counts_only_what_succeeded() -> None:
    """Work is done in order; what follows it is called only where it succeeded."""
    events: list[str] = []

    def fail() -> None:
        raise UserError("no")

    with pytest.raises(UserError, match="no"), overlap.Behind() as behind:
        for name in "abc":
            behind.do(
                lambda name=name: events.append(name), lambda name=name: events.append(f"{name}!")
            )
        behind.do(fail, lambda: events.append("never"))
    assert [event for event in events if event[-1] != "!"] == ["a", "b", "c"]
    assert [event for event in events if event[-1] == "!"] == ["a!", "b!", "c!"]
    with pytest.raises(KeyboardInterrupt), overlap.Behind() as behind:
        behind.do(fail, lambda: None)
        raise KeyboardInterrupt
