"""Promises of report.py: what a person sees."""

import io
import logging
import sys

import pytest

from small_modernbert.runs import report


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.12345, "0.1235"),
        (12345.6, "12,346"),
        ("name", "name"),
    ],
)
def test_cell(value: object, text: str) -> None:
    """Numbers have separators and four places, what is missing is a dash."""
    assert report.cell(value) == text


def test_table_lines_up() -> None:
    """Columns line up, numbers (gaps among them included) to the right, text to the left."""
    lines = report.table(
        ("model", "texts", "score"), [("teacher", 1000, 0.5), ("a", 7, None)]
    ).splitlines()
    assert lines == [
        "| model   | texts |  score |",
        "|---------|------:|-------:|",
        "| teacher | 1,000 | 0.5000 |",
        "| a       |     7 |      – |",
    ]


def test_table_without_rows() -> None:
    """A table without rows is its header."""
    assert report.table(("a", "longer"), []).splitlines() == [
        "| a   | longer |",
        "|-----|--------|",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (150, "2.5 min")])
def test_minutes(seconds: float, text: str) -> None:
    """Short durations are seconds, long ones minutes."""
    assert report.minutes(seconds) == text


def test_progress_is_silent_for_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Work of less than five seconds shows no bar; the items come through unchanged."""
    assert list(report.progress(range(5), description="counting")) == [0, 1, 2, 3, 4]
    printed = capsys.readouterr()
    assert "counting" not in printed.out + printed.err


@pytest.mark.parametrize("gone", [BrokenPipeError(32, "Broken pipe"), ValueError("closed file")])
def test_a_bar_nobody_reads_does_not_end_the_work(
    gone: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal that was closed, or a `tee` that has ended, costs the bar and not the run."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise gone

        def flush(self) -> None:
            raise gone

        def isatty(self) -> bool:
            raise gone

    tried: list[str] = []
    monkeypatch.setattr(report, "SHOW_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", Gone())
    bar = report.progress(range(5), description="counting")
    bar.mininterval = 0
    assert list(bar) == [0, 1, 2, 3, 4]
    assert tried


def test_a_log_gets_lines_and_a_terminal_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing can move, each state of a bar is a line; a terminal's is written over."""

    def states(terminal: bool) -> str:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
        bar = report.progress(total=3, description="counting", unit="toys")
        for _ in range(3):
            bar.refresh()
            bar.update()
        bar.close()
        return capsys.readouterr().err

    monkeypatch.setattr(report, "SHOW_AFTER_SECONDS", 0.0)
    assert states(terminal=False).count("\n") == 1  # a line now and then, however many states
    monkeypatch.setattr(report, "FILE_SECONDS", 0.0)
    lines = states(terminal=False)
    assert "\r" not in lines
    assert lines.count("counting") == len(lines.splitlines()) >= 3
    assert "\n" not in states(terminal=True)


def test_a_line_of_the_log_takes_the_bar_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal the bar is wiped before a line is written, and drawn again below it."""
    monkeypatch.setattr(report, "SHOW_AFTER_SECONDS", 0.0)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    bar = report.progress(total=3, description="counting")
    bar.refresh()
    capsys.readouterr()
    report.Console().emit(logging.LogRecord("a", logging.INFO, "", 0, "a line", None, None))
    printed = capsys.readouterr()
    bar.close()
    assert printed.out == "a line\n"
    wiped, _, drawn = printed.err.partition("counting")
    assert wiped.strip("\r ") == "" and wiped.count("\r") >= 2
    assert drawn
