"""A run that is cut anywhere ends as one that was not; one that goes wrong stops and says where."""

import json
import math
import random
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from unittest.mock import Mock

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
    open_stage: Open,
    survived: Survived,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    factor: float,
) -> None:
    """The step's gradient is not used, its batch and rows are named, and the run goes on."""
    stage = open_stage()
    task = toy.ToyTask({13: toy.times(factor)})
    rows = ", ".join(str(int(row)) for row in task.epoch(1)[4])
    outcome = toy.train(stage, task)
    assert (
        f"step 8: the loss is {factor}, epoch 1, batch 4 (rows {rows})" in capsys.readouterr().out
    )
    assert outcome.progress.step == outcome.progress.planned
    assert stage.record.skipped_steps == [8]
    assert [line["step"] for line in outcome.metrics if "skipped" in line] == [8]
    assert all(torch.isfinite(one).all() for one in outcome.weights.values())
    survived(fault, STAGE, "all but that step", exit_code=0)


def steep(loss: torch.Tensor) -> torch.Tensor:
    """Return a finite loss with an infinite gradient: the root's slope at 0."""
    return loss + (loss - loss.detach()).abs().sqrt()


def test_gradient_that_is_not_finite(
    open_stage: Open, survived: Survived, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finite loss with an infinite gradient is not used either; the step's batches are named."""
    stage = open_stage()
    outcome = toy.train(stage, toy.ToyTask({4: steep}))
    said = capsys.readouterr().out
    assert "step 3: the gradient's norm is " in said
    assert "batch 4 (rows" in said and "; batch 5 (rows" in said
    assert stage.record.skipped_steps == [3]
    assert all(torch.isfinite(one).all() for one in outcome.weights.values())
    survived("gradient is not finite", STAGE, "all but that step", exit_code=0)


@pytest.mark.parametrize("fault", [toy.times(math.nan), steep])
def test_never_finite_again(open_stage: Open, survived: Survived, fault: Callable) -> None:
    """After as many such steps in a row as may be, the run stops; its weights are clean."""
    stage = open_stage()
    task = toy.ToyTask(dict.fromkeys(range(6, 40), fault))
    with pytest.raises(UserError) as stopped:
        toy.train(stage, task)
    text = str(stopped.value)
    step = 4 + guards.MOST_SKIPPED  # the first one is the fourth
    assert text.startswith(f"step {step}: the ")
    assert f"{guards.MOST_SKIPPED} steps before it were skipped" in text
    assert "LEARNING_RATE" in text and "--overwrite" in text
    assert text.endswith(f"The last checkpoint is {stage.checkpoints / 'step-00000006'}")
    assert all(torch.isfinite(one).all() for one in task.model.parameters())
    assert json.loads((stage.folder / "run.json").read_text())["status"] == "failed"
    survived("never finite again", STAGE, "the last checkpoint, named; clean weights")


def spike(first: int, steps: int) -> dict[int, Callable]:
    """Return losses that are far too high from a call on."""
    return {first + number: toy.times(1e3) for number in range(steps)}


def test_spike_is_passed_over(
    open_stage: Open, survived: Survived, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the third high step in a row on no gradient is used, until the losses are ordinary."""
    stage = open_stage()
    outcome = toy.train(stage, toy.ToyTask(spike(90, 6), batches=BATCHES), LONG)  # steps 91 to 96
    assert "step 93: the loss has spiked: " in capsys.readouterr().out
    assert stage.record.skipped_steps == outcome.progress.skipped == [93, 94, 95, 96]
    steps = [line for line in outcome.metrics if "batches" in line]
    assert [line["step"] for line in steps] == list(range(1, BATCHES + 1))
    assert outcome.metrics[-1]["held_out"] > outcome.metrics[0]["held_out"]
    survived("loss spike", STAGE, "all but the steps from its third on", exit_code=0)


def test_two_high_steps_are_trained_on(open_stage: Open) -> None:
    """Two bad batches are no spike: clipping holds them."""
    outcome = toy.train(open_stage(), toy.ToyTask(spike(90, 2), batches=BATCHES), LONG)
    assert outcome.progress.skipped == []


@pytest.mark.parametrize("asked", [92, 94])
def test_interrupted_in_a_spike(open_stage: Open, survived: Survived, asked: int) -> None:
    """Interrupted in a spike, a run remembers it, and ends as it would have."""
    high = spike(90, 6)
    whole = toy.train(open_stage(VARIANT="whole"), toy.ToyTask(high, batches=BATCHES), LONG)

    def high_and_asked(loss: torch.Tensor) -> torch.Tensor:
        return ask_to_stop(1e3 * loss)

    with pytest.raises(signals.Interrupted), signals.handled():
        task = toy.ToyTask({**high, asked - 1: high_and_asked}, batches=BATCHES)
        toy.train(open_stage(), task, LONG)
    left = {call - asked: change for call, change in high.items() if call >= asked}
    outcome = toy.train(open_stage(), toy.ToyTask(left, batches=BATCHES), LONG)
    whole.check_equal(outcome)
    survived("SIGTERM in a loss spike", STAGE, "every whole step", exit_code=0)


def test_spike_without_end(open_stage: Open, survived: Survived) -> None:
    """A run that has diverged stops, with the step, the cure and the last checkpoint."""
    stage = open_stage()
    task = toy.ToyTask(spike(90, 100), batches=180)
    with pytest.raises(UserError, match=r"step 98: the loss has spiked: .* lower LEARNING_RATE"):
        toy.train(stage, task, LONG)
    newest = checkpoints.list_checkpoints(stage.checkpoints)[-1]
    assert not checkpoints.damage(newest)
    assert newest.name == "step-00000080"
    survived("loss spike without end", STAGE, "the checkpoint before it")


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
        loop.finish(stage, progress, "held_out", Mock())
    assert not stage.final.exists()
    survived("finish is called after too few steps", STAGE, "the checkpoints")


def test_another_number_of_steps(open_stage: Open, survived: Survived) -> None:
    """Checkpoints of a run of another length (its batches were planned otherwise) are refused."""
    with pytest.raises(SystemError):
        toy.train(open_stage(), toy.ToyTask({14: toy.die}))
    with pytest.raises(UserError, match=r"of a run of 15 steps, and this one has 18"):
        toy.train(open_stage(), toy.ToyTask(batches=11))
    survived("checkpoints of a run of another length", STAGE, "the checkpoints")
