"""A training run small enough to be cut anywhere: a toy model, the real loop, scripted faults."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from small_modernbert.runs.stages import Stage
from small_modernbert.training import checkpoints, loop
from small_modernbert.training.loop import Plan, Progress

PLAN = Plan(
    epochs=3,
    learning_rate=0.02,
    accumulate=2,
    warmup=0.1,
    decay=0.3,
    evaluate_every=4,
    checkpoint_every=3,
    select_by="held_out",
)
ROWS, BATCHES = 40, 9


class Toy(nn.Module):
    """An embedding table, a norm and a matrix, `width` wide."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tok_embeddings = nn.Embedding(ROWS, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


class ToyTask:
    """Regression with noise from every generator there is: a resume must put them all back.

    Attributes:
        calls: of `loss`, so far.
        at: what to do in some of them: call -> function of the loss.
        figures: scripted evaluations, in order; measured ones where it has ended.
    """

    def __init__(
        self,
        at: dict[int, Callable[[torch.Tensor], torch.Tensor]] | None = None,
        figures: list[dict[str, float]] | None = None,
        width: int = 8,
        batches: int = BATCHES,
    ) -> None:
        torch.manual_seed(1), np.random.seed(2), random.seed(3)
        self.model = Toy(width)
        self.at, self.figures, self.batches = at or {}, figures or [], batches
        self.calls = self.evaluations = 0

    def epoch(self, epoch: int) -> list[torch.Tensor]:
        """Return the batches of an epoch, of uneven sizes."""
        generator = torch.Generator().manual_seed(100 + epoch)
        rows = torch.randperm(ROWS, generator=generator).repeat(1 + self.batches * 4 // ROWS)
        ends = [4 * number + 3 + number % 2 for number in range(self.batches)]
        return [rows[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def weight(self, batch: torch.Tensor) -> float:
        """Return the rows."""
        return float(len(batch))

    def mean_loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean squared distance from a function of the row."""
        target = torch.sin(rows[:, None] * torch.arange(1, 5))
        found = self.model.out(self.model.norm(self.model.tok_embeddings(rows)))
        return (found - target).square().sum(dim=1).mean()

    def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return the noisy loss, changed as scripted."""
        noise = 1 + 0.1 * (float(torch.rand(())) + np.random.rand() + random.random())
        loss = noise * self.mean_loss(batch)
        change = self.at.get(self.calls)
        self.calls += 1
        return (loss if change is None else change(loss)), 10 * len(batch)

    def evaluate(self) -> dict[str, float]:
        """Return the next scripted figures, or the negative loss over all rows."""
        self.evaluations += 1
        if self.figures:
            return self.figures.pop(0)
        with torch.no_grad():
            return {"held_out": -float(self.mean_loss(torch.arange(ROWS)))}


def die(loss: torch.Tensor) -> torch.Tensor:
    """End the run as a kill would: nothing is saved on the way out."""
    raise SystemError("killed")


def times(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what multiplies a loss."""
    return lambda loss: factor * loss


@dataclass
class Outcome:
    """What a run left.

    Attributes:
        progress: at its end.
        weights: in the model.
        metrics: lines of metrics.jsonl, without the seconds.
        folder: of the checkpoints.
    """

    progress: Progress
    weights: dict[str, torch.Tensor]
    metrics: list[dict[str, Any]]
    folder: Path

    def check_equal(self, other: "Outcome") -> None:
        """Assert that another run ended bit for bit like this one."""
        for name, tensor in self.weights.items():
            assert torch.equal(tensor, other.weights[name]), name
        assert replace(self.progress, seconds=0.0) == replace(other.progress, seconds=0.0)
        assert self.metrics == other.metrics


def train(
    stage: Stage, task: ToyTask, plan: Plan = PLAN, optimizer: str = "stable_adamw"
) -> Outcome:
    """Train in an opened stage, to its end or to the fault."""
    made = loop.make_optimizer(
        optimizer, task.model, learning_rate=plan.learning_rate, weight_decay=0.1
    )
    with stage:
        progress = loop.train(task, made, plan, stage)
    lines = (stage.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [
        {name: value for name, value in json.loads(line).items() if name != "seconds"}
        for line in lines
    ]
    weights = {name: one.clone() for name, one in task.model.state_dict().items()}
    return Outcome(progress, weights, metrics, stage.checkpoints)


def rewrite_manifest(checkpoint: Path) -> None:
    """Make a checkpoint's manifest fit its files again, as one who tampers with both would."""
    path = checkpoint / checkpoints.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        data = (checkpoint / name).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest), encoding="utf-8")


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file, and leave its time as it was."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_weights(checkpoint: Path) -> None:
    """Put one NaN into a checkpoint's weights; its manifest fits."""
    weights = load_file(checkpoint / checkpoints.MODEL)
    weights["out.weight"][0, 0] = float("nan")
    save_file(weights, checkpoint / checkpoints.MODEL)
    rewrite_manifest(checkpoint)


def spoil_moments(checkpoint: Path) -> None:
    """Put one infinity into a checkpoint's optimizer state; its manifest fits."""
    state = torch.load(checkpoint / checkpoints.OPTIMIZER, weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"][0, 0] = float("inf")
    torch.save(state, checkpoint / checkpoints.OPTIMIZER)
    rewrite_manifest(checkpoint)


def copy_old(checkpoint: Path) -> None:
    """Replace a checkpoint by a copy of an older one, as a bad restore from a backup would."""
    older = min(checkpoints.list_checkpoints(checkpoint.parent))
    assert older != checkpoint
    shutil.rmtree(checkpoint)
    shutil.copytree(older, checkpoint)
