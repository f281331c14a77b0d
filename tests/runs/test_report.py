"""Promises of report.py: what a person sees."""

import io
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
