"""Promise of the house: an import points only to a room further down, and the linter sees it."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from small_modernbert.runs.references import ROOT


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the contract of pyproject.toml on the package that lies in a folder."""
    code = "import sys; from importlinter.cli import lint_imports_command as c; c(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_contract_holds_and_a_planted_upward_import_breaks_it(tmp_path: Path) -> None:
    """The package as it is passes; one import from the bottom room to the top one does not."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "small_modernbert", tmp_path / "small_modernbert")
    kept = lint_imports(tmp_path)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    planted = tmp_path / "small_modernbert" / "runs" / "errors.py"
    planted.write_text(planted.read_text() + "\nfrom small_modernbert.export import int8\n")
    broken = lint_imports(tmp_path)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert "small_modernbert.runs is not allowed to import small_modernbert.export" in broken.stdout


def test_every_room_is_installed() -> None:
    """pyproject.toml names each package, and each file of theirs that is no Python."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "small_modernbert"
    rooms = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for path in package.rglob("__init__.py")
    }
    assert set(setup["packages"]) == rooms | {"mlm"}
    named = {
        path for glob in setup["package-data"]["small_modernbert"] for path in package.glob(glob)
    }
    others = {
        path for path in package.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    }
    assert {path for path in others if path.suffix != ".py"} == named
