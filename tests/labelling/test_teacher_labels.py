"""Promises of teacher_labels.py: the same shards whatever happens on the way, prompts, lengths."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from miniature import make_corpus
from sentence_transformers import SentenceTransformer

from small_modernbert.data import labels
from small_modernbert.data.outlets import Outlet, open_outlet
from small_modernbert.data.shards import HERE
from small_modernbert.labelling import lengths, teacher_labels
from small_modernbert.labelling.teacher_labels import Labeller, Slices
from small_modernbert.labelling.teacher_reading import Reader
from small_modernbert.models.projection import project
from small_modernbert.models.prompts import Prompts
from small_modernbert.models.teachers import load_teacher
from small_modernbert.runs import stages, storage
from small_modernbert.runs.errors import UserError

PROJECTION = "projection.safetensors"
WIDTH = 16  # of the labels; the teacher is 48 wide
Files = dict[str, bytes]


@pytest.fixture
def corpus(texts: list[str], tmp_path: Path) -> Path:
    """Return a corpus of 50 training texts and 10 held-out ones."""
    return make_corpus(tmp_path / "corpus", {"train": texts[:50], "held_out": texts[50:]})


@pytest.fixture
def slices(corpus: Path) -> Slices:
    """Return the corpus in slices of 8."""
    return Slices.of(corpus, 8)


@pytest.fixture
def reader(teacher_folder: Path) -> Reader:
    """Return the tiny teacher, in fp32."""
    return Reader(load_teacher(teacher_folder), Prompts())


@pytest.fixture
def label(
    slices: Slices, reader: Reader, open_stage: Callable[..., stages.Stage]
) -> Callable[[str], tuple[Files, dict[str, Any]]]:
    """Return a function that labels the corpus: files by name, and the facts."""

    def run(variant: str, outlet: Outlet = HERE) -> tuple[Files, dict[str, Any]]:
        with open_stage(VARIANT=variant) as stage:
            labeller = Labeller(reader, slices, stage, lambda rows: None, outlet)
            facts = labeller.label(labeller.fit(WIDTH, 20), "digest")
            teacher_labels.verify(stage.building)
            paths = storage.list_files(stage.building)
            files = {str(path.relative_to(stage.building)): path.read_bytes() for path in paths}
            return files, facts

    return run


def watch_encode(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of texts of every call of `Reader.encode` from here on."""
    encoded: list[int] = []
    encode = Reader.encode

    def watch(self: Reader, reading: Any, *rest: Any) -> np.ndarray:  # noqa: ANN401
        encoded.append(len(reading.texts))
        return encode(self, reading, *rest)

    monkeypatch.setattr(Reader, "encode", watch)
    return encoded


def test_labels_are_the_projected_vectors_in_order(
    slices: Slices, reader: Reader, open_stage: Callable[..., stages.Stage], texts: list[str]
) -> None:
    """Every text has its own vector through P, at unit length; the index says how it was read."""
    with open_stage() as stage:
        labeller = Labeller(reader, slices, stage, print)
        projection = labeller.fit(WIDTH, 20)
        labeller.label(projection, "digest")
        teacher_labels.verify(stage.building)
        found = labels.open_labels(stage.building)
        stored = [*found.texts("train"), *found.texts("held_out")]
        parts = [found.vectors(split, labeller.scratch / split) for split in labels.SPLITS]
    assert stored == texts
    wanted = project(reader.teacher.encode(texts), projection)
    np.testing.assert_allclose(np.concatenate(parts).astype(np.float32), wanted, atol=1e-3)
    assert len(found.index["shards"]) == 7 + 2
    assert found.index["roles"] == {"text": 60}
    assert found.index["teacher"] == "digest"
    assert found.index["max_tokens"] == 64
    assert found.index["prompts"] == {"text": "", "query": "", "document": ""}


def test_a_killed_run_ends_in_the_same_files(
    label: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is reported as itself; a rerun encodes only what is missing, and ends equal."""
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
    encoded = watch_encode(monkeypatch)
    assert label("broken") == whole
    # Of nine slices the sample's three are kept, and the fourth was written.
    assert encoded == [8, 8, 2, 8, 2]


def test_no_text_is_encoded_twice(
    label: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the projection was fitted on is taken up when its shards are written."""
    encoded = watch_encode(monkeypatch)
    label("whole")
    assert sum(encoded) == 60


def test_shards_that_are_sent_away_are_those_that_stay(
    label: Callable[..., Any],
    memory: fsspec.AbstractFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A killed run goes on at the first shard that is not there; nobody who reads sees a change."""
    whole, _ = label("whole")
    outlet = open_outlet("memory://bucket/labels", "labels.json", False, tmp_path / "notes")
    send, sent = Outlet.send, []

    def fail(self: Outlet, path: Path) -> None:
        sent.append(path.name)
        if len(sent) == 5:
            raise OSError(28, "No space left on device")
        send(self, path)

    monkeypatch.setattr(Outlet, "send", fail)
    with pytest.raises(UserError, match="the disk is full"):
        label("sent", outlet)
    outlet = open_outlet("memory://bucket/labels", "labels.json", True, tmp_path / "notes")
    encoded = watch_encode(monkeypatch)
    kept, _ = label("sent", outlet)
    assert encoded == [8, 2, 8, 2]  # four were sent; the fifth stays as it was written
    assert [name for name in kept if "shard" in name] == []
    there = {name.removeprefix("/bucket/labels/"): memory.cat(name) for name in memory.find("/")}
    assert there == {name: data for name, data in whole.items() if name != PROJECTION}
    index = json.loads(kept.pop("labels.json"))
    assert index.pop("url") == "memory://bucket/labels"
    assert index == json.loads(whole["labels.json"])


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("url", ["", "memory://bucket/labels"])
def test_a_run_killed_at_its_end_reads_nothing_again(
    label: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str
) -> None:
    """Shards that are there, or were sent, are neither encoded nor so much as read, to the last."""
    outlet = open_outlet(url, "labels.json", False, tmp_path / "notes")
    whole = label("killed", outlet)

    def fail(*_: object) -> None:
        raise AssertionError("the corpus was read again")

    monkeypatch.setattr(Slices, "read", fail)
    assert label("killed", outlet) == whole


def test_space_is_asked_for_labels_and_sample(slices: Slices) -> None:
    """Labels take two bytes a number, the kept vectors of the sample four."""
    assert slices.space(48, WIDTH, 20) == 2 * WIDTH * 60 + 4 * 48 * 24  # 20 texts: 3 slices of 8
    assert slices.space(48, WIDTH, 0) == 2 * WIDTH * 60 + 4 * 48 * 50
    assert slices.space(48, 48, 20) == 2 * 48 * 60  # nothing to fit


def test_a_damaged_corpus_is_refused_by_name(label: Callable[[str], Any], corpus: Path) -> None:
    """What the reading thread raises is raised here, in its turn."""
    path = corpus / "held_out" / "shard-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="held_out/shard-00000.parquet is damaged"):
        label("damaged")


def test_a_student_wider_than_its_teacher_is_refused(
    slices: Slices, reader: Reader, open_stage: Callable[..., stages.Stage]
) -> None:
    """Labels wider than the teacher cannot be made, and the flag that helps is named."""
    with open_stage() as stage, pytest.raises(UserError, match="--hidden-size"):
        Labeller(reader, slices, stage, print).fit(49, 0)


def test_one_item_is_made_ahead_and_no_more() -> None:
    """While an item is used the next is made, and never the one after it: memory is flat."""
    made: list[int] = []
    begun = [threading.Event() for _ in range(5)]

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            begun[number].set()
            yield number

    for number in teacher_labels.prefetch(items()):
        if number < 3:
            assert begun[number + 1].wait(10)
        assert len(made) <= number + 2


@pytest.mark.parametrize(
    ("limit", "student", "warning"),
    [
        (0, 999, None),  # all read everything
        (12, 999, "12 tokens that the teacher reads: .*--max-tokens 12 --overwrite"),
        (0, 5, "longer than the 5 tokens that the student reads"),
    ],
)
def test_texts_that_are_cut_are_counted_and_said(
    teacher_folder: Path,
    slices: Slices,
    texts: list[str],
    limit: int,
    student: int,
    warning: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What teacher, corpus and student read is compared, and the texts that one cuts are named."""
    caplog.set_level("INFO", logger="small_modernbert")
    teacher = SentenceTransformer(str(teacher_folder), device="cpu")
    whole = teacher.tokenizer(texts, verbose=False)["input_ids"]
    sizes = [len(ids) for ids in whole]
    teacher.max_seq_length = limit or max(sizes)
    reading = Reader(teacher, Prompts()).read(texts, ["text"] * len(texts))
    assert reading.cut == sum(size > limit for size in sizes if limit)
    figures = lengths.compare(Reader(teacher, Prompts()), slices, reading.cut, student)
    longer = sum(len(text.split()) > student for text in texts)
    assert (figures["cut_by_teacher"], figures["longer_than_student"]) == (reading.cut, longer)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert bool(warnings) == (warning is not None)
    if warning:
        assert f"{reading.cut or longer:,} " in warnings[0]
        assert re.search(warning, warnings[0])
