"""Run a script of ours in a process of its own: quickly, without a network, and killable.

Importing torch and its friends takes longer than a miniature stage. A fork server imports them once
(and runs nothing with them, so its children are safe to fork); each script is then a fresh child
that runs the file as `__main__`, as `python script.py ...` would. What must be a real process (its
start-up is the promise, or its working directory) goes through `run_process`.
"""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from small_modernbert.runs import settings
from small_modernbert.runs.references import ROOT

THREADS = 1  # of torch: a kernel's sums depend on it, and two tests may run side by side

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])


@dataclass(frozen=True)
class Finished:
    """How a script ended.

    Attributes:
        exit_code: as the shell sees it, but negative if a signal ended it.
        output: what it wrote to standard output.
        errors: what it wrote to standard error.
        seconds: wall time.
        cpu_seconds: user and system time; of real processes only.
    """

    exit_code: int
    output: str
    errors: str
    seconds: float
    cpu_seconds: float | None = None

    def check(self) -> "Finished":
        """Return itself; fail with what the script wrote if it did not exit with 0."""
        wrote = f"{self.output[-3000:]}\n{self.errors[-3000:]}"
        assert self.exit_code == 0, f"exit code {self.exit_code}\n{wrote}"
        return self


@dataclass
class Running:
    """A script that runs; wait for it, or kill it."""

    process: Any  # multiprocessing names no public type for its contexts' processes
    folder: tempfile.TemporaryDirectory = field(repr=False)
    begun: float

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.is_alive()

    @property
    def seconds(self) -> float:
        """Wall time since its start."""
        return time.monotonic() - self.begun

    def kill(self) -> Finished:
        """End it with SIGKILL, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        return self.wait()

    def kill_when(self, moment: Callable[[], bool], limit: float = 120.0) -> Finished:
        """Kill it as soon as `moment()` is true; it may also end before that."""
        self.wait_until(moment, limit)
        return self.kill()

    def wait_until(self, moment: Callable[[], bool], limit: float = 120.0) -> None:
        """Return as soon as `moment()` is true, or it has ended."""
        while self.alive and not moment():
            if self.seconds > limit:
                self.kill()
                raise AssertionError(f"the moment did not come in {limit} s")
            time.sleep(0.002)

    def signal(self, number: int) -> None:
        """Send it a signal; it may have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self, limit: float = 300.0) -> Finished:
        """Wait for its end and return how it ended."""
        self.process.join(limit)
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"the script was still running after {limit} s")
        seconds = self.seconds
        place = Path(self.folder.name)
        output, errors = (
            (place / name).read_text(encoding="utf-8", errors="replace")
            for name in ("output", "errors")
        )
        self.folder.cleanup()
        return Finished(self.process.exitcode, output, errors, seconds)


def start(command: Sequence[str], runs: Path, before: Callable[[], None] | None = None) -> Running:
    """Start `script.py flag ...` (the script relative to the repository) in a forked child.

    Args:
        command: the script and its flags, as written after `python`.
        runs: the child's RUNS.
        before: called in the child before the script; what it does to the child is the fault.
    """
    folder = tempfile.TemporaryDirectory(prefix="script-")
    for name in ("output", "errors"):
        (Path(folder.name) / name).touch()
    arguments = (list(command), str(runs), folder.name, before)
    process = _context.Process(target=_run_as_main, args=arguments)
    begun = time.monotonic()
    process.start()
    return Running(process, folder, begun)


def run(command: Sequence[str], runs: Path, before: Callable[[], None] | None = None) -> Finished:
    """Run `script.py flag ...` to its end in a forked child; see `start`."""
    return start(command, runs, before).wait()


def run_process(
    arguments: Sequence[str],
    *,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run `python arguments ...` as a real process and measure the CPU time that it took.

    Args:
        arguments: what stands after `python`.
        folder: its working directory.
        environment: variables beside those of the test itself.
    """
    begun = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        return Finished(
            process.returncode,
            output.read().decode(),
            errors.read().decode(),
            time.monotonic() - begun,
            usage.ru_utime + usage.ru_stime,
        )


def load_script(name: str) -> ModuleType:
    """Import a script of the repository anew, without running it: no test sees another's flags."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refusal(name: str, flags: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a script in this process that must end with exit 1; return the line that it ends in."""
    with pytest.raises(SystemExit) as ended:
        settings.run(load_script(name).__dict__, list(flags))
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    return said


class _NoNetwork(socket.socket):
    def __init__(self, family: int = -1, *rest: Any, **named: Any) -> None:  # noqa: ANN401  socket's
        if family != socket.AF_UNIX:
            raise RuntimeError("a script under test opened a socket")
        super().__init__(family, *rest, **named)


def _run_as_main(
    command: list[str], runs: str, folder: str, before: Callable[[], None] | None
) -> None:
    for descriptor, name in ((1, "output"), (2, "errors")):
        with open(Path(folder) / name, "ab") as stream:
            os.dup2(stream.fileno(), descriptor)
    sys.stdout.reconfigure(line_buffering=True)
    socket.socket = _NoNetwork
    import torch

    torch.set_num_threads(THREADS)
    script = ROOT / command[0]
    os.environ["RUNS"] = runs
    os.chdir(ROOT)
    sys.argv = [str(script), *command[1:]]
    sys.path.insert(0, str(script.parent))
    if before is not None:
        before()
    runpy.run_path(str(script), run_name="__main__")


def record_recipe(recipe: str, folder: Path, *flags: str) -> list[list[str]]:
    """Run recipes/<recipe>.sh with a stub for python; return the arguments of each call.

    The stub makes nothing, so what a recipe looks for in `folder`/runs is what a test put there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    calls, stub = folder / "calls.jsonl", folder / "python"
    calls.write_text("", encoding="utf-8")
    stub.write_text(
        f"#!{sys.executable} -SE\nimport json, sys\n"
        f"print(json.dumps(sys.argv[1:]), file=open({str(calls)!r}, 'a'))\n",
        encoding="utf-8",
    )
    stub.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "RUNS": str(folder / "runs")}
    command = ["bash", str(ROOT / "recipes" / f"{recipe}.sh"), *flags]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]
