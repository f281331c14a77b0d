"""Signals that ask a run to end: SIGINT (Ctrl-C), SIGTERM (schedulers), SIGHUP (a lost terminal).

The first one becomes the exception `Interrupted`, at once or, inside `deferred()`, at the next
`check()`: a training step or a rename is never cut in half. A second one ends the process.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# GNU timeout signals its child, then the group that the child is in: that is one request.
ONE_REQUEST_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end.

    Attributes:
        exit_code: what the process should end with: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class _State:
    received = 0  # the signal's number; 0 = none
    received_at = 0.0
    deferring = 0  # how many deferred() blocks we are in


def pending() -> bool:
    """Say whether a signal has asked this process to end."""
    return _State.received != 0


def interruption() -> Interrupted:
    """Return what ends this process where one of several was asked to: its signal, or SIGTERM."""
    return Interrupted(_State.received or signal.SIGTERM)


def check() -> None:
    """Be a safe place to stop.

    Raises:
        Interrupted: a signal has asked this process to end.
    """
    if _State.received:
        raise Interrupted(_State.received)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold signals back until `check()` or the end of the block.

    Raises:
        Interrupted: at the end of the outermost block, if a signal came during it.
    """
    _State.deferring += 1
    try:
        yield
    finally:
        _State.deferring -= 1
    if not _State.deferring:
        check()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Turn signals into `Interrupted` during the block; signals that are ignored stay ignored."""
    before = {}
    # Python allows handlers in the main thread only.
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            # nohup and a shell's background jobs ignore some, for good reason.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.received = 0


def _receive(number: int, frame: FrameType | None) -> None:
    if _State.received:
        if time.monotonic() - _State.received_at > ONE_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        return
    _State.received, _State.received_at = number, time.monotonic()
    if not _State.deferring:
        raise Interrupted(number)
