"""Promises of executors.py and corpus_tasks.py: the plain path's corpus, whoever built it."""

import importlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import fake_slurm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import script_runner
from miniature import make_wordpiece_tokenizer

from small_modernbert.data import corpus_building, corpus_tasks, executors, shards, sources
from small_modernbert.data.corpus import open_corpus
from small_modernbert.runs import settings, storage
from small_modernbert.runs.errors import UserError

WORDS = [f"word{number}" for number in range(300)]
Script = Callable[..., Path]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two Parquet files and a text file: copies, near copies, labels of their own."""
    folder = tmp_path_factory.mktemp("texts")
    chooser = np.random.default_rng(0)
    rows = [" ".join(chooser.choice(WORDS, 20)) for _ in range(240)]
    rows += [*rows[:20], *(f"{text} word7" for text in rows[20:40]), "short", ""]
    labels = [f"label{number % 3}" for number in range(len(rows))]
    for name, part in (("a", slice(0, 150)), ("b", slice(150, None))):
        table = pa.table({"text": rows[part], "source": labels[part]})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=40)
    (folder / "c.txt").write_text("\n".join([rows[0], " ".join(WORDS[:20]), " ".join(WORDS[:90])]))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer that knows the words."""
    return make_wordpiece_tokenizer(tmp_path_factory.mktemp("tokenizer"), WORDS)


@pytest.fixture(scope="module")
def fixed(texts: Path, tokenizer: Path) -> list[str]:
    """The flags that all runs share."""
    flags = ["--sources", "offline", "--offline-text", str(texts), "--tokenizer", str(tokenizer)]
    return [*flags, "--max-tokens", "64", "--held-out-rows", "20", "--shard-rows", "90"]


@pytest.fixture(scope="module")
def script(fixed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Script:
    """A function that runs mlm/create_dataset.py with flags and returns its folder."""
    runs = tmp_path_factory.mktemp("runs")

    def run(recipe: str, *flags: str) -> Path:
        module = importlib.reload(importlib.import_module("mlm.create_dataset"))
        settings.override(vars(module), ["--recipe", recipe, *fixed, *flags])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RUNS", str(runs))
            module.main()
        return runs / recipe / "mlm" / "create_dataset"

    return run


@pytest.fixture(scope="module")
def plain(script: Script) -> Path:
    """The stage as no executor makes it."""
    return script("plain")


def digest(stage: Path) -> str:
    """Return the digest of the sorted rows of a stage's corpus."""
    return shards.digest_rows(open_corpus(stage / "final"))


def test_parts_are_the_source_in_order(texts: Path) -> None:
    """Parts of any size hold every row once, in the order of the whole; text files stay whole."""
    source = sources.TextSource(name="own", id=str(texts), texts=("text",), label="source")

    def read(parts: list[sources.Part]) -> list[tuple[str, str]]:
        batches = (batch for part in parts for batch in sources.read_part(source, part, 0))
        return [row for batch in batches for row in zip(*batch.values(), strict=True)]

    whole = read([sources.Part()])
    assert len(whole) == 285
    for rows in (1, 40, 70, 1_000):
        parts = sources.split_source(source, rows)
        assert parts[-1] == sources.Part(2)
        assert read(parts) == whole


def test_tasks_make_the_plain_corpus(script: Script, plain: Path) -> None:
    """Tasks give, byte for byte, what no executor gives; a rerun keeps it."""
    stage = script("local", "--executor", "local", "--workers", "1", "--task-rows", "70")
    assert storage.digest_folder(stage / "final") == storage.digest_folder(plain / "final")
    assert digest(stage) == digest(plain)
    begun = (stage / "final" / "corpus.json").stat().st_mtime_ns
    # Where and how it runs is none of the settings that decide what comes out.
    assert script("local") == stage
    assert (stage / "final" / "corpus.json").stat().st_mtime_ns == begun


def test_rows_of_another_corpus_have_another_digest(script: Script, plain: Path) -> None:
    """The digest tells rows apart, and does not see in how many shards they lie."""
    assert digest(script("shards", "--shard-rows", "40")) == digest(plain)
    assert digest(script("held", "--held-out-rows", "19")) != digest(plain)


def test_each_process_has_a_gpu_of_its_own(
    tmp_path: Path, texts: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is chosen once, by the first task's place among those that are left, not by its number."""
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: bool(chosen))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    step = prepare(tmp_path, texts, tokenizer)
    marks = tmp_path / "spills" / "own" / "completions"
    marks.mkdir(parents=True)
    (marks / "00000").touch()
    array = executors.Array("own", step, 3, on_gpu=True)
    assert executors.Executor("local", 1).run(tmp_path / "spills", array)
    assert chosen == [0]


def prepare(folder: Path, texts: Path, tokenizer: Path) -> corpus_tasks.PrepareParts:
    """Return the step of nine tasks over the texts."""
    source = sources.TextSource(name="own", id=str(texts), texts=("text",), label="source")
    preparation = corpus_building.Preparation(source, tokenizer / "tokenizer.json", 64, None, 12)
    return corpus_tasks.PrepareParts(folder / "spills", [preparation], 40, 0)


def test_tasks_may_come_in_any_order_and_twice(
    texts: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """Tasks shuffled and repeated write the spill that the plain path writes."""
    step = prepare(tmp_path, texts, tokenizer)
    preparation = step.work[0].preparation
    plain = corpus_building.write_spill(tmp_path / "plain", preparation, 0)
    order = [*range(len(step.work)), 3, 0]
    random.Random(1).shuffle(order)
    for number in order:
        assert list(step.run(None, number, len(step.work))) == []
    spill = step.join(preparation)
    assert len(step.work) == 9
    assert spill.source_counts == plain.source_counts
    assert shards.digest_rows(spill) == shards.digest_rows(plain)
    assert list(spill.column("rows", "key")) == list(plain.column("rows", "key"))


class DiesOnce(corpus_tasks.PrepareParts):
    """Its third task ends its process the first time, as the kernel does for want of memory."""

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> object:
        """Write the part, or die."""
        mark = self.folder / "died"
        if rank == 2 and not mark.exists():
            storage.write_text(mark, "")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(data, rank, world_size)


def test_a_killed_task_is_done_again_and_the_others_are_not(
    texts: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """A killed process is told at once, not waited for; a rerun does what is missing."""
    step = prepare(tmp_path, texts, tokenizer)
    step.__class__ = DiesOnce
    array, executor = executors.Array("corpus", step, 9), executors.Executor("local", 2)
    with pytest.raises(UserError, match="a worker process died"):
        executor.run(tmp_path / "tasks", array)
    missing = array.missing(tmp_path / "tasks")
    assert 2 in missing
    kept = {path: path.stat().st_mtime_ns for path in (step.folder / "own" / "rows").iterdir()}
    # Another number of processes does what is missing.
    assert executors.Executor("local", 1).run(tmp_path / "tasks", array)
    for number in set(range(9)).difference(missing):
        path = shards.shard_path(step.folder / "own", "rows", number)
        assert path.stat().st_mtime_ns == kept[path]
    preparation = step.work[0].preparation
    plain = corpus_building.write_spill(tmp_path / "plain", preparation, 0)
    assert shards.digest_rows(step.join(preparation)) == shards.digest_rows(plain)


def test_slurm_runs_what_was_submitted(
    script: Script,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Submitted, waited for, failed, submitted again, done: the plain corpus in the end."""
    queue = fake_slurm.install(tmp_path / "slurm", monkeypatch)
    flags = ["--executor", "slurm", "--slurm", "partition=cpu", "time=01:00:00", "account=me"]
    flags += ["--task-rows", "150", "--offline-text", str(texts / "a.parquet")]
    flags += [str(texts / "b.parquet")]
    stage = script("slurm", *flags)
    assert "submitted to Slurm: 2 tasks, jobs 1." in capsys.readouterr().out
    assert not (stage / "final").exists()
    job = (queue / "1.job").read_text()
    for line in ("--array=0-1", "--partition=cpu", "--time=01:00:00", "--account=me"):
        assert f"#SBATCH {line}\n" in job
    script("slurm", *flags)
    assert "0 of 2 of corpus; under way or waiting: Slurm's jobs 1 " in capsys.readouterr().out
    assert fake_slurm.run_queue(queue, leave_out=(1,)) == [0]
    script("slurm", *flags)
    assert "1 of 2 of corpus; the others failed" in capsys.readouterr().out
    assert fake_slurm.run_queue(queue) == [0]
    assert digest(script("slurm", *flags)) == digest(script("two", *flags[-3:]))


def test_ray_makes_the_plain_corpus(fixed: list[str], plain: Path, tmp_path: Path) -> None:
    """A Ray of two processors on this machine, where ray is installed: the same bytes."""
    pytest.importorskip("ray", reason="optional: pip install ray==2.60.0")
    flags = ["--recipe", "ray", *fixed, "--executor", "ray", "--workers", "2", "--task-rows", "150"]
    command = ["mlm/create_dataset.py", *flags]
    script_runner.run_process(command, environment={"RUNS": str(tmp_path)}).check()
    stage = tmp_path / "ray" / "mlm" / "create_dataset"
    assert storage.digest_folder(stage / "final") == storage.digest_folder(plain / "final")


def test_what_a_task_refuses_the_command_refuses(script: Script, tmp_path: Path) -> None:
    """A file that a task cannot read ends the run with the message that the plain path gives."""
    damaged = tmp_path / "latin.txt"
    damaged.write_bytes("ein Café an der Straße".encode("latin1"))
    flags = ["--offline-text", str(damaged), "--executor", "local", "--workers", "1"]
    with pytest.raises(UserError, match="latin.txt cannot be read: it is no UTF-8"):
        script("damaged", *flags)


@pytest.mark.parametrize(
    ("flags", "absent", "said"),
    [
        (["--executor", "slurm"], "", "needs partition and time: --slurm partition=NAME"),
        (["--executor", "slurm", "--slurm", "time=1:00:00"], "", "needs partition:"),
        (["--executor", "ray"], "ray", "needs ray; run: pip install"),
        (["--executor", "local"], "datatrove", "needs datatrove; run: pip install"),
        (["--task-rows", "0"], "", "--task-rows 0 is too small"),
    ],
)
def test_what_cannot_run_is_refused_first(
    flags: list[str],
    absent: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A library that is not installed and a flag that is missing are named with the cure."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == absent else name)
    assert said in script_runner.refusal("mlm/create_dataset", flags, capsys)
