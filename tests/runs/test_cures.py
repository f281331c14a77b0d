"""Promises of our errors: the command that a message names can be typed, and it cures."""

import ast
import functools
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from small_modernbert.runs import references, settings
from small_modernbert.runs.references import ROOT

COMMAND = re.compile(r"python ((?:mlm/)?[a-z0-9_]+\.py)((?: --[a-z0-9-]+(?: [^\s;,.)]+)?)*)")
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]+)")
TARGET = re.compile(r"\bmake ([a-z]+(?:-[a-z]+)?)\b(?= ARGS|[\s;,.)\"]|$)")
# Of other programs: pip, torchrun, tensorboard.
FOREIGN = {"bind", "hash", "logdir", "max-restarts", "no-deps", "nproc-per-node", "no-index"}
WORDS_AFTER_MAKE = {"it", "them", "room", "sure", "one", "another", "up", "the", "a", "no", "new"}
# What a refusal asks for: something to type, a name that is filled in, or a verb after its reason.
TYPED = re.compile(r"\b(?:python|make|pip|iconv|hf auth) |(?<![\w-])--[a-z]|\b(?:RUNS|TMPDIR)\b")
VERB = re.compile(
    r"(?:[;:,(] (?:then |or )?)(?:add|change|check|choose|convert|correct|divide|export|fill|free|"
    r"give|install|lower|mend|name|put|redo|remove|rename|run|save|say|take|try|use|write)\b"
)
CURES = re.compile(
    r"\b\w*(?:cure|CURE|ASSETS|MEND|SAFE|FAST|ELSEWHERE|OTHER_DISK|IN_TABLE|INSTALL|route|redo|busy)\b"
)
TOY = '''"""Make a toy."""

from pathlib import Path

from small_modernbert.runs import references, settings, stages, storage
from small_modernbert.runs.errors import UserError

TEXT: str = "text.txt"  # what it is made of
STEPS: int = 3  # how many
RECIPE: str = "toys"  # the folder
VARIANT: str = ""  # another folder
OVERWRITE: bool = False  # redo


def main() -> None:
    """Read, make, finish."""
    text = references.find_file(TEXT, "TEXT", "write it")
    with stages.Stage(globals(), {"text": text}) as stage:
        if stage.finished:
            return
        storage.write_text(stage.building / "model", f"{STEPS} of {text.read_text()}")
        if STEPS > 9:
            storage.remove(stage.building / "model")
            raise UserError(f"{STEPS} are too many; take fewer: --steps 9")
        if (references.ROOT / "interrupt").exists():
            raise KeyboardInterrupt
        stage.finish("made")


if __name__ == "__main__":
    settings.run(globals())
'''


@functools.cache
def parse(path: Path) -> ast.Module:
    """Return a module's tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every text of a module with its line; what is filled in is written as x."""
    tree = parse(path)
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    parts = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if id(node) in documentation | parts:
            continue
        if isinstance(node, ast.JoinedStr):
            values = (
                value.value if isinstance(value, ast.Constant) else "x" for value in node.values
            )
            yield node.lineno, "".join(map(str, values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def modules() -> list[str]:
    """Return every script and module of the package, relative to the repository."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("mlm/[!_]*.py"), *ROOT.glob("small_modernbert/*/*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


@functools.cache
def flags(script: str) -> set[str]:
    """Return the flags of a script, without dashes before."""
    names = [one.name.lower().replace("_", "-") for one in settings.read_constants(ROOT / script)]
    return {*names, *(f"no-{name}" for name in names), "help"}


@pytest.mark.parametrize("module", modules())
def test_what_a_message_says_to_type_can_be_typed(module: str) -> None:
    """Scripts, flags and make targets in our texts exist, each flag on the script it stands by."""
    every = set().union(*(flags(f"{script}.py") for script in references.SCRIPTS), {"workers"})
    every |= flags("try_it.py") | flags("serve_demo.py") | flags("report.py") | FOREIGN
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for line, text in strings(ROOT / module):
        for script, rest in COMMAND.findall(text):
            if script == "x.py":
                continue
            assert (ROOT / script).is_file(), f"{module}:{line}: {script}"
            unknown = set(FLAG.findall(rest)) - flags(script)
            assert not unknown, f"{module}:{line}: {script} has no {unknown}"
        if " " in text:
            assert set(FLAG.findall(text)) <= every, f"{module}:{line}: {text}"
        for target in TARGET.findall(text):
            known = target in targets or target in WORDS_AFTER_MAKE
            assert known, f"{module}:{line}: make {target}"


def refusals(tree: ast.AST, handled: str = "") -> Iterator[tuple[int, str, str]]:
    """Yield the line, the text and the handled error of each UserError that is made."""
    for node in ast.iter_child_nodes(tree):
        caught = ast.unparse(node.type) if isinstance(node, ast.ExceptHandler) and node.type else ""
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("UserError"):
            yield node.lineno, " ".join(map(ast.unparse, node.args)), handled
        yield from refusals(node, caught or handled)


def test_whoever_is_refused_is_told_what_to_do() -> None:
    """Each error of ours has something to type or to change; or hands on one that has."""
    scripts = (script for script in modules() if "/" not in script or script.startswith("mlm/"))
    constants = {name.upper().replace("-", "_") for script in scripts for name in flags(script)}
    bare = []
    for module in modules():
        for line, text, handled in refusals(parse(ROOT / module)):
            names = constants & set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", text))
            told = names or TYPED.search(text) or VERB.search(text) or CURES.search(text)
            if not told and handled != "UserError":
                bare.append(f"{module}:{line}: {text}")
    assert not bare, "\n".join(bare)


@pytest.fixture
def run_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs the toy's script with flags, as a shell would."""
    (tmp_path / "make_toy.py").write_text(TOY, encoding="utf-8")
    (tmp_path / "text.txt").write_text("wood", encoding="utf-8")
    monkeypatch.setattr(references, "ROOT", tmp_path)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)

    def run(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["make_toy.py", *flags])
        runpy.run_path(str(tmp_path / "make_toy.py"), run_name="__main__")

    return run


def change_text(folder: Path) -> None:
    """Another input than before."""
    (folder / "text.txt").write_text("tin", encoding="utf-8")


def damage_record(text: str | None) -> Callable[[Path], None]:
    """Return a function that takes run.json away, or writes something else into it."""

    def damage(folder: Path) -> None:
        record = folder / "runs" / "toys" / "make_toy" / "run.json"
        record.unlink()
        if text is not None:
            record.write_text(text, encoding="utf-8")

    return damage


def change_final(folder: Path) -> None:
    """Change a file of the finished stage by hand."""
    model = folder / "runs" / "toys" / "make_toy" / "final" / "model"
    model.write_text(model.read_text() + " and more", encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "again"),
    [
        (lambda folder: None, ["--steps", "4"]),  # another setting
        (change_text, []),
        (damage_record(None), []),
        (damage_record("{"), []),
        (damage_record("[]"), []),
        (damage_record(json.dumps({"format": 99})), []),
        (change_final, []),
    ],
    ids=["setting", "input", "no record", "cut record", "odd record", "newer record", "final"],
)
def test_redoing_as_told_succeeds(
    tmp_path: Path,
    run_toy: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
    again: list[str],
) -> None:
    """What refuses a stage names the command that redoes it, with the flags that were given."""
    run_toy()
    harm(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_toy(*again)
    assert stop.value.code == 1
    told = capsys.readouterr().err
    command = re.search(r"python \S*make_toy\.py((?: --[a-z]+(?: \d+)?)*)", told)
    assert command is not None, told
    run_toy(*shlex.split(command[1]))
    made = (tmp_path / "runs" / "toys" / "make_toy" / "final" / "model").read_text()
    assert made == f"{4 if again else 3} of {(tmp_path / 'text.txt').read_text()}"


def test_changing_as_told_what_was_refused_succeeds(
    tmp_path: Path, run_toy: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was refused before it made anything stands in no one's way."""
    with pytest.raises(SystemExit):
        run_toy("--steps", "12")
    assert "take fewer: --steps 9" in capsys.readouterr().err
    folder = tmp_path / "runs" / "toys" / "make_toy"
    (folder / "scratch").mkdir()
    (folder / "scratch" / "rows").touch()  # what was prepared is made again
    run_toy("--steps", "9")
    assert (folder / "final" / "model").read_text() == "9 of wood"
    assert not (folder / "scratch").exists()


@pytest.mark.parametrize("made", ["checkpoints/step-2/model", "final.partial/shard-0"])
def test_what_a_failed_run_made_is_not_lost(
    tmp_path: Path, run_toy: Callable[..., None], capsys: pytest.CaptureFixture[str], made: str
) -> None:
    """Where there is something to lose, --overwrite has to be said."""
    with pytest.raises(SystemExit):
        run_toy("--steps", "12")
    path = tmp_path / "runs" / "toys" / "make_toy" / made
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(SystemExit):
        run_toy("--steps", "9")
    assert "holds a failed run that differs" in capsys.readouterr().err
    assert path.exists()


def test_keeping_both_as_told_succeeds(
    tmp_path: Path, run_toy: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """--variant gives the changed run a folder of its own, and leaves the other."""
    run_toy()
    with pytest.raises(SystemExit):
        run_toy("--steps", "4")
    assert "or keep both with --variant NAME" in capsys.readouterr().err
    run_toy("--steps", "4", "--variant", "NAME")
    for name, steps in (("make_toy", 3), ("make_toy@NAME", 4)):
        final = tmp_path / "runs" / "toys" / name / "final"
        assert (final / "model").read_text() == f"{steps} of wood"


def test_going_on_as_told_succeeds(
    tmp_path: Path, run_toy: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C names the command that goes on: without --overwrite, with everything else."""
    (tmp_path / "interrupt").touch()
    with pytest.raises(SystemExit) as stop:
        run_toy("--steps", "5", "--overwrite")
    assert stop.value.code == 130
    told = capsys.readouterr().err
    (tmp_path / "interrupt").unlink()
    _, _, command = told.strip().partition("make_toy.py ")
    assert command == "--steps 5"
    run_toy(*shlex.split(command))
    assert "going on in" in capsys.readouterr().out
    final = tmp_path / "runs" / "toys" / "make_toy" / "final"
    assert (final / "model").read_text() == "5 of wood"


def test_waiting_as_told_succeeds(
    tmp_path: Path, run_toy: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in use is told with the other process; a variant, or its end, lets one in."""
    from small_modernbert.runs import storage

    folder = tmp_path / "runs" / "toys" / "make_toy"
    folder.mkdir(parents=True)
    with storage.take_lock(folder / "lock", "busy"):
        with pytest.raises(SystemExit):
            run_toy()
        assert "give this run a folder of its own with --variant" in capsys.readouterr().err
        run_toy("--variant", "b")
    run_toy()
    assert (folder / "final" / "model").read_text() == "3 of wood"
