"""A stage: one script's folder below runs/, from its first line to its `final/`.

    runs/<recipe>/<script>[@variant]/
        final/          exists only when the stage finished
        final.partial/  what is being built; renamed to final/ at the very end
        checkpoints/    training stages only
        run.json        what ran, on what, with which settings, and what came out
        metrics.jsonl   one line a step
        log.txt

A rerun with the same settings and inputs keeps a finished stage and resumes an unfinished one;
with others it is refused, by name, until the user says `--overwrite`.
"""

import fcntl
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from small_modernbert import report, settings, storage
from small_modernbert.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = (
    "get_offline_assets",
    "build_and_save_small_modernbert",
    "train_small_modernbert",
    "mlm/create_dataset",
    "mlm/init_model_mlm",
    "mlm/pre_train",
    "create_distil_dataset",
    "distil_modernbert",
    "relabel_triplets",
    "post_train_distilled_model",
    "sts_fine_tuning",
    "benchmark_hotpotqa",
    "distil_model2vec",
    "export_model",
)
LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "pyarrow", "numpy")
logger = logging.getLogger(__name__)


def runs_folder() -> Path:
    """Return where runs/ is: the environment's RUNS, or runs/ in the repository, never the cwd."""
    return Path(os.environ.get("RUNS") or ROOT / "runs").resolve()


def split_stage(reference: str) -> tuple[str, str, str] | None:
    """Split `script[@variant][/part]` into its three words; None if no script of ours is named.

    A part is something inside the stage's final/, as in `create_distil_dataset/reduced_teacher`.
    """
    for script in sorted(SCRIPTS, key=len, reverse=True):
        rest = reference.removeprefix(script)
        if rest != reference and (not rest or rest[0] in "@/"):
            variant, _, part = rest.partition("/")
            return script, variant.removeprefix("@"), part
    return None


def locate(reference: str, recipe: str) -> Path | None:
    """Turn a reference into a folder: a stage of this recipe, or a folder; None otherwise.

    None stands for a hub id, or for nothing where the reference is empty.

    Relative folders are taken from the repository first, then from the working directory.

    Raises:
        UserError: it names a stage that has not finished; the message has the command to run.
    """
    stage = split_stage(reference)
    if stage is not None:
        script, variant, part = stage
        folder = runs_folder() / recipe / (script + (f"@{variant}" if variant else ""))
        final = folder / "final"
        storage.recover(final)
        if not final.is_dir():
            flags = f" --recipe {recipe}" + (f" --variant {variant}" if variant else "")
            raise UserError(f"{final} is not there; run: python {script}.py{flags}")
        return final / part if part else final
    if not reference:
        return None
    for base in (ROOT, Path.cwd()):
        folder = (base / reference).expanduser()
        if folder.is_dir():
            return folder.resolve()
    return None


def need(reference: str, recipe: str, what: str, cure: str) -> Path:
    """Like `locate`, for inputs that can only be a folder.

    Raises:
        UserError: there is no such folder; the message names `what` it should be and the `cure`.
    """
    folder = locate(reference, recipe)
    if folder is None:
        raise UserError(f"{what}: {reference!r} is not there; {cure}")
    return folder


def find_file(reference: str, what: str, cure: str) -> Path | None:
    """Return the file that a reference names, from the repository or from here; None if none is.

    Raises:
        UserError: it is spelt like a Parquet file, and is not there.
    """
    for base in (ROOT, Path.cwd()):
        path = (base / reference).expanduser()
        if path.is_file():
            return path.resolve()
    if reference.endswith(".parquet"):
        raise UserError(f"{what}: {reference} is not there; {cure}")
    return None


def digest_input(path: Path | str) -> str:
    """Return the digest by which a stage remembers an input.

    For another stage's final/ it is the digest recorded in that stage's run.json; for any other
    folder, over its files; for a hub id, the id itself.
    """
    if isinstance(path, str):
        return path
    record = path.parent / "run.json"
    if path.name == "final" and record.exists():
        stored = storage.read_json(record, "remove it and run that stage again")
        if stored.get("output_digest"):
            return stored["output_digest"]
    return storage.digest_folder(path) if path.is_dir() else storage.sha256_file(path)


class Stage:
    """One run of one script. Use as a context manager; `finished` says there is nothing to do.

    Attributes:
        folder: runs/<recipe>/<script>[@variant].
        final: the folder that exists only when the stage finished.
        building: `final.partial`, where the script writes; it survives a kill.
        checkpoints: where a training loop keeps its checkpoints.
        finished: whether an equal run finished before.
        resumed: whether an unfinished equal run stands in the folder.
        record: what goes to run.json; scripts add facts (`rows`, `metrics`, `dtype`, ...).
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        inputs: dict[str, Path | str] | None = None,
    ) -> None:
        """Open the stage of the script whose `globals()` are given.

        Args:
            namespace: the script's globals; RECIPE, VARIANT and OVERWRITE are read from it.
            inputs: name -> folder, file or hub id; their digests are the stage's lineage.

        Raises:
            UserError: the folder is locked, or holds a run with other settings or inputs.
        """
        script = Path(namespace["__file__"]).resolve()
        self.script = script.relative_to(ROOT).with_suffix("").as_posix()
        variant = namespace.get("VARIANT", "")
        self.name = self.script + (f"@{variant}" if variant else "")
        self.folder = runs_folder() / namespace["RECIPE"] / self.name
        self.final = self.folder / "final"
        self.building = self.folder / "final.partial"
        self.checkpoints = self.folder / "checkpoints"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        storage.recover(self.final)
        self._begun = time.monotonic()
        self._log_handlers: list[logging.Handler] = []
        wanted = {
            "settings": json.loads(json.dumps(settings.effective(namespace), default=str)),
            "inputs": {
                name: {"path": str(path), "digest": digest_input(path)}
                for name, path in (inputs or {}).items()
            },
        }
        stored = self._stored_record()
        if namespace.get("OVERWRITE", False):
            self._clear()
            stored = None
        if stored is not None:
            self._refuse_changes(stored, wanted)
        if stored is not None and self._was_published(stored):
            stored["status"] = "finished"
            storage.write_json(self.folder / "run.json", stored)
        # run.json says finished, but final/ was removed by hand: start afresh.
        self.finished = self.final.is_dir() and (stored or {}).get("status") == "finished"
        self.resumed = stored is not None and not self.finished
        self.record: dict[str, Any] = {
            "script": self.name,
            "status": "running",
            "command": [Path(sys.executable).name, *sys.argv],
            "git": _git_state(),
            **wanted,
            "versions": {"python": platform.python_version(), **_versions()},
            "rows": {},
            "metrics": {},
            "seconds_before": 0.0,
        }
        if self.resumed:
            for key, value in stored.items():
                self.record.setdefault(key, value)
            self.record.pop("error", None)
            self.record["seconds_before"] = stored.get("seconds", 0.0)

    def _take_lock(self) -> Any:  # noqa: ANN401  an open file
        stream = (self.folder / "lock").open("a+")
        try:
            # The kernel drops the lock with its owner, so a stale one cannot exist.
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            owner = stream.read().strip() or "unknown"
            stream.close()
            raise UserError(
                f"{self.folder} is in use by process {owner}; wait for it, or give this run a "
                "folder of its own with --variant"
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        return stream

    def _stored_record(self) -> dict[str, Any] | None:
        path = self.folder / "run.json"
        if not path.exists():
            return None
        return storage.read_json(path, f"run: {self._command()} --overwrite")

    def _was_published(self, stored: dict[str, Any]) -> bool:
        """Say whether a kill fell between the last rename and the last line of run.json."""
        digest = stored.get("output_digest")
        return (
            stored.get("status") != "finished"
            and digest is not None
            and self.final.is_dir()
            and not self.building.exists()
            and storage.digest_folder(self.final) == digest
        )

    def _command(self) -> str:
        return f"python {self.script}.py"

    def _clear(self) -> None:
        # The record first, then final/ by its name: what a kill leaves must not pass for finished.
        storage.remove(self.folder / "run.json")
        if self.final.exists():
            storage.remove(self.building)
            self.final.rename(self.building)
        for path in self.folder.iterdir():
            if path.name != "lock":
                storage.remove(path)

    def _refuse_changes(self, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
        changes = []
        old, new = stored.get("settings", {}), wanted["settings"]
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                changes.append(f"{name}: {old.get(name)!r} -> {new.get(name)!r}")
        old, new = stored.get("inputs", {}), wanted["inputs"]
        for name in sorted(old.keys() | new.keys()):
            if old.get(name, {}).get("digest") != new.get(name, {}).get("digest"):
                where = new.get(name, {}).get("path", "no longer given")
                changes.append(f"input {name} ({where}) is not the one used before")
        if changes:
            self._lock.close()
            raise UserError(
                f"{self.folder} holds a {stored.get('status', 'started')} run that differs: "
                + "; ".join(changes)
                + f". Redo it with {self._command()} --overwrite, or keep both with --variant NAME"
            )

    def __enter__(self) -> Self:
        """Start logging; say whether this is a new run, a resumed one, or nothing to do."""
        self._start_logging()
        if self.finished:
            print(f"{self.name}: finished before, kept as it is: {self.final} (--overwrite redoes)")
            return self
        if self.resumed:
            logger.info("%s: going on in %s", self.name, self.folder)
        else:
            logger.info("%s: starting in %s", self.name, self.folder)
            storage.remove(self.building)
            storage.remove(self.checkpoints)
            storage.remove(self.folder / "cache")
            storage.remove(self.folder / "metrics.jsonl")
        self.building.mkdir(parents=True, exist_ok=True)
        self.save_record()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record how an unfinished run ended; let the exception go on."""
        if not self.finished and kind is not None and self.record["status"] == "running":
            interrupted = issubclass(kind, KeyboardInterrupt)
            self.record["status"] = "interrupted" if interrupted else "failed"
            self.record["error"] = str(error)
            self.save_record()
        self._lock.close()
        for handler in self._log_handlers:
            logging.getLogger("small_modernbert").removeHandler(handler)
            handler.close()

    def _start_logging(self) -> None:
        root = logging.getLogger("small_modernbert")
        root.setLevel(logging.INFO)
        root.propagate = False
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        self._log_handlers = [console]
        if not self.finished:
            file = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
            file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self._log_handlers.append(file)
        for handler in self._log_handlers:
            root.addHandler(handler)

    @property
    def seconds(self) -> float:
        """Wall seconds spent on this stage, those of interrupted runs included."""
        return self.record["seconds_before"] + time.monotonic() - self._begun

    def save_record(self) -> None:
        """Write run.json, atomically."""
        self.record["seconds"] = round(self.seconds, 1)
        self.record["peak_memory_mib"] = peak_memory_mib()
        storage.write_json(self.folder / "run.json", self.record)

    def write_metrics(self, **values: Any) -> None:  # noqa: ANN401  numbers and names
        """Append one line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values, default=float) + "\n")

    def finish(
        self,
        summary: str,
        verify: Callable[[Path], Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Verify what was built, give it the name `final`, record it, print the closing line.

        Args:
            summary: metric before -> after, or what was made; the middle of the closing line.
            verify: called with the built folder; it must raise if that does not load as it should.
            folder: what to publish; `building` if not given.
        """
        folder = folder or self.building
        if verify is not None:
            verify(folder)
        self.record["output_digest"] = storage.digest_folder(folder)
        self.save_record()
        storage.publish(folder, self.final)
        self.record["status"] = "finished"
        self.save_record()
        self.finished = True
        logger.info(
            "%s: %s · %s · %s", self.name, summary, report.minutes(self.seconds), self.final
        )


def peak_memory_mib() -> int:
    """Return the largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_state() -> dict[str, Any]:
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
