"""Prompts: what a model wants in front of a text, by the part that the text plays.

A model's folder may name a prompt for queries, one for documents, and a default for all the rest.
`SentenceTransformer.encode_query`, `encode_document` and `encode` put them in front; whoever
encodes by other means takes them from here, so that the vectors are the model's own.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from small_modernbert.models.students import Student
    from small_modernbert.runs.stages import Stage

Role = Literal["text", "query", "document"]
ROLES: tuple[Role, ...] = get_args(Role)
# Names that sentence-transformers' documentation gives to a prompt of documents, and that its
# `encode_document` (5.1 to 6.2) never reads: a model always has "document", empty if need be.
UNREAD_NAMES = ("passage", "corpus")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompts:
    """What stands in front of a text, "" for nothing.

    Attributes:
        text: of a text that is neither query nor document: the model's default prompt.
        query: of a query.
        document: of a document.
    """

    text: str = ""
    query: str = ""
    document: str = ""

    def of(self, role: Role) -> str:
        """Return the prompt of a role."""
        return getattr(self, role)

    def __bool__(self) -> bool:
        """Say whether any text gets a prompt."""
        return bool(self.text or self.query or self.document)


def choose_prompts(
    named: Mapping[str, str | None], default: str | None, query: str = "", document: str = ""
) -> Prompts:
    """Return the prompts as `encode`, `encode_query` and `encode_document` choose them.

    Args:
        named: a model's prompts by name.
        default: the name of the one that is for all texts; a query or a document without a prompt
            of its own gets none, not this one.
        query: used where the model names none for queries (E5, BGE, DenseOn: it is on their cards).
        document: likewise for documents.
    """
    prompts = Prompts(
        text=(named.get(default) if default else "") or "",
        query=named.get("query") or query,
        document=named.get("document") or document,
    )
    unread = next((name for name in UNREAD_NAMES if named.get(name)), None)
    if unread and not prompts.document:
        warn_of_unread(unread, str(named[unread]))
    return prompts


@lru_cache(maxsize=64)
def warn_of_unread(name: str, prompt: str) -> None:
    """Say once a process that documents get no prompt, though one is meant for them."""
    logger.warning(
        "a model names a prompt %r (%r), which encode_document of sentence-transformers never "
        'reads: its documents get none here either; name it "document" in the model\'s '
        "config_sentence_transformers.json to have it used",
        name,
        prompt,
    )


def encode_by_role(
    encode: Callable[[list[str], Role], np.ndarray], texts: Sequence[str], roles: Sequence[Role]
) -> np.ndarray:
    """Return the vectors of texts of several roles, in their order.

    Args:
        encode: some texts of one role -> `(texts, width)`.
        texts: at least one.
        roles: of each.
    """
    vectors: np.ndarray | None = None
    for role in dict.fromkeys(roles):
        rows = [row for row, own in enumerate(roles) if own == role]
        part = encode([texts[row] for row in rows], role)
        if vectors is None:
            vectors = np.empty((len(texts), part.shape[1]), dtype=part.dtype)
        vectors[rows] = part
    if vectors is None:
        raise ValueError("there is no text to encode")
    return vectors


def prompts_of(model: "SentenceTransformer", query: str = "", document: str = "") -> Prompts:
    """Return a loaded model's prompts; see `choose_prompts`."""
    return choose_prompts(model.prompts, model.default_prompt_name, query, document)


def settle(
    stage: "Stage", student: "Student", wanted: bool, given: Mapping[str, str] | None = None
) -> None:
    """Decide what prompts a student is trained behind, and keeps; run.json says which.

    Training compares by the cosine: a student that came with another similarity, for vectors that
    are not of unit length, is told that it has a new one.

    Args:
        stage: that trains it.
        student: its own prompts count where none are given.
        wanted: whether to train with prompts at all; without, the saved student has none.
        given: the teacher's, by role; they come before the student's own.

    Raises:
        UserError: the student leaves prompts out of its pooling, which is not trained here.
    """
    prompts = (Prompts(**(given or {})) or student.prompts) if wanted else Prompts()
    if prompts and not student.usage.include_prompt:
        raise UserError(
            "the student's pooling leaves prompts out, which can't be trained here; train it "
            "without: --no-train-with-prompts"
        )
    if not wanted or prompts != student.prompts:
        if prompts != student.prompts:
            logger.info(
                "the student came with the prompts %s; it is trained with %s",
                vars(student.prompts),
                vars(prompts),
            )
        student.prompts = prompts
    if not student.normalised and student.usage.similarity not in ("cosine", None):
        logger.warning(
            "the student compared by %s; it is trained and measured by the cosine, and saved as a "
            "model that compares so",
            student.usage.similarity,
        )
        student.usage = replace(student.usage, similarity="cosine")
    stage.record.facts |= {"prompts": vars(prompts), "prompts_trained_with": bool(prompts)}


def prompt_tokens(model: "SentenceTransformer", prompt: str) -> int:
    """Return how many tokens of a prompted text are no part of what is pooled.

    0 unless the model's pooling says `include_prompt: false`, as INSTRUCTOR's and some of Nomic's
    and Jina's do; a closing special token of the prompt alone does not count.
    """
    pooled = all(getattr(module, "include_prompt", True) for module in model)
    if not prompt or pooled:
        return 0
    ids = model.tokenizer(prompt, return_attention_mask=False)["input_ids"]
    return len(ids) - (ids[-1] in model.tokenizer.all_special_ids)
