"""Promises of signals.py: the first signal stops at a safe place, the ignored at none."""

import signal
import threading

import pytest

from small_modernbert.runs import signals
from small_modernbert.runs.signals import Interrupted


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_signal_becomes_an_exception(number: int) -> None:
    """It is raised where the signal arrives, and carries the exit code that shells know."""
    before = signal.getsignal(number)
    with signals.handled(), pytest.raises(Interrupted) as raised:
        signal.raise_signal(number)
    assert raised.value.exit_code == 128 + number
    assert isinstance(raised.value, KeyboardInterrupt)  # what libraries clean up after
    assert signal.getsignal(number) is before
    assert not signals.pending()


def test_signal_waits_for_a_safe_place() -> None:
    """Inside deferred() it waits for check(), or for the end of the outermost block."""
    done = []
    with signals.handled():
        with pytest.raises(Interrupted), signals.deferred():
            with signals.deferred():
                signal.raise_signal(signal.SIGTERM)
                done.append("inner")
            assert signals.pending()
            done.append("outer")
            signals.check()
            done.append("never")
        with pytest.raises(Interrupted):
            signals.check()  # still asked for: a swallowed exception is raised again
    assert done == ["inner", "outer"]
    with signals.handled(), pytest.raises(Interrupted), signals.deferred():
        signal.raise_signal(signal.SIGTERM)
        done.append("whole block")
    assert done[-1] == "whole block"


def test_error_comes_before_the_signal() -> None:
    """A fault inside deferred() is the one that is told."""
    with signals.handled(), pytest.raises(ZeroDivisionError), signals.deferred():
        signal.raise_signal(signal.SIGTERM)
        raise ZeroDivisionError


def test_two_signals_at_once_are_one_request() -> None:
    """GNU timeout signals a process and its group; the second within a second changes nothing."""
    with signals.handled(), pytest.raises(Interrupted), signals.deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)


def test_ignored_signals_stay_ignored() -> None:
    """Under nohup SIGHUP is ignored, and stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled():
            signal.raise_signal(signal.SIGHUP)
            assert not signals.pending()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_have_no_handlers() -> None:
    """A script's main() may be called from a thread, where Python allows no handlers."""
    reached = []

    def work() -> None:
        with signals.handled():
            reached.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reached
