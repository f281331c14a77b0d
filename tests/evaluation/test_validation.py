"""Promises of small_modernbert.evaluation.validation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from miniature import Language
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data.token_store import TokenStore
from small_modernbert.evaluation import metrics, search
from small_modernbert.evaluation.validation import HeldOutTexts, Watched
from small_modernbert.models import encoders
from small_modernbert.models.module_files import Usage
from small_modernbert.models.students import Student
from small_modernbert.runs.errors import UserError

NOTHING = HeldOutTexts(TokenStore(np.zeros(0, np.int32), np.zeros(1, np.int64)), np.zeros((0, 8)))


@pytest.mark.parametrize("named", [(), ("query",), ("query", "document")])
def test_figures_while_training_are_those_of_the_saved_folder(
    tmp_path: Path,
    make_student: Callable[..., ModernBertModel],
    language: Language,
    tokenizer: PreTrainedTokenizerFast,
    named: tuple[str, ...],
) -> None:
    """What a run selects by is what the benchmark says of its folder, prompts included."""
    usage = Usage(prompts={name: f"{language.words[40]} " for name in named})
    student = Student(make_student(), tokenizer, 64, usage=usage)
    made = language.retrieval_set("made")
    watched = Watched(NOTHING, sets=[made])
    figures = watched.measure(student.encoder(), student.backend, prompts=student.prompts)
    student.save(tmp_path)
    encoder = encoders.load_encoder(tmp_path)
    hits = search.rank(
        made, encoder.encode_queries(made.queries), encoder.encode_documents(made.documents)
    )
    wanted = metrics.ranking_metrics(hits.rows, made)["ndcg@10"]
    assert figures["made_ndcg@10"] == pytest.approx(wanted, abs=1e-6)
    plain = watched.measure(student.encoder(), student.backend)
    unlike = plain["effective_rank"] != pytest.approx(figures["effective_rank"])
    assert unlike == ("document" in named)  # it is of the documents


def test_a_student_gone_astray_is_said_to_be_so() -> None:
    """A learning rate far too high gives NaN: no figures of it, and no error of a library."""

    class Diverged:
        def __len__(self) -> int:
            return 2

        def encode(self, encoder: object, tokenizer: object) -> np.ndarray:
            return np.array([[1.0, np.nan], [0.0, 1.0]], dtype=np.float32)

    with pytest.raises(UserError, match="lower --learning-rate"):
        Watched(Diverged()).measure(None, None)
