"""The table of faults: every test here adds what it saw survived; the end of the run prints it.

`pytest tests/faults` runs the short part, `make faults` everything, and then fails if the table has
fewer rows than it promises.
"""

from collections.abc import Callable

import pytest
from small_pipeline import Pipeline

from small_modernbert.runs import report

HEAD = ["fault", "stage", "kept", "lost", "exit"]
_rows: list[list[str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the number of distinct faults below which a run fails."""
    parser.addoption("--least-faults", type=int, default=0, help="fail with fewer distinct faults")


@pytest.fixture
def survived() -> Callable[..., None]:
    """Return the function that adds a row to the table; call it after the last assertion."""

    def add(fault: str, stage: str, kept: str, lost: str = "nothing", exit_code: int = 1) -> None:
        """Add one row.

        Args:
            fault: what was done to the run, in a few words; distinct faults are counted by it.
            stage: the script, or the part of it that several share ("any training stage").
            kept: what is still there afterwards, or how it went on.
            lost: what is gone: "nothing", or the work since the last checkpoint.
            exit_code: as the shell sees it: 0 if the run went on, 1 if it refused.
        """
        row = [fault, stage, kept, lost, str(exit_code)]
        # The same fault on a student and on a teacher is one row.
        if row not in _rows:
            _rows.append(row)

    return add


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Return six stages on the miniature assets, each finished once without a fault."""
    folder = tmp_path_factory.mktemp("pipeline")
    return Pipeline(folder / "assets", folder / "whole")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if _rows:
        terminalreporter.write_sep("-", f"{len({row[0] for row in _rows})} faults")
        terminalreporter.write_line(report.table(HEAD, sorted(_rows, key=lambda row: row[1])))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run whose table is too short."""
    least = session.config.getoption("--least-faults", default=0)
    if exitstatus == 0 and len({row[0] for row in _rows}) < least:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
