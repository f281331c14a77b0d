"""Promises of data_parallel.py and the loop: however many ranks train, the run is one process's.

The ranks are real processes that find each other by a file and talk on this machine (gloo).
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from script_runner import _context
from torch import distributed, nn

from small_modernbert.runs import processes, references
from small_modernbert.runs.stages import Stage
from small_modernbert.training import loop
from small_modernbert.training.data_parallel import Gradients

PLAN = loop.Plan(
    epochs=2,
    learning_rate=0.05,
    accumulate=4,
    clip=0.5,
    evaluate_every=2,
    checkpoint_every=4,
    select_by="held_out",
)
STEPS = [(0, 0, 2), (0, 2, 3), (0, 5, 1), (1, 1, 1), (1, 2, 5), (0, 0, 12)]
DIES_AT = 5  # a second rank's call: the last of step 3, before the first checkpoint is due
SCRIPT = 'RECIPE: str = "toy"  # its folder\n'


class Shared:
    """Batches of 1 to 4 rows; one parameter that only every third batch uses, one never used.

    Attributes:
        cached_tokens: if not 0, a loss hides its backward pass behind two others, as a cached
            contrastive loss does.
        seen: rows of this rank's batches.
        dies_at: the call of `loss` that ends the process as a kill would.
    """

    def __init__(self, cached_tokens: int = 0, dies_at: int = -1) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict(
            {name: nn.Linear(6, 3, bias=False) for name in ("always", "sometimes", "never")}
        )
        self.cached_tokens, self.dies_at = cached_tokens, dies_at
        self.seen: list[list[int]] = []

    def epoch(self, epoch: int) -> list[torch.Tensor]:
        """Return fourteen batches of numbers: steps of 4, 4, 4 and 2."""
        return [torch.arange(14 * epoch + i, 14 * epoch + i + 1 + i % 4) for i in range(14)]

    def weight(self, batch: torch.Tensor) -> float:
        """Return the rows."""
        return float(len(batch))

    def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return a loss that depends on the rows, and their tokens."""
        if len(self.seen) == self.dies_at:
            os._exit(9)
        self.seen.append(batch.tolist())
        value = self.value(batch)
        if not self.cached_tokens:
            return value, 7 * len(batch)
        hidden = value.detach().requires_grad_()

        def backward_twice(gradient: torch.Tensor) -> None:
            with torch.enable_grad():
                for _ in range(2):
                    self.value(batch).backward(0.5 * gradient)

        hidden.register_hook(backward_twice)
        return hidden, 7 * len(batch)

    def value(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the mean over rows of a distance."""
        rows = torch.sin(batch[:, None] * torch.arange(1.0, 7.0))
        value = self.model["always"](rows).square().mean()
        if int(batch[0]) % 3 == 0:
            value = value + (self.model["sometimes"](rows) - 1).square().mean()
        return value

    def evaluate(self) -> dict[str, float]:
        """Return the negative mean loss over rows that the ranks share."""
        with torch.no_grad():
            losses = [float(self.value(torch.tensor([row]))) for row in processes.share(range(20))]
        return {"held_out": -float(processes.gather(torch.tensor(losses).sum())) / 20}


def gradients_of(task: Shared) -> list[dict[str, Any]]:
    """Make some steps of gradient descent; return losses, tokens and gradients of each."""
    made, steps = Gradients(task), []
    for epoch, position, size in STEPS:
        task.model.zero_grad(set_to_none=True)
        losses, tokens = made.add_up(task.epoch(epoch)[position : position + size])
        gradients = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in task.model.named_parameters()
        }
        steps.append({"losses": losses, "tokens": tokens, "gradients": gradients})
        with torch.no_grad():
            for parameter in task.model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    return steps


def train(task: Shared, folder: Path) -> None:
    """Train in the stage of a toy script; leave the weights, and what this rank has seen."""
    optimizer = loop.make_optimizer(
        "stable_adamw", task.model, learning_rate=PLAN.learning_rate, weight_decay=0.1
    )
    script = references.ROOT / "toy.py"
    try:
        with Stage({"__file__": str(script), "RECIPE": "toy"}) as stage:
            progress = loop.train(task, optimizer, PLAN, stage)
            assert progress.step == 8
    finally:
        torch.save(task.seen, folder / f"seen-{processes.rank()}.pt")
    torch.save(task.model.state_dict(), folder / "weights.pt")


def be_a_rank(rank: int, world: int, folder: Path, work: Callable[..., None], *given: Any) -> None:  # noqa: ANN401  the work's
    """Be one process of several."""
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None
    references.ROOT = folder
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "localhost"}
    os.environ |= {"RUNS": str(folder / "runs")}
    sys.stdout = sys.stderr = (folder / f"said-{rank}.txt").open("w", buffering=1)
    meeting = f"file://{folder}/meeting-{world}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    work(folder, *given)


def on_ranks(world: int, folder: Path, work: Callable[..., None], *given: Any) -> list[int]:  # noqa: ANN401  the work's
    """Run work on several ranks; return their exit codes."""
    children = [
        _context.Process(target=be_a_rank, args=(rank, world, folder, work, *given))
        for rank in range(world)
    ]
    for process in children:
        process.start()
    for process in children:
        process.join(60)
    return [process.exitcode for process in children]


def rank_gradients(folder: Path) -> None:
    """Leave this rank's gradients, plain and hidden; its own first weights must not matter."""
    made = []
    for cached_tokens in (0, 1):
        task = Shared(cached_tokens)
        if processes.rank():
            for parameter in task.model.parameters():
                nn.init.zeros_(parameter)
        made.append(gradients_of(task))
    torch.save(made, folder / f"gradients-{processes.rank()}.pt")


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_those_of_one_process(tmp_path: Path, world: int) -> None:
    """Losses, tokens and gradients of steps of any size, on every rank.

    Also where there are fewer batches than ranks, and where a loss goes through its parameters
    several times. A parameter that no batch used has no gradient, as in one process.
    """
    assert on_ranks(world, tmp_path, rank_gradients) == [0] * world
    wanted = [gradients_of(Shared(cached_tokens)) for cached_tokens in (0, 1)]
    for rank in range(world):
        made = torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)
        for mine, theirs in zip(sum(made, []), sum(wanted, []), strict=True):
            assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
            assert mine["tokens"] == theirs["tokens"]
            for name, gradient in theirs["gradients"].items():
                if gradient is None:
                    assert mine["gradients"][name] is None, name
                else:
                    torch.testing.assert_close(mine["gradients"][name], gradient, atol=1e-6, rtol=0)
    used = [step["gradients"]["sometimes.weight"] is not None for step in wanted[0]]
    assert True in used and False in used


def rank_trains(folder: Path, dies_at: int = -1) -> None:
    """Train; the last rank dies in a call of `loss`."""
    last = processes.rank() == processes.world() - 1
    try:
        train(Shared(dies_at=dies_at if last else -1), folder)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Return metrics.jsonl without the seconds."""
    text = (folder / "runs/toy/toy/metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return [{name: line[name] for name in line if name != "seconds"} for line in lines]


@pytest.fixture
def alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[list[int]], dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return what one process's run has seen, ends with and tells."""
    folder = tmp_path / "alone"
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "toy.py").write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setattr(references, "ROOT", folder)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("RUNS", str(folder / "runs"))
    train(Shared(), folder)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    return torch.load(folder / "seen-0.pt", weights_only=True), weights, lines_of(folder)


def check_equal(
    folder: Path, weights: dict[str, torch.Tensor], lines: list[dict[str, Any]]
) -> None:
    """Assert that a run ended with these weights, and told these figures."""
    for name, tensor in torch.load(folder / "weights.pt", weights_only=True).items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-6, rtol=0)
    for mine, theirs in zip(lines_of(folder), lines, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_train_as_one(
    tmp_path: Path,
    alone: tuple[list[list[int]], dict[str, torch.Tensor], list[dict[str, Any]]],
    world: int,
) -> None:
    """The same batches in the same steps, the same weights and figures; only the leader speaks."""
    assert on_ranks(world, tmp_path, rank_trains) == [0] * world
    seen = [torch.load(tmp_path / f"seen-{rank}.pt", weights_only=True) for rank in range(world)]
    wanted = alone[0]
    for begin in [0, 4, 8, 12, 14, 18, 22, 26]:
        end = min(begin + 4, 14 * (1 + begin // 14))
        for rank in range(world):
            count = len(range(begin + rank, end, world))
            assert [seen[rank].pop(0) for _ in range(count)] == wanted[begin + rank : end : world]
    assert seen == [[]] * world
    check_equal(tmp_path, *alone[1:])
    assert f"{world} processes share each step's batches" in (tmp_path / "said-0.txt").read_text()
    assert not any((tmp_path / f"said-{rank}.txt").read_text() for rank in range(1, world))


def test_a_dead_rank_ends_the_run_and_others_go_on(
    tmp_path: Path,
    alone: tuple[list[list[int]], dict[str, torch.Tensor], list[dict[str, Any]]],
) -> None:
    """The leader saves the last whole step and says what to do; four ranks go on from two."""
    codes = on_ranks(2, tmp_path, rank_trains, DIES_AT)
    assert codes == [1, 9]
    said = (tmp_path / "said-0.txt").read_text()
    assert "another process of this run has ended" in said
    assert "checkpoints/step-00000002; the same command goes on" in said
    assert on_ranks(4, tmp_path, rank_trains) == [0] * 4
    assert f"going on from {tmp_path}" in (tmp_path / "said-0.txt").read_text()
    check_equal(tmp_path, *alone[1:])
