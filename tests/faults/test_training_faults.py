"""A run that is cut anywhere ends as one that was not; one that goes wrong stops and says where."""

import json
import math
import random
import signal
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch
import toy_training as toy

from small_modernbert.runs import signals, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage
from small_modernbert.training import checkpoints, guards, loop
from small_modernbert.training.schedule import Progress

Open = Callable[..., Stage]
Survived = Callable[..., None]
STAGE = "any training stage"
LONG = replace(toy.PLAN, epochs=1, accumulate=1, evaluate_every=0, checkpoint_every=20)
BATCHES = 120  # of a long epoch


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip flushing: a test's checkpoints need not survive a power cut."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


# A step takes 2 of 9 batches, so 5 steps an epoch; checkpoints at 3, 6, 9, 12; batch by batch:
CUTS = {
    "killed before the first step": [0],
    "killed before the first checkpoint": [4],
    "killed between the batches of a step": [9],
    "killed at an epoch's edge": [9 + 9],
    "killed mid-epoch, after a checkpoint": [14],
    "killed in the last step": [26],
    "killed twice": [11, 8],
    "killed again and again": [8, 4, 7, 6],
}


@pytest.mark.parametrize(("optimizer", "warmup"), [("stable_adamw", 0.7), ("adamw", 0.0)])
@pytest.mark.parametrize("fault", CUTS)
def test_exact_resume(
    open_stage: Open, survived: Survived, fault: str, optimizer: str, warmup: float
) -> None:
    """Weights, figures, best step and the loss of each step: bit for bit, noise included."""
    plan = replace(toy.PLAN, accumulate_warmup=warmup)
    whole = toy.train(open_stage(VARIANT="whole"), toy.ToyTask(), plan, optimizer)
    for call in CUTS[fault]:
        with pytest.raises(SystemError):
            toy.train(open_stage(), toy.ToyTask({call: toy.die}), plan, optimizer)
    outcome = toy.train(open_stage(), toy.ToyTask(), plan, optimizer)
    whole.check_equal(outcome)
    assert outcome.progress.step == outcome.progress.planned
    if optimizer == "adamw":  # once
        survived(fault, STAGE, "same weights and metrics", "work since the checkpoint", exit_code=0)


def ask_to_stop(loss: torch.Tensor) -> torch.Tensor:
    """Do what a scheduler does before it kills."""
    signal.raise_signal(signal.SIGTERM)
    return loss


@pytest.mark.parametrize("call", [3, 8, 9])
def test_signal_between_batches(open_stage: Open, survived: Survived, call: int) -> None:
    """SIGTERM ends the run between two batches; the steps up to there are saved, and not redone."""
    whole = toy.train(open_stage(VARIANT="whole"), toy.ToyTask())
    stage = open_stage()
    with pytest.raises(signals.Interrupted), signals.handled():
        toy.train(stage, toy.ToyTask({call: ask_to_stop}))
    done = {3: 2, 8: 5, 9: 5}[call]  # the last batch of a step, its only one, the first of two
    newest = checkpoints.list_checkpoints(stage.checkpoints)[-1]
    assert newest.name == f"step-{done:08d}"
    task = toy.ToyTask()
    whole.check_equal(toy.train(open_stage(), task))
    assert task.calls == 3 * toy.BATCHES - {2: 4, 5: 9}[done]
    survived("SIGTERM between the batches of a step", STAGE, "every whole step", exit_code=143)


def test_signal_during_evaluation(open_stage: Open, survived: Survived) -> None:
    """SIGINT during an evaluation ends it at once; the rerun evaluates, no step is done twice."""
    whole = toy.train(open_stage(VARIANT="whole"), toy.ToyTask())
    task, stage = toy.ToyTask(), open_stage()
    evaluate = task.evaluate

    def interrupted() -> dict[str, float]:
        if task.evaluations == 2:  # at step 8
            signal.raise_signal(signal.SIGINT)
        return evaluate()

    task.evaluate = interrupted
    with pytest.raises(signals.Interrupted), signals.handled():
        toy.train(stage, task)
    assert (stage.checkpoints / "step-00000008").is_dir()
    whole.check_equal(toy.train(open_stage(), toy.ToyTask()))
    survived("SIGINT during an evaluation", STAGE, "every step", exit_code=130)


@pytest.mark.parametrize(
    ("fault", "factor"), [("loss is NaN", math.nan), ("loss is infinite", math.inf)]
)
def test_loss_that_is_not_finite(
    open_stage: Open, survived: Survived, fault: str, factor: float
) -> None:
    """The run stops before the step, with its batch, its rows, and the last checkpoint's path."""
    stage = open_stage()
    task = toy.ToyTask({13: toy.times(factor)})
    rows = ", ".join(str(int(row)) for row in task.epoch(1)[4])
    with pytest.raises(UserError) as stopped:
        toy.train(stage, task)
    text = str(stopped.value)
    assert text.startswith(f"step 8: the loss is {factor}, epoch 1, batch 4 (rows {rows}). ")
    assert text.endswith(f"The last checkpoint is {stage.checkpoints / 'step-00000006'}")
    assert "LEARNING_RATE" in text and "--overwrite" in text
    assert all(torch.isfinite(one).all() for one in task.model.parameters())
    assert json.loads((stage.folder / "run.json").read_text())["status"] == "failed"
    survived(fault, STAGE, "the last checkpoint, named; clean weights")


def test_gradient_that_is_not_finite(open_stage: Open, survived: Survived) -> None:
    """A finite loss with an infinite gradient stops the run too; the step's batches are named."""

    def steep(loss: torch.Tensor) -> torch.Tensor:
        return loss + (loss - loss.detach()).abs().sqrt()  # the root's slope at 0

    task = toy.ToyTask({4: steep})
    with pytest.raises(
        UserError, match=r"step 3: the gradient's norm is (inf|nan), epoch 0, "
    ) as e:
        toy.train(open_stage(), task)
    assert "batch 4 (rows" in str(e.value) and "; batch 5 (rows" in str(e.value)
    assert all(torch.isfinite(one).all() for one in task.model.parameters())
    assert str(e.value).endswith("There is no checkpoint yet")
    survived("gradient is not finite", STAGE, "clean weights")


def spike(first: int, steps: int = guards.SPIKE_STEPS) -> dict[int, Callable]:
    """Return losses that are far too high from a call on."""
    return {first + number: toy.times(1e3) for number in range(steps)}


def test_spike_goes_back(
    open_stage: Open, survived: Survived, capsys: pytest.CaptureFixture[str]
) -> None:
    """A spike sends the run back to before it, once; its batches are skipped, the rest are not."""
    stage = open_stage()
    # High from step 91 on, seen at 95; back to the checkpoint of step 80. 86 to 95 are skipped.
    outcome = toy.train(stage, toy.ToyTask(spike(90), batches=BATCHES), LONG)
    assert "the loss has spiked at step 95: back to step 80; steps 86 to 95 are skipped" in (
        capsys.readouterr().out
    )
    assert outcome.progress.rollbacks == 1
    assert outcome.progress.skipped == list(range(85, 95))
    steps = [line for line in outcome.metrics if "batches" in line]
    assert [line["step"] for line in steps] == list(range(1, BATCHES + 1))
    assert [line["step"] for line in steps if "skipped" in line] == list(range(86, 96))
    ordinary = [line["loss"] for line in steps if "loss" in line]
    assert max(ordinary) < 10
    assert stage.record["rollbacks"] == 1
    assert stage.record["skipped_steps"] == list(range(86, 96))
    survived(
        "loss spike",
        STAGE,
        "all but the 10 steps around it",
        "work since the checkpoint",
        exit_code=0,
    )


@pytest.mark.parametrize("asked", [None, 90])
def test_spike_between_many_checkpoints(
    open_stage: Open, survived: Survived, asked: int | None
) -> None:
    """However often checkpoints are written, one from before a spike is left when it is seen."""
    plan = replace(LONG, checkpoint_every=4)
    first = 0
    if asked:
        with pytest.raises(signals.Interrupted), signals.handled():
            toy.train(open_stage(), toy.ToyTask({asked - 1: ask_to_stop}, batches=BATCHES), plan)
        first = asked
        newest = checkpoints.list_checkpoints(open_stage().checkpoints)[-1]
        assert newest.name == f"step-{asked:08d}"
    # High from step 93 on, seen at 97: what is from step 88 on is skipped.
    stage = open_stage()
    outcome = toy.train(stage, toy.ToyTask(spike(92 - first), batches=BATCHES), plan)
    assert outcome.progress.rollbacks == 1
    assert outcome.progress.skipped == list(range(87, 97))
    # Steps 85 to 87 are made again, from the checkpoint of step 84.
    assert outcome.progress.step == BATCHES
    left = [int(path.name[-3:]) for path in checkpoints.list_checkpoints(outcome.folder)]
    assert left == [108, 112, 116, 120]
    survived(
        "loss spike soon after a signal's checkpoint" if asked else "loss spike, many checkpoints",
        STAGE,
        "a checkpoint from before it",
        "work since that",
        exit_code=0,
    )


def test_best_newer_than_the_checkpoints(open_stage: Open, survived: Survived) -> None:
    """Killed after best/ was replaced, a run takes it over, even if it is never so good again."""
    figures = [{"held_out": value} for value in (0.0, 1.0, 9.0)]
    stage = open_stage()
    with pytest.raises(SystemError):  # in step 9; evaluated at 0, 4 and 8
        toy.train(stage, toy.ToyTask({15: toy.die}, figures))
    newest = checkpoints.list_checkpoints(stage.checkpoints)[-1]
    assert json.loads((newest / checkpoints.PROGRESS).read_text())["best_step"] == 4
    best = toy.load_file(stage.checkpoints / "best" / checkpoints.MODEL)
    # The same steps on another machine may give other figures.
    again = [{"held_out": value} for value in (0.5, 0.6, 0.7, 0.8)]
    outcome = toy.train(open_stage(), toy.ToyTask(figures=again))
    assert (outcome.progress.best_step, outcome.progress.best) == (8, 9.0)
    assert all(torch.equal(outcome.weights[name], best[name]) for name in best)
    survived(
        "killed between the best evaluation and a checkpoint",
        STAGE,
        "the best weights",
        "work since the checkpoint",
        exit_code=0,
    )


def test_kill_after_a_rollback(open_stage: Open, survived: Survived) -> None:
    """Killed after it has gone back, a run remembers what it skips, and ends as it would have."""
    # 95 calls until it is seen; then calls 95 to 99 are steps 81 to 85 again.
    whole = toy.train(open_stage(VARIANT="whole"), toy.ToyTask(spike(90), batches=BATCHES), LONG)
    with pytest.raises(SystemError):
        task = toy.ToyTask({**spike(90), 97: toy.die}, batches=BATCHES)
        toy.train(open_stage(), task, LONG)
    outcome = toy.train(open_stage(), toy.ToyTask(batches=BATCHES), LONG)
    whole.check_equal(outcome)
    assert outcome.progress.rollbacks == 1
    survived(
        "killed after a rollback", STAGE, "the rollback", "work since the checkpoint", exit_code=0
    )


def test_best_from_before_a_rollback(open_stage: Open, survived: Survived) -> None:
    """A best model that was measured before the spike stays the best, weights and all."""
    figures = [{"held_out": value} for value in (0.0, 1.0, 2.0, 9.0, 3.0, 4.0)]
    task, seen = toy.ToyTask(spike(90), figures, batches=BATCHES), []
    evaluate = task.evaluate

    def watched() -> dict[str, float]:
        seen.append({name: one.clone() for name, one in task.model.state_dict().items()})
        return evaluate()

    task.evaluate = watched
    plan = replace(LONG, evaluate_every=30)
    # At 0, 30, 60 and 90; back to 80; at 90 again, of other weights, and at 120.
    outcome = toy.train(open_stage(), task, plan)
    assert (outcome.progress.rollbacks, outcome.progress.best_step) == (1, 90)
    assert outcome.progress.best == 9
    assert not all(torch.equal(one, seen[4][name]) for name, one in outcome.weights.items())
    assert all(torch.equal(one, seen[3][name]) for name, one in outcome.weights.items())
    survived("loss spike after the best evaluation", STAGE, "the best weights", exit_code=0)


def test_spikes_without_end(open_stage: Open, survived: Survived) -> None:
    """After so many rollbacks the run stops, with the step, the cure and the last checkpoint."""
    stage = open_stage()
    task = toy.ToyTask({call: toy.times(1e3) for call in range(150, 300)}, batches=180)
    with pytest.raises(UserError, match=r"spiked at step \d+, after 2 rollbacks; lower LEARNING"):
        toy.train(stage, task, LONG)
    newest = checkpoints.list_checkpoints(stage.checkpoints)[-1]
    assert not checkpoints.damage(newest)
    assert newest.name == "step-00000120"
    survived("loss spikes again and again", STAGE, "the checkpoint before the spike")


def test_spike_before_any_checkpoint(open_stage: Open, survived: Survived) -> None:
    """Without a checkpoint from before it there is nothing to go back to: the run says so."""
    task = toy.ToyTask(spike(90), batches=BATCHES)
    with pytest.raises(UserError, match=r"no checkpoint from before step 86 .*CHECKPOINT_EVERY"):
        toy.train(open_stage(), task, replace(LONG, checkpoint_every=0))
    survived("loss spike before the first checkpoint", STAGE, "nothing had been saved")


@pytest.mark.parametrize(
    "kind", ["noise", "heavy tails", "falling", "a hard source", "bad batches"]
)
def test_ordinary_losses_are_no_spike(kind: str) -> None:
    """Noise, even with heavy tails, a warm-up, a rare hard source, single bad batches: no spike."""
    draw = random.Random(0)
    losses = {
        "noise": lambda step: 1 + 0.3 * draw.gauss(0, 1),
        "heavy tails": lambda step: math.exp(draw.gauss(0, 1.5)),
        "falling": lambda step: 11 * math.exp(-step / 300) + 2 + 0.3 * draw.gauss(0, 1),
        "a hard source": lambda step: 0.1 if draw.random() < 0.97 else 3.0,
        "bad batches": lambda step: 50.0 if step % 70 < 2 else 1.0,
    }[kind]
    progress = Progress()
    assert not any(guards.is_spike(progress, abs(losses(step))) for step in range(30_000))
    assert len(json.dumps(asdict(progress))) < 3_000


def test_divergence_is_a_spike() -> None:
    """A loss that climbs and stays is seen a few steps later, wherever it began."""
    draw = random.Random(0)
    progress = Progress()
    for _ in range(1_000):
        assert not guards.is_spike(progress, 1 + 0.2 * draw.random())
    seen = [guards.is_spike(progress, 2.5 + 0.2 * step) for step in range(10)]
    assert seen.index(True) == guards.SPIKE_STEPS - 1


def collapsing(*cosines: float) -> list[dict[str, float]]:
    """Return evaluations that find these mean cosines."""
    return [{"held_out": 0.0, "mean_cosine": cosine} for cosine in cosines]


def test_collapse(open_stage: Open, survived: Survived, capsys: pytest.CaptureFixture[str]) -> None:
    """Collapsed embeddings are warned about once, and end the run at the second time in a row."""
    task = toy.ToyTask(figures=collapsing(0.4, 0.995, 0.999))
    with pytest.raises(UserError, match=r"step 8: .*mean cosine of 0.9990, .*second .*LEARNING"):
        toy.train(open_stage(), task)
    assert "step 4: the embeddings have collapsed" in capsys.readouterr().out
    survived("embeddings collapse, and stay so", STAGE, "checkpoints; nothing is called finished")


@pytest.mark.parametrize(
    ("cosines", "warned"),
    [
        ((0.4, 0.995, 0.6, 0.995, 0.6), 2),  # recovers
        ((0.999, 0.998, 0.997, 0.996, 0.9), 0),  # a random start on its way out
        ((0.1, 0.2, 0.3, 0.4, 0.5), 0),
        ((0.4, math.nan, math.nan, math.nan, 0.5), 0),  # nothing to judge by
    ],
)
def test_collapse_that_ends(
    open_stage: Open,
    survived: Survived,
    capsys: pytest.CaptureFixture[str],
    cosines: tuple[float, ...],
    warned: int,
) -> None:
    """A run that recovers, or began with a random student's alike vectors, goes on."""
    outcome = toy.train(open_stage(), toy.ToyTask(figures=collapsing(*cosines)))
    assert outcome.progress.step == outcome.progress.planned
    assert capsys.readouterr().out.count("the embeddings have collapsed") == warned
    if warned:
        survived("embeddings collapse, and recover", STAGE, "the run, warned", exit_code=0)


def test_collapse_in_the_beginning(
    open_stage: Open, survived: Survived, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the first tenth of a run, where a student may learn its teacher's mean, nothing stops."""
    task = toy.ToyTask(figures=collapsing(0.4, 0.995, 0.996, 0.5), batches=BATCHES)
    outcome = toy.train(open_stage(), task, replace(LONG, evaluate_every=4))  # at 0, 4, 8, 12
    assert outcome.progress.step == BATCHES
    said = capsys.readouterr().out
    assert said.count("the embeddings have collapsed") == said.count("the run goes on") == 2
    survived("embeddings collapse in the first steps", STAGE, "the run, warned", exit_code=0)


def test_what_stopped_early_is_not_finished(open_stage: Open, survived: Survived) -> None:
    """A stage can't be published after fewer steps than planned, whatever the script does."""
    stage = open_stage()
    with pytest.raises(SystemError):
        toy.train(stage, toy.ToyTask({14: toy.die}))
    progress = Progress(**storage.read_json(stage.checkpoints / "step-00000006/progress.json", ""))
    with open_stage() as stage, pytest.raises(UserError, match=r"after 6 of 15 steps and is not"):
        loop.finish(stage, progress, "held_out", lambda folder: None)
    assert not stage.final.exists()
    survived("finish is called after too few steps", STAGE, "the checkpoints")


def test_another_number_of_steps(open_stage: Open, survived: Survived) -> None:
    """Checkpoints of a run of another length (its batches were planned otherwise) are refused."""
    with pytest.raises(SystemError):
        toy.train(open_stage(), toy.ToyTask({14: toy.die}))
    with pytest.raises(UserError, match=r"of a run of 15 steps, and this one has 18"):
        toy.train(open_stage(), toy.ToyTask(batches=11))
    survived("checkpoints of a run of another length", STAGE, "the checkpoints")
