"""Label a corpus with a teacher's embeddings, reduced by PCA to the student's width.

Reads: a corpus (mlm/create_dataset.py), a teacher, and the student's width.
Writes: final/{train,held_out}/shard-*.parquet with `text`, `role` and `label` (fp16),
    final/labels.json, final/reduced_teacher (a sentence-transformers folder) and
    final/projection.safetensors.

    python create_distil_dataset.py
    python create_distil_dataset.py --recipe offline --teacher assets/models/all-MiniLM-L6-v2

Where the widths differ, the principal directions of the teacher's vectors become a Dense layer on
the teacher: labels, student and reduced teacher then share one space. Shard i depends on nothing
but its texts, the teacher and the projection, so a killed run goes on at the first missing shard.
Queries, documents and other texts (the corpus' column `role`) get the prompts that the teacher
names for them, and keep them in the reduced teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from small_modernbert.runs import references, settings, stages
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.data.executors import Executor
    from small_modernbert.data.outlets import Outlet
    from small_modernbert.labelling.teacher_labels import Slices
    from small_modernbert.labelling.teacher_reading import Reader

# Inputs
CORPUS: str = "mlm/create_dataset"  # a stage of this recipe, a folder or a URL
TEACHER: str = (
    "Alibaba-NLP/gte-modernbert-base@e7f32e3c00f91d699e8c43b53106206bcc72bb22"  # folder, hub id
)
TEACHER_REVISION: str = ""  # 40 hex digits pin a hub teacher that is named without @revision
QUERY_PROMPT: str = ""  # in front of queries where the teacher's folder names none (E5: "query: ")
DOCUMENT_PROMPT: str = ""  # in front of documents, likewise (E5: "passage: ")
STUDENT: str = "build_and_save_small_modernbert"  # its vectors' width is the labels'
DIMENSION: int = 0  # width of the labels, the teacher's where that is narrower; 0 = the student's

# Labelling
MAX_TOKENS: int = 0  # texts are cut to so many of the teacher's tokens; 0 = left whole, cut counted
SPAN_SHARE: float = 0.0  # of the training texts, cut to a drawn span of theirs: 6 to 42 words
PCA_TEXTS: int = 20_000  # texts that the projection is fitted on, from the shuffled corpus; 0 = all
ROWS_PER_SHARD: int = 2_048  # what a kill can cost, and the window that is sorted by length
TOKENS_PER_BATCH: int = 0  # tokens per forward pass; 0 = as many as suit the device
PRECISION: Literal["auto", "fp32", "bf16"] = "auto"  # half where it is fast and faithful

# Run
EXECUTOR: Literal["plain", "local", "slurm", "ray"] = "plain"  # the others are datatrove's
WORKERS: int = 0  # of an executor: tasks at once; 0 = one for each GPU or processor
SLURM: list[str] = []  # options of sbatch: partition=gpu time=08:00:00 gpus=1 and any other
TASK_SHARDS: int = 64  # label shards that an executor's task makes

# Output
OUTPUT_URL: str = ""  # shards go there (s3://bucket/labels), one by one; empty = they stay
RECIPE: str = "small_v2"  # runs/<recipe>/create_distil_dataset
VARIANT: str = ""  # a second run in the same recipe: runs/<recipe>/create_distil_dataset@<variant>
OVERWRITE: bool = False  # redo a finished stage


def main() -> None:
    """Encode the sample, fit and save the projection, then label every shard."""
    from small_modernbert.data import executors

    executor = executors.Executor(EXECUTOR, WORKERS, tuple(SLURM))
    executor.check()
    inputs = find_inputs()
    width, student_tokens = (narrowed(inputs["teacher"]), None) if DIMENSION else read_student()
    inputs["width"] = f"{width} dimensions"
    with stages.Stage(globals(), inputs) as stage:
        if stage.finished:
            return
        from small_modernbert.data import outlets

        outlet = outlets.open_outlet(
            OUTPUT_URL, "labels.json", stage.resumed, stage.scratch / "sent"
        )
        made_by_tasks = None
        if EXECUTOR != "plain":
            made_by_tasks = run_tasks(executor, stage, inputs, width, outlet)
            if made_by_tasks is None:
                return
        label(stage, inputs, width, student_tokens, outlet, made_by_tasks)


def label(
    stage: stages.Stage,
    inputs: dict[str, Path | str],
    width: int,
    student_tokens: int | None,
    outlet: Outlet,
    made_by_tasks: dict[str, Any] | None,
) -> None:
    """Label what no task has, save the reduced teacher, and close the stage.

    Args:
        stage: that this is.
        inputs: from `find_inputs`.
        width: of the labels.
        student_tokens: that the student reads, where it is known.
        outlet: where the shards go.
        made_by_tasks: what an executor's tasks settled on; None where there were none.
    """
    from small_modernbert.labelling import lengths, teacher_labels
    from small_modernbert.models import teachers
    from small_modernbert.runs import machine, report, storage

    machine.keep_freed()
    record = stage.record
    slices = teacher_labels.Slices.of(inputs["corpus"], ROWS_PER_SHARD, SPAN_SHARE)
    reader = open_reader(stage, inputs["teacher"], slices)
    if made_by_tasks is None:
        record.dtype = reader.engine.precision
        # Better now than after hours of labelling; the texts come on top.
        kept = 0 if OUTPUT_URL else width
        storage.check_space(stage.building, slices.space(reader.dimension, kept, PCA_TEXTS))
    else:
        record.facts |= made_by_tasks
    with report.progress(description="labelling", total=slices.texts, unit="texts") as bar:
        labeller = teacher_labels.Labeller(reader, slices, stage, bar.update, outlet)
        projection = labeller.fit(width, PCA_TEXTS)
        reduced = teachers.reduce_teacher(reader.teacher, projection, reader.prompts)
        teachers.save_teacher(reduced, stage.building / "reduced_teacher")
        facts = labeller.label(projection, record.inputs["teacher"]["digest"])
    record.rows = slices.counts
    record.facts["lengths"] = lengths.compare(reader, slices, facts["cut"], student_tokens)
    record.metrics = {"explained": labeller.explained}
    record.tokens_per_second = round(facts["tokens"] / max(stage.seconds, 1e-9))
    stage.finish(
        f"{slices.texts:,} labels of width {width}, {labeller.explained:.1%} of the teacher's "
        f"second moment kept, {record.tokens_per_second:,} tokens/s",
        verify=teacher_labels.verify,
    )


def open_reader(stage: stages.Stage, place: Path | str, slices: Slices) -> Reader:
    """Load the teacher of a place, and settle how it reads and in which precision."""
    from small_modernbert.labelling.teacher_reading import Reader
    from small_modernbert.models import precision, prompts, teachers

    teacher = teachers.load_teacher(place, TEACHER_REVISION or None)
    named = prompts.prompts_of(teacher, QUERY_PROMPT, DOCUMENT_PROMPT)
    reader = Reader(teacher, named, max_tokens=MAX_TOKENS)
    dtype = precision.settle(stage, PRECISION, teacher.device, training=False)
    stage.record.facts |= reader.prepare(dtype, slices.first(), TOKENS_PER_BATCH)
    return reader


def run_tasks(
    executor: Executor,
    stage: stages.Stage,
    inputs: dict[str, Path | str],
    width: int,
    outlet: Outlet,
) -> dict[str, Any] | None:
    """Have an executor make the projection and the shards; None while its jobs are under way.

    What is left for this process to do is little: it finds them made.
    """
    from small_modernbert.labelling import label_tasks

    plan = label_tasks.Plan(
        corpus=inputs["corpus"],
        teacher=inputs["teacher"],
        revision=TEACHER_REVISION,
        query_prompt=QUERY_PROMPT,
        document_prompt=DOCUMENT_PROMPT,
        max_tokens=MAX_TOKENS,
        span_share=SPAN_SHARE,
        shard_rows=ROWS_PER_SHARD,
        width=width,
        pca_texts=PCA_TEXTS,
        precision=PRECISION,
        tokens_per_batch=TOKENS_PER_BATCH,
        outlet=outlet,
        building=stage.scratch / "labels",
        scratch=stage.scratch,
    )
    return label_tasks.run(executor, stage, plan, TASK_SHARDS)


def find_inputs() -> dict[str, Path | str]:
    """Resolve every reference before anything is loaded."""
    if not 0.0 <= SPAN_SHARE <= 1.0:
        raise UserError(f"--span-share {SPAN_SHARE} is not in [0, 1]")
    if TASK_SHARDS < 1:
        raise UserError(f"--task-shards {TASK_SHARDS} is too small; give at least 1")
    return {
        "corpus": references.need(CORPUS, RECIPE, "corpus", "run: python mlm/create_dataset.py"),
        "teacher": references.locate(TEACHER, RECIPE) or TEACHER,
    }


def narrowed(teacher: Path | str) -> int:
    """Return DIMENSION, or the width of the teacher's vectors where they are narrower."""
    from small_modernbert.models import loading

    own = loading.read_width(loading.fetch(teacher, TEACHER_REVISION or None))
    if own < DIMENSION:
        stages.logger.warning(
            "DIMENSION is %d, and the teacher's vectors have %d numbers: the labels keep all of "
            "them", DIMENSION, own,
        )  # fmt: skip
    return min(own, DIMENSION)


def read_student() -> tuple[int, int]:
    """Return the student's width, and the tokens that it reads at most, without loading it."""
    from small_modernbert.models import loading
    from small_modernbert.runs import storage

    cure = "run: python build_and_save_small_modernbert.py"
    folder = references.need(STUDENT, RECIPE, "student", cure)
    config = storage.read_json(folder / "config.json", cure)
    own = folder / "sentence_bert_config.json"
    limit = storage.read_json(own, cure).get("max_seq_length") if own.exists() else None
    return loading.read_width(folder), limit or config["max_position_embeddings"]


if __name__ == "__main__":
    settings.run(globals())
