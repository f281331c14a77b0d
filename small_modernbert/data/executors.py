"""The tasks of a stage on datatrove's executors: processes of this machine, Slurm, Ray.

A task reads and writes files that every machine sees, depends on nothing but its number, and is
marked when it is done (`completions/` beside its log): whatever is killed, a rerun starts the rest.
Slurm's jobs are submitted and not waited for; the same command, run again, says how far they are,
submits what failed, or goes on behind them.
"""

import contextlib
import copy
import dataclasses
import importlib.util
import io
import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from small_modernbert.data import workers
from small_modernbert.runs import references, report, storage
from small_modernbert.runs.errors import UserError

Kind = Literal["plain", "local", "slurm", "ray"]
REQUIREMENTS = "pip install -c requirements.txt -r requirements-cluster.txt"
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Executor:
    """Where tasks run.

    Attributes:
        kind: "plain" stands for none of this: the caller does the work itself.
        processes: tasks under way at once; 0 = a processor each, or as many as the cluster takes.
        slurm: options of sbatch as NAME=VALUE; `partition` and `time` are needed.
    """

    kind: Kind
    processes: int = 0
    slurm: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what cannot run here, before anything is read.

        Raises:
            UserError: with the command that cures it.
        """
        if self.kind == "plain":
            return
        if importlib.util.find_spec("datatrove") is None:
            raise UserError(f"--executor {self.kind} needs datatrove; run: {REQUIREMENTS}")
        if self.kind == "ray" and importlib.util.find_spec("ray") is None:
            raise UserError(
                "--executor ray needs ray; run: pip install -c requirements.txt ray==2.60.0"
            )
        if self.kind == "slurm":
            self._check_slurm()

    def _check_slurm(self) -> None:
        options = self.slurm_options
        if missing := [name for name in ("partition", "time") if not options.get(name)]:
            raise UserError(
                f"--executor slurm needs {' and '.join(missing)}: "
                "--slurm partition=NAME time=08:00:00; further options of sbatch may follow"
            )
        # datatrove would take such a process for one of its own tasks.
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            raise UserError(
                "--executor slurm submits jobs, and this is a task of an array of them; run it on "
                "a login node, or with --executor local here"
            )

    @property
    def slurm_options(self) -> dict[str, str]:
        """The options of sbatch, by name."""
        return dict(option.lstrip("-").partition("=")[::2] for option in self.slurm)

    def run(self, folder: Path, *arrays: "Array") -> bool:
        """Do all tasks that are not done, array after array.

        Args:
            folder: for logs and marks, one folder an array; every machine must see it.
            arrays: of tasks; each begins when the one before it has ended well.

        Returns:
            Whether everything is done; if not, jobs are under way.

        Raises:
            UserError: a task failed.
        """
        if self.kind == "slurm":
            return _run_on_slurm(self, folder, arrays)
        for array in arrays:
            if array.missing(folder):
                run = _run_on_ray if self.kind == "ray" else _run_here
                run(self, folder, array)
            if missing := array.missing(folder):
                raise UserError(
                    f"{len(missing):,} of {array.tasks:,} tasks of {array.name} failed; the first "
                    f"one's log: {array.tell(folder, missing[0])}; run the same command again"
                )
        return True


@dataclasses.dataclass(frozen=True)
class Array:
    """Tasks that differ by their number alone.

    Attributes:
        name: of the array.
        step: a datatrove PipelineStep, whose `rank` is the task's number.
        tasks: how many.
        on_gpu: whether a task wants one, where there is one.
    """

    name: str
    step: Any
    tasks: int
    on_gpu: bool = False

    def missing(self, folder: Path) -> list[int]:
        """Return the numbers of the tasks that are not done."""
        marks = folder / self.name / "completions"
        done = {path.name for path in marks.iterdir()} if marks.is_dir() else set()
        return [number for number in range(self.tasks) if f"{number:05d}" not in done]

    def tell(self, folder: Path, number: int) -> str:
        """Return how a task ended: where its log lies, and the last line of it."""
        log = folder / self.name / "logs" / f"task_{number:05d}.log"
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.exists() else []
        return f"{log}" + (f" ({lines[-1][:400]})" if lines else " (none is there)")


def _run_here(executor: Executor, folder: Path, array: Array) -> None:
    """Run tasks in processes of this machine.

    The pool is ours: datatrove's waits for ever when one of its processes is killed.
    """
    from datatrove.executor import LocalPipelineExecutor

    processes = min(executor.processes or _places(array), array.tasks)
    pipeline = LocalPipelineExecutor([array.step], array.tasks, processes, str(folder / array.name))
    missing = array.missing(folder)
    task = _Task(pipeline, array.on_gpu)
    bar = report.progress(description=array.name, total=len(missing), unit=" tasks")
    with bar, workers.pool(processes) as pool:
        try:
            for _ in workers.ordered_map(pool, task, enumerate(missing), ahead=processes):
                bar.update(1)
        except BaseException:
            # What the others have begun is of no use to a run that ends; they start it afresh.
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _places(array: Array) -> int:
    """Return how many tasks this machine takes at once: one for each GPU, or each processor."""
    if array.on_gpu:
        import torch

        if devices := torch.cuda.device_count():
            return devices
    return workers.processors()


@dataclasses.dataclass(frozen=True)
class _Task:
    """One task of a pipeline, without what datatrove writes to the terminal; its log has it."""

    pipeline: Any
    on_gpu: bool

    def __call__(self, placed: tuple[int, int]) -> None:
        """Do a task, given its place among those that are missing, and its number."""
        from loguru import logger as terminal

        place, number = placed
        if self.on_gpu:
            _take_gpu(place)
        # Steps add up what they did: a process that does several tasks takes a fresh one for each.
        pipeline = copy.deepcopy(self.pipeline)
        with contextlib.redirect_stderr(io.StringIO()):
            pipeline._run_for_rank(number, local_rank=1)
        terminal.remove()


def _take_gpu(place: int) -> None:
    """Have this process use one GPU for all that it does; its first task says which."""
    import torch

    if torch.cuda.is_available() and not torch.cuda.is_initialized():
        torch.cuda.set_device(place % torch.cuda.device_count())


def _run_on_ray(executor: Executor, folder: Path, array: Array) -> None:
    """Run tasks on the cluster of RAY_ADDRESS, or on one of this machine's processors."""
    import ray
    from datatrove.executor.ray import RayPipelineExecutor
    from loguru import logger as terminal

    terminal.disable("datatrove")
    paths = os.pathsep.join(filter(None, (str(references.ROOT), os.environ.get("PYTHONPATH"))))
    if not ray.is_initialized():
        ray.init(
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    with_gpu = array.on_gpu and ray.cluster_resources().get("GPU", 0) >= 1
    RayPipelineExecutor(
        [array.step],
        array.tasks,
        executor.processes or -1,
        logging_dir=str(folder / array.name),
        mem_per_cpu_gb=0,
        gpus_per_task=int(with_gpu),
    ).run()


def _run_on_slurm(executor: Executor, folder: Path, arrays: tuple[Array, ...]) -> bool:
    """Submit the tasks that are not done as arrays of jobs; return whether there are none."""
    left = {array.name: missing for array in arrays if (missing := array.missing(folder))}
    if not left:
        return True
    told = ", ".join(
        f"{array.tasks - len(left.get(array.name, ())):,} of {array.tasks:,} of {array.name}"
        for array in arrays
    )
    submitted = folder / "slurm.json"
    before = storage.read_json(submitted, "remove it") if submitted.exists() else []
    if alive := sorted(_jobs_alive().intersection(before)):
        logger.info(
            "tasks done: %s; under way or waiting: Slurm's jobs %s (scancel ends them). Run the "
            "same command again when squeue does not show them any more",
            *(told, " ".join(alive)),
        )
        return False
    if before:
        name, missing = next(iter(left.items()))
        array = next(array for array in arrays if array.name == name)
        logger.warning(
            "tasks done: %s; the others failed and are submitted again; the first one's log: %s",
            *(told, array.tell(folder, missing[0])),
        )
    jobs = _submit(executor, folder, [array for array in arrays if array.name in left])
    storage.write_json(submitted, jobs)
    logger.info(
        "submitted to Slurm: %s tasks, jobs %s. Run the same command again when squeue does not "
        "show them any more: it goes on from there",
        *(f"{sum(map(len, left.values())):,}", " ".join(jobs)),
    )
    return False


def _submit(executor: Executor, folder: Path, arrays: list[Array]) -> list[str]:
    from datatrove.executor import SlurmPipelineExecutor
    from loguru import logger as terminal

    terminal.disable("datatrove")
    options = executor.slurm_options
    partition, time = options.pop("partition"), options.pop("time")
    # Nodes see the folder of the checkout, and need not have our package installed.
    environment = (
        f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{references.ROOT}"'
    )
    jobs, before = [], None
    for array in arrays:
        before = SlurmPipelineExecutor(
            [array.step],
            array.tasks,
            time,
            partition,
            workers=executor.processes or -1,
            job_name=array.name,
            qos=None,  # if it is wanted, it is among the options
            env_command=environment,
            sbatch_args=options,
            depends=before,
            logging_dir=str(folder / array.name),
        )
        try:
            before.run()
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"sbatch took no job ({error}); run it on a machine that has sbatch, with other "
                "options of --slurm if it said why, or with --executor local"
            ) from None
        jobs.append(str(before.job_id))
    return jobs


def _jobs_alive() -> set[str]:
    """Return the numbers of the user's jobs that wait or run."""
    command = ["squeue", "--me", "--noheader", "--format=%F"]
    try:
        return set(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"squeue does not say which jobs run ({error}); run it again") from None
