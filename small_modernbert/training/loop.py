"""The training loop: any task, exact resume, checkpoints that verify, the best model kept.

Where a step stands is a pure function of (seed, epoch, position): batches are planned per epoch,
masks come from the task's own keys, and there is no dropout. So a run that was killed goes on at
its newest checkpoint and ends with the weights of a run that was not.
"""

import contextlib
import dataclasses
import io
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import nn

from small_modernbert.runs import processes, report, signals, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage
from small_modernbert.training import checkpoints, guards
from small_modernbert.training.checkpoints import save_checkpoint
from small_modernbert.training.data_parallel import Gradients, Objective
from small_modernbert.training.schedule import (
    OPTIONAL,
    Plan,
    Progress,
    step_sizes,
    warmup_stable_decay,
)

if TYPE_CHECKING:
    from small_modernbert.models.students import Student

logger = logging.getLogger(__name__)


class Task(Objective, Protocol):
    """What a stage trains: its objective and batches, and its held-out measure.

    One that fetches ahead has a `close()`, which is called when the last step is made.
    """

    def epoch(self, epoch: int) -> Sequence[Any]:
        """Return the batches of one epoch; equal arguments give equal batches."""

    def evaluate(self) -> dict[str, float]:
        """Return held-out figures of the model as it stands."""


def make_optimizer(
    name: Literal["stable_adamw", "adamw"],
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.98),
    epsilon: float = 1e-6,
) -> torch.optim.Optimizer:
    """Build the optimizer: matrices decay; norms, biases and the embedding table do not.

    StableAdamW (Wortsman et al., arXiv 2304.13013) clips each tensor's update by its own RMS; it
    is torch-optimi's.
    """
    matrices, rest = [], []
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 and "embeddings" not in parameter_name
        (matrices if decays else rest).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
    from optimi import StableAdamW

    return StableAdamW(groups, lr=learning_rate, betas=betas, eps=epsilon)


def prepare(
    constants: Mapping[str, Any],
    model: nn.Module,
    **fields: Any,  # noqa: ANN401  numbers and names
) -> tuple[torch.optim.Optimizer, Plan]:
    """Build the optimizer and the plan of a script from its constants.

    Args:
        constants: the script's globals; a field of the plan is the constant of its name in
            capitals.
        model: to be trained.
        fields: of the plan, in place of constants.

    Raises:
        UserError: no run can be made of these constants; see `Plan`.
        TypeError: the script lacks a constant that a run needs.
    """
    names = {field.name: field.name.upper() for field in dataclasses.fields(Plan)}
    needed = {high for name, high in names.items() if name not in OPTIONAL | fields.keys()}
    if missing := sorted((needed | {"OPTIMIZER", "WEIGHT_DECAY"}) - constants.keys()):
        raise TypeError(f"{constants.get('__file__')} lacks the constants {', '.join(missing)}")
    plan = {name: constants[high] for name, high in names.items() if high in constants}
    optimizer = make_optimizer(
        constants["OPTIMIZER"],
        model,
        learning_rate=constants["LEARNING_RATE"],
        weight_decay=constants["WEIGHT_DECAY"],
    )
    return optimizer, Plan(**plan | fields)


def train(
    task: Task,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    stage: Stage,
    measure_before: Callable[[], dict[str, float]] | None = None,
) -> Progress:
    """Train to the end of the plan, or go on from the newest checkpoint that is whole.

    Afterwards the task's model holds the best weights by `plan.select_by` (or the last ones), and
    `progress.before` / `progress.latest` the evaluation before the first step and of those weights.
    Under torchrun all ranks train, and only the leader returns; see `processes`.

    Args:
        task: what is trained.
        optimizer: of its model.
        plan: steps, rates, evaluations.
        stage: that trains.
        measure_before: gives `progress.before` in place of the first evaluation, where the model
            came in with other prompts, say, than it is trained behind.

    Raises:
        UserError: there is nothing to train on, the loss has spiked or is not finite for too many
            steps, the embeddings have collapsed, no checkpoint can be trusted, or another process
            of the run has ended; where it stands is saved.
        Interrupted: a signal came; where the run stands is saved.
    """
    run = _Run(task, optimizer, plan, stage, _plan_steps(task, plan))
    before = None
    if measure_before is not None and not processes.rank():
        before = measure_before()  # now, since a resumed run has other weights later
    processes.release(work=True)
    _tell_processes(plan.accumulate)
    with processes.in_step(), _saved_if_cut(run), contextlib.closing(run):
        run.resume()
        run.to_the_end()
    if processes.rank():
        sys.exit(0)  # what a script does after its training is the leader's
    run.take_best()
    progress = run.progress
    progress.before = before or progress.before
    stage.record.tokens = progress.tokens
    stage.record.tokens_per_second = round(progress.tokens / max(progress.seconds, 1e-9))
    stage.record.steps = progress.step
    stage.record.skipped_steps = progress.skipped
    return progress


@contextlib.contextmanager
def _saved_if_cut(run: "_Run") -> Iterator[None]:
    """Save where a run stands if a signal, or the end of another process, ends it."""
    try:
        yield
    except signals.Interrupted:
        run.save()
        raise
    except processes.Lost as error:
        # Now: torchrun's own signal, which follows, may come before the error is told.
        logger.warning("%s; where this one stands is being saved", error)
        run.save()
        raise processes.Lost(
            f"{error}: its own words, or torchrun's, say why. "
            f"{guards.last_checkpoint(run.stage.checkpoints)}; the same command goes on from it, "
            "with as many processes as you like (torchrun --max-restarts 3 does so by itself)"
        ) from error


def _tell_processes(batches: int) -> None:
    """Say how many processes share the `batches` of a step, and how many of them for nothing."""
    world = processes.world()
    if world > 1:
        logger.info("%d processes share each step's batches", world)
    if world > batches:
        logger.warning(
            "%d of %d processes have nothing to do: a step has %d batches (ACCUMULATE)",
            *(world - batches, world, batches),
        )


def finish(stage: Stage, progress: Progress, figure: str, student: "Student") -> None:
    """Record the figures before and after, write the card, publish, print the closing line.

    Args:
        stage: whose folder holds the saved student.
        progress: from `train`.
        figure: that the closing line tells.
        student: what was trained.

    Raises:
        UserError: the training has not made all of its steps.
    """
    guards.check_complete(progress)
    stage.record.metrics = {
        "before": progress.before,
        "after": progress.latest,
        "best_step": progress.best_step,
    }
    student.write_card(stage)
    before, after = progress.before.get(figure), progress.latest.get(figure)
    change = f"{figure} {before:.4f} -> {after:.4f}" if before is not None else "trained"
    stage.finish(
        f"{change} in {progress.step:,} steps, {stage.record.tokens_per_second:,} tokens/s",
        student.check_reload,
    )


def _plan_steps(task: Task, plan: Plan) -> list[int]:
    batches = [len(task.epoch(epoch)) for epoch in range(plan.epochs)]
    sizes = step_sizes(batches, plan.accumulate, plan.accumulate_warmup)
    if not sizes:
        raise UserError(
            "there is nothing to train on: no batch in any epoch; give more texts, or smaller "
            "batches: --rows-per-batch (of mlm/pre_train.py: --sequences-per-batch)"
        )
    return sizes[: plan.max_steps] if plan.max_steps else sizes


@dataclass
class _Run:
    """A run as it stands: every method leaves it where it could be saved, or raises.

    Attributes:
        sizes: batches of each step.
        saved: step, and step of its last evaluation, of the newest checkpoint.
        gradients: of a step, from this process or from several.
    """

    task: Task
    optimizer: torch.optim.Optimizer
    plan: Plan
    stage: Stage
    sizes: Sequence[int]
    progress: Progress = field(default_factory=Progress)
    saved: tuple[int, int] = (0, -1)
    gradients: Gradients = field(init=False)

    def resume(self) -> None:
        """Take up the newest checkpoint that is whole, or begin; all ranks as the leader does."""
        stored, state = processes.from_leader((None, b"") if processes.rank() else self._read())
        if processes.rank() and stored is not None:
            state = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(state)
        self.gradients = Gradients(self.task)
        if stored is None:
            self.progress = Progress(planned=len(self.sizes))
            self._pass_empty_epochs()
            return
        self.progress, self.saved = stored, (stored.step, stored.evaluated)

    def _read(self) -> tuple[Progress | None, bytes]:
        """Load the newest checkpoint, if there is any; return what other ranks need to go on."""
        stage, total, state = self.stage, len(self.sizes), io.BytesIO()
        stored = checkpoints.resume(stage.checkpoints, self.task.model, self.optimizer)
        if stored is None:
            storage.remove(stage.folder / "metrics.jsonl")
            return None, b""
        if stored.planned != total:
            raise UserError(
                f"the checkpoints in {stage.checkpoints} are of a run of {stored.planned:,} steps, "
                f"and this one has {total:,}; redo with the same command and --overwrite"
            )
        best = checkpoints.read_best(stage.checkpoints, self.plan.select_by)
        if best is not None and best[0] > stored.step:
            # A kill fell between that evaluation and the next checkpoint; the one before is gone.
            stored.best_step, stored.best = best
        _forget_after(stage.folder / "metrics.jsonl", stored)
        if processes.world() > 1:
            torch.save(self.optimizer.state_dict(), state)
        return stored, state.getvalue()

    def close(self) -> None:
        """Let go of the other processes, and of what the task fetches ahead."""
        if "gradients" in vars(self):
            self.gradients.close()
        getattr(self.task, "close", lambda: None)()

    def to_the_end(self) -> None:
        """Make the steps that are left, with the evaluations and checkpoints between them."""
        plan, total = self.plan, len(self.sizes)
        bar = report.progress(
            description="training", total=total, initial=self.progress.step, unit="steps"
        )

        def is_due(every: int) -> bool:
            step = self.progress.step
            return step in (0, total) or bool(every and step % every == 0)

        with bar:
            while True:
                if is_due(plan.evaluate_every) and self.progress.evaluated < self.progress.step:
                    self.evaluate()
                with signals.deferred():
                    if is_due(plan.checkpoint_every):
                        self.save()
                if self.progress.step == total:
                    return
                with signals.deferred():
                    self.step()
                if self.progress.loss is not None:  # as it is while the first steps are skipped
                    bar.set_postfix(loss=f"{self.progress.loss:.4f}", refresh=False)
                bar.update(self.progress.step - bar.n)

    def take_best(self) -> None:
        """Give the model its best weights, and `progress.latest` their figures."""
        progress, task = self.progress, self.task
        guards.check_complete(progress)
        if progress.best is not None and progress.best_step != progress.step:
            checkpoints.load_best(self.stage.checkpoints, task.model, progress)
            # The weights of step 0 were measured before the first step.
            progress.latest = task.evaluate() if progress.best_step else progress.before
            logger.info("the best model is that of step %s", f"{progress.best_step:,}")

    def step(self) -> None:
        """Make one step; the weights stay as they are where a guard forbids its gradient."""
        begin = time.perf_counter()
        progress, batches = self.progress, self._batches()
        rate = self._set_rate()
        self.optimizer.zero_grad(set_to_none=True)
        with _undone_if_cut():
            losses, tokens = self.gradients.add_up(batches)
        parameters = self.task.model.parameters()
        norm = float(nn.utils.clip_grad_norm_(parameters, self.plan.clip or math.inf))
        loss = sum(losses)
        facts = {"loss": loss, "gradient_norm": norm, "learning_rate": rate, "tokens": tokens}
        if reason := guards.why_skip(progress, losses, norm):
            guards.check_skipped(progress, reason, losses, batches, self.stage.checkpoints)
            progress.skipped.append(progress.step + 1)
            facts = {"skipped": reason}
        else:
            self.optimizer.step()
            progress.tokens += tokens
            progress.loss = loss if progress.loss is None else 0.95 * progress.loss + 0.05 * loss
        self.optimizer.zero_grad(set_to_none=True)  # evaluations may need the memory
        self._advance(len(batches))
        seconds = time.perf_counter() - begin
        progress.seconds += seconds
        self.stage.write_metrics(
            step=progress.step, **facts, batches=len(batches), seconds=round(seconds, 4)
        )

    def _batches(self) -> Sequence[Any]:
        """Return the batches of the next step."""
        begin = self.progress.position
        batches = self.task.epoch(self.progress.epoch)
        return batches[begin : begin + self.sizes[self.progress.step]]

    def _set_rate(self) -> float:
        """Give the optimizer the next step's learning rate, and return it."""
        plan = self.plan
        rate = plan.learning_rate * warmup_stable_decay(
            self.progress.step, len(self.sizes), plan.warmup, plan.decay, plan.decay_shape
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _advance(self, batches: int) -> None:
        progress = self.progress
        progress.position += batches
        progress.step += 1
        self._pass_empty_epochs()

    def _pass_empty_epochs(self) -> None:
        """Go to the epoch that the next step is of; one without a batch has no step."""
        progress = self.progress
        while progress.step < len(self.sizes) and progress.position >= len(
            self.task.epoch(progress.epoch)
        ):
            progress.epoch, progress.position = progress.epoch + 1, 0

    def evaluate(self) -> None:
        """Measure the model, note the figures, and keep the weights if they are the best."""
        plan, progress, begin = self.plan, self.progress, time.perf_counter()
        with _undone_if_cut(), processes.sharing():
            figures = processes.from_leader(self.task.evaluate())
        seconds = time.perf_counter() - begin
        with signals.deferred():
            if plan.select_by and plan.select_by not in figures:
                raise UserError(
                    f"SELECT_BY is {plan.select_by!r}, but the evaluation gives: "
                    f"{', '.join(figures) or 'nothing, for there is nothing to measure on'}; "
                    f"name one of these: --select-by {next(iter(figures), repr(''))}"
                )
            self.stage.write_metrics(step=progress.step, **figures)
            text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            epoch = progress.epoch + progress.position / max(
                len(self.task.epoch(progress.epoch)), 1
            )
            logger.info(
                "step %s, epoch %.2f: %s (%.1f s)", f"{progress.step:,}", epoch, text, seconds
            )
            if progress.step:
                guards.check_collapse(progress, figures)
            else:
                progress.before = figures
            progress.latest, progress.evaluated = figures, progress.step
            if not plan.select_by:
                return
            value = figures[plan.select_by]
            if not math.isfinite(value):
                logger.warning("%s is %s: these weights are not chosen", plan.select_by, value)
            elif progress.best is None or (
                value < progress.best if plan.lower_is_better else value > progress.best
            ):
                progress.best, progress.best_step = value, progress.step
                if processes.rank():
                    return
                checkpoints.save_best(
                    self.stage.checkpoints, self.task.model, progress.step, plan.select_by, value
                )

    def save(self) -> None:
        """Write a checkpoint, as the leader, unless there is nothing new to save."""
        stands = (self.progress.step, self.progress.evaluated)
        if self.progress.step and stands != self.saved and not processes.rank():
            save_checkpoint(self.stage.checkpoints, self.task.model, self.optimizer, self.progress)
            self.saved = stands


@contextlib.contextmanager
def _undone_if_cut() -> Iterator[None]:
    """Put the random numbers back that half a step, or half an evaluation, has drawn."""
    before = checkpoints.random_state()
    try:
        yield
    except (signals.Interrupted, processes.Lost):
        checkpoints.set_random_state(before)
        raise


def _forget_after(path: Path, progress: Progress) -> None:
    """Drop the lines of what will be done again, and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            # A signal may have come between a step and its evaluation.
            done = progress.step if "batches" in values else progress.evaluated
            if values["step"] <= done:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    storage.write_text(path, "".join(kept))
