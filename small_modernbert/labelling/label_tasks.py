"""Labelling as tasks of datatrove: one fits the projection, then each labels some slices.

The tasks write what the plain path would, where it then finds it: shards and the projection, and
the precision that the first task has settled on for all.
"""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datatrove.pipeline.base import PipelineStep

from small_modernbert.data import labels
from small_modernbert.data.executors import Array, Executor
from small_modernbert.data.outlets import Outlet
from small_modernbert.labelling.teacher_labels import Labeller, Slices
from small_modernbert.labelling.teacher_reading import Reader
from small_modernbert.models import precision, prompts, teachers
from small_modernbert.runs import machine, storage
from small_modernbert.runs.stages import Stage


@dataclass(frozen=True)
class Plan:
    """How a corpus is labelled; it travels to the tasks.

    Attributes:
        corpus: a folder that every machine sees.
        teacher: likewise, or a hub id.
        revision: of a hub id.
        query_prompt: where the teacher names none.
        document_prompt: likewise.
        max_tokens: see `Reader`.
        span_share: see `Slices`.
        shard_rows: texts of a slice, and so of a shard.
        width: of the labels.
        pca_texts: that the projection is fitted on; 0 for all.
        precision: see `precision.decide`.
        tokens_per_batch: 0 for as many as suit the device.
        outlet: where the shards go.
        building: for the labels and the projection; every machine must see it.
        scratch: for the vectors of the sample; likewise.
    """

    corpus: Path
    teacher: Path | str
    revision: str
    query_prompt: str
    document_prompt: str
    max_tokens: int
    span_share: float
    shard_rows: int
    width: int
    pca_texts: int
    precision: precision.Precision
    tokens_per_batch: int
    outlet: Outlet
    building: Path
    scratch: Path

    @property
    def slices(self) -> Slices:
        """The corpus in slices."""
        return Slices.of(self.corpus, self.shard_rows, self.span_share)

    @property
    def settled(self) -> Path:
        """The file with what the first task decided for all."""
        return self.scratch / "settled.json"

    def open_labeller(self) -> Labeller:
        """Load the teacher in this process, once for all tasks that it does."""
        # The sums of a product depend on the number of threads: as many for any number of workers.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        machine.keep_freed()
        reader, slices = _open(self)
        return Labeller(reader, slices, self, lambda texts: None, self.outlet)


@functools.lru_cache(maxsize=1)
def _open(plan: Plan) -> tuple[Reader, Slices]:
    teacher = teachers.load_teacher(plan.teacher, plan.revision or None)
    named = prompts.prompts_of(teacher, plan.query_prompt, plan.document_prompt)
    reader, slices = Reader(teacher, named, max_tokens=plan.max_tokens), plan.slices
    device = teacher.device
    if plan.settled.exists():
        settled = storage.read_json(plan.settled, "run the same command again")
    else:
        dtype, reason = precision.decide(plan.precision, device, training=False)
        settled = {"device": str(device), "dtype": dtype, "dtype_reason": reason}
    precision.allow_tf32(settled["dtype"], device)
    facts = reader.prepare(settled["dtype"], slices.first(), plan.tokens_per_batch)
    if not plan.settled.exists():
        settled |= {"dtype": reader.engine.precision, "facts": facts}
        storage.write_json(plan.settled, settled)
    return reader, slices


class FitProjection(PipelineStep):
    """Settle the precision and fit the projection: one task, before all others."""

    type, name = "small-modernbert", "fit the projection"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:  # noqa: ANN401  datatrove's
        """Write `settled`, the vectors of the sample and the projection."""
        with self.track_time():
            self.plan.open_labeller().fit(self.plan.width, self.plan.pca_texts)
        yield from ()


class LabelSlices(PipelineStep):
    """Label: task i has the i-th run of slices, of which it writes the shards that are missing."""

    type, name = "small-modernbert", "label slices of the corpus"

    def __init__(self, plan: Plan, task_shards: int) -> None:
        """Cut the splits into runs of slices.

        Args:
            plan: how to label.
            task_shards: slices of a run, at most.
        """
        super().__init__()
        self.plan, slices = plan, plan.slices
        self.work = [
            (split, first, min(first + task_shards, slices.number(split)))
            for split in labels.SPLITS
            for first in range(0, slices.number(split), task_shards)
        ]

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:  # noqa: ANN401  datatrove's
        """Write the shards of run `rank`."""
        split, first, last = self.work[rank]
        labeller = self.plan.open_labeller()
        with self.track_time():
            projection = labeller.fit(self.plan.width, self.plan.pca_texts)
            labeller.label_slices(split, first, last, projection)
        self.stat_update("shards", value=last - first)
        yield from ()


def run(executor: Executor, stage: Stage, plan: Plan, task_shards: int) -> dict[str, Any] | None:
    """Label on an executor, and put what the tasks made where the stage builds.

    Args:
        executor: where the tasks run.
        stage: whose labels these are; its record gets what the tasks settled on.
        plan: whose folders are in the stage's scratch: what is being built there is cleared of
            half-written files when the command is run again, under the hands of jobs elsewhere.
        task_shards: shards of a task, at most.

    Returns:
        Facts for run.json; None while jobs are under way.

    Raises:
        UserError: a task failed, or the disk has no room.
    """
    kept = 0 if plan.outlet.url else plan.width
    storage.check_space(stage.building, plan.slices.space(kept, kept, 0))
    step = LabelSlices(plan, task_shards)
    fit = Array("projection", FitProjection(plan), 1, on_gpu=True)
    # Tasks of another size are other tasks: their marks do not mix.
    marks = plan.scratch / f"tasks-of-{task_shards}"
    if not executor.run(marks, fit, Array("labels", step, len(step.work), on_gpu=True)):
        return None
    for path in storage.list_files(plan.building):
        place = stage.building / path.relative_to(plan.building)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    settled = storage.read_json(plan.settled, "run the same command again")
    facts = settled.pop("facts")
    vars(stage.record).update(settled)
    return facts
