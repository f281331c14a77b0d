"""Teachers: sentence-transformers models that label text, and their reduction."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from small_modernbert.models.loading import compares_by, load, open_sentence_transformer
from small_modernbert.models.projection import Projection
from small_modernbert.models.prompts import Prompts
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)


def load_teacher(reference: Path | str, revision: str | None = None) -> SentenceTransformer:
    """Load a teacher from a folder or the hub, for inference, on the best device there is.

    Raises:
        UserError: it does not load, or the hub cannot be reached.
    """
    return load("teacher", reference, _open, _try, revision)


def _open(folder: Path) -> SentenceTransformer:
    teacher = open_sentence_transformer(folder)
    if not hasattr(teacher[0], "auto_model"):
        raise UserError(
            f"{folder} has no transformer to learn from (its first module is a "
            f"{type(teacher[0]).__name__}); take another teacher"
        )
    if (said := compares_by(teacher)) != "cosine":
        logger.warning(
            "%s compares by %s; its labels keep the directions of its vectors alone, and a student "
            "of it compares by the cosine",
            *(folder, said),
        )
    return teacher


def _try(teacher: SentenceTransformer) -> np.ndarray:
    token_ids(teacher, ["A trial."])
    return teacher.encode(["A trial."], show_progress_bar=False)


def token_ids(
    teacher: SentenceTransformer, texts: Sequence[str], prompt: str = "", limit: int | None = None
) -> list[list[int]]:
    """Return each text's token ids as the teacher sees them: special tokens, prompt, truncation.

    Args:
        teacher: whose tokenizer it is.
        texts: any number of them.
        prompt: stands in front of each, and counts.
        limit: tokens of a text at most; None for what the teacher reads.
    """
    encoded = teacher.tokenizer(
        [prompt + text for text in texts],
        truncation=True,
        max_length=limit or teacher.max_seq_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return encoded["input_ids"]


def reduce_teacher(
    teacher: SentenceTransformer, projection: Projection | None, prompts: Prompts | None = None
) -> SentenceTransformer:
    """Return the teacher followed by a Dense layer with the projection, and a normalisation.

    All of the teacher's modules stay. The Dense layer has no bias: the mean is not subtracted, see
    `projection.principal_directions`.

    Args:
        teacher: the model.
        projection: None for the teacher as it is.
        prompts: that it was read with, where its folder names none; the rest of its own stay.
    """
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    modules = list(teacher)
    if projection is not None:
        width, dimension = projection.directions.shape
        dense = Dense(dimension, width, bias=False, activation_function=torch.nn.Identity())
        with torch.no_grad():
            dense.linear.weight.copy_(projection.directions)
        modules += [dense, Normalize()]
    given = {"query": prompts.query, "document": prompts.document} if prompts else {}
    reduced = SentenceTransformer(
        modules=modules,
        device=teacher.device,
        prompts={**teacher.prompts, **given},
        default_prompt_name=teacher.default_prompt_name,
        similarity_fn_name=teacher.similarity_fn_name,
    )
    reduced.eval()
    return reduced


def save_teacher(teacher: SentenceTransformer, folder: Path) -> None:
    """Write a teacher as a sentence-transformers folder: equal teachers, equal files.

    A fast tokenizer remembers the truncation of its last call and would save it: what a run has
    encoded so far, or a resumed one has not, is none of the file's business.
    """
    teacher.tokenizer.backend_tokenizer.no_truncation()
    teacher.tokenizer.backend_tokenizer.no_padding()
    teacher.save(str(folder), create_model_card=False)
