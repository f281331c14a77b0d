"""What a person sees: progress bars with time left, tables, numbers with thousands separators."""

import contextlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

SHOW_AFTER_SECONDS = 5.0


class _Stderr:
    """Standard error, for a bar: when its reader has gone, a run must go on all the same."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return sys.stderr.isatty()
        return False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever a stream has
        return getattr(sys.stderr, name)


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
) -> Any:  # noqa: ANN401  a tqdm bar; naming its type would import it at start-up
    """Return a tqdm bar that appears only when the work lasts longer than five seconds."""
    from tqdm import tqdm

    stream = _Stderr()
    return tqdm(
        iterable,
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=True,
        file=stream,
        delay=SHOW_AFTER_SECONDS,
        # A log file needs a line now and then, a terminal wants to move.
        mininterval=0.5 if stream.isatty() else 15.0,
        dynamic_ncols=True,
        leave=False,
    )


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


def minutes(seconds: float) -> str:
    """Format a duration for the closing line of a stage."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
