"""Promises of workers.py: order, errors, and no process left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from small_modernbert.data import workers
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT


def slow_first(number: int) -> int:
    """Square a number; the first takes longest."""
    time.sleep(0.3 if number == 0 else 0)
    return number * number


def die(number: int) -> int:
    """End this process as the kernel does when memory runs out."""
    os.kill(os.getpid(), 9)
    return number


def test_results_come_in_order_and_nothing_runs_far_ahead() -> None:
    """Items are drawn only a few ahead of the results; one process gives the same."""
    drawn: list[int] = []

    def items(count: int) -> Iterator[int]:
        for number in range(count):
            drawn.append(number)
            yield number

    with workers.pool(2) as executor:
        found = workers.ordered_map(executor, slow_first, items(20), ahead=3)
        assert next(found) == 0
        assert len(drawn) == 4
        assert [0, *found] == [number * number for number in range(20)]
    with workers.pool(1) as executor:
        assert executor is None
        assert list(workers.ordered_map(executor, slow_first, range(4))) == [0, 1, 4, 9]


def test_a_dead_worker_is_named() -> None:
    """The pool's own exception would say nothing to a user."""
    with workers.pool(2) as executor, pytest.raises(UserError, match="--workers 1"):
        list(workers.ordered_map(executor, die, range(3)))


PARENT = """
import os, signal, sys
from small_modernbert.data import workers

if __name__ == "__main__":
    with workers.pool(2) as executor:
        print(*set(executor.map(abs, range(8))), flush=True)
        print("pids", *executor._processes, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """No process stays behind when the script is killed outright."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert ended.returncode == -9, ended.stderr
    pids = ended.stdout.split("pids ")[1].split()
    limit = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
