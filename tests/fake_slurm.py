"""A Slurm of four shell scripts: sbatch queues what it is given, and a test lets the queue run.

The jobs are those that a cluster would run: the script that was submitted, in a process of its own
for every task of its array.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dill
import pytest

SCRIPTS = {
    # Numbers jobs, keeps their scripts and arguments, and says what sbatch says.
    "sbatch": """
        number=$(( $(ls "$FAKE_SLURM" | grep -c '\\.job$') + 1 ))
        echo "$@" > "$FAKE_SLURM/$number.arguments"
        cp "${@: -1}" "$FAKE_SLURM/$number.job"
        echo "Submitted batch job $number"
    """,
    "squeue": 'ls "$FAKE_SLURM" | sed -n "s/\\.job$//p"',
    "scontrol": "echo localhost",
    # srun -l -n 1 command ...
    "srun": 'exec "${@:4}"',
}


def install(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Put the scripts on PATH; return the folder of the queue."""
    queue, programs = folder / "queue", folder / "programs"
    for place in (queue, programs):
        place.mkdir(parents=True)
    for name, body in SCRIPTS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    patch.setenv("FAKE_SLURM", str(queue))
    patch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return queue


def run_queue(queue: Path, leave_out: tuple[int, ...] = ()) -> list[int]:
    """Run all jobs in the order of their numbers; return the exit codes of their tasks.

    Args:
        queue: from `install`.
        leave_out: numbers of tasks that no node takes, as if it had died.
    """
    codes = []
    for job, tasks in _jobs(queue):
        for task in tasks:
            if int(task["SLURM_ARRAY_TASK_ID"]) not in leave_out:
                done = subprocess.run(
                    ["bash", job], env={**os.environ, **task}, capture_output=True
                )
                codes.append(done.returncode)
        job.rename(job.with_suffix(".done"))
    return codes


def run_queue_here(queue: Path) -> None:
    """Run all jobs in this process, as a node would but for the loading of libraries."""
    for job, tasks in _jobs(queue):
        for task in tasks:
            pickled = re.search(r"launch_pickled_pipeline (\S+)", job.read_text())[1]
            with pytest.MonkeyPatch.context() as patch, open(pickled, "rb") as stream:
                for name, value in task.items():
                    patch.setenv(name, value)
                dill.load(stream).run()
        job.rename(job.with_suffix(".done"))


def _jobs(queue: Path) -> Iterator[tuple[Path, list[dict[str, str]]]]:
    """Yield each job's script, and the variables of the tasks of its array."""
    for job in sorted(queue.glob("*.job"), key=lambda path: int(path.stem)):
        script, arguments = job.read_text(), job.with_suffix(".arguments").read_text()
        # What adds up datatrove's own statistics makes nothing of ours.
        last = -1 if "merge_stats" in script else int(re.search(r"--array=0-(\d+)", script)[1])
        offset = re.search(r"RUN_OFFSET=(\d+)|$", arguments)[1] or "0"
        shared = {"SLURM_NODELIST": "localhost", "RUN_OFFSET": offset}
        numbers = range(last + 1)
        yield job, [{**shared, "SLURM_ARRAY_TASK_ID": str(number)} for number in numbers]
