"""The training loop: any task, exact resume, checkpoints that verify, the best model kept.

Where a step stands is a pure function of (seed, epoch, position): batches are planned per epoch,
masks come from the task's own keys, and there is no dropout. So a run that was killed goes on at
its newest checkpoint and ends with the weights of a run that was not.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from small_modernbert import report, storage
from small_modernbert.errors import UserError
from small_modernbert.stages import Stage

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What a stage trains: its model, its batches, its loss, its held-out measure."""

    model: nn.Module

    def epoch(self, epoch: int) -> Sequence[Any]:
        """Return the batches of one epoch; equal arguments give equal batches."""

    def weight(self, batch: Any) -> float:  # noqa: ANN401  the task's own batch
        """Return the batch's share in an accumulated step: its rows, or its masked tokens."""

    def loss(self, batch: Any) -> tuple[torch.Tensor, int]:  # noqa: ANN401  the task's own batch
        """Return the mean loss of a batch, and its number of tokens."""

    def evaluate(self) -> dict[str, float]:
        """Return held-out figures of the model as it stands."""


@dataclass(frozen=True)
class Plan:
    """How long, how fast, how often.

    Attributes:
        epochs: passes over the data.
        max_steps: stop the plan here; 0 = all the epochs. The schedule is laid over this length.
        accumulate: batches per optimizer step.
        accumulate_warmup: share of all batches over which that grows from 1; 0 = from the start.
        learning_rate: the plateau's.
        warmup: share of the steps over which the rate rises linearly from 0.
        decay: share of the steps at the end over which it falls to 0 as 1 - sqrt.
        clip: bound on the gradient's norm; 0 = none.
        evaluate_every: steps between evaluations; 0 = only before and after.
        checkpoint_every: steps between checkpoints; 0 = only after the last.
        select_by: name of the evaluation figure that the kept model maximises; "" keeps the last.
        lower_is_better: turns `select_by` around.
    """

    epochs: int
    learning_rate: float
    max_steps: int = 0
    accumulate: int = 1
    accumulate_warmup: float = 0.0
    warmup: float = 0.05
    decay: float = 0.2
    clip: float = 1.0
    evaluate_every: int = 0
    checkpoint_every: int = 200
    select_by: str = ""
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        """Refuse what no run can be made of.

        Raises:
            UserError: naming the constant.
        """
        least = {"epochs": 1, "accumulate": 1, "max_steps": 0, "checkpoint_every": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(
                    f"{name.upper()} is {getattr(self, name)}; it must be at least {bound}"
                )
        if self.learning_rate <= 0 or min(self.warmup, self.decay) < 0:
            raise UserError("LEARNING_RATE must be positive, WARMUP and DECAY not negative")
        if not 0 <= self.accumulate_warmup <= 1:
            raise UserError("ACCUMULATE_WARMUP is a share of the run: between 0 and 1")
        if self.warmup + self.decay > 1:
            raise UserError(
                f"WARMUP {self.warmup:g} and DECAY {self.decay:g} are shares of one run; "
                "together they must not exceed 1"
            )


@dataclass
class Progress:
    """Where a run stands; stored with each checkpoint."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # batches of this epoch already used
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None  # moving average
    best: float | None = None
    best_step: int = 0
    before: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)


def warmup_stable_decay(step: int, total: int, warmup: float, decay: float) -> float:
    """Return the learning rate's factor at a step, 0 <= step < total.

    Linear warm-up, a plateau, then 1 - sqrt(share of the decay done) (ModernBERT, arXiv
    2412.13663, section 2.2.2; Haegele et al., arXiv 2405.18392).
    """
    warm, cool = math.ceil(warmup * total), math.ceil(decay * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    if step < total - cool:
        return 1.0
    return 1.0 - math.sqrt((step - (total - cool) + 1) / (cool + 1))


def step_sizes(batches: Sequence[int], accumulate: int, warmup: float) -> list[int]:
    """Return how many batches each optimizer step takes, epoch after epoch.

    Batch-size warm-up by accumulation (ModernBERT, arXiv 2412.13663, section 2.2.2): over the
    first `warmup` share of all batches a step grows linearly from one batch to `accumulate`. A
    step does not reach over the end of an epoch.

    Args:
        batches: number of batches in each epoch.
        accumulate: batches of a full step.
        warmup: share of all batches; 0 = full steps from the start.
    """
    sizes, done, rising = [], 0, warmup * sum(batches)
    for count in batches:
        left = count
        while left:
            share = min(done / rising, 1.0) if rising else 1.0
            size = min(1 + int(share * (accumulate - 1)), left)
            sizes.append(size)
            done, left = done + size, left - size
    return sizes


def make_optimizer(
    name: Literal["stable_adamw", "adamw"],
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.98),
    epsilon: float = 1e-6,
    embedding_rate: float = 1.0,
) -> torch.optim.Optimizer:
    """Build the optimizer: matrices decay; norms, biases and the embedding table do not.

    StableAdamW (Wortsman et al., arXiv 2304.13013) clips each tensor's update by its own RMS; it
    is torch-optimi's. The embedding table gets `embedding_rate` times the learning rate.
    """
    embeddings, matrices, rest = [], [], []
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "tok_embeddings" in parameter_name:
            embeddings.append(parameter)
        elif parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "scale": 1.0},
        {"params": rest, "weight_decay": 0.0, "scale": 1.0},
        {"params": embeddings, "weight_decay": 0.0, "scale": embedding_rate},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
    from optimi import StableAdamW

    return StableAdamW(groups, lr=learning_rate, betas=betas, eps=epsilon)


def train(task: Task, optimizer: torch.optim.Optimizer, plan: Plan, stage: Stage) -> Progress:
    """Train to the end of the plan, or go on from the newest checkpoint that verifies.

    Afterwards the task's model holds the best weights by `plan.select_by` (or the last ones), and
    `progress.before` / `progress.latest` the evaluation before the first step and of those weights.

    Raises:
        UserError: the loss or the gradient is not finite, or there is nothing to train on.
    """
    progress = _resume(task, optimizer, stage)
    sizes = _plan_steps(task, plan)
    total = len(sizes)
    if not progress.before:
        progress.before = progress.latest = task.evaluate()
        _note(stage, 0, progress.before)
        _consider_best(task, plan, progress, stage)
    bar = report.progress(description="training", total=total, initial=progress.step, unit="steps")
    with bar:
        while progress.step < total:
            _step(task, optimizer, plan, progress, sizes, stage)
            bar.set_postfix(loss=f"{progress.loss:.4f}", refresh=False)
            bar.update()
            last = progress.step == total
            if last or (plan.evaluate_every and progress.step % plan.evaluate_every == 0):
                progress.latest = task.evaluate()
                _note(stage, progress.step, progress.latest)
                _consider_best(task, plan, progress, stage)
            if last or (plan.checkpoint_every and progress.step % plan.checkpoint_every == 0):
                save_checkpoint(stage.checkpoints, task.model, optimizer, progress)
    if plan.select_by and progress.best_step != progress.step:
        load_model(task.model, stage.checkpoints / "best" / "model.safetensors")
        # The weights of step 0 were measured before the first step.
        progress.latest = task.evaluate() if progress.best_step else progress.before
        logger.info("the best model is that of step %s", f"{progress.best_step:,}")
    stage.record["tokens"] = progress.tokens
    stage.record["tokens_per_second"] = round(progress.tokens / max(progress.seconds, 1e-9))
    stage.record["steps"] = progress.step
    return progress


def finish(stage: Stage, progress: Progress, figure: str, verify: Callable[[Path], Any]) -> None:
    """Record the figures before and after, publish, and print the closing line."""
    stage.record["metrics"] = {
        "before": progress.before,
        "after": progress.latest,
        "best_step": progress.best_step,
    }
    before, after = progress.before.get(figure), progress.latest.get(figure)
    change = f"{figure} {before:.4f} -> {after:.4f}" if before is not None else "trained"
    stage.finish(
        f"{change} in {progress.step:,} steps, {stage.record['tokens_per_second']:,} tokens/s",
        verify,
    )


def _plan_steps(task: Task, plan: Plan) -> list[int]:
    batches = [len(task.epoch(epoch)) for epoch in range(plan.epochs)]
    sizes = step_sizes(batches, plan.accumulate, plan.accumulate_warmup)
    if not sizes:
        raise UserError("there is nothing to train on: no batch in any epoch")
    return sizes[: plan.max_steps] if plan.max_steps else sizes


def _step(
    task: Task,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    progress: Progress,
    sizes: Sequence[int],
    stage: Stage,
) -> None:
    begin = time.perf_counter()
    batches = task.epoch(progress.epoch)
    chosen = batches[progress.position : progress.position + sizes[progress.step]]
    weights = [task.weight(batch) for batch in chosen]
    factor = warmup_stable_decay(progress.step, len(sizes), plan.warmup, plan.decay)
    for group in optimizer.param_groups:
        group["lr"] = plan.learning_rate * factor * group["scale"]
    value, tokens = 0.0, 0
    task.model.train()
    for batch, weight in zip(chosen, weights, strict=True):
        loss, count = task.loss(batch)
        loss = loss * (weight / sum(weights))
        loss.backward()
        value += float(loss.detach())
        tokens += count
    norm = nn.utils.clip_grad_norm_(task.model.parameters(), plan.clip or math.inf)
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise UserError(
            f"step {progress.step + 1}: the loss is {value}, the gradient's norm {float(norm)}; "
            f"lower LEARNING_RATE (now {plan.learning_rate:g}) and redo with --overwrite. "
            f"Checkpoints up to here are in {stage.checkpoints}"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    progress.step += 1
    progress.position += len(chosen)
    if progress.position >= len(batches):
        progress.epoch, progress.position = progress.epoch + 1, 0
    progress.tokens += tokens
    progress.loss = value if progress.loss is None else 0.95 * progress.loss + 0.05 * value
    seconds = time.perf_counter() - begin
    progress.seconds += seconds
    stage.write_metrics(
        step=progress.step,
        loss=value,
        gradient_norm=float(norm),
        learning_rate=plan.learning_rate * factor,
        tokens=tokens,
        batches=len(chosen),
        seconds=round(seconds, 4),
    )


def _note(stage: Stage, step: int, figures: dict[str, float]) -> None:
    stage.write_metrics(step=step, **figures)
    text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    logger.info("step %s: %s", f"{step:,}", text)


def _consider_best(task: Task, plan: Plan, progress: Progress, stage: Stage) -> None:
    if not plan.select_by:
        return
    if plan.select_by not in progress.latest:
        raise UserError(
            f"SELECT_BY is {plan.select_by!r}, but the evaluation gives: "
            + ", ".join(progress.latest)
        )
    value = progress.latest[plan.select_by]
    better = progress.best is None or (
        value < progress.best if plan.lower_is_better else value > progress.best
    )
    if better:
        progress.best, progress.best_step = value, progress.step
        beside = stage.checkpoints / "best.partial"
        storage.remove(beside)
        beside.mkdir(parents=True)
        save_model(task.model, str(beside / "model.safetensors"))
        storage.write_json(beside / "best.json", {"step": progress.step, plan.select_by: value})
        storage.publish(beside, stage.checkpoints / "best")


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write checkpoints/step-N: beside, then manifest, then rename; keep the newest two."""
    final = folder / f"step-{progress.step:08d}"
    beside = folder / f"{final.name}.partial"
    storage.remove(beside)
    beside.mkdir(parents=True)
    save_model(model, str(beside / "model.safetensors"))
    torch.save(
        {"optimizer": optimizer.state_dict(), "random": torch.get_rng_state()},
        beside / "optimizer.pt",
    )
    storage.write_json(beside / "progress.json", asdict(progress))
    manifest = {
        path.name: {"bytes": path.stat().st_size, "sha256": storage.sha256_file(path)}
        for path in storage.list_files(beside)
    }
    storage.write_json(beside / "manifest.json", {"step": progress.step, "files": manifest})
    storage.publish(beside, final)
    for old in list_checkpoints(folder)[:-2]:
        storage.remove(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a stage, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.suffix)


def verifies(checkpoint: Path) -> bool:
    """Say whether every file of a checkpoint is as its manifest says."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        return all(
            (checkpoint / name).stat().st_size == entry["bytes"]
            and storage.sha256_file(checkpoint / name) == entry["sha256"]
            for name, entry in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _resume(task: Task, optimizer: torch.optim.Optimizer, stage: Stage) -> Progress:
    for checkpoint in reversed(list_checkpoints(stage.checkpoints)):
        if not verifies(checkpoint):
            logger.warning("%s is damaged and passed over", checkpoint)
            continue
        load_model(task.model, checkpoint / "model.safetensors")
        state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        progress = Progress(**storage.read_json(checkpoint / "progress.json", "remove it"))
        _forget_after(stage.folder / "metrics.jsonl", progress.step)
        logger.info("going on from %s", checkpoint)
        return progress
    storage.remove(stage.folder / "metrics.jsonl")
    return Progress()


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that will be done again, and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    storage.write_text(path, "".join(kept))
