"""Two processes are one run: they end where one process ends, and when one fails, both do.

The processes are real and talk to each other on this machine (gloo). Where the launcher's part is
to end them all, it is torchrun; elsewhere they are forked, with the environment that it would set.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from script_runner import Finished, run, start
from small_pipeline import CORPUS, DISTIL, GUIDE, RECIPE, Pipeline, has_lines

from small_modernbert.runs.references import ROOT

Survived = Callable[..., None]
PRE_TRAIN = "mlm/pre_train"
MLM = [
    *("mlm/pre_train.py", "--recipe", RECIPE, "--sequence-tokens", "128", "--max-steps", "12"),
    *("--sequences-per-batch", "4", "--epochs", "4", "--evaluate-every", "6"),
    *("--checkpoint-every", "4", "--precision", "fp32"),
]
NEEDED = {DISTIL: [], PRE_TRAIN: [GUIDE, CORPUS]}
pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Rank:
    """One of two processes, as torchrun would start it."""

    number: int
    port: int

    def __call__(self) -> None:
        """Set the environment of this process."""
        os.environ |= {"RANK": str(self.number), "LOCAL_RANK": str(self.number)}
        os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}


class World:
    """A runs/ folder, and a training script in it that one process or several run."""

    def __init__(self, pipeline: Pipeline, runs: Path, stage: str, *flags: str) -> None:
        self.runs = runs
        self.folder = runs / RECIPE / stage
        self.command = [*(pipeline.commands[DISTIL] if stage == DISTIL else MLM), *flags]
        if stage == DISTIL:
            pipeline.prepare(runs, DISTIL)
        for name in NEEDED[stage]:
            shutil.copytree(pipeline.stage(pipeline.whole, name), runs / RECIPE / name)

    def fork_two(self) -> tuple[Finished, Finished]:
        """Run two processes, without a launcher; return how the leader and the follower ended."""
        port = random.SystemRandom().randrange(20_000, 32_000)
        running = [start(self.command, self.runs, Rank(number, port)) for number in range(2)]
        leader, follower = (one.wait() for one in running)
        return leader, follower

    def launch(self, *flags: str) -> subprocess.Popen:
        """Start torchrun with two processes, and flags of its own."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.Popen(
            [sys.executable, *launcher, *flags, *self.command],
            cwd=ROOT,
            env={**os.environ, "RUNS": str(self.runs), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run_one(self) -> None:
        """Run one process to its end."""
        run(self.command, self.runs).check()

    def metrics(self) -> list[dict[str, Any]]:
        """Return metrics.jsonl without the seconds."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [
            {name: value for name, value in json.loads(line).items() if name != "seconds"}
            for line in lines
        ]

    def check_equal(self, other: "World") -> None:
        """Assert that both have finished with equal weights, within 1e-6, and equal figures."""
        one, two = (load_file(world.folder / "final/model.safetensors") for world in (self, other))
        for name, tensor in one.items():
            assert float((tensor - two[name]).abs().max()) <= 1e-6, name
        for mine, theirs in zip(self.metrics(), other.metrics(), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4), mine["step"]
        for world in (self, other):
            record = json.loads((world.folder / "run.json").read_text(encoding="utf-8"))
            assert record["status"] == "finished"


def process_of(rank: int, runs: Path, limit: float = 60.0) -> int:
    """Return the process id of a rank of the run in a folder."""
    wanted = {f"RANK={rank}".encode(), f"RUNS={runs}".encode()}
    end = time.monotonic() + limit
    while time.monotonic() < end:
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted <= set(path.read_bytes().split(b"\0")):
                    return int(path.parent.name)
            except OSError:
                continue
    raise AssertionError(f"no rank {rank}")


def wait_for(process: subprocess.Popen, moment: Callable[[], bool], limit: float = 90.0) -> None:
    """Wait for a moment of a run."""
    end = time.monotonic() + limit
    while not moment():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.002)


def test_two_are_one(pipeline: Pipeline, tmp_path: Path, survived: Survived) -> None:
    """Two processes end with one process's weights and figures, and only the leader writes.

    A rerun of what has finished says so, and ends in both.
    """
    one = World(pipeline, tmp_path / "one", DISTIL, "--accumulate", "2")
    one.run_one()
    two = World(pipeline, tmp_path / "two", DISTIL, "--accumulate", "2")
    leader, follower = (one.check() for one in two.fork_two())
    two.check_equal(one)
    assert sorted(path.name for path in two.folder.rglob("*")) == sorted(
        path.name for path in one.folder.rglob("*")
    )
    assert "2 processes share each step's batches" in leader.output
    assert not follower.output
    leader, follower = (one.check() for one in two.fork_two())
    assert "finished before, kept as it is" in leader.output
    assert not follower.output
    survived("finished stage run again by two processes", DISTIL, "what it made", exit_code=0)


def test_one_of_two_killed(pipeline: Pipeline, tmp_path: Path, survived: Survived) -> None:
    """A process that dies ends the run, all whole steps saved; torchrun's restart finishes it.

    To the weights of one process, and --overwrite does not clear what is gone on from.
    """
    one = World(pipeline, tmp_path / "one", PRE_TRAIN, "--accumulate", "2")
    one.run_one()
    two = World(pipeline, tmp_path / "two", PRE_TRAIN, "--accumulate", "2", "--overwrite")
    process = two.launch("--max-restarts", "1")
    wait_for(process, has_lines(two.folder / "metrics.jsonl", 7))
    os.kill(process_of(1, two.runs), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)  # two starts of Python and its libraries
    assert process.returncode == 0, said
    assert "another process of this run has ended" in said, said
    assert "going on from" in said, said
    two.check_equal(one)
    survived("one of two processes killed", PRE_TRAIN, "same weights within 1e-6", exit_code=0)


def test_stop_two_go_on_with_one(pipeline: Pipeline, tmp_path: Path, survived: Survived) -> None:
    """SIGTERM to the launcher saves the run; one process can go on with it, to the same end.

    Steps of one batch leave one of two processes idle: that is said, and nobody waits for ever.
    """
    one = World(pipeline, tmp_path / "one", DISTIL)
    one.run_one()
    two = World(pipeline, tmp_path / "two", DISTIL)
    process = two.launch()
    wait_for(process, has_lines(two.folder / "metrics.jsonl", 4))
    process.terminate()
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "1 of 2 processes have nothing to do: a step has 1 batches (ACCUMULATE)" in said
    record = json.loads((two.folder / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "interrupted", said
    done = [line["step"] for line in two.metrics() if "loss" in line]
    assert (two.folder / "checkpoints" / f"step-{done[-1]:08d}").is_dir()
    two.run_one()
    two.check_equal(one)
    survived("SIGTERM to two processes, one goes on", DISTIL, "every step", exit_code=143)
    survived("more processes than batches in a step", DISTIL, "the run, warned", exit_code=0)


@pytest.mark.parametrize(
    ("fault", "flags", "said", "code"),
    [
        # The follower waits for what the leader prepares; for a step.
        ("unreadable input, two processes", ("--validation-sets", "nowhere"), "nowhere", 1),
        ("unknown figure, two processes", ("--select-by", "beauty"), "'beauty'", 1),
    ],
)
def test_error_ends_both(
    pipeline: Pipeline,
    tmp_path: Path,
    survived: Survived,
    fault: str,
    flags: tuple[str, ...],
    said: str,
    code: int,
) -> None:
    """An error of the leader's is said once, and the follower does not wait for ever."""
    folder = ("--retrieval-folder", str(pipeline.assets / "retrieval"))
    world = World(pipeline, tmp_path, DISTIL, *folder, *flags)
    leader, follower = world.fork_two()
    assert leader.exit_code == 1
    assert said in leader.errors and "Traceback" not in leader.errors
    assert follower.exit_code == code
    assert "error" not in follower.errors and "Traceback" not in follower.errors
    assert not (world.folder / "final").exists()
    survived(fault, DISTIL, "the message, once; no process is left")
