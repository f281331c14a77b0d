"""What the tests of training scripts begin with: a student, a validation set, labelled pairs."""

import json
from pathlib import Path
from typing import Any

from miniature import Language
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data import asset_writing
from small_modernbert.models import students


class TrainingWorld:
    """A student and what it is watched by; the test that derives from it adds the data."""

    flags_of_all: tuple[str, ...] = ()
    pairs_flag = "--sts"

    def __init__(
        self,
        folder: Path,
        language: Language,
        model: ModernBertModel,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        self.folder, self.language = folder, language
        students.Student(model, tokenizer, 48).save(folder / "student")
        self.exam = language.retrieval_set("boolq-dev")
        asset_writing.write_retrieval_set(self.exam, folder / "retrieval")
        asset_writing.write_sentence_pairs(folder / "mrpc.parquet", language.sentence_pairs(20))

    def flags(self, *more: str) -> list[str]:
        """Return the flags of a run: what it reads, those of all the tests, then `more`."""
        return [
            *("--recipe", "toy", "--student", str(self.folder / "student")),
            *("--retrieval-folder", str(self.folder / "retrieval")),
            *("--validation-sets", "boolq-dev"),
            *(self.pairs_flag, str(self.folder / "mrpc.parquet")),
            *self.flags_of_all,
            *more,
        ]


def record_of(stage: Path) -> dict[str, Any]:
    """Read a stage's run.json."""
    return json.loads((stage / "run.json").read_text(encoding="utf-8"))
