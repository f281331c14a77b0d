"""Promises of windows.py and streamed_rows.py: any order of kills, the batches of the one run."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import ModernBertForMaskedLM, ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data import labels, streamed_rows, token_store
from small_modernbert.data.streamed_rows import Reading, StreamedRows
from small_modernbert.data.token_store import TokenStore
from small_modernbert.models.loading import load_backend
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.packing import pack_into_bins, plan_batches
from small_modernbert.models.prompts import Prompts
from small_modernbert.runs import places
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage
from small_modernbert.training import distillation, loop, masked_lm
from small_modernbert.training.distillation import DistillationTask
from small_modernbert.training.masked_lm import MaskedTask
from small_modernbert.training.windows import cut_windows

WIDTH, ROWS, SHARD, WINDOW, CHECKPOINT = 32, 54, 9, 20, 2
LENGTHS = np.arange(400) * 37 % 61 + 3


def digest(batches: list[np.ndarray] | list[list[int]]) -> str:
    """Return a digest over batches of rows."""
    parts = (np.asarray(batch, dtype=np.int64).tobytes() for batch in batches)
    return hashlib.sha256(b";".join(parts)).hexdigest()[:16]


@pytest.fixture
def backend(wordpiece_folder: Path) -> Tokenizer:
    """Return the tokenizer as the stages load it."""
    return load_backend(wordpiece_folder, 64)


@pytest.fixture
def labelled(memory: fsspec.AbstractFileSystem, texts: list[str], tmp_path: Path) -> labels.Labels:
    """Return labels elsewhere: six shards of nine texts to train on, and six held-out ones."""
    vectors = np.random.default_rng(0).normal(size=(len(texts), WIDTH)).astype(np.float16)
    for number in range(ROWS // SHARD):
        part = slice(number * SHARD, (number + 1) * SHARD)
        path = labels.shard_path(tmp_path / "labels", "train", number)
        labels.write_shard(path, texts[part], vectors[part], ["query"] * SHARD)
    held_out = labels.shard_path(tmp_path / "labels", "held_out", 0)
    labels.write_shard(held_out, texts[ROWS:], vectors[ROWS:])
    labels.write_index(tmp_path / "labels", WIDTH, {"train": ROWS // SHARD, "held_out": 1})
    memory.put(str(tmp_path / "labels"), "/bucket/", recursive=True)
    return labels.open_labels(places.reopen("memory://bucket/labels"))


@pytest.fixture
def stream(
    labelled: labels.Labels, backend: Tokenizer, tmp_path: Path
) -> Callable[..., StreamedRows]:
    """Return a function that streams the labels anew, in windows of two shards."""

    def make(name: str = "windows", window_rows: int = WINDOW) -> StreamedRows:
        reading = distillation.reading(labelled, backend, Prompts())
        measured = streamed_rows.measure(reading, tmp_path / "measured")
        return StreamedRows(reading, measured, window_rows, tmp_path / name)

    return make


def distil(
    model: ModernBertModel, rows: StreamedRows | TokenStore, vectors: np.ndarray
) -> DistillationTask:
    """Make a task of small batches."""
    return DistillationTask(
        PackedEncoder(model),
        rows,
        vectors,
        distillation.loss_function("cosine", 0.1),
        lambda: {"held_out_cosine": 0.0},
        tokens_per_batch=128,
        rows_per_batch=7,
        seed=7,
    )


def test_one_window_is_planned_as_before_there_were_windows() -> None:
    """No batch of a recipe that fits into one window has changed: digests of an older version."""
    rules = {"tokens_per_batch": 300, "rows_per_batch": 16, "window_batches": 4}
    assert digest(plan_batches(LENGTHS, **rules, seed=42, epoch=1)) == "fee0770b1a3ab54d"
    assert digest(pack_into_bins(LENGTHS, 128, seed=42, epoch=1)) == "ac804a7bf5a2af90"
    assert digest([masked_lm.draw(400, np.linspace(0, 3, 400), 42, 1)]) == "b99f3cbfc7f0448c"


@pytest.mark.parametrize("bound", [1, 5, 100, 250, 10_000])
def test_windows_hold_every_shard_once(bound: int) -> None:
    """No window has more rows than the bound, but for a shard that has; each pass its own order."""
    sizes = [100, 7, 50, 100, 100, 30, 200, 1]
    passes = [cut_windows(sizes, bound, seed=3, epoch=epoch) for epoch in range(4)]
    for windows in passes:
        assert sorted(shard for window in windows for shard in window) == list(range(len(sizes)))
        for window in windows:
            assert sum(sizes[shard] for shard in window) <= bound or len(window) == 1
    orders = {tuple(shard for window in windows for shard in window) for windows in passes}
    assert len(orders) == 4
    assert passes[2] == cut_windows(sizes, bound, seed=3, epoch=2)
    assert cut_windows([], bound, seed=3, epoch=0) == []


def test_what_is_streamed_is_what_the_shards_hold(
    stream: Callable[..., StreamedRows], labelled: labels.Labels, backend: Tokenizer, tmp_path: Path
) -> None:
    """Lengths of all rows, and tokens and vectors of each that is at hand, are those of the row."""
    rows = stream()
    wanted = list(token_store.tokenise(labelled.texts("train"), backend))
    vectors = labelled.vectors("train", tmp_path / "all.f16")
    assert rows.lengths.tolist() == [len(ids) for ids in wanted]
    assert len(rows) == len(rows.vectors) == ROWS
    for shards in ((4, 1), (0,), (3, 2)):
        rows.hold([shards], None)
        for row in rows.rows_of(shards).tolist():
            assert rows[row].tolist() == wanted[row].tolist()
        some = rows.rows_of(shards)[::2]
        assert np.array_equal(rows.vectors[some], vectors[some])


def test_measuring_goes_on_after_a_kill(
    stream: Callable[..., StreamedRows], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whole shards that were measured are not read again; half of one is dropped."""
    whole = stream().lengths.tolist()
    path = tmp_path / "measured"
    half = streamed_rows.MEASURE.itemsize * (2 * SHARD + 4) + 2
    path.write_bytes(path.read_bytes()[:half])
    read, texts = [], streamed_rows._texts

    def noting(reading: Reading, numbers: list[int]) -> object:
        read.extend(numbers)
        return texts(reading, numbers)

    monkeypatch.setattr(streamed_rows, "_texts", noting)
    assert stream().lengths.tolist() == whole
    assert read == [2, 3, 4, 5]


def test_a_pass_has_every_row_once_in_batches_of_one_window(
    make_student: Callable[..., ModernBertModel], stream: Callable[..., StreamedRows]
) -> None:
    """Batches do not reach over windows, passes differ, and each is planned again equal."""
    rows = stream()
    task = distil(make_student(), rows, rows.vectors)
    orders = []
    for epoch in range(2):
        batches = list(task.epoch(epoch))
        assert len(batches) == len(task.epoch(epoch))
        orders.append(np.concatenate(batches).tolist())
        assert sorted(orders[-1]) == list(range(ROWS))
        windows = cut_windows(rows.sizes, WINDOW, 7, epoch)
        assert len(windows) == 3
        of_shard = {shard: place for place, window in enumerate(windows) for shard in window}
        places = [{of_shard[row // SHARD] for row in batch.tolist()} for batch in batches]
        assert all(len(window) == 1 for window in places)
        assert [min(window) for window in places] == sorted(min(window) for window in places)
    assert orders[0] != orders[1]
    with pytest.raises(IndexError):
        task.epoch(0)[len(task.epoch(0))]


def test_little_of_the_data_lies_on_this_disk(
    make_student: Callable[..., ModernBertModel],
    stream: Callable[..., StreamedRows],
    tmp_path: Path,
) -> None:
    """At any step the window of the step, and the next one; in the last step nothing else."""
    rows = stream()
    task = distil(make_student(), rows, rows.vectors)
    batches = len(task.epoch(0))
    most = 0
    for place in range(batches):
        task.loss(task.epoch(0)[place : place + 1][0])
        most = max(most, sum(path.is_dir() for path in (tmp_path / "windows").iterdir()))
    assert most == 2
    assert sum(path.is_dir() for path in (tmp_path / "windows").iterdir()) == 1


def test_the_next_pass_is_fetched_while_the_last_window_is_trained_on(
    make_student: Callable[..., ModernBertModel], stream: Callable[..., StreamedRows]
) -> None:
    """A run has asked for all of its passes by then; behind the last one there is nothing."""
    rows = stream()
    task = distil(make_student(), rows, rows.vectors)
    passes = [task.epoch(number) for number in range(2)]
    for number, batches in enumerate(passes):
        _ = batches[len(batches) - 1]
        following = cut_windows(rows.sizes, WINDOW, 7, 1)[:1] if number == 0 else []
        assert list(rows._coming) == following
        rows._coming.clear()


def test_what_is_fetched_ahead_ends_with_the_run(
    stream: Callable[..., StreamedRows], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After `close` nothing is written, so that the stage can tidy up; it can begin again."""
    rows, begun = stream(), threading.Event()
    encode = token_store.encode

    def slow(texts: Iterable[str], *given: object) -> Iterator[object]:
        for text in texts:
            begun.set()
            yield from encode([text], *given)
            time.sleep(0.02)

    monkeypatch.setattr(token_store, "encode", slow)
    rows.hold([(0,)], (1, 2, 3, 4, 5))
    begun.clear()
    assert begun.wait(10)
    rows.close()
    assert not rows._thread.is_alive()
    assert not list((tmp_path / "windows").rglob("tokens.json"))[1:]
    monkeypatch.undo()
    rows._coming.clear()
    rows.hold([(3,)], None)
    assert len(rows[3 * SHARD]) == rows.lengths[3 * SHARD]


def test_a_step_may_reach_over_windows(
    make_student: Callable[..., ModernBertModel], stream: Callable[..., StreamedRows]
) -> None:
    """All the windows of a step's batches are at hand, however small they are."""
    rows = stream(window_rows=1)
    task = distil(make_student(), rows, rows.vectors)
    for batch in task.epoch(0)[: len(task.epoch(0))]:
        loss, tokens = task.loss(batch)
        assert tokens == rows.lengths[batch].sum()
        assert torch.isfinite(loss)


def test_ranks_share_what_one_has_fetched(
    stream: Callable[..., StreamedRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks with one scratch/ fetch a window once, and the follower removes nothing."""
    leader = stream()
    with monkeypatch.context() as patch:
        patch.setattr("small_modernbert.runs.processes.rank", lambda: 1)
        follower = stream()
        made = []
        encode = token_store.encode
        patch.setattr(token_store, "encode", lambda *given: made.append(1) or encode(*given))
        leader.hold([(0, 1)], None)
        follower.hold([(0, 1)], None)
        assert made == [1]
        assert follower[3].tolist() == leader[3].tolist()
        follower.hold([(2,)], None)
    assert leader.cache == follower.cache
    assert len([path for path in leader.cache.iterdir() if path.is_dir()]) == 2


def test_a_shard_that_is_damaged_ends_the_step_that_needs_it(
    stream: Callable[..., StreamedRows], memory: fsspec.AbstractFileSystem
) -> None:
    """What the thread meets is told where its window is wanted, by name."""
    rows = stream()
    memory.pipe("/bucket/labels/train/shard-00002.parquet", b"x")
    rows.hold([(0, 1)], (2,))
    with pytest.raises(UserError, match="shard-00002.parquet is damaged"):
        rows.hold([(2,)], None)


def run(task: DistillationTask | MaskedTask, stage: Stage, stop_after: int = 0) -> loop.Progress:
    """Train two passes, two batches a step; die in the loss after `stop_after` batches."""
    optimizer = loop.make_optimizer(
        "stable_adamw", task.model, learning_rate=2e-3, weight_decay=0.01
    )
    every = CHECKPOINT if stop_after else 0
    plan = loop.Plan(epochs=2, learning_rate=2e-3, accumulate=2, checkpoint_every=every)
    loss, seen = task.loss, []

    def watched(batch: object) -> tuple[torch.Tensor, int]:
        seen.append(batch)
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        return loss(batch)

    task.loss = watched
    return loop.train(task, optimizer, plan, stage)


def test_interrupted_streaming_ends_equal(
    open_stage: Callable[..., Stage],
    make_student: Callable[..., ModernBertModel],
    stream: Callable[..., StreamedRows],
) -> None:
    """A distillation from elsewhere, killed in a step over two windows, ends bit for bit equal."""

    def task(name: str, seed: int = 0) -> DistillationTask:
        rows = stream(name)
        return distil(make_student(seed=seed), rows, rows.vectors)

    whole = task("whole")
    ends = whole.epoch(0)._ends
    stop = next(end for end in ends if end % 2)  # an odd end: its batch and the next are one step
    assert CHECKPOINT < stop < ends[-1]
    with open_stage(VARIANT="whole") as stage:
        wanted = run(whole, stage)
    with pytest.raises(KeyboardInterrupt), open_stage() as stage:
        run(task("cut"), stage, stop + 1)
    again = task("again", seed=5)
    with open_stage() as stage:
        found = run(again, stage)
    assert (found.step, found.tokens) == (wanted.step, wanted.tokens)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_streamed_pre_training(
    open_stage: Callable[..., Stage],
    make_student: Callable[..., ModernBertForMaskedLM],
    tokenizer: PreTrainedTokenizerFast,
    stream: Callable[..., StreamedRows],
) -> None:
    """Packed windows hold each text, or its copies, once; a kill changes no bit of the end."""
    weights = np.linspace(0, 2.5, ROWS)

    def task(name: str) -> MaskedTask:
        rows = stream(name)
        return MaskedTask(
            make_student(masked_lm=True),
            tokenizer,
            rows,
            TokenStore(np.zeros(0, np.int32), np.zeros(1, np.int64)),
            sequence_tokens=64,
            sequences_per_batch=3,
            probability=0.3,
            precision="fp32",
            seed=7,
            weights=weights,
        )

    whole = task("whole")
    for epoch in range(2):
        drawn = np.concatenate([rows for _, rows in whole.epoch(epoch)])
        assert len(set(drawn.tolist())) == len(drawn)
        counts = np.bincount(drawn % ROWS, minlength=ROWS)
        assert ((counts == np.floor(weights)) | (counts == np.ceil(weights))).all()
    with open_stage(VARIANT="whole") as stage:
        wanted = run(whole, stage)
    with pytest.raises(KeyboardInterrupt), open_stage() as stage:
        run(task("cut"), stage, 7)
    again = task("again")
    with open_stage() as stage:
        found = run(again, stage)
    assert (found.step, found.tokens) == (wanted.step, wanted.tokens)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(("window_rows", "streamed"), [(0, False), (54, False), (53, True)])
def test_what_fits_into_a_window_is_kept_as_ever(
    open_stage: Callable[..., Stage],
    labelled: labels.Labels,
    backend: Tokenizer,
    window_rows: int,
    streamed: bool,
) -> None:
    """Only more rows than WINDOW_ROWS are streamed; held-out rows never are."""
    reading = distillation.reading(labelled, backend, Prompts(query="query: "))
    with open_stage({"labels": labelled.folder}) as stage:
        tokens = streamed_rows.open_splits(stage, "labels", reading, window_rows)
        vectors = distillation.open_vectors(stage, labelled, tokens)
    assert isinstance(tokens["train"], StreamedRows) is streamed
    assert isinstance(tokens["held_out"], TokenStore)
    assert [len(part) for part in vectors.values()] == [ROWS, len(tokens["held_out"])]
    wanted = [len(backend.encode("query: " + text).ids) for text in labelled.texts("train")]
    assert tokens["train"].lengths.tolist() == wanted
