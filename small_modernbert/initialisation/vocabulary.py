"""Vocabularies: which tokens two tokenizers share, and a teacher's vector of every entry."""

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast

from small_modernbert.models.architecture import vocabulary_size
from small_modernbert.models.inference import load_engine
from small_modernbert.models.teachers import token_ids
from small_modernbert.runs import report

WORD_MARKS = ("##", "Ġ", "▁")  # how WordPiece, byte-level BPE and SentencePiece mark pieces


def match(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast, vocabulary: int
) -> np.ndarray:
    """Return the donor's row for each of the student's tokens, -1 for none.

    Tokens match by their spelling, special ones by their role.

    Args:
        student: the student's tokenizer.
        donor: the donor's.
        vocabulary: the student's padded vocabulary.

    Returns:
        `(vocabulary,)` int64.
    """
    theirs = donor.get_vocab()
    rows = np.full(vocabulary, -1, dtype=np.int64)
    for token, row in student.get_vocab().items():
        rows[row] = theirs.get(token, -1)
    for role in ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "unk_token_id"):
        ours, theirs = getattr(student, role), getattr(donor, role)
        if ours is not None and theirs is not None:
            rows[ours] = theirs
    return rows


def teacher_table(teacher: SentenceTransformer, student: PreTrainedTokenizerFast) -> np.ndarray:
    """Return the teacher's vector of every entry of the student's vocabulary.

    With one vocabulary, each id goes through the teacher between its [CLS] and [SEP]; otherwise
    each entry's text does.

    Returns:
        `(entries, dimension)` float32.
    """
    # A hole in the vocabulary has no spelling; no text has its id either.
    named = {row: entry for entry, row in student.get_vocab().items()}
    entries = [named.get(row, "") for row in range(vocabulary_size(student))]
    if student.get_vocab() == teacher.tokenizer.get_vocab():
        before, after = teacher.tokenizer.cls_token_id, teacher.tokenizer.sep_token_id
        sequences = [[before, row, after] for row in range(len(entries))]
    else:
        sequences = token_ids(teacher, [_plain(entry) or entry for entry in entries])
    with report.progress(description="teacher's table", total=len(entries), unit=" entries") as bar:
        engine = load_engine(teacher, "fp32")
        return engine.encode(sequences, tokens_per_batch=2_048, advance=bar.update)


def _plain(entry: str) -> str:
    for mark in WORD_MARKS:
        entry = entry.removeprefix(mark)
    return entry


def save_static(folder: Path, table: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a table as a model2vec folder, which sentence-transformers loads too.

    Args:
        folder: written into.
        table: `(entries, width)`; a text's vector is the normalised mean of its tokens' rows.
        tokenizer: the student's.
    """
    from model2vec import StaticModel

    backend = tokenizer.backend_tokenizer
    model = StaticModel(table.astype(np.float32), backend, normalize=True)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
