"""A damaged checkpoint is named, passed over, and costs the steps since the one before it."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_training as toy
from safetensors.torch import save_file

from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage
from small_modernbert.training import checkpoints, loop

Open = Callable[..., Stage]
Survived = Callable[..., None]
DIES_AT = 14  # a batch of step 9: checkpoints at 3 and 6
STAGE = "any training stage"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip flushing: a test's checkpoints need not survive a power cut."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def cut_run(open_stage: Open) -> tuple[toy.Outcome, Path]:
    """Return an undisturbed run, and the checkpoints of one that was killed."""
    whole = toy.train(open_stage(VARIANT="whole"), toy.ToyTask())
    stage = open_stage()
    with pytest.raises(SystemError):
        toy.train(stage, toy.ToyTask({DIES_AT: toy.die}))
    names = [path.name for path in checkpoints.list_checkpoints(stage.checkpoints)]
    assert names == ["step-00000003", "step-00000006"]
    return whole, stage.checkpoints


class Hostile:
    """Unpickles into a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def plant(checkpoint: Path) -> None:
    """Put a pickle that writes a file where the optimizer's state was; the manifest fits."""
    path = checkpoint / checkpoints.OPTIMIZER
    path.write_bytes(pickle.dumps({"optimizer": Hostile(checkpoint.parent.parent / "executed")}))
    toy.rewrite_manifest(checkpoint)


def plant_in_archive(checkpoint: Path) -> None:
    """Likewise, in the archive format that torch writes today."""
    hostile = Hostile(checkpoint.parent.parent / "executed")
    torch.save({"optimizer": hostile}, checkpoint / checkpoints.OPTIMIZER)
    toy.rewrite_manifest(checkpoint)


def widen(checkpoint: Path) -> None:
    """Put the weights of a wider model there; the manifest fits."""
    weights = {name: one.clone() for name, one in toy.Toy(16).state_dict().items()}
    save_file(weights, checkpoint / checkpoints.MODEL)
    toy.rewrite_manifest(checkpoint)


def other_optimizer(checkpoint: Path) -> None:
    """Put the state of a wider model's optimizer there; the manifest fits."""
    path = checkpoint / checkpoints.OPTIMIZER
    state = torch.load(path, weights_only=True)
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"] = torch.zeros(3, 5)
    torch.save(state, path)
    toy.rewrite_manifest(checkpoint)


def other_format(checkpoint: Path) -> None:
    """Let the progress be that of another version; the manifest fits."""
    (checkpoint / checkpoints.PROGRESS).write_text('{"stride": 6}', encoding="utf-8")
    toy.rewrite_manifest(checkpoint)


def empty_manifest(checkpoint: Path) -> None:
    """Let the manifest vouch for nothing."""
    text = '{"step": 6, "files": {}}'
    (checkpoint / checkpoints.MANIFEST).write_text(text, encoding="utf-8")


DAMAGES = {
    "manifest missing": (
        lambda one: (one / checkpoints.MANIFEST).unlink(),
        "manifest.json is missing",
    ),
    "manifest cut in half": (
        lambda one: toy.cut(one / checkpoints.MANIFEST),
        "manifest.json can't be read",
    ),
    "manifest that names no files": (empty_manifest, "manifest.json is not that of this folder"),
    "weights truncated": (lambda one: toy.cut(one / checkpoints.MODEL), "bytes, not"),
    "bit flipped in the weights": (
        lambda one: toy.flip(one / checkpoints.MODEL),
        "model.safetensors has changed",
    ),
    "bit flipped in the optimizer's state": (
        lambda one: toy.flip(one / checkpoints.OPTIMIZER),
        "optimizer.pt has changed",
    ),
    "optimizer's state missing": (
        lambda one: (one / checkpoints.OPTIMIZER).unlink(),
        "optimizer.pt is missing",
    ),
    "NaN in a checkpoint's weights": (
        toy.spoil_weights,
        "model.safetensors: out.weight is not finite",
    ),
    "infinity in the optimizer's state": (toy.spoil_moments, "exp_avg is not finite"),
    "checkpoint of another architecture": (widen, "does not fit the model"),
    "optimizer's state of another architecture": (other_optimizer, "does not fit this run"),
    "progress of another version": (other_format, "does not fit this run"),
    "older checkpoint under a newer name": (toy.copy_old, "is not that of this folder"),
    "pickle that runs code as optimizer's state": (plant, "optimizer.pt can't be read"),
    "archive that runs code as optimizer's state": (plant_in_archive, "optimizer.pt can't be read"),
}


@pytest.mark.parametrize("fault", DAMAGES)
def test_damaged_checkpoint(
    cut_run: tuple[toy.Outcome, Path],
    open_stage: Open,
    survived: Survived,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    """It is named with its reason; the one before it leads to the end of an undisturbed run."""
    whole, folder = cut_run
    damage, reason = DAMAGES[fault]
    newest = checkpoints.list_checkpoints(folder)[-1]
    damage(newest)
    outcome = toy.train(open_stage(), toy.ToyTask())
    said = capsys.readouterr().out
    assert f"{newest} is damaged and passed over: " in said
    assert reason in said
    assert f"going on from {folder / 'step-00000003'}" in said
    whole.check_equal(outcome)
    assert not (folder.parent / "executed").exists()
    assert not checkpoints.damage(newest) or not newest.exists()
    survived(
        fault,
        STAGE,
        "the checkpoint before it; same weights",
        "work since the checkpoint",
        exit_code=0,
    )


def test_all_damaged(
    cut_run: tuple[toy.Outcome, Path], open_stage: Open, survived: Survived
) -> None:
    """Where no checkpoint is whole, the run refuses: it does not begin again in silence."""
    _, folder = cut_run
    before = storage.digest_folder(folder)
    found = checkpoints.list_checkpoints(folder)
    toy.flip(found[0] / checkpoints.MODEL)
    toy.cut(found[1] / checkpoints.OPTIMIZER)
    damaged = storage.digest_folder(folder)
    assert damaged != before
    with pytest.raises(UserError, match=r"none of the checkpoints in .* and --overwrite"):
        toy.train(open_stage(), toy.ToyTask())
    assert storage.digest_folder(folder) == damaged  # still there, to be mended
    survived("all checkpoints damaged", STAGE, "the checkpoints, as they are")


def test_leftovers(cut_run: tuple[toy.Outcome, Path], open_stage: Open, survived: Survived) -> None:
    """Half a checkpoint that a kill left is cleared away, one between two names gets its own."""
    whole, folder = cut_run
    (folder / "step-00000009.partial").mkdir()
    (folder / "step-00000009.partial" / checkpoints.MODEL).write_bytes(b"half")
    (folder / "step-00000006").rename(folder / "step-00000006.old")
    (folder / "best").rename(folder / "best.old")
    task = toy.ToyTask()
    whole.check_equal(toy.train(open_stage(), task))
    assert task.calls < 2 * toy.BATCHES  # from step 6, not from 3
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in whole.folder.iterdir()
    )
    survived("killed while writing a checkpoint", STAGE, "the one before it", exit_code=0)
    survived("killed between a checkpoint's renames", STAGE, "that checkpoint", exit_code=0)


def test_half_a_line(
    cut_run: tuple[toy.Outcome, Path], open_stage: Open, survived: Survived
) -> None:
    """Lines of steps that are done again, and half a line, leave metrics.jsonl."""
    whole, folder = cut_run
    with (folder.parent / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 9, "loss": 0.\n')
    whole.check_equal(toy.train(open_stage(), toy.ToyTask()))
    survived("metrics.jsonl with half a line", STAGE, "every whole line, once", exit_code=0)


@pytest.mark.parametrize("steps", [2, 6])
def test_best_damaged(
    open_stage: Open,
    survived: Survived,
    capsys: pytest.CaptureFixture[str],
    steps: int,
) -> None:
    """A damaged best model is never loaded: the same step's checkpoint is, or the run refuses."""
    figures = [{"held_out": float(step == steps)} for step in range(0, 15, 2)]
    last = steps + 3 if steps == 2 else steps + 1
    plan = replace(toy.PLAN, max_steps=last, evaluate_every=2)
    stage = open_stage()
    save = loop.save_checkpoint

    def save_and_damage(*arguments: Any) -> None:  # noqa: ANN401  passed on as they come
        save(*arguments)
        if arguments[-1].step == last:
            toy.flip(stage.checkpoints / "best" / checkpoints.MODEL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_damage)
        if steps == 6:  # a checkpoint stands at 6
            outcome = toy.train(stage, toy.ToyTask(figures=figures), plan)
            stored = toy.load_file(stage.checkpoints / "step-00000006" / checkpoints.MODEL)
            assert all(torch.equal(outcome.weights[name], stored[name]) for name in stored)
        else:  # 3 and 5
            with pytest.raises(UserError, match=r"best model, that of step 2, is lost .*overwrite"):
                toy.train(stage, toy.ToyTask(figures=figures), plan)
    assert "best is damaged and passed over: model.safetensors has changed" in (
        capsys.readouterr().out
    )
    assert not stage.finished
    if steps == 6:
        fault, kept = "best model damaged, its step's checkpoint whole", "the best weights"
        survived(fault, STAGE, kept, exit_code=0)
    else:
        survived("best model damaged", STAGE, "the last step's checkpoint")


def test_whole_checkpoints_are_read_once(open_stage: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that nobody has touched since are not hashed again at each of the next checkpoints."""
    checked: list[str] = []
    damage = checkpoints.damage
    monkeypatch.setattr(
        checkpoints, "damage", lambda path: checked.append(path.name) or damage(path)
    )
    toy.train(open_stage(), toy.ToyTask())
    steps = [name for name in checked if name != "best"]
    assert sorted(steps) == [f"step-{step:08d}" for step in (3, 6, 9, 12, 15)]


def test_retention_keeps_whole_ones(
    cut_run: tuple[toy.Outcome, Path], open_stage: Open, survived: Survived
) -> None:
    """A damaged checkpoint does not push a whole one out; neither of the newest two is removed."""
    _, folder = cut_run
    task = toy.ToyTask()
    optimizer = loop.make_optimizer("stable_adamw", task.model, learning_rate=0.1, weight_decay=0.1)
    progress = checkpoints.resume(folder, task.model, optimizer)
    assert progress.step == 6
    toy.flip(folder / "step-00000006" / checkpoints.MODEL)
    progress.step = 7
    checkpoints.save_checkpoint(folder, task.model, optimizer, progress)
    names = [path.name for path in checkpoints.list_checkpoints(folder)]
    assert names == ["step-00000003", "step-00000007"]
    progress.step = 8
    checkpoints.save_checkpoint(folder, task.model, optimizer, progress)
    names = [path.name for path in checkpoints.list_checkpoints(folder)]
    assert names == ["step-00000007", "step-00000008"]
    assert (folder / "best").is_dir()
    survived("checkpoint damaged before the next is written", STAGE, "the whole ones", exit_code=0)


def test_no_room(
    cut_run: tuple[toy.Outcome, Path],
    open_stage: Open,
    survived: Survived,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint that would not fit is not begun; with room again, the run goes on."""
    whole, folder = cut_run
    before = storage.digest_folder(folder)
    usage = storage.shutil.disk_usage(folder)._replace(free=1_000)
    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match="are free there"):
            toy.train(open_stage(), toy.ToyTask())
    assert storage.digest_folder(folder) == before
    whole.check_equal(toy.train(open_stage(), toy.ToyTask()))
    survived(
        "no room for the next checkpoint", STAGE, "the checkpoints", "work since the checkpoint"
    )
