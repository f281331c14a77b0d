"""What teacher, corpus and student read of a text at most, compared and said.

A text that the teacher cuts is labelled by its beginning; one that the student cuts has to learn
the label of the whole from its beginning. Either is no error, and neither may happen in silence.
"""

import logging

import numpy as np
import pyarrow as pa

from small_modernbert.labelling.teacher_labels import Slices
from small_modernbert.labelling.teacher_reading import Reader

logger = logging.getLogger(__name__)


def compare(
    reader: Reader, slices: Slices, cut: int, student_tokens: int | None
) -> dict[str, int | None]:
    """Say what each reads of a text at most, and how many texts they cut.

    The corpus' tokenizer has counted; where a span of a text is labelled, its share of the text's
    characters is taken for its share of the tokens.

    Args:
        reader: the teacher's.
        slices: of the corpus.
        cut: texts that the teacher did not read to their end.
        student_tokens: that the student reads at most; None if that is not known.

    Returns:
        The figures, for run.json.
    """
    longest = longer = 0
    limit = student_tokens or np.inf
    for split in slices.counts:
        draws = bool(slices.span_share) and split == "train"
        for batch in slices.corpus.batches(split, ("tokens", "text") if draws else ("tokens",)):
            tokens = batch.column("tokens").to_numpy(zero_copy_only=False)
            longest = max(longest, int(tokens.max(initial=0)))
            rows = np.flatnonzero(tokens > limit)
            labelled = _shares(slices, batch.column("text").take(pa.array(rows))) if draws else 1
            longer += int((tokens[rows] * labelled > limit).sum())
    _tell(reader, slices.texts, cut, longest, student_tokens, longer)
    return {
        "teacher_tokens": reader.limits["text"],
        "corpus_tokens": longest,
        "student_tokens": student_tokens,
        "cut_by_teacher": cut,
        "longer_than_student": longer,
    }


def _tell(
    reader: Reader, texts: int, cut: int, longest: int, student_tokens: int | None, longer: int
) -> None:
    """Log the figures of `compare`, as a warning where a label is not of the text it stands at."""
    limit = reader.limits["text"]
    logger.info(
        "tokens of a text at most: teacher %s, corpus %s, student %s",
        *(limit, longest, student_tokens or "not known"),
    )
    if cut and reader.cuts_texts:
        logger.info("%s texts were cut to what the teacher reads", f"{cut:,}")
    elif cut:
        share = 100 * cut / texts
        logger.warning(
            "%s of %s texts (%.1f %%) are longer than the %d tokens that the teacher reads: each "
            "is labelled by its beginning, and a student would read on. Label them again with "
            "--max-tokens %d --overwrite, which cuts them for both, or take a teacher that reads "
            "more",
            *(f"{cut:,}", f"{texts:,}", share, limit, limit),
        )
    if longer and not reader.cuts_texts:
        logger.warning(
            "%s texts are longer than the %d tokens that the student reads: it learns the label of "
            "the whole from the beginning",
            *(f"{longer:,}", student_tokens),
        )


def _shares(slices: Slices, texts: pa.Array) -> np.ndarray:
    """Return the share of each training text that is labelled."""
    return np.array([len(slices.draw(text)) / len(text) for text in texts.to_pylist()])
