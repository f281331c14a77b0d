"""Our sets as tasks of mteb, and our encoders as its models: what it measures of them is its own.

mteb (Muennighoff et al., arXiv 2210.07316) reads its own tasks from the hub. Here a retrieval set
or sentence pairs on disk become a task beside those, and any model that `encoders` loads, with its
prompts, is what it evaluates. It searches, scores and writes its results itself.

Needs mteb, which is not among the requirements of everybody: requirements-mteb.txt.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskPairClassification, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta
from mteb.results import TaskResult
from mteb.similarity_functions import dot_score, pairwise_dot_score
from mteb.types import PromptType

from small_modernbert.data.evaluation_sets import SentencePairs
from small_modernbert.data.retrieval_sets import MEND, RetrievalSet
from small_modernbert.models import encoders
from small_modernbert.models.encoders import Encoder
from small_modernbert.models.prompts import Role
from small_modernbert.runs import hub, storage
from small_modernbert.runs.errors import UserError

SPLIT = "test"
ROLES: dict[PromptType | None, Role] = {
    None: "text",
    PromptType.query: "query",
    PromptType.document: "document",
}


class LocalRetrieval(AbsTaskRetrieval):
    """A retrieval set of ours; see `from_retrieval_set`."""

    questions: RetrievalSet
    ignore_identical_ids = True  # only a query's own document has its id

    def load_data(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  what mteb gives along
        """Lay out the tables in mteb's form.

        Raises:
            UserError: a grade is no whole number, which trec_eval's code needs.
        """
        questions = self.questions
        ids = [
            questions.document_ids[row] if row >= 0 else f"query {name}"
            for name, row in zip(questions.query_ids, questions.own_rows, strict=True)
        ]
        relevant = {
            new: {document: _whole(grade, questions) for document, grade in grades.items()}
            for new, grades in zip(
                ids, map(questions.relevant.__getitem__, questions.query_ids), strict=True
            )
        }
        texts = {"id": questions.document_ids, "text": list(questions.documents)}
        self.dataset = {
            "default": {
                SPLIT: {
                    "corpus": Dataset.from_dict(texts),
                    "queries": Dataset.from_dict({"id": ids, "text": questions.queries}),
                    "relevant_docs": relevant,
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


class _LocalPairs:
    """Sentence pairs of ours, as a data set of mteb; see `from_sentence_pairs`."""

    pairs: SentencePairs
    gold: str

    def load_data(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  what mteb gives along
        """Lay out the pairs in mteb's form."""
        pairs = self.pairs
        columns = {"sentence1": pairs.first, "sentence2": pairs.second, self.gold: pairs.gold}
        self.dataset = DatasetDict({SPLIT: Dataset.from_dict(columns)})
        self.data_loaded = True


class LocalSTS(_LocalPairs, AbsTaskSTS):
    """Pairs with a score: Spearman's correlation of the model's similarities."""

    gold = "score"


class LocalPairClassification(_LocalPairs, AbsTaskPairClassification):
    """Pairs with a label: the average precision of the model's similarities."""

    gold = "labels"


def from_retrieval_set(questions: RetrievalSet, language: str) -> AbsTask:
    """Return a retrieval set as a task.

    Args:
        questions: the set.
        language: as mteb spells it: eng-Latn.
    """
    content = [questions.name, questions.query_ids, questions.relevant, questions.document_ids]
    about = _metadata(questions.name, "Retrieval", "ndcg_at_10", language, content)
    return type("Local", (LocalRetrieval,), {"metadata": about, "questions": questions})()


def from_sentence_pairs(pairs: SentencePairs, language: str) -> AbsTask:
    """Return sentence pairs as a task; see `from_retrieval_set`."""
    kind, score, task = (
        ("STS", "spearman", LocalSTS)
        if pairs.graded
        else ("PairClassification", "similarity_ap", LocalPairClassification)
    )
    content = [pairs.name, pairs.first, pairs.second, pairs.gold]
    about = _metadata(pairs.name, kind, score, language, content)
    return type("Local", (task,), {"metadata": about, "pairs": pairs})()


def _metadata(name: str, kind: str, score: str, language: str, content: list) -> TaskMetadata:
    """Return what mteb wants to know; results of a set that has changed are not taken up."""
    try:
        return TaskMetadata(
            name=name,
            description=f"{name}, read from this machine's disk by small-modernbert",
            dataset={"path": name, "revision": storage.digest_json(content)[:16]},
            type=kind,
            category="t2t",
            eval_splits=[SPLIT],
            eval_langs=[language],
            main_score=score,
        )
    except ValueError as error:  # pydantic's among them
        raise UserError(
            f"LANGUAGE: mteb does not know {language!r}; three letters and a script: eng-Latn"
        ) from error


def _whole(grade: float, questions: RetrievalSet) -> int:
    if grade != int(grade):
        raise UserError(
            f"set {questions.name}: a judgement has the grade {grade}, and mteb takes whole ones; "
            + MEND
        )
    return int(grade)


class Model:
    """A model in mteb's protocol, loaded when the first text comes.

    Attributes:
        mteb_model_meta: its name and, as the revision, its digest.
    """

    def __init__(self, label: str, folder: Path, query_prompt: str, document_prompt: str) -> None:
        """Take up a model.

        Args:
            label: its name in tables and in mteb's results.
            folder: see `encoders.load_encoder`, whose arguments the prompts are, too.
            query_prompt: for a model that names none for queries.
            document_prompt: likewise for documents.
        """
        self.label = label
        self._given = (folder, label, query_prompt, document_prompt)
        known = {
            "name": f"small-modernbert/{label}",
            "revision": encoders.digest_model(folder)[:16],
        }
        self.mteb_model_meta = ModelMeta.create_empty(known)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        return encoders.load_encoder(*self._given)

    def encode(
        self,
        inputs: Any,  # noqa: ANN401  a DataLoader
        *,
        task_metadata: TaskMetadata,
        prompt_type: PromptType | None = None,
        **_: Any,  # noqa: ANN401  what mteb gives along
    ) -> np.ndarray:
        """Return `(texts, width)` vectors, each text behind the prompt of its role."""
        texts = [text for batch in inputs for text in batch["text"]]
        role = ROLES[prompt_type]
        return self._encoder.encode(texts, f"{self.label}: {task_metadata.name} {role}", role)

    # The products of our vectors are the model's similarities: `Encoder.encode`.
    similarity = staticmethod(dot_score)
    similarity_pairwise = staticmethod(pairwise_dot_score)


def named_tasks(name: str) -> list[AbsTask]:
    """Return mteb's task of a name, or all tasks of its benchmark of that name.

    Raises:
        UserError: there is neither.
    """
    for find in (lambda: [mteb.get_task(name)], lambda: [*mteb.get_benchmark(name).tasks]):
        try:
            return find()
        except KeyError:
            continue
    raise UserError(
        f"TASKS: {name!r} is no set of RETRIEVAL_FOLDER, no file, and no task or benchmark of mteb "
        "(mteb available-tasks, mteb available-benchmarks list them)"
    )


def find_result(model: Model, task: AbsTask, folder: Path) -> TaskResult | None:
    """Return the result of a task that was run to its end before; None if there is none.

    Args:
        model: that was evaluated.
        task: that was run.
        folder: of all results: mteb puts results/<model>/<revision>/<task>.json there.
    """
    cache = mteb.ResultCache(folder)
    path = cache.get_task_result_path(task.metadata.name, model.mteb_model_meta)
    try:
        stored = TaskResult.from_disk(path)
    except FileNotFoundError:
        return None
    except ValueError:  # a kill has cut it off, and mteb would not read it either
        storage.remove(path)
        return None
    return None if stored.get_missing_evaluations(task) else stored


def load(task: AbsTask) -> None:
    """Load the data of a task, from the hub if it is one of mteb's own.

    Raises:
        UserError: it can't be had.
    """
    for part in _parts(task):
        source = part.metadata.dataset
        if isinstance(part, LocalRetrieval | _LocalPairs):
            part.load_data()
            continue
        try:
            with hub.cached_if_unreachable(source["path"], source["revision"]):
                part.load_data()
        except Exception as error:  # whatever the hub's many libraries raise, with the cure
            raise hub.explain(error, f"{part.metadata.name}'s dataset {source['path']}") from error


def evaluate(model: Model, task: AbsTask, folder: Path) -> TaskResult:
    """Run a task whose data is loaded, and let the data go; see `find_result`."""
    cache = mteb.ResultCache(folder)
    options = {"co2_tracker": False, "show_progress_bar": False}
    made = mteb.evaluate(model, task, cache=cache, **options).task_results[0]
    for part in _parts(task):
        part.unload_data()
    return made


def _parts(task: AbsTask) -> Sequence[AbsTask]:
    return task.metadata.tasks if isinstance(task, AbsTaskAggregate) else [task]
