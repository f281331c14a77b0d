"""Promises of loop.py: exact resume, the best model kept, a schedule that is its formula."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage
from small_modernbert.training import checkpoints, loop
from small_modernbert.training.loop import Plan, Progress

Open = Callable[..., Stage]
PLAN = Plan(
    epochs=3,
    learning_rate=0.05,
    accumulate=2,
    warmup=0.25,
    decay=0.3,
    evaluate_every=2,
    checkpoint_every=3,
    select_by="held_out",
)
BATCHES, STEPS = 7, 12  # a step of one batch ends each epoch: ceil(7 / 2) * 3


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip flushing: a test's checkpoints need not survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Toy(nn.Module):
    """An embedding table, a norm and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tok_embeddings = nn.Embedding(20, 8)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 4, bias=True)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


class ToyTask:
    """Regression on random targets; batches of 1 to 4 rows, another order in each epoch."""

    def __init__(self, calls: int | None = None, held_out: list[float] | None = None) -> None:
        self.model = Toy()
        self.calls = calls  # the call of loss() that dies, from 0
        self.held_out = held_out  # scripted figures instead of measured ones
        self.evaluations = 0

    def epoch(self, epoch: int) -> list[torch.Tensor]:
        """Return seven batches."""
        generator = torch.Generator().manual_seed(100 + epoch)
        rows = torch.randperm(20, generator=generator)
        return list(rows.split([4, 3, 4, 1, 4, 2, 2]))

    def weight(self, batch: torch.Tensor) -> float:
        """Return the rows."""
        return float(len(batch))

    def mean_loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean squared distance from targets that are a function of the row."""
        target = torch.sin(rows[:, None] * torch.arange(1, 5))
        found = self.model.out(self.model.norm(self.model.tok_embeddings(rows)))
        return (found - target).square().sum(dim=1).mean()

    def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return the loss, or die at the scripted call."""
        if self.calls is not None:
            if self.calls == 0:
                raise KeyboardInterrupt
            self.calls -= 1
        return self.mean_loss(batch), 10 * len(batch)

    def evaluate(self) -> dict[str, float]:
        """Return the negative loss over all rows, or the next scripted figure."""
        self.evaluations += 1
        if self.held_out is not None:
            return {"held_out": self.held_out[self.evaluations - 1]}
        with torch.no_grad():
            return {"held_out": -float(self.mean_loss(torch.arange(20)))}


def optimise(task: ToyTask, name: str = "stable_adamw") -> torch.optim.Optimizer:
    """Return an optimizer with a rate of its own for the embeddings."""
    return loop.make_optimizer(name, task.model, learning_rate=0.05, weight_decay=0.1)


def run(
    open_stage: Open, task: ToyTask, plan: Plan = PLAN, optimizer: str = "stable_adamw"
) -> tuple[Progress, list[dict[str, Any]], Path]:
    """Train; return the progress, the metrics without their times, and the stage's folder."""
    with open_stage() as stage:
        progress = loop.train(task, optimise(task, optimizer), plan, stage)
        return progress, read_metrics(stage.folder), stage.folder


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without their times."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in lines
    ]


def die(open_stage: Open, calls: int, optimizer: str = "stable_adamw") -> Path:
    """Train until call number `calls` of the loss, then die; return the stage's folder."""
    task = ToyTask(calls)
    stage = open_stage()
    with pytest.raises(KeyboardInterrupt), stage:
        loop.train(task, optimise(task, optimizer), PLAN, stage)
    return stage.folder


def assert_equal(
    one: tuple[ToyTask, Progress, list[dict[str, Any]]],
    two: tuple[ToyTask, Progress, list[dict[str, Any]]],
) -> None:
    """Hold two runs together, bit for bit."""
    states = [task.model.state_dict() for task, _, _ in (one, two)]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name
    for name in ("step", "epoch", "position", "tokens", "loss", "best", "best_step", "before",
                 "latest"):  # fmt: skip
        assert getattr(one[1], name) == getattr(two[1], name), name
    assert one[2] == two[2]


@pytest.fixture
def uninterrupted(open_stage: Open) -> tuple[ToyTask, Progress, list[dict[str, Any]]]:
    """Return a run that nobody stopped; its folder is cleared."""
    task = ToyTask()
    with open_stage(VARIANT="whole") as stage:
        progress = loop.train(task, optimise(task), PLAN, stage)
        return task, progress, read_metrics(stage.folder)


@pytest.mark.parametrize(
    "calls",
    [
        0,  # before anything
        3,  # inside an accumulated step, before the first checkpoint
        7,  # at the end of an epoch
        8,  # inside an accumulated step, after a checkpoint
        11,  # mid-epoch
        14,  # at the end of the second epoch
        20,  # in the last step
    ],
)
def test_resume_equals_uninterrupted(
    open_stage: Open,
    uninterrupted: tuple[ToyTask, Progress, list[dict[str, Any]]],
    calls: int,
) -> None:
    """A run that died anywhere goes on with a new model and ends with the very same weights.

    So do the best step, the figures, the moving loss and the loss of each step.
    """
    folder = die(open_stage, calls)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99')  # killed while writing a line
    task = ToyTask()
    with open_stage() as stage:
        assert stage.resumed
        progress = loop.train(task, optimise(task), PLAN, stage)
        metrics = read_metrics(stage.folder)
    assert_equal((task, progress, metrics), uninterrupted)
    assert progress.step == STEPS


def test_dying_twice(
    open_stage: Open, uninterrupted: tuple[ToyTask, Progress, list[dict[str, Any]]]
) -> None:
    """Dying again after a resume changes nothing either."""
    die(open_stage, 8)
    die(open_stage, 8)
    task = ToyTask()
    progress, metrics, _ = run(open_stage, task)
    assert_equal((task, progress, metrics), uninterrupted)


def test_dying_after_the_last_step(
    open_stage: Open, uninterrupted: tuple[ToyTask, Progress, list[dict[str, Any]]]
) -> None:
    """A run that trained to the end and died before it was finished trains no step more."""
    run(open_stage, ToyTask())
    task = ToyTask(calls=0)
    progress, metrics, _ = run(open_stage, task)
    assert_equal((task, progress, metrics), uninterrupted)


@pytest.mark.parametrize(
    "damage", ["model.safetensors", "optimizer.pt", "progress.json", "manifest.json", "missing"]
)
def test_damaged_checkpoint_is_passed_over(
    open_stage: Open,
    uninterrupted: tuple[ToyTask, Progress, list[dict[str, Any]]],
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A flipped bit or a lost file costs a checkpoint, is said, and changes nothing in the end."""
    folder = die(open_stage, 15)  # eight steps done: checkpoints at 3 and 6
    found = checkpoints.list_checkpoints(folder / "checkpoints")
    assert [path.name for path in found] == ["step-00000003", "step-00000006"]
    newest = found[-1]
    assert not checkpoints.damage(newest)
    if damage == "missing":
        (newest / "optimizer.pt").unlink()
    else:
        path = newest / damage
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert checkpoints.damage(newest)
    task = ToyTask()
    progress, metrics, _ = run(open_stage, task)
    said = capsys.readouterr().out
    assert f"{newest} is damaged and passed over" in said
    assert f"going on from {found[0]}" in said
    assert_equal((task, progress, metrics), uninterrupted)


def test_two_checkpoints_are_kept(open_stage: Open) -> None:
    """The newest two stay, beside the best model."""
    folder = run(open_stage, ToyTask())[2]
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best", "step-00000009", "step-00000012"]


def test_no_checkpoints_on_the_way(open_stage: Open) -> None:
    """CHECKPOINT_EVERY = 0 keeps the last step's only."""
    folder = run(open_stage, ToyTask(), replace(PLAN, checkpoint_every=0))[2]
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best", "step-00000012"]


@pytest.mark.parametrize(("warmup", "decay"), [(0.25, 0.3), (0.0, 0.0), (0.0, 1.0), (0.1, 0.9)])
def test_schedule_is_its_formula(warmup: float, decay: float) -> None:
    """Linear warm-up, a plateau at 1, then 1 - sqrt; never 0, never above 1."""
    total = 40
    factors = [loop.warmup_stable_decay(s, total, warmup, decay) for s in range(total)]
    warm, cool = math.ceil(warmup * total), math.ceil(decay * total)
    for step, factor in enumerate(factors):
        done = step - (total - cool) + 1
        if step < warm:
            assert factor == pytest.approx((step + 1) / (warm + 1))
        elif done <= 0:
            assert factor == 1
        else:
            assert factor == pytest.approx(1 - (done / (cool + 1)) ** 0.5)
        assert 0 < factor <= 1
    assert factors[: warm + 1] == sorted(factors[: warm + 1])
    assert factors[warm:] == sorted(factors[warm:], reverse=True)


def test_linear_schedule_is_that_of_the_first_log(open_stage: Open) -> None:
    """Warm-up over a tenth, then linearly to 0: the rates of a published run of 1,563 steps.

    They were logged every 100 steps by sentence-transformers' trainer, whose rate at a step's end
    is that of the step after; so the two are a step apart at most.
    """
    logged = {1: 1.2611e-5, 2: 1.9403e-5, 3: 1.7980e-5, 8: 1.0868e-5, 13: 3.7553e-6, 15: 9.1138e-7}
    for hundreds, rate in logged.items():
        factor = loop.warmup_stable_decay(100 * hundreds - 1, 1_563, 0.1, 0.9, "linear")
        assert 2e-5 * factor == pytest.approx(rate, abs=2e-5 / 157)
    plan = replace(PLAN, warmup=0.0, decay=1.0, decay_shape="linear")
    lines = run(open_stage, ToyTask(), plan)[1]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates == pytest.approx([0.05 * (1 - step / (STEPS + 1)) for step in range(1, STEPS + 1)])


def test_each_step_takes_the_scheduled_rate(open_stage: Open) -> None:
    """The rate of each step, as written and as the groups have it, is the schedule's."""
    task = ToyTask()
    optimizer = optimise(task)
    seen = []
    step = optimizer.step
    optimizer.step = lambda: (seen.append([g["lr"] for g in optimizer.param_groups]), step())
    with open_stage() as stage:
        loop.train(task, optimizer, PLAN, stage)
        metrics = read_metrics(stage.folder)
    wanted = [0.05 * loop.warmup_stable_decay(s, STEPS, 0.25, 0.3) for s in range(STEPS)]
    assert [line["learning_rate"] for line in metrics if "loss" in line] == pytest.approx(wanted)
    for rates, rate in zip(seen, wanted, strict=True):
        assert rates == pytest.approx([rate, rate])


@pytest.mark.parametrize(
    ("lower", "held_out", "best"),
    [
        (False, [0.1, 0.2, 0.5, 0.3, 0.5, 0.2, 0.4, 0.5], 4),  # the first of equals
        (True, [0.9, 0.2, 0.5, 0.1, 0.5, 0.2, 0.4, 0.1], 6),
        (False, [0.9, 0.2, 0.5, 0.1, 0.5, 0.2, 0.4, 0.9], 0),  # never better than untrained
        (False, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 12),  # the last
        # no figure is no best one, wherever it comes
        (False, [math.nan, 0.2, 0.5, math.nan, 0.4, 0.1, math.nan, 0.5], 4),
        (True, [math.nan, 0.9, 0.5, -math.inf, 0.7, 0.8, math.nan, 0.5], 4),
    ],
)
def test_best_model_is_kept(
    open_stage: Open, lower: bool, held_out: list[float], best: int
) -> None:
    """Afterwards the model holds the weights of the best evaluation, either way round."""
    weights = {}

    class Watched(ToyTask):
        def evaluate(self) -> dict[str, float]:
            step = 2 * self.evaluations
            weights.setdefault(step, {k: v.clone() for k, v in self.model.state_dict().items()})
            return super().evaluate()

    task = Watched(held_out=held_out)
    plan = Plan(**{**vars(PLAN), "lower_is_better": lower})
    progress, _, folder = run(open_stage, task, plan)
    assert progress.best_step == best
    assert progress.before == {"held_out": held_out[0]}
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(tensor, weights[best][name]), name
    stored = json.loads((folder / "checkpoints" / "best" / "best.json").read_text())
    assert stored == {"step": best, "held_out": held_out[best // 2]}


def test_without_selection_the_last_model_is_kept(open_stage: Open) -> None:
    """SELECT_BY = "" keeps the last weights and writes no best model."""
    task, held_out = ToyTask(held_out=[0.9, 0.1]), Plan(epochs=1, learning_rate=0.05)
    progress, _, folder = run(open_stage, task, held_out)
    assert progress.best_step == 0
    assert progress.latest == {"held_out": 0.1}
    assert not (folder / "checkpoints" / "best").exists()


def test_without_a_figure_the_last_model_is_kept(open_stage: Open) -> None:
    """Where no evaluation gives a number, the run, cut or not, ends with its last weights."""
    nothing = [math.nan] * 9
    with pytest.raises(KeyboardInterrupt), open_stage() as stage:
        task = ToyTask(9, nothing)
        loop.train(task, optimise(task), PLAN, stage)
    task, plain = ToyTask(held_out=nothing), ToyTask(held_out=nothing)
    with open_stage() as stage:
        assert stage.resumed
        progress = loop.train(task, optimise(task), PLAN, stage)
        loop.finish(stage, progress, "held_out", Mock())
    assert (progress.step, progress.best) == (STEPS, None)
    with open_stage(VARIANT="plain") as stage:
        loop.train(plain, optimise(plain), replace(PLAN, select_by=""), stage)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, task.model.state_dict()[name]), name


@pytest.mark.parametrize("empty", [{0}, {1}, {2}, {0, 1}])
def test_an_epoch_without_batches_is_passed_over(open_stage: Open, empty: set[int]) -> None:
    """The batches of the other epochs are trained on, each once and in order."""

    class Gaps(ToyTask):
        def epoch(self, epoch: int) -> list[torch.Tensor]:
            return [] if epoch in empty else super().epoch(epoch)

        def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
            seen.append(batch.tolist())
            return super().loss(batch)

    seen: list[list[int]] = []
    progress = run(open_stage, Gaps())[0]
    batches = [batch for epoch in range(3) for batch in Gaps().epoch(epoch)]
    assert seen == [batch.tolist() for batch in batches]
    assert progress.step == progress.planned == 4 * (3 - len(empty))


def test_unknown_selection_names_the_figures(open_stage: Open) -> None:
    """A SELECT_BY that the evaluation does not give is refused before the first step."""
    with pytest.raises(UserError, match=r"'ndcg', but the evaluation gives: held_out"):
        run(open_stage, ToyTask(calls=0), Plan(epochs=1, learning_rate=0.05, select_by="ndcg"))


def test_accumulation_equals_one_batch(open_stage: Open) -> None:
    """Steps of two batches, uneven ones too, equal steps of one batch that holds the rows of both.

    With a clip that binds: the norm is that of the whole step.
    """

    class Merged(ToyTask):
        def epoch(self, epoch: int) -> list[torch.Tensor]:
            batches = super().epoch(epoch)
            return [torch.cat(batches[i : i + 2]) for i in range(0, len(batches), 2)]

    accumulated, merged = ToyTask(), Merged()
    plan = Plan(**{**vars(PLAN), "clip": 0.5})
    one = run(open_stage, accumulated, plan, "adamw")[1]
    with open_stage(VARIANT="merged") as stage:
        plan = Plan(**{**vars(plan), "accumulate": 1})
        loop.train(merged, optimise(merged, "adamw"), plan, stage)
        two = read_metrics(stage.folder)
    for name, tensor in accumulated.model.state_dict().items():
        torch.testing.assert_close(tensor, merged.model.state_dict()[name], atol=1e-6, rtol=1e-5)
    for mine, theirs in zip(one, two, strict=True):
        mine.pop("batches", None), theirs.pop("batches", None)
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_max_steps_shortens_the_schedule(open_stage: Open) -> None:
    """The plan ends at max_steps, and the schedule is laid over those steps."""
    plan = Plan(epochs=3, learning_rate=0.05, max_steps=4, warmup=0.0, decay=0.5)
    progress, metrics, _ = run(open_stage, ToyTask(), plan)
    assert progress.step == 4
    rates = [line["learning_rate"] for line in metrics if "loss" in line]
    assert rates == pytest.approx(
        [0.05, 0.05, 0.05 * (1 - math.sqrt(1 / 3)), 0.05 * (1 - math.sqrt(2 / 3))]
    )


@pytest.mark.parametrize("name", ["stable_adamw", "adamw"])
def test_loss_falls(open_stage: Open, name: str) -> None:
    """Both optimizers learn, and the evaluation says so."""
    plan = Plan(epochs=12, learning_rate=0.05, select_by="held_out")
    progress, metrics, _ = run(open_stage, ToyTask(), plan, name)
    assert progress.latest["held_out"] > 0.5 * progress.before["held_out"]  # both are negative
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize("name", ["stable_adamw", "adamw"])
def test_only_matrices_decay(make_student: Callable[..., nn.Module], name: str) -> None:
    """Norms, biases and the embedding table do not decay; each parameter is in one group."""
    model = make_student(masked_lm=True)
    optimizer = loop.make_optimizer(name, model, learning_rate=1e-3, weight_decay=0.01)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    seen: list[str] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            key = names[id(parameter)]
            seen.append(key)
            kept = "norm" in key or "bias" in key or "tok_embeddings" in key
            assert group["weight_decay"] == (0.0 if kept else 0.01), key
        betas = group["betas"] if name == "adamw" else (group["beta1"], group["beta2"])
        assert betas == (0.9, 0.98)
        assert group["eps"] == 1e-6
    assert sorted(seen) == sorted(names.values())


def test_nothing_to_train_on_is_a_user_error(open_stage: Open) -> None:
    """An empty corpus is refused with words, not with a division by zero."""
    task = ToyTask()
    task.epoch = lambda epoch: []
    with pytest.raises(UserError, match="nothing to train on"):
        run(open_stage, task)


def test_finish_closes_the_stage(open_stage: Open, capsys: pytest.CaptureFixture[str]) -> None:
    """The closing line has the figure before and after; the record has both, and the speed."""
    with open_stage() as stage:
        task = ToyTask(held_out=[0.25, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1, 0.5])
        progress = loop.train(task, optimise(task), PLAN, stage)
        loop.finish(stage, progress, "held_out", Mock())
    assert "held_out 0.2500 -> 0.5000 in 12 steps" in capsys.readouterr().out.splitlines()[-1]
    assert stage.record.metrics == {
        "before": {"held_out": 0.25}, "after": {"held_out": 0.5}, "best_step": 6,
    }  # fmt: skip
    assert stage.record.tokens == 3 * 20 * 10
    assert stage.record.steps == STEPS


def test_step_sizes_grow_and_lose_nothing() -> None:
    """Steps grow linearly from one batch to the full number over the share; none is lost."""
    assert loop.step_sizes([7, 7], 2, 0) == [2, 2, 2, 1, 2, 2, 2, 1]
    sizes = loop.step_sizes([400], 4, 0.5)
    assert sum(sizes) == 400
    assert sizes[0] == 1
    done = 0
    for size in sizes[:-1]:
        assert size == min(1 + int(min(done / 200, 1) * 3), 4)
        done += size
    assert {1, 2, 3, 4} == set(sizes)
    assert sum(loop.step_sizes([5, 9, 1], 3, 1.0)) == 15


def test_resume_inside_the_batch_warmup(open_stage: Open) -> None:
    """Died while the batch still grows: the run goes on with the steps of one that did not."""
    plan = replace(PLAN, accumulate=3, accumulate_warmup=0.8)
    whole, cut = ToyTask(), ToyTask(calls=9)
    with open_stage(VARIANT="whole") as stage:
        loop.train(whole, optimise(whole), plan, stage)
        wanted = [line.get("batches") for line in read_metrics(stage.folder)]
    assert {1, 2, 3} <= set(wanted)
    with pytest.raises(KeyboardInterrupt), open_stage() as stage:
        loop.train(cut, optimise(cut), plan, stage)
    task = ToyTask()
    with open_stage() as stage:
        assert stage.resumed
        loop.train(task, optimise(task), plan, stage)
        assert [line.get("batches") for line in read_metrics(stage.folder)] == wanted
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, task.model.state_dict()[name]), name
