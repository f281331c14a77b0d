"""Promises of stages.py: one folder a script, final/ only when finished, nothing changed unsaid."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from small_modernbert.runs import lineage, references, report, signals, stages, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage

Open = Callable[..., Stage]


def finish(stage: Stage, content: str = "made") -> None:
    """Run a stage to its end."""
    with stage:
        (stage.building / "file").write_text(content, encoding="utf-8")
        stage.finish("0.1 -> 0.2")


def test_final_appears_only_at_finish(open_stage: Open, capsys: pytest.CaptureFixture[str]) -> None:
    """Until finish() there is no final/; after it there is, recorded, with a closing line."""
    with open_stage() as stage:
        (stage.building / "file").write_text("made", encoding="utf-8")
        assert not stage.final.exists()
        assert storage.read_json(stage.folder / "run.json", "")["status"] == "running"
        stage.finish("0.1 -> 0.2", verify=lambda folder: (folder / "file").read_text())
    assert (stage.final / "file").read_text() == "made"
    assert not stage.building.exists()
    record = storage.read_json(stage.folder / "run.json", "")
    assert record["status"] == "finished"
    assert record["settings"] == {"STEPS": 3, "NAMES": ["one"], "RECIPE": "toys", "VARIANT": ""}
    assert record["output_digest"] == storage.digest_folder(stage.final)
    assert record["versions"]["torch"] != "not installed"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"train_toy: 0.1 -> 0.2 · 0 s · {stage.final}"


def test_failed_verification_publishes_nothing(open_stage: Open) -> None:
    """A result that does not load as it should never gets the name final/."""

    def refuse(folder: Path) -> None:
        raise UserError("came back changed")

    with pytest.raises(UserError, match="came back changed"), open_stage() as stage:
        stage.finish("0.1 -> 0.2", refuse)
    assert not stage.final.exists()
    record = storage.read_json(stage.folder / "run.json", "")
    assert (record["status"], record["error"]) == ("failed", "came back changed")


def test_finished_stage_is_kept(open_stage: Open, capsys: pytest.CaptureFixture[str]) -> None:
    """A rerun with equal settings and inputs keeps the result, says so, and touches nothing."""
    finish(open_stage())
    folder = open_stage().folder
    before = storage.digest_folder(folder)
    capsys.readouterr()
    with open_stage() as stage:
        assert stage.finished
        assert not stage.resumed
    assert "finished before, kept as it is" in capsys.readouterr().out
    assert storage.digest_folder(folder) == before


@pytest.mark.parametrize("done", [True, False])
def test_changed_setting_is_refused_by_name(open_stage: Open, done: bool) -> None:
    """A changed setting is refused, old and new value named, for finished and unfinished runs."""
    if done:
        finish(open_stage())
    else:
        with open_stage():
            pass
    with pytest.raises(UserError, match=r"STEPS: 3 -> 4") as refused:
        open_stage(STEPS=4)
    assert "--overwrite" in str(refused.value)
    assert "--variant" in str(refused.value)
    assert "NAMES" not in str(refused.value)
    with open_stage() as stage:  # the refusal left the lock and the run alone
        assert stage.finished is done


def test_changed_input_is_refused_by_name(open_stage: Open, tmp_path: Path) -> None:
    """Another content of an input, or another hub id, is refused; another path alone is not."""
    corpus = tmp_path / "corpus"
    storage.write_text(corpus / "shard", "one")
    finish(open_stage({"corpus": corpus, "teacher": "hub/model"}))
    moved = corpus.rename(tmp_path / "moved")
    with open_stage({"corpus": moved, "teacher": "hub/model"}) as stage:
        assert stage.finished
    with pytest.raises(UserError, match=r"input teacher \(hub/other\) is not the one"):
        open_stage({"corpus": moved, "teacher": "hub/other"})
    storage.write_text(moved / "shard", "two")
    with pytest.raises(UserError, match=r"input corpus \(.*moved\) is not the one"):
        open_stage({"corpus": moved, "teacher": "hub/model"})
    with pytest.raises(UserError, match=r"input teacher \(no longer given\)"):
        open_stage({"corpus": moved})


def test_input_of_another_stage_is_known_by_its_record(open_stage: Open) -> None:
    """The digest of a stage's final/ is the one in its run.json, so lineage costs no reading."""
    finish(open_stage())
    final = open_stage().final
    assert lineage.digest_input(final) == storage.digest_folder(final)
    record = storage.read_json(final.parent / "run.json", "")
    storage.write_json(final.parent / "run.json", {**record, "output_digest": "recorded"})
    assert lineage.digest_input(final) == "recorded"
    copied = final.parent.with_name("copied")
    shutil.copytree(final.parent, copied, copy_function=shutil.copy)  # other times, equal content
    assert lineage.digest_input(copied / "final") == "recorded"


@pytest.mark.parametrize("recorded", ["files", "digest alone"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda final: (final / "file").write_text("m4de"), "file has changed"),
        (lambda final: (final / "file").write_text("longer than before"), "file has 18 bytes"),
        (lambda final: (final / "file").unlink(), "file is missing"),
        (lambda final: (final / "adapter_config.json").write_text("{}"), "adapter_config.json was"),
    ],
)
def test_final_changed_by_hand_is_noticed(
    open_stage: Open, change: Callable[[Path], Any], said: str, recorded: str
) -> None:
    """A final/ that is not what its stage made is neither kept nor used, until the user decides."""
    finish(open_stage())
    final = open_stage().final
    (final / ".DS_Store").write_text("a file manager's", encoding="utf-8")
    if recorded == "digest alone":  # a run.json of before there was a list of files
        (final / ".DS_Store").unlink()
        said = "its content has changed"
        record = storage.read_json(final.parent / "run.json", "")
        del record["output_files"]
        storage.write_json(final.parent / "run.json", record)
    assert lineage.digest_input(final)
    change(final)
    for use in (lambda: lineage.digest_input(final), open_stage):
        with pytest.raises(UserError, match=said) as refused:
            use()
        assert "--overwrite" in str(refused.value)
        assert "copy it" in str(refused.value)
    finish(open_stage(OVERWRITE=True))
    assert open_stage().finished


def test_overwrite_redoes(open_stage: Open) -> None:
    """--overwrite clears the folder, takes the new settings, and is itself not a setting."""
    finish(open_stage(), "first")
    stage = open_stage(STEPS=4, OVERWRITE=True)
    assert not stage.finished
    assert not stage.final.exists()
    finish(stage, "second")
    with open_stage(STEPS=4) as kept:
        assert kept.finished
        assert (kept.final / "file").read_text() == "second"


def test_kill_while_overwriting_leaves_nothing_finished(
    open_stage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever removal a kill falls into, half a final/ is neither kept nor read."""
    finish(open_stage())
    folder = references.runs_folder() / "toys" / "train_toy"
    remove = storage.remove

    def dying_remove(path: Path) -> None:
        if path.is_dir():
            raise KeyboardInterrupt
        remove(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "remove", dying_remove)
        open_stage(OVERWRITE=True)
    assert not (folder / "final").exists()
    with open_stage() as again:
        assert not again.finished
        assert not again.resumed
        assert not list(again.building.iterdir())


def test_mended_failure_leaves_no_error(open_stage: Open) -> None:
    """A run that failed, went on and finished has no error in its record."""
    with pytest.raises(UserError), open_stage():
        raise UserError("the disk is full")
    record = storage.read_json(references.runs_folder() / "toys" / "train_toy" / "run.json", "")
    assert record["error"] == "the disk is full"
    finish(open_stage())
    record = storage.read_json(references.runs_folder() / "toys" / "train_toy" / "run.json", "")
    assert record["status"] == "finished"
    assert "error" not in record


def test_unfinished_stage_resumes(open_stage: Open) -> None:
    """What was built, the metrics, facts and time of an interrupted run are there on the next."""
    with pytest.raises(KeyboardInterrupt), open_stage() as stage:
        (stage.building / "shard-0").write_text("made", encoding="utf-8")
        storage.write_text(stage.building / "below" / ".tmpAb12", "half of a safetensors file")
        storage.write_text(stage.building / ".shard-1.partial", "half of one of ours")
        stage.write_metrics(step=1, loss=0.5)
        stage.record.dtype = "bf16"
        stage.record.rows = {"train": 7}
        stage.record.seconds_before = 100.0
        raise KeyboardInterrupt
    record = storage.read_json(stage.folder / "run.json", "")
    assert record["status"] == "interrupted"
    with open_stage() as again:
        assert again.resumed
        assert not again.finished
        assert [path.name for path in storage.list_files(again.building)] == ["shard-0"]
        assert (again.building / "shard-0").read_text() == "made"
        assert json.loads((again.folder / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
        assert again.record.dtype == "bf16"
        assert again.seconds >= 100.0


def test_finished_stage_keeps_no_scratch(open_stage: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch and checkpoints go when final/ stands, at the next call if a kill came between."""
    for killed in (False, True):
        with monkeypatch.context() as patch:
            if killed:
                patch.setattr(storage, "remove", lambda path: None)
            with open_stage(VARIANT=f"killed {killed}") as stage:
                storage.write_text(stage.scratch / "tokens", "made again")
                storage.write_text(stage.checkpoints / "step-1" / "file", "old")
                (stage.building / "file").write_text("made", encoding="utf-8")
                stage.finish("made")
        folders = [stage.scratch, stage.checkpoints]
        assert [folder.exists() for folder in folders] == [killed, killed]
        with open_stage(VARIANT=f"killed {killed}") as again:
            assert again.finished
        assert not any(folder.exists() for folder in folders)


def test_new_stage_starts_clean(open_stage: Open) -> None:
    """Left-overs without a record (run.json removed by hand) are not taken for progress."""
    stage = open_stage()
    with stage:
        storage.write_text(stage.checkpoints / "step-1" / "file", "old")
        storage.write_text(stage.building / "file", "old")
        storage.write_text(stage.scratch / "file", "old")
        stage.write_metrics(step=1)
    (stage.folder / "run.json").unlink()
    with open_stage() as fresh:
        assert not fresh.resumed
        assert not list(fresh.building.iterdir())
        assert not fresh.checkpoints.exists()
        assert not fresh.scratch.exists()
        assert not (fresh.folder / "metrics.jsonl").exists()


def test_variant_has_its_own_folder(open_stage: Open) -> None:
    """Two variants of a script stand side by side in one recipe."""
    finish(open_stage(), "plain")
    finish(open_stage(VARIANT="random", STEPS=9), "random")
    with open_stage() as plain, open_stage(VARIANT="random", STEPS=9) as random:
        assert plain.finished
        assert random.finished
        assert plain.folder.name == "train_toy"
        assert random.folder.name == "train_toy@random"
        assert (plain.final / "file").read_text() == "plain"


LOCKER = """
import fcntl, os, sys
stream = open(sys.argv[1], "w")
fcntl.flock(stream, fcntl.LOCK_EX)
stream.write(str(os.getpid()))
stream.flush()
print("locked", flush=True)
sys.stdin.read()
"""


def test_second_process_is_refused(open_stage: Open) -> None:
    """A folder in use is refused, its owner named; a killed owner leaves no stale lock."""
    with open_stage() as stage:
        lock = stage.folder / "lock"
        with pytest.raises(UserError, match="in use by process"):
            open_stage()
    owner = subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"in use by process {owner.pid}; .*--variant"):
            open_stage()
    finally:
        owner.kill()
        owner.wait()
        owner.stdin.close()
        owner.stdout.close()
    with open_stage() as again:
        assert again.resumed


def test_kill_while_publishing_is_mended(open_stage: Open) -> None:
    """A final/ that a kill left under its other name is found by the stage and by its readers."""
    finish(open_stage(), "made")
    stage = open_stage()
    stage.final.rename(stage.final.with_name("final.old"))
    stage.__exit__(None, None, None)
    with open_stage() as again:
        assert again.finished
        assert (again.final / "file").read_text() == "made"


@pytest.mark.parametrize("touched", [False, True])
def test_kill_after_the_last_rename(
    open_stage: Open, monkeypatch: pytest.MonkeyPatch, touched: bool
) -> None:
    """A kill after the rename leaves a finished stage, unless final/ is not what was made."""
    publish = storage.publish

    def dying_publish(beside: Path, final: Path) -> None:
        publish(beside, final)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "publish", dying_publish)
        finish(open_stage())
    folder = references.runs_folder() / "toys" / "train_toy"
    assert storage.read_json(folder / "run.json", "")["status"] != "finished"
    if touched:
        (folder / "final" / "file").write_text("touched", encoding="utf-8")
    with open_stage() as again:
        assert again.finished is not touched


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("mlm/pre_train", ("mlm/pre_train", "", "")),
        ("distil_modernbert@random", ("distil_modernbert", "random", "")),
        (
            "create_distil_dataset/reduced_teacher",
            ("create_distil_dataset", "", "reduced_teacher"),
        ),
        ("mlm/init_model_mlm@static/a/b", ("mlm/init_model_mlm", "static", "a/b")),
        ("distil_modernbert_2", None),  # a longer name is not ours
        ("answerdotai/ModernBERT-base", None),
        ("", None),
    ],
)
def test_split_stage(reference: str, words: tuple[str, str, str] | None) -> None:
    """A reference names a script, a variant and a part of its final/, or none of ours."""
    assert references.split_stage(reference) == words


def test_missing_input_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that is not there yet is an error with the command that makes it."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    with pytest.raises(UserError) as missing:
        references.locate("mlm/pre_train@short", "offline")
    assert str(missing.value) == (
        f"{tmp_path}/offline/mlm/pre_train@short/final is not there; "
        "run: python mlm/pre_train.py --recipe offline --variant short"
    )
    with pytest.raises(UserError, match=r"corpus: 'nowhere' is not there; run: this"):
        references.need("nowhere", "offline", "corpus", "run: this")


def test_locate_finds_stages_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's final/, a part of it, and folders are found from any working directory."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    final = tmp_path / "runs" / "offline" / "create_distil_dataset" / "final"
    storage.write_text(final / "reduced_teacher" / "file", "")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "model").mkdir()
    assert references.locate("create_distil_dataset", "offline") == final
    part = references.locate("create_distil_dataset/reduced_teacher", "offline")
    assert part == final / "reduced_teacher"
    assert references.locate("model", "offline") == here / "model"
    assert references.locate("tests", "offline") == Path(__file__).parents[1]
    assert references.locate("hub/model", "offline") is None
    assert references.locate("", "offline") is None
    final.rename(final.with_name("final.old"))  # killed between two renames
    assert references.locate("create_distil_dataset", "offline") == final


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),  # cut short
        ("", "not valid JSON"),
        ("[]", "no record of a run"),
        ("{}", "status is missing"),
        ('{"status": "finished", "settings": [], "inputs": {}}', "settings is missing or no dict"),
        ('{"format": 2, "status": "finished", "settings": {}, "inputs": {}}', "of format 2"),
    ],
)
def test_damaged_record_names_its_cure(open_stage: Open, content: str, said: str) -> None:
    """A run.json that cannot be used is named, with the command that redoes the stage."""
    with open_stage() as stage:
        pass
    (stage.folder / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"run\.json .*{said}.*--overwrite"):
        open_stage()
    finish(open_stage(OVERWRITE=True))


def test_final_without_its_record_is_refused(open_stage: Open) -> None:
    """A result that nothing vouches for is neither taken for this run's nor thrown away."""
    finish(open_stage(), "made")
    final = open_stage().final
    (final.parent / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json that says what made it is not.*--overwrite"):
        open_stage()
    assert (final / "file").read_text(encoding="utf-8") == "made"
    finish(open_stage(OVERWRITE=True), "again")


def test_other_libraries_are_named(open_stage: Open, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on with another torch says so; a finished one does not care."""
    with open_stage() as stage:
        pass
    record = storage.read_json(stage.folder / "run.json", "")
    record["versions"]["torch"] = "1.0"
    storage.write_json(stage.folder / "run.json", record)
    finish(open_stage())
    assert "with other libraries than before (torch 1.0 -> " in capsys.readouterr().out
    assert open_stage().finished


def test_stale_lock_is_no_obstacle(open_stage: Open) -> None:
    """The number of a process that is gone, left in the lock file, keeps nobody out."""
    with open_stage() as stage:
        pass
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (stage.folder / "lock").write_text(str(dead.pid), encoding="utf-8")
    with open_stage() as again:
        assert (again.folder / "lock").read_text(encoding="utf-8") == str(os.getpid())


def test_signal_during_the_renames_waits(open_stage: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM that arrives while final/ gets its name stops the run after that, not within."""
    publish = storage.publish

    def signalled(beside: Path, final: Path) -> None:
        signal.raise_signal(signal.SIGTERM)
        publish(beside, final)

    monkeypatch.setattr(storage, "publish", signalled)
    with signals.handled(), pytest.raises(signals.Interrupted, match="SIGTERM"):
        finish(open_stage())
    assert open_stage().finished


def test_swallowed_signal_stops_before_publishing(open_stage: Open) -> None:
    """A library that swallows the exception does not make a run that was asked to end finish."""
    with (
        signals.handled(),
        pytest.raises(signals.Interrupted, match="SIGINT"),
        open_stage() as stage,
    ):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        stage.finish("0.1 -> 0.2")
    record = storage.read_json(stage.folder / "run.json", "")
    assert (record["status"], record["error"]) == ("interrupted", "interrupted by SIGINT")
    assert not stage.final.exists()


def test_no_secret_in_what_a_stage_writes(
    open_stage: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A token in the environment, the command, an error or a log line is never written."""
    secret, other = "hf_" + "q" * 34, "Zk7-not-shaped-like-a-token"
    monkeypatch.setenv("HF_TOKEN", other)
    monkeypatch.setattr(
        sys, "argv", ["train_toy.py", "--hub-token", "typed-in", f"--api-key={other}"]
    )
    with pytest.raises(ValueError, match="401"), open_stage() as stage:
        stages.logger.info("asked with %s", other)
        stage.record.facts["note"] = {"url": f"https://me:{other}@hub", "hub_token": "plain"}
        raise ValueError(f"401 for {secret}")
    printed = capsys.readouterr()
    written = printed.out + printed.err
    for path in storage.list_files(stage.folder):
        written += path.read_text(encoding="utf-8")
    assert "401 for ***" in written
    assert "asked with ***" in written
    for word in (secret, other, "typed-in", "plain"):
        assert word not in written
    assert "--hub-token" in written


def test_what_is_said_before_a_stage_is_shown_and_stands_in_its_log(
    open_stage: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are left alone are named while the inputs are looked for: not into the void."""
    with report.console():
        logging.getLogger("small_modernbert.data").info("test.csv: left alone, hf_%s", "a" * 34)
        with open_stage() as stage:
            stage.finish("made")
    shown, kept = capsys.readouterr().out, (stage.folder / "log.txt").read_text(encoding="utf-8")
    for text in (shown, kept):
        assert text.count("test.csv: left alone") == 1 and "hf_aaa" not in text
    assert shown.count("starting in") == 1
    handlers = logging.getLogger("small_modernbert").handlers
    assert not any(isinstance(handler, report.Console) for handler in handlers)


def test_only_chosen_files_make_an_input(tmp_path: Path) -> None:
    """What is read, under which name; other files, and those that went meanwhile, do no harm."""
    files = [tmp_path / "a.md", tmp_path / "gone.md"]
    files[0].write_text("Text.")
    chosen = lineage.Chosen(tmp_path, files)
    before = lineage.digest_input(chosen)
    (tmp_path / "photo.jpg").write_bytes(b"JPG")
    assert (str(chosen), lineage.digest_input(chosen)) == (str(tmp_path), before)
    files[0].write_text("Other text.")
    assert lineage.digest_input(chosen) != before
