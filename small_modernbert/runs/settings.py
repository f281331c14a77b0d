"""The bridge from constants to flags: a flag is a one-run edit of a script's constant.

The parsing is tyro's. This module only reads the constants, their annotations and their trailing
comments out of a script's source, and writes the parsed values back into its namespace. It imports
nothing heavy, so that `--help` answers at once.
"""

import ast
import contextlib
import dataclasses
import io
import math
import os
import shlex
import sys
import tokenize
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from small_modernbert.runs import disk_faults, machine, places, redaction, report, signals
from small_modernbert.runs.errors import UserError

# Constants that say where and how a run works, never what comes out: they may change between the
# runs of a stage, and no stage is refused for them.
HOUSEKEEPING = frozenset(
    {
        "OVERWRITE",
        "WORKERS",
        "EXECUTOR",
        "SLURM",
        "TASK_ROWS",
        "TASK_SHARDS",
        "VECTORS",
        "REPORT_TO",
        "PUSH",
        "PUBLIC",
        "COMMIT_MSG",
        "MODEL_REPOSITORY_NAME",
    }
)

# Numbers of ours count, measure or weigh: below 0 they mean nothing, but for these,
ANY_SIGN = frozenset({"LAYERS", "SCORE_RANGE", "MAX_RETRIEVAL_DROP"})
# and these mean nothing at 0 either, unless that is a script's own value ("as many as suit").
POSITIVE = frozenset(
    {
        "JUDGE_TEMPERATURE",
        "LEARNING_RATE",
        "NUM_PERMUTATIONS",
        "ROWS_PER_BATCH",
        "ROWS_PER_SHARD",
        "SCALE",
        "SEQUENCES_PER_BATCH",
        "SHARD_ROWS",
        "TEMPERATURE",
        "TOKENS_PER_BATCH",
    }
)
LARGEST_SEED = 2**32 - 1  # that numpy, torch and scikit-learn all take
_TYPES = {"Literal": Literal, "list": list, "int": int, "float": float, "str": str, "bool": bool}


@dataclasses.dataclass(frozen=True)
class Constant:
    """One annotated module-level constant of a script.

    Attributes:
        name: as it is spelt in the script.
        type: what its flag takes.
        help: the comment behind it.
        group: the comment above the block that it stands in, as in "Training"; "" if none.
    """

    name: str
    type: Any
    help: str
    group: str = ""


def read_constants(path: Path) -> list[Constant]:
    """Read the upper-case annotated constants of a script, in order, with their comments.

    Raises:
        TypeError: a constant's annotation is not one that a flag can carry.
    """
    source = path.read_text(encoding="utf-8")
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").strip()
    lines, group = ["", *source.splitlines()], ""
    constants = []
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        name = node.target.id
        if not name.isupper():
            continue
        annotation = ast.unparse(node.annotation)
        try:
            kind = eval(annotation, {"__builtins__": {}}, dict(_TYPES))  # our own source, not input
        except (NameError, TypeError) as error:
            raise TypeError(f"{path}:{node.lineno}: {name} is annotated {annotation!r}") from error
        own = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        text = " ".join(comments[line] for line in own if line in comments)
        group = _heading(lines, node.lineno) or group
        constants.append(Constant(name, kind, text, group))
    return constants


def _heading(lines: list[str], number: int) -> str:
    """Return the comment that opens a block at this line: after a blank line, directly above."""
    first = number
    while lines[first - 1].startswith("#"):
        first -= 1
    if lines[first - 1].strip():
        return ""
    return " ".join(line.lstrip("# ") for line in lines[first:number])


def override(namespace: dict[str, Any], argv: list[str] | None = None) -> None:
    """Parse `argv` (default: the command line) into the constants of a script's namespace.

    Unknown flags and values of the wrong type exit with 2 and a usage message (tyro's).
    """
    import tyro

    path = Path(namespace["__file__"])
    constants = read_constants(path)
    groups: list[Any] = []
    for heading in dict.fromkeys(constant.group for constant in constants):
        title, _, description = heading.partition(": ")
        members = [constant for constant in constants if constant.group == heading]
        group = dataclasses.make_dataclass(
            "Group", [_field(member, namespace) for member in members]
        )
        group.__doc__ = description
        named = Annotated[group, tyro.conf.arg(name=title or "script's")]
        groups.append((f"group{len(groups)}", named, dataclasses.field(default_factory=group)))
    schema = dataclasses.make_dataclass("Settings", groups)
    # tyro joins the lines of a paragraph.
    description = (namespace.get("__doc__") or "").replace("\nWrites:", "\n\nWrites:")
    schema.__doc__ = description
    # The flags are the constants' names alone; the groups are for the eye.
    flat = (tyro.conf.OmitArgPrefixes,)
    parsed = tyro.cli(schema, prog=path.name, args=argv, description=description, config=flat)
    for group in vars(parsed).values():
        namespace.update({name.upper(): value for name, value in vars(group).items()})


def check_numbers(namespace: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse numbers that can mean nothing, whatever the script, before it does anything.

    Args:
        namespace: a script's globals with the flags' values.
        defaults: the same as they stood in the file.

    Raises:
        UserError: with the flag, and the value that it has in the file.
    """
    names = [constant.name for constant in read_constants(Path(namespace["__file__"]))]
    for name in (name for name in names if name not in ANY_SIGN):
        value, own = namespace[name], defaults[name]
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            flag = f"--{name.lower().replace('_', '-')}"
            given = f"{flag} {own}" if own and not isinstance(own, list) else f"{flag} …"
            positive = name in POSITIVE and own != 0
            above = positive and isinstance(number, float)
            least = "more than 0" if above else f"at least {int(positive)}"
            if not math.isfinite(number):
                raise UserError(f"{flag} {number} is no number to work with; give one: {given}")
            if number < 0 or (positive and number == 0):
                raise UserError(f"{flag} {number} is too small; give {least}: {given}")
            if name == "SEED" and number > LARGEST_SEED:
                raise UserError(
                    f"{flag} {number} is too large; give at most {LARGEST_SEED}: {given}"
                )


def _field(constant: Constant, namespace: dict[str, Any]) -> tuple[str, Any, Any]:
    """Return a constant as a field of a dataclass, with the value that it has now."""
    import tyro

    value = namespace[constant.name]
    described = Annotated[constant.type, tyro.conf.arg(help=constant.help or None)]
    if isinstance(value, list):
        field = dataclasses.field(default_factory=value.copy)
    else:
        field = dataclasses.field(default=value)
    return constant.name.lower(), described, field


def effective(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what a run computes, as they stand now, by name."""
    names = [constant.name for constant in read_constants(Path(namespace["__file__"]))]
    return {name: namespace[name] for name in names if name not in HOUSEKEEPING}


def command_line() -> str:
    """Return the command that goes on with this run: as it was called, but redoing nothing."""
    flags = [flag for flag in sys.argv[1:] if flag != "--overwrite"]
    return shlex.join(["python", sys.argv[0], *redaction.redact_arguments(flags)])


def run(namespace: dict[str, Any], argv: list[str] | None = None) -> None:
    """Parse the flags, then call the script's `main`; what a user can cure ends in one line.

    Exits with 1 for user errors and full disks, with 128 + the signal's number for signals.
    """
    machine.prepare()
    sys.excepthook = _print_redacted
    with signals.handled(), _ended_in_one_line(), report.console(), machine.memory(namespace):
        defaults = dict(namespace)
        override(namespace, argv)
        check_numbers(namespace, defaults)
        places.refuse_urls(namespace)
        typing.cast(Callable[[], None], namespace["main"])()


@contextlib.contextmanager
def _ended_in_one_line() -> Iterator[None]:
    """End the process with one line, and the exit code, for whatever is no fault of ours."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a reader that has gone can still be told apart
    except UserError as error:
        _stop(f"error: {error}", 1)
    except KeyboardInterrupt as error:
        how = str(error) or "interrupted"
        code = getattr(error, "exit_code", 130)
        _stop(f"{how}; what is done is kept, go on with: {command_line()}", code)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: end quietly, as shell tools do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        told = disk_faults.explain(error)
        if told is None:
            raise
        _stop(f"error: {told}", 1)


def _stop(line: str, code: int) -> None:
    print(redaction.redact(line), file=sys.stderr)
    sys.exit(code)


def _print_redacted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(redaction.redact(text))
