"""The bridge from constants to flags: a flag is a one-run edit of a script's constant.

The parsing is tyro's. This module only reads the constants, their annotations and their trailing
comments out of a script's source, and writes the parsed values back into its namespace. It imports
nothing heavy, so that `--help` answers at once.
"""

import ast
import dataclasses
import io
import os
import shlex
import sys
import tokenize
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from small_modernbert.runs import redaction, signals, storage
from small_modernbert.runs.errors import UserError

# Settings that change what a run does about its folder, never what it computes.
NOT_RECIPE = frozenset(
    {"OVERWRITE", "WORKERS", "VECTORS", "PUSH", "COMMIT_MSG", "MODEL_REPOSITORY_NAME"}
)

_TYPES = {"Literal": Literal, "list": list, "int": int, "float": float, "str": str, "bool": bool}


@dataclasses.dataclass(frozen=True)
class Constant:
    """One annotated module-level constant of a script."""

    name: str
    type: Any
    help: str


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
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        text = " ".join(comments[line] for line in lines if line in comments)
        constants.append(Constant(name, kind, text))
    return constants


def override(namespace: dict[str, Any], argv: list[str] | None = None) -> None:
    """Parse `argv` (default: the command line) into the constants of a script's namespace.

    Unknown flags and values of the wrong type exit with 2 and a usage message (tyro's).
    """
    import tyro

    path = Path(namespace["__file__"])
    fields: list[Any] = []
    constants = read_constants(path)
    for constant in constants:
        value = namespace[constant.name]
        described = Annotated[constant.type, tyro.conf.arg(help=constant.help or None)]
        if isinstance(value, list):
            field = dataclasses.field(default_factory=lambda value=value: list(value))
        else:
            field = dataclasses.field(default=value)
        fields.append((constant.name.lower(), described, field))
    schema = dataclasses.make_dataclass("Settings", fields)
    schema.__doc__ = namespace.get("__doc__") or ""
    parsed = tyro.cli(
        schema, prog=path.name, args=argv, description=namespace.get("__doc__"), add_help=True
    )
    for constant in constants:
        namespace[constant.name] = getattr(parsed, constant.name.lower())


def effective(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what a run computes, as they stand now, by name."""
    names = [constant.name for constant in read_constants(Path(namespace["__file__"]))]
    return {name: namespace[name] for name in names if name not in NOT_RECIPE}


def command_line() -> str:
    """Return the command that goes on with this run: as it was called, but redoing nothing."""
    flags = [flag for flag in sys.argv[1:] if flag != "--overwrite"]
    return shlex.join(["python", sys.argv[0], *redaction.redact_arguments(flags)])


def run(namespace: dict[str, Any], argv: list[str] | None = None) -> None:
    """Parse the flags, then call the script's `main`; what a user can cure ends in one line.

    Exits with 1 for user errors and full disks, with 128 + the signal's number for signals.
    """
    override(namespace, argv)
    main = typing.cast(Callable[[], None], namespace["main"])
    sys.excepthook = _print_redacted
    with signals.handled():
        try:
            main()
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
            told = storage.explain(error)
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
