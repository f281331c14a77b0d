"""The stages that a stage comes from, told by their run.json: what a model's card has to say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_modernbert.runs import lineage
from small_modernbert.runs.errors import UserError


@dataclass(frozen=True)
class Ancestor:
    """A stage whose output went into another.

    Attributes:
        record: the content of its run.json.
        final: its folder.
        changed: whether it was made again since: the record is not of what was read then.
    """

    record: dict[str, Any]
    final: Path
    changed: bool = False

    @property
    def name(self) -> str:
        """script[@variant]."""
        return str(self.record.get("script", self.final.parent.name))


def trace(inputs: Mapping[str, Mapping[str, str]]) -> list[Ancestor]:
    """Return the stages behind the inputs of one, the oldest first, each once.

    What has no record that can be read is no stage: a folder of somebody's own, or one that was
    moved away.

    Args:
        inputs: of a record: name -> {"path", "digest"}.
    """
    stages: dict[tuple[str, str], Ancestor] = {}
    _visit(inputs, stages)
    return list(stages.values())


def stage_of(path: Path | str) -> Ancestor | None:
    """Return the stage in whose final/ something lies; None if it is in none."""
    for folder in (Path(path), *Path(path).parents):
        if folder.name != "final":
            continue
        try:
            record = lineage.read_record(folder.parent / "run.json", "")
        except UserError:
            return None
        return None if record is None else Ancestor(record, folder)
    return None


def _visit(
    inputs: Mapping[str, Mapping[str, str]], stages: dict[tuple[str, str], Ancestor]
) -> None:
    for entry in inputs.values():
        ancestor = stage_of(entry["path"])
        if ancestor is None:
            continue
        # By what it made: a copy of a stage in another folder is the same one.
        key = (ancestor.name, str(ancestor.record.get("output_digest") or ancestor.final))
        if key in stages:
            continue
        _visit(ancestor.record["inputs"], stages)
        # A part of a final/ has a digest of its own, which no record keeps.
        whole = Path(entry["path"]).name == "final"
        changed = whole and ancestor.record.get("output_digest") != entry["digest"]
        stages[key] = Ancestor(ancestor.record, ancestor.final, changed)
