"""Corpus building as tasks of datatrove: each cleans, cuts and fingerprints one part of a source.

Parts are cut by rows and files, never by the number of workers, and joined in their order: the
spills, and so the corpus, are those of the plain path.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from small_modernbert.data import corpus_building, executors, sources
from small_modernbert.data.corpus_building import Preparation, Spill


@dataclasses.dataclass(frozen=True)
class _Work:
    preparation: Preparation
    number: int
    part: sources.Part


class PrepareParts(PipelineStep):
    """Clean, cut, filter by evaluation texts and fingerprint: task i has part i of the sources."""

    type, name = "small-modernbert", "prepare parts of sources"

    def __init__(
        self, folder: Path, preparations: list[Preparation], part_rows: int, seed: int
    ) -> None:
        """Cut the sources into parts.

        Args:
            folder: for one spill a source.
            preparations: of the sources.
            part_rows: rows of a part at most, see `sources.split_source`.
            seed: of a capped source's choice of rows.
        """
        super().__init__()
        self.folder, self.seed = folder, seed
        self.work = [
            _Work(preparation, number, part)
            for preparation in preparations
            for number, part in enumerate(sources.split_source(preparation.source, part_rows))
        ]

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:  # noqa: ANN401  datatrove's
        """Write part `rank`; nothing is handed on to another step."""
        work = self.work[rank]
        folder = self.spill_folder(work.preparation)
        with self.track_time():
            counts = corpus_building.write_part(
                folder, work.number, work.preparation, work.part, self.seed
            )
        for name, texts in counts.items():
            self.stat_update(name, value=texts)
        yield from ()

    def spill_folder(self, preparation: Preparation) -> Path:
        """Return where the parts of a source lie."""
        return self.folder / preparation.source.name

    def join(self, preparation: Preparation) -> Spill:
        """Return the spill of a source whose parts are all written."""
        parts = sum(work.preparation is preparation for work in self.work)
        return corpus_building.join_parts(self.spill_folder(preparation), preparation, parts)


def write_spills(
    executor: executors.Executor,
    folder: Path,
    preparations: list[Preparation],
    part_rows: int,
    seed: int,
) -> list[Spill] | None:
    """Write the spills of some sources on an executor; None while its jobs are under way.

    Args:
        executor: where the tasks run.
        folder: for spills and logs; every machine must see it.
        preparations: of the sources.
        part_rows: rows of a part at most.
        seed: of a capped source's choice of rows.

    Raises:
        UserError: a task failed.
    """
    # Parts of another size are other parts: they do not mix.
    folder = folder / f"parts-of-{part_rows}"
    step = PrepareParts(folder, preparations, part_rows, seed)
    if not executor.run(folder / "tasks", executors.Array("corpus", step, len(step.work))):
        return None
    return [step.join(preparation) for preparation in preparations]
