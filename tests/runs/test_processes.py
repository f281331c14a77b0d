"""Promises of processes.py where there is one process; for several see test_data_parallel.py."""

import pytest
import torch

from small_modernbert.runs import processes
from small_modernbert.runs.errors import UserError


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


def test_one_process_shares_with_nobody() -> None:
    """Alone, nothing is dealt out and nothing is changed by collecting it."""
    values = torch.tensor([0.1, 0.2])
    with processes.sharing():
        assert processes.share([1, 2, 3]) == [1, 2, 3]
        assert processes.gather(values) is processes.add_up(values) is values
        assert processes.from_leader("word") == "word"


def test_other_errors_are_not_taken_for_a_lost_process() -> None:
    """What ends a process is told from what its end does to the others."""
    with pytest.raises(RuntimeError, match="out of memory"), processes.noticing():
        raise RuntimeError("DefaultCPUAllocator: out of memory")
    with pytest.raises(processes.Lost), processes.noticing():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:1")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a GPU of its own is told how many there are, before it joins."""
    there = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="torchrun --nproc-per-node 1"):
        processes.start()
