"""Real processes, signals and limits: how a run ends, and that the same command mends it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_hooks import Ignore, LimitFiles, SetEnvironment, Slow
from script_runner import run, start
from small_pipeline import (
    BUILD,
    CORPUS,
    DISTIL,
    LABELS,
    RECIPE,
    Pipeline,
    has_lines,
    shows,
    told,
)

from small_modernbert.runs import storage
from small_modernbert.runs.references import ROOT

pytestmark = pytest.mark.long  # each is quick, the pipeline that they share is not
Survived = Callable[..., None]
STEPS = 3  # lines of metrics.jsonl after which a training stage is signalled
STEPPING = Slow("metrics.jsonl", 0.05)  # so that its end does not come before


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_signal_saves_the_step_and_says_how_to_go_on(
    pipeline: Pipeline, tmp_path: Path, survived: Survived, number: signal.Signals, code: int
) -> None:
    """A signalled training stage saves where it stands, exits with 128 + n, and goes on exactly."""
    folder = pipeline.prepare(tmp_path, DISTIL)
    running = start(pipeline.commands[DISTIL], tmp_path, STEPPING)
    running.wait_until(has_lines(folder / "metrics.jsonl", STEPS))
    running.signal(number)
    line = told(running.wait(), code)
    assert line.startswith(f"interrupted by {number.name}; what is done is kept, go on with: ")
    assert line.endswith(f"--recipe {RECIPE}")
    assert "distil_modernbert.py --student mlm/init_model_mlm@static" in line
    record = pipeline.record(tmp_path, DISTIL)
    assert (record["status"], record["error"]) == ("interrupted", f"interrupted by {number.name}")
    assert not (folder / "final").exists()
    newest = max(folder.glob("checkpoints/step-*/progress.json"))
    step = storage.read_json(newest, "")["step"]
    assert 1 <= step < 12
    metrics = [line for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum('"batches"' in line for line in metrics) == step  # no step beyond the checkpoint
    output = pipeline.go_on(tmp_path, DISTIL).output
    assert f"going on from {newest.parent}" in output
    survived(f"{number.name} while training", DISTIL, "every step made", exit_code=code)


@pytest.mark.parametrize("name", [BUILD, CORPUS, LABELS])
def test_signal_ends_other_stages_too(
    pipeline: Pipeline, tmp_path: Path, survived: Survived, name: str
) -> None:
    """A stage without steps stops at once, keeps what it has written, and goes on from there."""
    moment = {
        BUILD: "final.partial/config.json",
        CORPUS: "scratch/offline",
        LABELS: "final.partial/train/shard-00000.parquet",
    }[name]
    folder = pipeline.prepare(tmp_path, name)
    # The disk is slow, so that the moment does not pass while the test looks for it.
    running = start(pipeline.commands[name], tmp_path, Slow(str(folder), 0.05))
    running.wait_until(shows(folder, moment))
    running.signal(signal.SIGTERM)
    assert "SIGTERM" in told(running.wait(), 143)
    assert pipeline.record(tmp_path, name)["status"] == "interrupted"
    pipeline.go_on(tmp_path, name)
    survived(f"SIGTERM in {name}", name, "what was written", exit_code=143)


def test_second_signal_ends_at_once(pipeline: Pipeline, tmp_path: Path, survived: Survived) -> None:
    """Whoever can't wait for a checkpoint on a slow disk signals again; nothing is spoilt."""
    folder = pipeline.prepare(tmp_path, DISTIL)
    running = start(pipeline.commands[DISTIL], tmp_path, Slow("step-", 60.0))
    running.wait_until(shows(folder, "checkpoints/step-*.partial"))
    running.signal(signal.SIGTERM)
    time.sleep(0.3)
    running.signal(signal.SIGTERM)  # GNU timeout does that: still one request
    time.sleep(1.2)
    assert running.alive
    running.signal(signal.SIGTERM)
    assert running.wait(10).exit_code == -signal.SIGTERM
    pipeline.go_on(tmp_path, DISTIL)
    survived("a second SIGTERM, during a save", DISTIL, "the checkpoint before", exit_code=143)


def test_nohup_is_respected(pipeline: Pipeline, tmp_path: Path, survived: Survived) -> None:
    """A run that was started to outlive its terminal does."""
    folder = pipeline.prepare(tmp_path, DISTIL)
    running = start(pipeline.commands[DISTIL], tmp_path, Ignore(signal.SIGHUP))
    running.wait_until(has_lines(folder / "metrics.jsonl", STEPS))
    running.signal(signal.SIGHUP)
    running.wait().check()
    pipeline.check_finished(tmp_path, DISTIL)
    survived("SIGHUP under nohup", DISTIL, "the run goes on", exit_code=0)


def test_recipe_stops_with_its_stage(
    pipeline: Pipeline, tmp_path: Path, survived: Survived
) -> None:
    """Ctrl-C at a recipe ends the running stage and starts no other; the recipe's code is 130."""
    command = ["bash", str(ROOT / "recipes" / "offline.sh"), "--size", "smoke"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    recipe = subprocess.Popen(
        [*command, "--assets", str(pipeline.assets)],
        env={**os.environ, "PATH": path, "RUNS": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives it
    )
    first = tmp_path / "smoke" / BUILD / "run.json"
    while not first.exists() and recipe.poll() is None:
        time.sleep(0.01)
    os.killpg(recipe.pid, signal.SIGINT)
    output, errors = recipe.communicate(timeout=60)
    assert recipe.returncode == 130, (output, errors)
    assert "interrupted by SIGINT; what is done is kept, go on with: " in errors
    assert [path.name for path in (tmp_path / "smoke").iterdir()] == [BUILD]
    assert storage.read_json(first, "")["status"] == "interrupted"
    survived("Ctrl-C at a recipe", "recipes/offline.sh", "what was written", exit_code=130)


def test_two_runs_at_once(pipeline: Pipeline, tmp_path: Path, survived: Survived) -> None:
    """The second run in a folder is refused and told by whom; the first one notices nothing."""
    folder = pipeline.prepare(tmp_path, DISTIL)
    first = start(pipeline.commands[DISTIL], tmp_path, Slow("step-", 0.1))
    first.wait_until(has_lines(folder / "metrics.jsonl", STEPS))
    line = told(run(pipeline.commands[DISTIL], tmp_path))
    assert f"{folder} is in use by process {first.process.pid}" in line
    assert "--variant" in line
    redone = told(run([*pipeline.commands[DISTIL], "--overwrite"], tmp_path))
    assert "is in use by" in redone
    first.wait().check()
    pipeline.check_finished(tmp_path, DISTIL)
    survived("a second run in the same folder", DISTIL, "the first run, undisturbed")


def test_killed_owner_leaves_no_lock(
    pipeline: Pipeline, tmp_path: Path, survived: Survived
) -> None:
    """The lock of a run that was killed keeps nobody out, though its file is still there."""
    folder = pipeline.prepare(tmp_path, DISTIL)
    running = start(pipeline.commands[DISTIL], tmp_path, STEPPING)
    running.kill_when(has_lines(folder / "metrics.jsonl", STEPS))
    assert (folder / "lock").read_text(encoding="utf-8") == str(running.process.pid)
    assert pipeline.record(tmp_path, DISTIL)["status"] == "running"
    pipeline.go_on(tmp_path, DISTIL)
    survived("a lock file whose owner was killed", DISTIL, "equal result", exit_code=137)


@pytest.mark.parametrize("name", [BUILD, CORPUS, LABELS, DISTIL])
def test_file_that_may_not_grow(
    pipeline: Pipeline, tmp_path: Path, survived: Survived, name: str
) -> None:
    """Where a write fails in Rust, Arrow, torch or Python, one line says why; nothing is spoilt."""
    folder = pipeline.prepare(tmp_path, name)
    files = storage.list_files(pipeline.stage(pipeline.whole, name))
    limit = max(path.stat().st_size for path in files) * 9 // 10
    line = told(run(pipeline.commands[name], tmp_path, LimitFiles(limit)))
    assert str(folder) in line
    assert "ulimit -f" in line or "the disk is full" in line
    record = pipeline.record(tmp_path, name)
    assert record["status"] == "failed"
    assert line.removeprefix("error: ") == record["error"]
    assert not (folder / "final").exists()
    pipeline.go_on(tmp_path, name)
    survived(f"a file of {name} reaches the limit on its size", name, "equal result")


def test_no_room_for_the_record(pipeline: Pipeline, tmp_path: Path, survived: Survived) -> None:
    """Not even run.json can be written: still one line, and still the same command mends it."""
    folder = pipeline.prepare(tmp_path, BUILD)
    line = told(run(pipeline.commands[BUILD], tmp_path, LimitFiles(200)))
    assert str(folder / "run.json") in line
    pipeline.go_on(tmp_path, BUILD)
    survived("no room for run.json", BUILD, "equal result")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount; the limits on a file's size are tested either way")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    """Change the rights of a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


@pytest.mark.parametrize("name", [BUILD, CORPUS, LABELS, DISTIL])
def test_full_disk(pipeline: Pipeline, small_disk: Path, survived: Survived, name: str) -> None:
    """A disk that is really full ends a stage in one line; with room, the same command finishes."""
    folder = pipeline.prepare(small_disk, name)
    fill = small_disk / "others"
    needed = sum(
        path.stat().st_size for path in storage.list_files(pipeline.stage(pipeline.whole, name))
    )
    free = shutil.disk_usage(small_disk).free - needed // 2
    fill.write_bytes(bytes(max(free, 0)))
    line = told(run(pipeline.commands[name], small_disk))
    assert "the disk is full" in line or "MB are free" in line, line
    assert "RUNS=/elsewhere" in line
    assert not (folder / "final").exists()
    fill.unlink()
    pipeline.go_on(small_disk, name)
    survived(f"a full disk in {name}", name, "equal result")


def test_disk_becomes_read_only(pipeline: Pipeline, small_disk: Path, survived: Survived) -> None:
    """A file system that went read-only (as after a disk error) is named, before and within."""
    pipeline.prepare(small_disk, BUILD)
    remount(small_disk, "ro")
    line = told(run(pipeline.commands[BUILD], small_disk))
    assert "read-only" in line
    assert str(small_disk) in line
    remount(small_disk, "rw")
    pipeline.go_on(small_disk, BUILD)
    survived("a read-only disk", BUILD, "equal result")


def test_input_changed_under_an_unfinished_stage(
    pipeline: Pipeline, tmp_path: Path, survived: Survived
) -> None:
    """A byte changed in the labels while a run was interrupted is named; restored, it goes on."""
    folder = pipeline.prepare(tmp_path, DISTIL)
    start(pipeline.commands[DISTIL], tmp_path, STEPPING).kill_when(
        has_lines(folder / "metrics.jsonl", STEPS)
    )
    shard = min(pipeline.stage(tmp_path, LABELS).glob("final/train/*.parquet"))
    whole, times = shard.read_bytes(), shard.stat()
    place = len(whole) // 2
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    line = told(run(pipeline.commands[DISTIL], tmp_path))
    assert f"train/{shard.name} has changed" in line
    assert "python create_distil_dataset.py --overwrite" in line
    shard.write_bytes(whole)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    pipeline.go_on(tmp_path, DISTIL)
    survived("a byte of the input changed under an unfinished run", DISTIL, "equal result")


def test_teacher_changed_under_an_unfinished_stage(
    pipeline: Pipeline, tmp_path: Path, survived: Survived
) -> None:
    """Another teacher, or another tokenizer in its folder, is named before anything is mixed."""
    folder = pipeline.prepare(tmp_path, LABELS)
    command = list(pipeline.commands[LABELS])
    teacher = tmp_path / "teacher"
    shutil.copytree(command[command.index("--teacher") + 1], teacher)
    command[command.index("--teacher") + 1] = str(teacher)
    running = start(command, tmp_path, Slow("shard", 0.05))
    running.kill_when(shows(folder, "final.partial/train/shard-00000.parquet"))
    for name in ("tokenizer.json", "model.safetensors"):
        whole = (teacher / name).read_bytes()
        (teacher / name).write_bytes(whole[:-2] + b"x" + whole[-1:])
        line = told(run(command, tmp_path))
        assert f"input teacher ({teacher}) is not the one used before" in line
        (teacher / name).write_bytes(whole)
        survived(f"another {name} of the teacher under an unfinished run", LABELS, "all shards")
    run(command, tmp_path).check()
    final = storage.digest_folder(folder / "final" / "train")
    whole_labels = pipeline.stage(pipeline.whole, LABELS) / "final" / "train"
    assert final == storage.digest_folder(whole_labels)


def test_setting_changed_under_an_unfinished_stage(
    pipeline: Pipeline, tmp_path: Path, survived: Survived
) -> None:
    """Another learning rate half-way is named, with both ways out, and changes nothing."""
    folder = pipeline.prepare(tmp_path, DISTIL)
    running = start(pipeline.commands[DISTIL], tmp_path, STEPPING)
    running.kill_when(has_lines(folder / "metrics.jsonl", STEPS))
    line = told(run([*pipeline.commands[DISTIL], "--learning-rate", "0.5"], tmp_path))
    assert "LEARNING_RATE: 0.0001 -> 0.5" in line
    assert "--overwrite" in line
    assert "--variant" in line
    pipeline.go_on(tmp_path, DISTIL)
    survived("another setting under an unfinished run", DISTIL, "equal result")


@pytest.mark.parametrize(
    "content", ["", '{"status": "finished"', "[]"], ids=["empty", "cut", "odd"]
)
def test_record_is_damaged(
    pipeline: Pipeline, tmp_path: Path, survived: Survived, content: str
) -> None:
    """A run.json that can't be read is named by the stage and by its readers, and not guessed."""
    pipeline.prepare(tmp_path, DISTIL)
    record = pipeline.stage(tmp_path, LABELS) / "run.json"
    whole = record.read_bytes()
    record.write_text(content, encoding="utf-8")
    for name in (LABELS, DISTIL):
        line = told(run(pipeline.commands[name], tmp_path))
        assert str(record) in line
        assert "--overwrite" in line
    record.write_bytes(whole)
    pipeline.go_on(tmp_path, DISTIL)
    survived(f"a run.json that is {content!r}", "any stage", "final/, untouched")


def test_no_token_leaves_the_process(
    pipeline: Pipeline, tmp_path: Path, survived: Survived
) -> None:
    """A push that fails, with the token in hand, writes it nowhere."""
    token = "hf_" + "aZ3" * 11
    command = [
        *("distil_model2vec.py", "--recipe", RECIPE, "--pca-dims", "16"),
        *("--base-model-name", str(pipeline.assets / "models" / "all-MiniLM-L6-v2")),
        *("--push", "--model-repository-name", "me/model", "--commit-msg", f"with {token}"),
    ]
    ended = run(command, tmp_path, SetEnvironment("HF_TOKEN", token))
    assert ended.exit_code == 1
    written = ended.output + ended.errors
    for path in storage.list_files(tmp_path):
        written += path.read_bytes().decode("utf-8", errors="replace")
    assert token not in written
    assert token[3:] not in written
    survived("a failing push with a token in hand", "distil_model2vec", "the finished model")
