"""What teacher, corpus and student read of a text at most, compared and said.

A text that the teacher cuts is labelled by its beginning; one that the student cuts has to learn
the label of the whole from its beginning. Either is no error, and neither may happen in silence.
"""

import logging
from collections.abc import Iterator

import numpy as np

from small_modernbert.labelling.teacher_labels import Slices
from small_modernbert.labelling.teacher_reading import Reader

logger = logging.getLogger(__name__)


def compare(
    reader: Reader, slices: Slices, cut: int, student_tokens: int | None
) -> dict[str, int | None]:
    """Say what each reads of a text at most, and how many texts they cut.

    The corpus has counted its texts whole: where spans are drawn, fewer are longer than the student
    reads than is told here, and none more.

    Args:
        reader: the teacher's.
        slices: of the corpus.
        cut: texts that the teacher did not read to their end.
        student_tokens: that the student reads at most; None if that is not known.

    Returns:
        The figures, for run.json.
    """
    longest = longer = 0
    for tokens in _token_counts(slices):
        longest = max(longest, int(tokens.max(initial=0)))
        longer += int((tokens > student_tokens).sum()) if student_tokens else 0
    limit = reader.limits["text"]
    _tell(reader, slices.texts, cut, longest, student_tokens, longer)
    return {
        "teacher_tokens": limit,
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


def _token_counts(slices: Slices) -> Iterator[np.ndarray]:
    """Yield the tokens of the corpus' texts, as the corpus' tokenizer counts them."""
    for split in slices.counts:
        for batch in slices.corpus.batches(split, ("tokens",)):
            yield batch.column(0).to_numpy(zero_copy_only=False)
