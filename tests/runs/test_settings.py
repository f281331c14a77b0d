"""Promises of settings.py: a flag is a one-run edit of a script's constant."""

import errno
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from small_modernbert.runs import settings
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT

SCRIPT = '''"""Count toys."""

from typing import Literal

# Names: of toys, as people
# call them
NAME: str = "a"  # what it is called

# Numbers
STEPS: int = 3  # how many there are
# fast enough
RATE: float = 0.5  # how fast it goes
SHUFFLE: bool = False  # whether they are mixed
KEEP: bool = True  # whether they stay
SETS: list[str] = ["one"]  # which ones are read
SIZES: list[int] = [1, 2]  # how large they are
KIND: Literal["plain", "fancy"] = "plain"  # one of two kinds
WRAPPED: str = (
    "b"  # a comment inside brackets
)
OVERWRITE: bool = False  # redo what is done

UNTYPED = 1  # no annotation, no flag
lower: int = 1  # not a constant


def main() -> None:
    """Do nothing."""
'''


@pytest.fixture
def namespace(tmp_path: Path) -> dict[str, Any]:
    """Return the globals of a script with constants of every type."""
    path = tmp_path / "count_toys.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return runpy.run_path(str(path))


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--name", "b c"], "NAME", "b c"),
        (["--name", ""], "NAME", ""),
        (["--steps", "7"], "STEPS", 7),
        (["--steps=-7"], "STEPS", -7),
        (["--rate", "3e-4"], "RATE", 3e-4),
        (["--rate", "2"], "RATE", 2.0),
        (["--shuffle"], "SHUFFLE", True),
        (["--no-keep"], "KEEP", False),
        (["--sets", "x", "y"], "SETS", ["x", "y"]),
        (["--sizes", "4", "5", "6"], "SIZES", [4, 5, 6]),
        (["--kind", "fancy"], "KIND", "fancy"),
        (["--wrapped", "c"], "WRAPPED", "c"),
    ],
)
def test_flag_sets_constant(
    namespace: dict[str, Any],
    flags: list[str],
    name: str,
    value: Any,  # noqa: ANN401  of each type in turn
) -> None:
    """A flag sets its constant, with the annotated type, and leaves all others alone."""
    before = dict(namespace)
    settings.override(namespace, flags)
    assert namespace[name] == value
    assert type(namespace[name]) is type(value)
    assert {key for key in before if before[key] != namespace[key]} == {name}


def test_no_flags_change_nothing(namespace: dict[str, Any]) -> None:
    """Without flags every constant keeps the value in the file."""
    before = dict(namespace)
    settings.override(namespace, [])
    assert namespace == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--stepz", "3"],  # a typo
        ["--steps", "three"],  # no number
        ["--steps", "1.5"],  # no whole number
        ["--steps"],  # no value
        ["--rate", "fast"],
        ["--kind", "odd"],  # not among the choices
        ["--sizes", "1", "x"],  # a list with a wrong entry
        ["--lower", "2"],  # not a constant
        ["--untyped", "2"],
        ["stray"],  # no flag at all
    ],
)
def test_wrong_flag_exits_with_2(
    namespace: dict[str, Any], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown flag or a bad value exits with 2, says so, and changes nothing."""
    before = dict(namespace)
    with pytest.raises(SystemExit) as stop:
        settings.override(namespace, flags)
    assert stop.value.code == 2
    assert namespace == before
    printed = capsys.readouterr()
    assert flags[0].strip("-") in printed.out + printed.err


def test_help_shows_each_comment(
    namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """--help exits with 0 and shows the docstring, each flag, its comment and its default."""
    with pytest.raises(SystemExit) as stop:
        settings.override(namespace, ["--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Count toys." in shown
    for constant in settings.read_constants(Path(namespace["__file__"])):
        assert constant.help, constant.name
        assert constant.help in shown
        assert f"--{constant.name.lower()}" in shown
    assert "0.5" in shown
    assert "a comment inside brackets" in shown


def test_help_shows_the_groups_of_the_file(
    namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A comment that opens a block is a title; what follows its colon, a word about the block."""
    groups = {one.name: one.group for one in settings.read_constants(Path(namespace["__file__"]))}
    assert groups.pop("NAME") == "Names: of toys, as people call them"
    assert set(groups.values()) == {"Numbers"}
    with pytest.raises(SystemExit):
        settings.override(namespace, ["--help"])
    shown = capsys.readouterr().out
    names, numbers = shown.index("Names options"), shown.index("Numbers options")
    assert names < shown.index("of toys, as people call them") < shown.index("--name STR")
    assert shown.index("--name STR") < numbers < shown.index("--steps INT")


@pytest.mark.parametrize("flags", [["--help"], ["--steps", "x"]])
def test_a_reader_that_has_gone_gets_no_traceback(tmp_path: Path, flags: list[str]) -> None:
    """`script.py --help | head -1` ends quietly, whether tyro or main was writing."""
    script = tmp_path / "count_toys.py"
    ending = "from small_modernbert.runs import settings\nsettings.run(globals())\n"
    script.write_text(SCRIPT + ending, encoding="utf-8")
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, str(script), *flags],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    os.close(writing)
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr
    assert ended.returncode == (141 if flags == ["--help"] else 2)


def test_the_machine_is_prepared_before_main(
    namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting threads soon sleep, libraries show no bars; what the user has set stays."""
    # Set and taken away again, so that they are gone after the test whatever it leaves.
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    seen: dict[str, str] = {}
    namespace["main"] = lambda: seen.update(os.environ)
    settings.run(namespace, [])
    assert seen["OMP_WAIT_POLICY"] == "passive"
    assert 0 < int(seen["GOMP_SPINCOUNT"]) < 100_000
    assert seen["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"
    assert seen["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "1"


def test_a_users_wait_policy_outweighs_our_spins(
    namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GNU's OpenMP puts the count above the policy: a policy of the user's sets no count."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    seen: dict[str, str] = {}
    namespace["main"] = lambda: seen.update(os.environ)
    settings.run(namespace, [])
    assert seen["OMP_WAIT_POLICY"] == "active"
    assert "GOMP_SPINCOUNT" not in seen


def test_effective_leaves_overwrite_out(namespace: dict[str, Any]) -> None:
    """The settings that decide a result hold every constant but OVERWRITE, as they stand now."""
    settings.override(namespace, ["--steps", "9", "--overwrite"])
    found = settings.effective(namespace)
    assert namespace["OVERWRITE"] is True
    assert list(found) == [
        "NAME", "STEPS", "RATE", "SHUFFLE", "KEEP", "SETS", "SIZES", "KIND", "WRAPPED",
    ]  # fmt: skip
    assert found["STEPS"] == 9


def test_unusable_annotation_is_refused(tmp_path: Path) -> None:
    """A constant that no flag can carry is named with its file and line."""
    path = tmp_path / "odd.py"
    path.write_text("A: int = 1\nTABLE: dict[str, int] = {}\n", encoding="utf-8")
    with pytest.raises(TypeError, match=r"odd\.py:2: TABLE"):
        settings.read_constants(path)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("corpus/row 3: no text"), 1, "error: corpus/row 3: no text"),
        (KeyboardInterrupt(), 130, "interrupted; what is done is kept, go on with: python "),
    ],
)
def test_run_ends_in_one_line(
    namespace: dict[str, Any],
    error: BaseException,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the user can cure, and Ctrl-C, end in one line on stderr and a code of their own."""

    def main() -> None:
        raise error

    namespace["main"] = main
    with pytest.raises(SystemExit) as stop:
        settings.run(namespace, [])
    assert stop.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(said)


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (
            lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left", "/runs/x")),
            1,
            "error: /runs/x could not be written or read: the disk is full",
        ),
        (
            lambda: signal.raise_signal(signal.SIGTERM),
            143,
            "interrupted by SIGTERM; what is done is kept, go on with: "
            "python count_toys.py --token '***' --name 'b c'",
        ),
        (lambda: signal.raise_signal(signal.SIGINT), 130, "interrupted by SIGINT; "),
    ],
    ids=["full disk", "SIGTERM", "SIGINT"],
)
def test_disk_and_signals_end_in_one_line(
    namespace: dict[str, Any],
    fault: Callable[[], object],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk tells its cure; a signal tells the command that goes on, and redoes nothing."""
    typed = ["count_toys.py", "--overwrite", "--token", "abc", "--name", "b c"]
    monkeypatch.setattr(sys, "argv", typed)
    namespace["main"] = fault
    with pytest.raises(SystemExit) as stop:
        settings.run(namespace, [])
    assert stop.value.code == code
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


def test_traceback_has_no_secret(
    namespace: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours keeps its trace, without the token that was in its message."""
    monkeypatch.setenv("HF_TOKEN", "not-shaped-like-one")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def broken() -> None:
        raise ZeroDivisionError("401 for not-shaped-like-one")

    namespace["main"] = broken
    with pytest.raises(ZeroDivisionError) as raised:
        settings.run(namespace, [])
    sys.excepthook(ZeroDivisionError, raised.value, raised.tb)
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "401 for ***" in shown
    assert "not-shaped" not in shown


def test_run_calls_main_with_flags(namespace: dict[str, Any]) -> None:
    """The script's main sees the constants as the flags set them; our own faults keep a trace."""
    seen = []
    namespace["main"] = lambda: seen.append(namespace["STEPS"])
    settings.run(namespace, ["--steps", "5"])
    assert seen == [5]

    def broken() -> None:
        raise ZeroDivisionError

    namespace["main"] = broken
    with pytest.raises(ZeroDivisionError):
        settings.run(namespace, [])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", "-1"], "--steps -1 is too small; give at least 0: --steps 3"),
        (["--rate", "-0.5"], "--rate -0.5 is too small; give at least 0: --rate 0.5"),
        (["--rate", "nan"], "--rate nan is no number to work with"),
        (["--rate", "inf"], "--rate inf is no number to work with"),
        (["--sizes", "4", "-2"], "--sizes -2 is too small; give at least 0: --sizes …"),
        (["--rows-per-batch", "0"], "--rows-per-batch 0 is too small; give at least 1"),
        (["--temperature", "0"], "--temperature 0.0 is too small; give more than 0"),
        (["--seed", str(2**40)], "at most 4294967295: --seed 42"),
        (["--tokens-per-batch", "0", "--score-range", "-1", "1"], ""),  # 0 as in the file
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the script, it does nothing with them: no width of -5, no loss at temperature 0."""
    path = tmp_path / "count_toys.py"
    more = "ROWS_PER_BATCH: int = 8\nTEMPERATURE: float = 0.1\nSEED: int = 42\n"
    more += "TOKENS_PER_BATCH: int = 0\nSCORE_RANGE: list[float] = []\n"
    path.write_text(SCRIPT + more, encoding="utf-8")
    namespace = runpy.run_path(str(path))
    if not said:
        settings.run(namespace, flags)
        return
    with pytest.raises(SystemExit) as stop:
        settings.run(namespace, flags)
    assert stop.value.code == 1 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "the GPU's memory is used up (CUDA out of memory. Tried to allocate 2.00 GiB); take "
            "less at once: --tokens-per-batch 8192 --accumulate 2",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "the memory is used up"),
        (MemoryError(), "the memory is used up"),
    ],
)
def test_memory_that_is_used_up_has_a_cure(
    namespace: dict[str, Any], error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch too large for the GPU ends in one line with the flags that make it smaller."""

    def main() -> None:
        raise error

    namespace |= {"main": main, "TOKENS_PER_BATCH": 16_384, "ACCUMULATE": 1}
    with pytest.raises(SystemExit):
        settings.run(namespace, [])
    assert capsys.readouterr().err.startswith(f"error: {said}")
