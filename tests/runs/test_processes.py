"""Promises of processes.py: however many processes share a step, its gradient is one process's."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from script_runner import _context
from torch import distributed, nn

from small_modernbert.runs import processes


class Shared:
    """Batches of 1 to 4 rows; one parameter that only every third batch uses, one never used."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict(
            {name: nn.Linear(6, 3, bias=False) for name in ("always", "sometimes", "never")}
        )

    def epoch(self, epoch: int) -> list[torch.Tensor]:
        """Return twelve batches of numbers."""
        return [torch.arange(12 * epoch + i, 12 * epoch + i + 1 + i % 4) for i in range(12)]

    def weight(self, batch: torch.Tensor) -> float:
        """Return the rows."""
        return float(len(batch))

    def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return a loss that depends on the rows, and their tokens."""
        rows = torch.sin(batch[:, None] * torch.arange(1.0, 7.0))
        loss = self.model["always"](rows).square().mean()
        if int(batch[0]) % 3 == 0:
            loss = loss + self.model["sometimes"](rows).exp().mean()
        return loss, 7 * len(batch)


STEPS = [(0, 0, 2), (0, 2, 3), (0, 5, 1), (1, 1, 1), (1, 2, 5), (0, 0, 12)]


def steps_of(task: Shared) -> list[dict[str, Any]]:
    """Make some steps of gradient descent; return losses, tokens and gradients of each."""
    found = []
    for place in STEPS:
        task.model.zero_grad(set_to_none=True)
        losses, tokens = processes.accumulate(task, *place)
        gradients = {
            name: None if one.grad is None else one.grad.clone()
            for name, one in task.model.named_parameters()
        }
        found.append({"losses": losses, "tokens": tokens, "gradients": gradients})
        with torch.no_grad():
            for one in task.model.parameters():
                if one.grad is not None:
                    one -= 0.1 * one.grad
    return found


def one_rank(rank: int, world: int, folder: str) -> None:
    """Be one process of several: they find each other by a file, and talk on this machine."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "localhost"}
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    task = Shared()
    if rank:
        for parameter in task.model.parameters():
            nn.init.zeros_(parameter)  # a follower's own weights must not matter
        if processes.wait():
            processes.follow(task)
    processes.release(work=True)
    processes.release(work=False)  # only the first counts
    processes.meet()
    found = steps_of(task)
    processes.dismiss()
    torch.save(found, Path(folder) / "found.pt")


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_those_of_one_process(tmp_path: Path, world: int) -> None:
    """Losses, tokens and gradients of steps of any size; also where there are fewer batches.

    A parameter that no batch used has no gradient, as in one process: an optimizer must leave it.
    """
    wanted = steps_of(Shared())
    children = [
        _context.Process(target=one_rank, args=(rank, world, str(tmp_path)))
        for rank in range(world)
    ]
    for process in children:
        process.start()
    for process in children:
        process.join(60)
    assert [process.exitcode for process in children] == [0] * world
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for mine, theirs, (_, _, size) in zip(found, wanted, STEPS, strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-6)
        assert len(mine["losses"]) == size
        assert mine["tokens"] == theirs["tokens"]
        assert mine["gradients"].keys() == theirs["gradients"].keys()
        for name, gradient in theirs["gradients"].items():
            if gradient is None:
                assert mine["gradients"][name] is None
            else:
                torch.testing.assert_close(mine["gradients"][name], gradient, atol=1e-6, rtol=0)
    used = [step["gradients"]["sometimes.weight"] is not None for step in wanted]
    assert True in used and False in used


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun there is one process, whatever a scheduler has left in the environment."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.world()) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert (processes.rank(), processes.world()) == (0, 1)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert (processes.rank(), processes.world()) == (3, 4)
