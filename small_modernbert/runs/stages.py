"""A stage: one script's folder below runs/, from its first line to its `final/`.

    runs/<recipe>/<script>[@variant]/
        final/          exists only when the stage finished
        final.partial/  what is being built; renamed to final/ at the very end
        scratch/        what only this run needs, and what it would go on from
        checkpoints/    likewise, of a training
        run.json        what ran, on what, with which settings, and what came out
        metrics.jsonl   one line a step
        log.txt
        dashboards/     what REPORT_TO asked for; see `dashboards`
    runs/<recipe>/.cache/   what its stages make once and share; see `shared`

scratch/ and checkpoints/ go when final/ stands: it holds the best model, and nothing is gone on
from after that.

A rerun with the same settings and inputs keeps a finished stage and resumes an unfinished one;
with others it is refused, by name, until the user says `--overwrite`.
"""

import contextlib
import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from small_modernbert.runs import (
    dashboards,
    disk_faults,
    hub,
    lineage,
    processes,
    redaction,
    references,
    report,
    settings,
    shared_cache,
    signals,
    storage,
)
from small_modernbert.runs.errors import UserError

LITTLE_SECONDS = 300  # of a failed run's preparation, which may be lost
logger = logging.getLogger(__name__)


class Stage:
    """One run of one script. Use as a context manager; `finished` says there is nothing to do.

    Attributes:
        folder: runs/<recipe>/<script>[@variant].
        final: the folder that exists only when the stage finished.
        building: `final.partial`, where the script writes; it survives a kill.
        scratch: for what can be made again; it survives a kill, not the stage's end.
        checkpoints: where a training loop keeps its checkpoints; likewise.
        finished: whether an equal run finished before.
        resumed: whether an unfinished equal run stands in the folder.
        record: what goes to run.json; scripts add to it.
    """

    def __init__(
        self, namespace: dict[str, Any], inputs: dict[str, lineage.Input] | None = None
    ) -> None:
        """Open the stage of the script whose `globals()` are given.

        Args:
            namespace: the script's globals; RECIPE, VARIANT and OVERWRITE are read from it.
            inputs: name -> folder, file or hub id; their digests are the stage's lineage.

        Raises:
            UserError: the folder is locked, or holds a run with other settings or inputs.
        """
        script = Path(namespace["__file__"]).resolve()
        self.script = script.relative_to(references.ROOT).with_suffix("").as_posix()
        variant = namespace.get("VARIANT", "")
        self.name = self.script + (f"@{variant}" if variant else "")
        if "/" in variant or variant in (".", ".."):
            raise UserError(f"VARIANT: {variant!r} is no name of a folder: --variant second")
        self.folder_of_recipe = references.recipe_folder(namespace["RECIPE"])
        self.folder = self.folder_of_recipe / self.name
        self.final = self.folder / "final"
        self.building = self.folder / "final.partial"
        self.scratch = self.folder / "scratch"
        self.checkpoints = self.folder / "checkpoints"
        self._follows = processes.rank() > 0
        if self._follows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = storage.take_lock(
            self.folder / "lock",
            f"{self.folder} is in use by {{owner}}; wait for it, or give this run a folder of "
            "its own with --variant",
        )
        self._begun = time.monotonic()
        self._log_handlers: list[logging.Handler] = []
        try:
            self._open(namespace, inputs or {})
        except BaseException:
            self._lock.close()
            raise

    def _open(self, namespace: dict[str, Any], inputs: dict[str, lineage.Input]) -> None:
        storage.recover(self.final)
        self._report_to: list[str] = namespace.get("REPORT_TO", [])
        self._dashboards: dashboards.Dashboards | None = None
        dashboards.check(self._report_to)
        effective = json.loads(json.dumps(settings.effective(namespace), default=str))
        wanted = {
            "settings": redaction.redact_json(effective),
            "inputs": {
                name: {"path": str(path), "digest": lineage.digest_input(path)}
                for name, path in inputs.items()
            },
        }
        # What torchrun starts again was cleared the first time.
        if namespace.get("OVERWRITE", False) and not processes.restarted():
            self._clear()
            stored = None
        else:
            stored = self._take_up(wanted)
        self.finished = stored is not None and stored["status"] == "finished"
        self.resumed = stored is not None and not self.finished
        self.record = lineage.Record(
            self.name,
            **wanted,
            command=[Path(sys.executable).name, *redaction.redact_arguments(sys.argv)],
            git=lineage.git_state(),
            versions=lineage.versions(),
        )
        self._updates: list[str] = []
        if stored is not None and self.resumed:
            self._updates = lineage.find_updates(stored, self.record.versions)
            self.record.take_over(stored)

    def _take_up(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """Return the record of an earlier run of equal settings and inputs; None if there is none.

        Raises:
            UserError: there is one that differs, or its record or its final/ were tampered with.
        """
        redo = f"{lineage.command(self.script)} --overwrite"
        stored = lineage.read_record(self.folder / "run.json", f"redo it with: {redo}")
        if stored is None:
            if self.final.is_dir():
                raise UserError(
                    f"{self.final} is there, but the run.json that says what made it is not; put "
                    f"it back, move final/ elsewhere, or redo it with: {redo}"
                )
            return None
        if changes := lineage.find_changes(stored, wanted):
            if self._made_nothing(stored):
                return None  # it was refused; what its message told to change has been changed
            # We have the lock: what still says "running" was killed.
            status = {"running": "killed"}.get(stored["status"], stored["status"])
            raise UserError(
                f"{self.folder} holds a {status} run that differs: {'; '.join(changes)}. "
                f"Redo it with {redo}, or keep both with --variant NAME"
            )
        if not self.final.is_dir():
            if stored["status"] == "finished":  # and final/ was removed by hand: build it again
                stored["status"] = "running"
        elif stored["status"] == "finished":
            lineage.check_output(self.final, stored, lineage.command(self.script))
        elif self._was_published(stored):
            stored["status"] = "finished"
            storage.write_json(self.folder / "run.json", stored)
        return stored

    def _made_nothing(self, stored: dict[str, Any]) -> bool:
        """Say whether an earlier run failed with nothing to show but minutes of preparation."""
        return (
            stored["status"] == "failed"
            and stored.get("seconds", 0) < LITTLE_SECONDS
            and not any(
                path.is_file()
                for place in (self.final, self.building, self.checkpoints)
                for path in place.rglob("*")
            )
        )

    def _was_published(self, stored: dict[str, Any]) -> bool:
        """Say whether a kill fell between the last rename and the last line of run.json."""
        digest = stored.get("output_digest")
        return (
            digest is not None
            and not self.building.exists()
            and storage.digest_folder(self.final) == digest
        )

    def _clear(self) -> None:
        # The record first, then final/ by its name: what a kill leaves must not pass for finished.
        storage.remove(self.folder / "run.json")
        if self.final.exists():
            storage.remove(self.building)
            self.final.rename(self.building)
        for path in self.folder.iterdir():
            if path.name != "lock":
                storage.remove(path)

    def __enter__(self) -> Self:
        """Start logging; say whether this is a new run, a resumed one, or nothing to do.

        A process that follows another (see `processes`) says and writes nothing: it waits until
        that one has prepared its inputs, or has nothing to train.
        """
        if self._follows:
            self._follow()
            return self
        processes.start()  # from here on the others notice if this process ends
        self._start_logging()
        if self.finished:
            self._tidy()  # a kill may have come between the renames and this
            print(f"{self.name}: finished before, kept as it is: {self.final} (--overwrite redoes)")
            return self
        self._make_room()
        self.building.mkdir(parents=True, exist_ok=True)
        self.save_record()
        with contextlib.ExitStack() as failed:
            failed.push(self)
            self._dashboards = dashboards.Dashboards(
                self._report_to,
                self.folder,
                project=self.folder_of_recipe.name,
                run=self.name.replace("/", "-"),
                settings=self.record.settings,
            )
            failed.pop_all()
        return self

    def _follow(self) -> None:
        """Wait for the process that leads, and take over what it has recorded."""
        logging.getLogger(report.LOG).setLevel(logging.ERROR)
        self.finished = not processes.wait()
        if not self.finished:
            stored = storage.read_json(self.folder / "run.json", "run it again")
            self.record = lineage.Record(self.name, stored["settings"], stored["inputs"])
            self.record.take_over(stored)

    def _make_room(self) -> None:
        """Clear away what is of no use to a run that goes on, or that begins."""
        if not self.resumed:
            logger.info("%s: starting in %s", self.name, self.folder)
            self._tidy()
            storage.remove(self.building)
            storage.remove(self.folder / "metrics.jsonl")
            storage.remove(self.folder / dashboards.FOLDER)
            return
        logger.info("%s: going on in %s", self.name, self.folder)
        # Half-written files, ours and those of safetensors, must not get into final/.
        for pattern in (".*.partial", ".tmp*"):
            for path in [*self.building.rglob(pattern)]:
                storage.remove(path)
        if self._updates:
            logger.warning(
                "with other libraries than before (%s): the last bits of the result may differ",
                ", ".join(self._updates),
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record how an unfinished run ended; let the exception go on.

        Raises:
            UserError: in place of whatever a full, read-only or forbidden disk has raised.
        """
        if self._follows:
            return
        if kind is None:
            processes.release(work=False)
        if self._dashboards is not None:
            self._dashboards.close()
        told = disk_faults.explain(error, self.folder) if isinstance(error, Exception) else None
        # A full disk may have no room for the record either: it then still says "running".
        with contextlib.suppress(OSError):
            if not self.finished and kind is not None and self.record.status == "running":
                interrupted = issubclass(kind, KeyboardInterrupt)
                self.record.status = "interrupted" if interrupted else "failed"
                self.record.error = str(told or error)
                self.save_record()
        self._lock.close()
        for handler in self._log_handlers:
            logging.getLogger(report.LOG).removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
        if told is not None:
            raise told from error

    def _start_logging(self) -> None:
        log = logging.getLogger(report.LOG)
        log.setLevel(logging.INFO)
        log.propagate = False
        shown = (handler for handler in log.handlers if isinstance(handler, report.Console))
        console = next(shown, None)
        if console is None:
            console = report.Console()
            self._log_handlers.append(console)
        if not self.finished:
            file = _LogFile(self.folder / "log.txt", encoding="utf-8")
            file.setFormatter(report.Redacting("%(asctime)s %(message)s"))
            for record in console.early or ():  # what was said of the inputs
                file.handle(record)
            self._log_handlers.append(file)
        console.early = None
        for handler in self._log_handlers:
            log.addHandler(handler)

    @property
    def seconds(self) -> float:
        """Wall seconds spent on this stage, those of interrupted runs included."""
        return self.record.seconds_before + time.monotonic() - self._begun

    def save_record(self) -> None:
        """Write run.json, atomically; with the commits that were read where ids are not pinned."""
        if hub.revisions:
            known = self.record.facts.get("revisions", {})
            self.record.facts["revisions"] = {**known, **hub.revisions}
        self.record.seconds = round(self.seconds, 1)
        self.record.peak_memory_mib = peak_memory_mib()
        storage.write_json(self.folder / "run.json", redaction.redact_json(self.record.to_json()))

    def shared(self, name: str, *parts: str) -> contextlib.AbstractContextManager[Path]:
        """Open the folder of what this recipe's stages make once of an input; see `shared_cache`.

        Args:
            name: of the input.
            parts: what else decides the content.
        """
        key = [self.record.inputs[name]["digest"], *parts]
        return shared_cache.entry(self.folder_of_recipe / ".cache", key)

    def write_metrics(self, **values: Any) -> None:  # noqa: ANN401  numbers and names
        """Append one line to metrics.jsonl, and show its numbers wherever REPORT_TO says.

        Of several processes the leader does.
        """
        if self._follows:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values, default=float) + "\n")
        if self._dashboards is not None:
            self._dashboards.log(values)

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
        signals.check()  # libraries may have swallowed the exception
        if verify is not None:
            verify(folder)
        self.record.output_digest, self.record.output_files = lineage.describe_output(folder)
        with signals.deferred():
            self.save_record()
            storage.publish(folder, self.final)
            self.record.status = "finished"
            self.save_record()
            self.finished = True
            self._tidy()
            logger.info(
                "%s: %s · %s · %s", self.name, summary, report.minutes(self.seconds), self.final
            )

    def _tidy(self) -> None:
        """Remove what only an unfinished run has a use for."""
        storage.remove(self.scratch)
        storage.remove(self.checkpoints)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Lose the line: a full disk is told by whatever else is being written."""


def peak_memory_mib() -> int:
    """Return the largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)
