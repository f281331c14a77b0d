"""What the stages of a recipe left below runs/, read for the page; nothing heavy is imported."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StageRun:
    """One stage of a recipe.

    Attributes:
        name: script[@variant].
        folder: where it is.
        record: its run.json.
        metrics: the lines of its metrics.jsonl, in order.
        sources: names of the stages that it read, in the order of its inputs.
        depth: 0 where it read none of them, else one more than the deepest of these.
    """

    name: str
    folder: Path
    record: Row
    metrics: list[Row]
    sources: list[str]
    depth: int

    @property
    def final(self) -> Path:
        """What it made; exists only where the stage finished."""
        return self.folder / "final"

    @property
    def finished(self) -> bool:
        """Whether it did."""
        return self.record.get("status") == "finished" and self.final.is_dir()


def read_stages(folder: Path) -> list[StageRun]:
    """Return the stages of a recipe's folder, those first that others read.

    A stage whose run.json does not read is left out, and said.

    Raises:
        UserError: there is none.
    """
    records = _read_records(folder)
    if not records:
        raise UserError(f"{folder} holds no stage that ran; run: make run")
    sources = {name: _sources(folder, name, record, records) for name, record in records.items()}
    depths: dict[str, int] = {}

    def depth(name: str, above: tuple[str, ...] = ()) -> int:
        if name not in depths:
            before = [each for each in sources[name] if each not in above]
            depths[name] = 1 + max((depth(each, (*above, name)) for each in before), default=-1)
        return depths[name]

    runs = [
        StageRun(
            name,
            folder / name,
            record,
            _read_lines(folder / name / "metrics.jsonl"),
            sources[name],
            depth(name),
        )
        for name, record in records.items()
    ]
    return sorted(runs, key=lambda run: (run.depth, _ended(run), run.name))


def _read_records(folder: Path) -> dict[str, Row]:
    records: dict[str, Row] = {}
    for path in sorted(folder.rglob("run.json")):
        inside = path.parent.relative_to(folder)
        if {"final", "scratch", ".cache"} & set(inside.parts):
            continue
        name = inside.as_posix()
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            logger.warning("%s is left out: %s", path, error)
            continue
        if isinstance(record, dict):
            records[name] = record
    return records


def _ended(run: StageRun) -> float:
    # Its last writing: stages that no other one reads stand in the order in which they ended.
    try:
        return (run.folder / "run.json").stat().st_mtime
    except OSError:
        return 0.0


def _sources(folder: Path, name: str, record: Row, known: dict[str, Row]) -> list[str]:
    """Return the stages of the same folder that a stage's inputs lie in."""
    stages: dict[str, None] = {}
    for given in record.get("inputs", {}).values():
        path = str(given.get("path", "")) if isinstance(given, dict) else ""
        # Runs may have been moved since: the stage's own path within the recipe decides, whatever
        # else above it has the recipe's name.
        pieces = path.split("/")
        for place, piece in enumerate(pieces):
            if piece != folder.name or "final" not in pieces[place + 1 :]:
                continue
            stage = "/".join(pieces[place + 1 : pieces.index("final", place + 1)])
            if stage in known and stage != name:
                stages[stage] = None
    return list(stages)


def _read_lines(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line that a kill cut
        if isinstance(row, dict):
            rows.append(row)
    return rows
