"""run.json: what a stage remembers of its inputs, settings and output, and how it finds changes."""

import dataclasses
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from small_modernbert.runs import places, settings, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT

# Of run.json. A newer one is not read with older eyes; 1 is also what carries no number.
FORMAT = 1
LIBRARIES = (
    *("torch", "transformers", "sentence-transformers", "tokenizers", "pyarrow", "numpy"),
    *("model2vec", "onnx", "onnxruntime", "openvino"),
)
_SHAPE: dict[str, type] = {"status": str, "settings": dict, "inputs": dict}


@dataclass
class Record:
    """What goes to run.json.

    Attributes:
        script: script[@variant].
        settings: constant -> value, of those that decide what is computed.
        inputs: name -> {"path", "digest"}.
        command: how it was called, without secrets.
        git: commit, and whether files differ from it.
        versions: of Python and of the libraries that decide what is computed.
        status: running, interrupted, failed or finished.
        error: why it ended, if it is interrupted or failed.
        rows: how many were read, dropped, used; by split, source or reason.
        metrics: of what was made; of a training "before", "after" and "best_step".
        device: that computed, where it matters.
        dtype: of its matrix products.
        dtype_reason: why that one.
        tokens: trained on, or encoded.
        tokens_per_second: likewise.
        steps: of the optimizer.
        skipped_steps: those whose gradient was not used, from 1; see `guards`.
        facts: what only one script has to say, by name.
        seconds: wall time, that of interrupted runs included.
        seconds_before: of the interrupted runs alone.
        peak_memory_mib: largest resident size.
        output_digest: of final/.
        output_files: in final/: path -> size, mtime_ns, sha256.
    """

    script: str
    settings: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    command: list[str] = field(default_factory=list)
    git: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    status: str = "running"
    error: str | None = None
    rows: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    dtype_reason: str | None = None
    tokens: int | None = None
    tokens_per_second: int | None = None
    steps: int | None = None
    skipped_steps: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_before: float = 0.0
    peak_memory_mib: int = 0
    output_digest: str | None = None
    output_files: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of run.json; what there is nothing to say of is left out."""
        values = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        return {"format": FORMAT} | {
            name: value for name, value in values.items() if value not in (None, [])
        }

    def take_over(self, stored: dict[str, Any]) -> None:
        """Keep what an unfinished equal run had recorded; its end and its output are no more."""
        for name in ("rows", "metrics", "device", "dtype", "dtype_reason", "tokens", "facts"):
            if name in stored:
                setattr(self, name, stored[name])
        self.seconds_before = stored.get("seconds", 0.0)


def command(script: str) -> str:
    """Return how to run a script again: as it was called, if it is the one that runs."""
    if Path(sys.argv[0]).name == Path(f"{script}.py").name:
        return settings.command_line()
    return f"python {script}.py"


def read_record(path: Path, cure: str) -> dict[str, Any] | None:
    """Read a run.json; None where there is none.

    Raises:
        UserError: it is damaged, or of a newer version; `cure` is appended.
    """
    if not path.exists():
        return None
    record = storage.read_json(path, cure)
    if not isinstance(record, dict):
        raise UserError(f"{path} is no record of a run; {cure}")
    if record.get("format", 1) != FORMAT:
        raise UserError(
            f"{path} is of format {record['format']}, this code reads {FORMAT}: use the version "
            f"that wrote it, or {cure}"
        )
    for name, kind in _SHAPE.items():
        if not isinstance(record.get(name), kind):
            raise UserError(f"{path} is damaged: {name} is missing or no {kind.__name__}; {cure}")
    return record


def find_changes(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Name every setting and every input in which two records differ."""
    changes = []
    old, new = stored["settings"], wanted["settings"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            changes.append(f"{name}: {old.get(name)!r} -> {new.get(name)!r}")
    old, new = stored["inputs"], wanted["inputs"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name, {}).get("digest") != new.get(name, {}).get("digest"):
            where = new.get(name, {}).get("path", "no longer given")
            changes.append(f"input {name} ({where}) is not the one used before")
    return changes


def find_updates(stored: dict[str, Any], versions: dict[str, str]) -> list[str]:
    """Name every library whose version is not the one of an earlier run."""
    old = stored.get("versions", {})
    return [
        f"{name} {old[name]} -> {version}"
        for name, version in versions.items()
        if old.get(name, version) != version
    ]


def describe_output(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return what run.json keeps of a finished folder: one digest, and each file's own."""
    files = storage.describe_files(folder, storage.list_files(folder))
    contents = {name: entry["sha256"] for name, entry in files.items()}
    return storage.digest_json(contents), files


def check_output(final: Path, record: dict[str, Any], cure: str) -> None:
    """Make sure that a final/ still is what its stage made.

    Sizes and times are compared; a file is read again only where its time alone differs. So a
    changed bit that left size and time alone (a failing disk) is not seen here.

    Raises:
        UserError: a file was changed, removed or added.
    """
    files = record.get("output_files")
    if files is None:  # of an earlier version, or of a run that has not got so far
        if record.get("output_digest") in (None, storage.digest_folder(final)):
            return
        damage = "its content has changed"
    else:
        # Hidden files are the file manager's, or the hub client's.
        names = (path.relative_to(final) for path in storage.list_files(final))
        shown = {name.as_posix() for name in names if not name.parts[0].startswith(".")}
        damage = storage.find_damage(final, files)
        if damage is None and (added := sorted(shown - files.keys())):
            damage = f"{added[0]} was added"
    if damage:
        raise UserError(
            f"{final} is not what its stage made: {damage}. Put it back, or make it again with "
            f"{cure} --overwrite; to use it as it is, copy it to a folder of its own and name that"
        )


@dataclass(frozen=True)
class Chosen:
    """A folder of which some files are read, and the others are none of a stage's business.

    Attributes:
        folder: where.
        files: that are read.
    """

    folder: Path
    files: Sequence[Path]

    def __str__(self) -> str:
        return str(self.folder)

    def digest(self) -> str:
        """Return one digest over the files' names and contents; one that cannot be read has none.

        Whoever reads it next will say so.
        """
        contents = {}
        for file in self.files:
            name = file.name if file == self.folder else file.relative_to(self.folder).as_posix()
            try:
                contents[name] = storage.sha256_file(file)
            except OSError as error:
                contents[name] = str(error.errno)
        return storage.digest_json(contents)


Input = Path | str | Chosen


def digest_input(path: Input) -> str:
    """Return the digest by which a stage remembers an input.

    For another stage's final/ it is the digest recorded in that stage's run.json, after a look
    at its files; for any other folder, over its files; for a hub id, the id itself; for what lies
    elsewhere, see `places.fingerprint`.

    Raises:
        UserError: a final/ was changed after its stage had made it.
    """
    if isinstance(path, str):
        return path
    if isinstance(path, Chosen):
        return path.digest()
    if places.is_remote(path):
        return places.fingerprint(path)
    if path.name == "final":
        cure = "make it again: its stage's command with --overwrite"
        record = read_record(path.parent / "run.json", cure)
        if record is not None and record.get("output_digest"):
            script = str(record.get("script", "the stage")).partition("@")[0]
            check_output(path, record, f"python {script}.py")
            return record["output_digest"]
    return storage.digest_folder(path) if path.is_dir() else storage.sha256_file(path)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide what a run computes."""
    numbers = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers


def git_state() -> dict[str, Any]:
    """Return the commit that runs, and whether files differ from it; None where git has no say."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = ask("status", "--porcelain")
    return {"commit": ask("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
