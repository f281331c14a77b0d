"""Promises of label_tasks.py: the plain path's labels from tasks, in any order, killed or not."""

import random
from collections.abc import Callable
from pathlib import Path

import fake_slurm
import pytest
import script_runner
from miniature import make_corpus

from small_modernbert.data import labels, shards
from small_modernbert.labelling import label_tasks
from small_modernbert.runs import settings, storage

WIDTH = 16  # of the labels; the teacher is 48 wide


@pytest.fixture
def flags(texts: list[str], teacher_folder: Path, tmp_path: Path) -> list[str]:
    """Return flags for 50 training texts and 10 held-out ones, in shards of 8."""
    corpus = make_corpus(tmp_path / "corpus", {"train": texts[:50], "held_out": texts[50:]})
    own = ["--corpus", str(corpus), "--teacher", str(teacher_folder), "--dimension", str(WIDTH)]
    return [*own, "--pca-texts", "20", "--rows-per-shard", "8", "--precision", "fp32"]


@pytest.fixture
def script(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A function that labels under a recipe, with more flags, and returns the stage's folder."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))

    def run(recipe: str, *more: str) -> Path:
        module = script_runner.load_script("create_distil_dataset")
        settings.override(vars(module), ["--recipe", recipe, *flags, *more])
        module.main()
        return tmp_path / "runs" / recipe / "create_distil_dataset"

    return run


LOCAL = ["--executor", "local", "--workers", "1", "--task-shards", "2"]


def test_tasks_make_the_plain_labels(script: Callable[..., Path]) -> None:
    """Labels, projection and teacher are the same bytes; a rerun, by either path, keeps them."""
    plain, stage = script("plain"), script("local", *LOCAL)
    assert storage.digest_folder(stage / "final") == storage.digest_folder(plain / "final")
    rows = [shards.digest_rows(labels.open_labels(each / "final")) for each in (plain, stage)]
    assert rows[0] == rows[1]
    bucket = script("sent", *LOCAL, "--output-url", "memory://labels-of-tasks") / "final"
    assert shards.digest_rows(labels.open_labels(bucket)) == rows[0]
    assert not [*bucket.rglob("shard-*")]
    records = [storage.read_json(each / "run.json", "") for each in (plain, stage)]
    for name in ("dtype", "dtype_reason", "device", "rows", "metrics", "facts"):
        assert records[0][name] == records[1][name]
    assert not (stage / "scratch").exists()
    begun = (stage / "final" / "labels.json").stat().st_mtime_ns
    assert script("local") == stage
    assert (stage / "final" / "labels.json").stat().st_mtime_ns == begun


def test_a_killed_run_ends_in_the_same_labels(
    script: Callable[..., Path], flags: list[str], tmp_path: Path
) -> None:
    """What its tasks have made before a kill is not made again; the rest is, to the same rows."""
    runs = tmp_path / "runs"
    stage = runs / "killed" / "create_distil_dataset"
    marks = stage / "scratch" / "tasks-of-2" / "labels" / "completions"
    command = ["create_distil_dataset.py", "--recipe", "killed", *flags, *LOCAL]
    script_runner.start(command, runs).kill_when(lambda: (marks / "00001").exists())
    assert not (stage / "final").exists()
    first = shards.shard_path(stage / "scratch" / "labels", "train", 0)
    made = first.stat().st_mtime_ns
    script("killed", *LOCAL)
    assert shards.shard_path(stage / "final", "train", 0).stat().st_mtime_ns == made
    plain = script("plain")
    assert storage.digest_folder(stage / "final") == storage.digest_folder(plain / "final")


def test_tasks_may_come_in_any_order_and_twice(
    texts: list[str], teacher_folder: Path, tmp_path: Path
) -> None:
    """Shuffled and repeated tasks write the same shards as tasks in order; sizes do not matter."""
    corpus = make_corpus(tmp_path / "corpus", {"train": texts[:50], "held_out": texts[50:]})
    digests = []
    for size, seed in ((1, 1), (3, 2), (100, 3)):
        folder = tmp_path / str(seed)
        own = (corpus, teacher_folder, "", "", "", 0, 0.5, 8, WIDTH, 20, "fp32", 0, shards.HERE)
        plan = label_tasks.Plan(*own, folder / "labels", folder)
        assert list(label_tasks.FitProjection(plan).run()) == []
        step = label_tasks.LabelSlices(plan, size)
        order = [*range(len(step.work)), 0]
        random.Random(seed).shuffle(order)
        for number in order:
            assert list(step.run(None, number)) == []
        digests.append(storage.digest_folder(plan.building))
    assert len(set(digests)) == 1
    assert len([*plan.building.rglob("shard-*.parquet")]) == 7 + 2


def test_tasks_of_no_shard_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever asks for tasks without work is told the least number."""
    said = script_runner.refusal("create_distil_dataset", ["--task-shards", "0"], capsys)
    assert "--task-shards 0 is too small; give at least 1" in said


def test_slurm_labels_behind_the_projection(
    script: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The labels' jobs wait for the projection's; the command, run again, ends the stage."""
    queue = fake_slurm.install(tmp_path / "slurm", monkeypatch)
    slurm = ["--executor", "slurm", "--slurm", "partition=gpu", "time=1:00:00", "gpus=1"]
    slurm += ["--task-shards", "3"]
    stage = script("slurm", *slurm)
    assert "submitted to Slurm: 5 tasks" in capsys.readouterr().out
    arguments = [path.read_text() for path in sorted(queue.glob("*.arguments"))]
    jobs = [path.read_text() for path in sorted(queue.glob("*.job"))]
    places = [place for place, job in enumerate(jobs) if "launch_pickled_pipeline" in job]
    assert "--dependency" not in arguments[places[0]]
    assert f"--dependency=afterok:{places[0] + 1}" in arguments[places[1]]
    assert all("#SBATCH --gpus=1" in jobs[place] for place in places)
    fake_slurm.run_queue_here(queue)
    assert not (stage / "final").exists()
    script("slurm", *slurm)
    plain = script("plain")
    assert storage.digest_folder(stage / "final") == storage.digest_folder(plain / "final")
