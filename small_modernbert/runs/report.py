"""What a person sees: progress bars with time left, tables, numbers with thousands separators."""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from small_modernbert.runs import processes, redaction

SHOW_AFTER_SECONDS = 5.0
TERMINAL_SECONDS = 0.5  # between two states of a bar
FILE_SECONDS = 20.0  # between two lines in a log, a pipe, a CI job
LOG = "small_modernbert"  # the logger of all of ours
CURSOR_UP = "\x1b[A"


class _Stderr:
    """Standard error, for a bar: when its reader has gone, a run must go on all the same.

    Where it is no terminal, a bar's states become lines.
    """

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            if self.isatty():
                sys.stderr.write(text)
            elif line := text.replace(CURSOR_UP, "").strip():
                sys.stderr.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return sys.stderr.isatty()
        return False

    def __eq__(self, other: object) -> bool:
        """Say that any two write to the same place: tqdm then knows which bars are in the way."""
        return isinstance(other, _Stderr)

    def __hash__(self) -> int:
        return hash(_Stderr)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever a stream has
        return getattr(sys.stderr, name)


@functools.cache
def bar_class() -> Any:  # noqa: ANN401  a subclass of tqdm; naming it would import it at start-up
    """Return tqdm as our bars are: late, on one line; in a log a line now and then."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *given: Any, **named: Any) -> None:  # noqa: ANN401  tqdm's
            stream = _Stderr()
            self.terminal = stream.isatty()
            self.often = TERMINAL_SECONDS if self.terminal else FILE_SECONDS
            self.next_line = time.monotonic() + SHOW_AFTER_SECONDS
            ours = {
                "file": stream,
                "delay": SHOW_AFTER_SECONDS,
                "mininterval": self.often,
                "maxinterval": max(self.often, 10.0),
                "dynamic_ncols": self.terminal,
                "leave": False,
                "unit_scale": True,
            }
            super().__init__(*given, **(named | ours))

        def display(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401  tqdm's
            # Libraries refresh a bar as they like, a moment after its start, too.
            if time.monotonic() < self.next_line:
                return True
            self.next_line = 0.0 if self.terminal else time.monotonic() + self.often
            return super().display(*given, **named)

    return Bar


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
) -> Any:  # noqa: ANN401  a tqdm bar; naming its type would import it at start-up
    """Return a tqdm bar that appears only when the work lasts longer than five seconds.

    Of several processes that are one run (see `processes`) only the leader shows it.
    """
    follows = processes.rank() > 0
    return bar_class()(
        iterable, desc=description, total=total, initial=initial, unit=unit, disable=follows
    )


class Redacting(logging.Formatter):
    """Lines of the log without tokens and passwords."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return redaction.redact(super().format(record))


class Console(logging.StreamHandler):
    """Lines of the log on standard output, without a bar in their midst.

    Attributes:
        early: records from before there was a log file, for whoever opens one; None from then on.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.setFormatter(Redacting("%(message)s"))
        self.early: list[logging.LogRecord] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; a bar that stands there makes room and comes back below it."""
        if self.early is not None:
            self.early.append(record)
        if "tqdm" not in sys.modules or not sys.stdout.isatty():
            super().emit(record)
            return
        with bar_class().external_write_mode(file=_Stderr()):
            super().emit(record)


@contextlib.contextmanager
def console() -> Iterator[None]:
    """Show the log of a script from its first line on: much is said before a stage has begun."""
    log, handler = logging.getLogger(LOG), Console()
    level = log.level
    if processes.rank() == 0:
        log.setLevel(logging.INFO)
        log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def cell(value: Any) -> str:  # noqa: ANN401  numbers, text or None
    """Format one table cell: integers with separators, floats to four places, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
    return str(value)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table whose columns also line up in a terminal; numbers to the right."""
    rows = [list(row) for row in rows]
    body = [[cell(value) for value in row] for row in rows]
    numeric = [
        all(row[i] is None or isinstance(row[i], int | float) for row in rows) and bool(rows)
        for i in range(len(headers))
    ]
    widths = [
        max(3, len(header), *(len(line[i]) for line in body)) if body else max(3, len(header))
        for i, header in enumerate(headers)
    ]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(cells, widths, numeric, strict=True)
        ]
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join(
        "-" * (width + 1) + (":" if right else "-")
        for width, right in zip(widths, numeric, strict=True)
    )
    return "\n".join([line(headers), rule + "|", *(line(cells) for cells in body)])


def shorten(text: str, most: int) -> str:
    """Return a text on one line, cut after so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]} …"


def minutes(seconds: float) -> str:
    """Format a duration for the closing line of a stage."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
