"""Distillation into a student from stored vectors: batches, losses, held-out measures."""

import logging
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer

from small_modernbert.data.labels import Labels
from small_modernbert.data.streamed_rows import Reading, StreamedRows, open_splits
from small_modernbert.data.token_store import TokenStore
from small_modernbert.models.packing import pack
from small_modernbert.models.prompts import Prompts
from small_modernbert.models.students import Student
from small_modernbert.runs.stages import Stage
from small_modernbert.training import losses
from small_modernbert.training.labelled_task import LabelledTask

logger = logging.getLogger(__name__)


def loss_function(
    objective: Literal["mse", "cosine", "kl"], temperature: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the loss of an objective as a function of (student, teacher) vectors."""
    if objective == "kl":

        def ranking(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            # A window's last batch can hold one or two texts: there is nothing to rank in it.
            if len(student) < losses.FEWEST_ROWS:
                return 0.0 * student.sum()
            return losses.kl(student, teacher, temperature)

        return ranking
    return losses.mse if objective == "mse" else losses.cosine


def reading(labelled: Labels, tokenizer: Tokenizer, prompts: Prompts) -> Reading:
    """Return how texts are read: with the prompt of each one's role in front."""

    def to_texts(batch: pa.RecordBatch) -> list[str]:
        texts = batch.column("text").to_pylist()
        if not prompts:
            return texts
        roles = batch.column("role").to_pylist()
        return [prompts.of(role) + text for text, role in zip(texts, roles, strict=True)]

    columns = ("text", "role") if prompts else ("text",)
    return Reading(labelled, columns, to_texts, tokenizer, vectors="label")


def tokenise(
    stage: Stage, labelled: Labels, student: Student, alike: bool, window_rows: int = 0
) -> dict[str, TokenStore | StreamedRows]:
    """Tokenise the labelled texts for the student, prompts in front; say what is cut.

    Args:
        stage: that trains.
        labelled: its input "labels".
        student: with the prompts to train with.
        alike: whether texts are cut to what the teacher read at most.
        window_rows: training rows at hand at once, see `streamed_rows`; 0 = all.
    """
    limit = student.max_tokens
    if alike:
        limit = min(limit, labelled.index.get("max_tokens", limit))
    prompts = student.prompts
    tokens = open_splits(
        stage,
        "labels",
        reading(labelled, student.cut_at(limit), prompts),
        window_rows,
        *([str(prompts)] if prompts else []),
    )
    stage.record.facts["lengths"] = compare_lengths(labelled, tokens["train"], limit)
    return tokens


def open_vectors(
    stage: Stage, labelled: Labels, tokens: Mapping[str, TokenStore | StreamedRows]
) -> dict[str, Any]:
    """Return the labels' vectors of each split, as `(rows, dimension)`; streamed as the tokens."""
    with stage.shared("labels", "vectors") as cache:
        return {
            split: stored.vectors
            if isinstance(stored, StreamedRows)
            else labelled.vectors(split, cache / f"{split}.f16")
            for split, stored in tokens.items()
        }


def tokenise_held_out(labelled: Labels, student: Student, rows: int) -> list[list[int]]:
    """Return the tokens of the first held-out texts as the student reads them, prompts in front."""
    texts = reading(labelled, student.backend, student.prompts).texts("held_out")
    return [encoding.ids for encoding in student.backend.encode_batch(list(islice(texts, rows)))]


def compare_lengths(
    labelled: Labels, tokens: TokenStore | StreamedRows, student_tokens: int
) -> dict[str, Any]:
    """Say how many texts the student cuts where the teacher read on, and the other way round.

    Lengths are counted by the student's tokenizer, limits are each model's own; where these have
    different tokenizers the second figure is near, not exact.

    Args:
        labelled: the labels, with what the teacher read at most.
        tokens: of the training texts, as the student reads them.
        student_tokens: that the student reads at most.

    Returns:
        The figures, for run.json.
    """
    teacher_tokens = labelled.index.get("max_tokens")
    figures = {
        "teacher_tokens": teacher_tokens,
        "student_tokens": student_tokens,
        "cut_by_student": tokens.cut,
    }
    if teacher_tokens is None:
        return figures
    texts = f"of {len(tokens):,} texts"
    if student_tokens > teacher_tokens:
        longer = int((tokens.lengths > teacher_tokens).sum()) if labelled.index.get("cut") else 0
        figures["longer_than_teacher"] = longer
        if longer:
            logger.warning(
                "%s %s are longer than the %s tokens that their teacher read: the student reads on "
                "where the label says nothing; cut them for both with: --cut-alike",
                *(f"{longer:,}", texts, f"{teacher_tokens:,}"),
            )
    elif tokens.cut and student_tokens < teacher_tokens:
        logger.warning(
            "%s %s are cut to the %s tokens that the student reads, and their teacher read up to "
            "%s; label what both read: python create_distil_dataset.py --max-tokens %s --overwrite",
            *(f"{tokens.cut:,}", texts, f"{student_tokens:,}", f"{teacher_tokens:,}"),
            student_tokens,
        )
    return figures


class DistillationTask(LabelledTask):
    """Texts and the teacher's vectors of them, `(texts, hidden_size)` float16."""

    def loss(self, batch: np.ndarray) -> tuple[torch.Tensor, int]:
        """Return the objective over the batch's texts, and its tokens."""
        packed = pack([self.tokens[row] for row in batch])
        student = self.encoder.pooled(packed)
        teacher = torch.from_numpy(self.targets[batch].astype(np.float32)).to(student.device)
        return self.objective(student, teacher), packed.tokens
