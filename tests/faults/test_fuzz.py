"""Damaged and hostile files, by the thousand: every reader succeeds with sound data, or says no.

Hypothesis mutates valid files (bytes flipped, cut, moved, overwritten; JSON values replaced by
others of another type) and each mutant goes through the reader that a stage would use. An outcome
is either a result whose parts are checked, or a UserError; anything else is a bug of ours.
"""

import copy
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from miniature import Language, make_corpus, make_small_models

from small_modernbert.data import (
    corpus,
    evaluation_sets,
    graded_pairs,
    hub_datasets,
    labels,
    pairs,
    sources,
    token_store,
    triplets,
)
from small_modernbert.data.cleaning import Reason, clean
from small_modernbert.models import students, teachers
from small_modernbert.runs import report, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.training import checkpoints
from small_modernbert.training.schedule import Progress

ROWS, WIDTH = 40, 8
SHORT, LONG = 8, 170  # mutants of each target
LEAST_CASES = 2_000
# What a program that expects something else is most likely to choke on.
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 7, 10**9, -(10**9), 2**63, 10**400, 0.5, -0.0, 1e308),
    *(math.nan, math.inf, -math.inf, "", " ", "\0", "..", "../../x", "/etc/passwd", "mean"),
    *("evil.Module", "sentence_transformers.evil", "\ud800", "x" * 10_000, "{{ 1 / 0 }}"),
    *([], {}, [[]], [None], [0] * 100, {"": None}, {"0": 1}, [[1, 2], [3]], [1e308] * 3),
]


@dataclass(frozen=True)
class Target:
    """Something that is read.

    Attributes:
        folder: with all its files, whole.
        use: reads them as a stage would and checks what comes back.
        files: the names that are mutated; all of the folder's if none is given.
    """

    folder: Path
    use: Callable[[Path], None]
    files: tuple[str, ...] = ()
    whole: dict[str, bytes] = field(default_factory=dict)

    def remember(self) -> "Target":
        """Return it with its files' bytes."""
        names = self.files or tuple(
            path.relative_to(self.folder).as_posix() for path in storage.list_files(self.folder)
        )
        return replace(self, whole={name: (self.folder / name).read_bytes() for name in names})


def make_texts(number: int = ROWS) -> list[str]:
    """Return different texts that cleaning keeps."""
    return [f"This is the text of number {row}, naïve – and “quoted”." for row in range(number)]


def write(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a Parquet file as a user would, of several groups and pages, with checksums."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns))
    pq.write_table(table, path, write_page_checksum=True, row_group_size=16, data_page_size=256)


def use_source(folder: Path) -> None:
    """Read a source as mlm/create_dataset.py does; what is kept is text."""
    source = replace(hub_datasets.TEXT_SOURCES["offline"], id=str(folder / "train.parquet"), cap=0)
    for batch in sources.read_source(source, 1):
        for cell in sources.flatten(source, batch):
            text = clean(cell.value, 5)
            assert isinstance(cell.label, str)
            assert isinstance(text, Reason) or text.encode().decode() == text.rstrip()


def use_labels(folder: Path) -> None:
    """Read labels as a distillation does; texts are text, vectors finite and of one width."""
    found = labels.open_labels(folder)
    texts = list(found.texts("train"))
    cache = folder / "cache.f16"
    cache.unlink(missing_ok=True)
    vectors = found.vectors("train", cache)
    assert vectors.shape == (len(texts), found.dimension)
    assert np.isfinite(vectors).all()
    assert all(text.strip() for text in texts)


def use_corpus(folder: Path) -> None:
    """Read a corpus; what was written comes back."""
    found = corpus.open_corpus(folder)
    assert list(found.texts()) == make_texts()
    assert found.counts["train"] == ROWS


def use_pairs(folder: Path) -> None:
    """Read pairs as a contrastive stage does."""
    for pair in pairs.read_pairs(folder / "pairs.parquet"):
        assert all(text.strip() for text in (pair.anchor, pair.positive, *pair.negatives))
        assert isinstance(pair.source, str)


def use_triplets(folder: Path) -> None:
    """Read judged triplets, and the same as pairs."""
    pairs.find_sources(folder)
    for row in triplets.open_triplets(folder).rows("train"):
        assert all(text.strip() for text in (row["anchor"], row["positive"], *row["negatives"]))
        scores = [row["positive_score"], *row["negative_scores"]]
        assert len(scores) == 1 + len(row["negatives"])
        assert all(0 <= score <= 1 for score in scores)


def use_graded(folder: Path) -> None:
    """Read graded pairs as sts_fine_tuning.py does, and as the benchmark does."""
    graded = graded_pairs.read_files(folder / "sts.parquet", 5, 1)
    assert np.isfinite(graded.train.scores).all()
    assert all(text.strip() for text in graded.train.texts())
    evaluated = evaluation_sets.load_sentence_pairs("sts", folder / "sts.parquet")
    assert all(math.isfinite(value) for value in evaluated.gold)


def use_retrieval(folder: Path) -> None:
    """Read a retrieval set; every judged document is there and says something."""
    found = evaluation_sets.load_retrieval_set(folder, "toy")
    documents = dict(zip(found.document_ids, found.documents, strict=True))
    for relevant in found.relevant.values():
        assert all(documents[name].strip() for name in relevant)
    assert all(query.strip() for query in found.queries)


def use_student(folder: Path) -> None:
    """Load a student with all that belongs to it, and encode with it."""
    student = students.load_student(folder)
    model = student.transformer
    ids = next(token_store.tokenise(["ba be bi"], student.backend))
    assert len(ids) <= student.max_tokens
    assert ids.size == 0 or ids.max() < model.config.vocab_size
    assert all(torch.isfinite(weights).all() for weights in model.parameters())


def use_teacher(folder: Path) -> None:
    """Load a teacher and encode with it."""
    loaded = teachers.load_teacher(folder)
    vectors = loaded.encode(["ba be", "bi"], show_progress_bar=False)
    assert vectors.ndim == 2
    assert np.isfinite(vectors).all()
    teachers.token_ids(loaded, ["ba be", "bi"])


def use_checkpoint(folder: Path) -> None:
    """Go on from a checkpoint; what is loaded is what was saved."""
    model, optimizer = make_trained(seed=1)
    progress = checkpoints.resume(folder, model, optimizer)
    assert progress == Progress(step=3)
    assert torch.equal(model.weight, make_trained(seed=0)[0].weight)


def make_trained(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return a toy model and its optimizer after a step."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Return everything that is fuzzed, whole."""
    return make_targets(tmp_path_factory.mktemp("fuzz"))


def make_targets(root: Path) -> dict[str, Target]:
    """Write one valid file or folder for every reader."""
    texts = make_texts()
    vectors = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    write(root / "source" / "train.parquet", {"text": texts, "source": ["a", "b"] * (ROWS // 2)})
    for index, part in enumerate((slice(0, 25), slice(25, ROWS))):
        path = labels.shard_path(root / "labels", "train", index)
        labels.write_shard(path, texts[part], vectors[part])
    labels.write_index(root / "labels", WIDTH, {"train": 2})
    make_corpus(root / "corpus", {"train": texts})
    lists = [[f"{text} No.", f"Never {text}"] for text in texts]
    write(
        root / "pairs" / "pairs.parquet",
        {
            "anchor": [f"What is {text}" for text in texts],
            "positive": texts,
            "negative": [f"Not {text}" for text in texts],
            "negatives": lists,
            "source": ["a"] * ROWS,
        },
    )
    judged = [
        {
            "anchor": f"What is {text}",
            "positive": text,
            "negatives": some,
            "positive_score": 0.9,
            "negative_scores": [0.1, 0.25],
            "source": "a",
        }
        for text, some in zip(texts, lists, strict=True)
    ]
    triplets.write_shard(triplets.shard_path(root / "triplets", "train", 0), judged, {})
    triplets.write_index(root / "triplets", {"train": 1}, {"judge": "toy", "scale": "cosine"})
    scores = np.linspace(0, 1, ROWS)
    columns = {"sentence1": texts, "sentence2": texts[::-1], "score": scores}
    write(root / "graded" / "sts.parquet", columns)
    ids = [f"d{row}" for row in range(ROWS)]
    sets = root / "retrieval"
    write(sets / "corpus" / "toy.parquet", {"_id": ids, "title": texts, "text": texts})
    write(sets / "queries" / "toy.parquet", {"_id": ids, "text": texts})
    qrels = {"query-id": ids, "corpus-id": ids[::-1], "score": [1] * ROWS}
    write(sets / "qrels" / "toy.parquet", qrels)
    words = Language(0, topics=2, words_per_topic=4).words
    make_small_models(root, words)
    model, optimizer = make_trained(seed=0)
    checkpoints.save_checkpoint(root / "checkpoint", model, optimizer, Progress(step=3))
    made = {
        "source.parquet": Target(root / "source", use_source),
        "label shards": Target(
            root / "labels", use_labels, tuple(f"train/shard-0000{i}.parquet" for i in range(2))
        ),
        "labels.json": Target(root / "labels", use_labels, (labels.LAYOUT.index,)),
        "corpus": Target(root / "corpus", use_corpus),
        "corpus.json": Target(root / "corpus", use_corpus, (corpus.LAYOUT.index,)),
        "pairs.parquet": Target(root / "pairs", use_pairs),
        "judged triplets": Target(root / "triplets", use_triplets),
        "graded pairs": Target(root / "graded", use_graded),
        "retrieval set": Target(sets, use_retrieval),
        "student's JSON": Target(
            root / "student",
            use_student,
            ("config.json", "sentence_bert_config.json", "1_Pooling/config.json"),
        ),
        "student's weights": Target(root / "student", use_student, ("model.safetensors",)),
        "student's tokenizer": Target(
            root / "student", use_student, ("tokenizer.json", "tokenizer_config.json")
        ),
        "teacher's JSON": Target(
            root / "teacher",
            use_teacher,
            ("config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"),
        ),
        "teacher's weights": Target(
            root / "teacher", use_teacher, ("model.safetensors", "tokenizer.json")
        ),
        "checkpoint": Target(root / "checkpoint", use_checkpoint),
    }
    return {name: target.remember() for name, target in made.items()}


@st.composite
def mutate_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Return `data` with some of it flipped, overwritten, put in, moved, or cut off."""
    kind = draw(st.sampled_from(["flip", "overwrite", "insert", "move", "cut", "replace"]))
    place = draw(st.integers(0, max(0, len(data) - 1)))
    if kind == "cut":
        return data[:place]
    if kind == "replace":
        return draw(st.binary(max_size=64))
    if kind == "move":
        begin = draw(st.integers(0, max(0, len(data) - 1)))
        piece = data[begin : begin + draw(st.integers(1, 64))]
        return data[:place] + piece + data[place + len(piece) :]
    if kind == "flip":
        found = bytearray(data)
        # A footer's and a header's bytes decide what is read; they are few beside the pages'.
        ends = [*range(min(64, len(data))), *range(max(0, len(data) - 600), len(data))]
        places = st.one_of(st.integers(0, len(data) - 1), st.sampled_from(ends))
        for where in draw(st.lists(places, min_size=1, max_size=6)):
            found[where] ^= draw(st.integers(1, 255))
        return bytes(found)
    piece = draw(st.binary(min_size=1, max_size=32))
    return data[:place] + piece + data[place + len(piece) * (kind == "overwrite") :]


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401  JSON
    """Yield the path of every value inside a JSON value; long lists by their first few."""
    yield path
    if isinstance(value, dict):
        for key in [*value][:40]:
            yield from walk(value[key], (*path, key))
    elif isinstance(value, list):
        for place in range(min(len(value), 4)):
            yield from walk(value[place], (*path, place))


@st.composite
def mutate_json(draw: st.DrawFn, data: bytes) -> bytes:
    """Return JSON with a value or two replaced by odd ones, removed, or a key put in."""
    value = json.loads(data)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(walk(value))))
        odd = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        if not path:
            value = odd
            break
        inside = value
        for key in path[:-1]:
            inside = inside[key]
        if draw(st.integers(0, 4)) == 0:
            del inside[path[-1]]
        else:
            inside[path[-1]] = odd
        if not isinstance(value, dict | list) or not value:
            break
    return json.dumps(value).encode()


def mutants(target: Target) -> st.SearchStrategy[tuple[str, bytes]]:
    """Return the strategy of (file, its mutated bytes)."""

    def of(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        data = target.whole[name]
        ways = [mutate_bytes(data)]
        if name.endswith(".json"):
            ways += [mutate_json(data)] * 3
        return st.tuples(st.just(name), st.one_of(ways))

    return st.one_of([of(name) for name in target.whole])


def try_case(target: Target, name: str, data: bytes) -> str:
    """Read one mutant and return how it ended; any other exception is the test's failure."""
    path = target.folder / name
    path.write_bytes(data)
    try:
        target.use(target.folder)
    except UserError as error:
        assert str(error).strip()
        return "refused"
    finally:
        path.write_bytes(target.whole[name])
    return "read"


def fuzz(name: str, target: Target, cases: int) -> Counter[str]:
    """Run some cases, always the same ones."""
    counts: Counter[str] = Counter()
    target.use(target.folder)  # whole, it can be read

    @settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutants(target))
    def run(mutant: tuple[str, bytes]) -> None:
        counts[try_case(target, *mutant)] += 1

    logging.disable(logging.CRITICAL)
    try:
        run()
    finally:
        logging.disable(logging.NOTSET)
    return counts


NAMES = (
    *("source.parquet", "label shards", "labels.json", "corpus", "corpus.json", "pairs.parquet"),
    *("judged triplets", "graded pairs", "retrieval set", "student's JSON", "student's weights"),
    *("student's tokenizer", "teacher's JSON", "teacher's weights", "checkpoint"),
)


@pytest.mark.parametrize("name", NAMES)
def test_every_mutant_is_read_or_refused(name: str, targets: dict[str, Target]) -> None:
    """A few mutants of every file, in every run of the suite."""
    fuzz(name, targets[name], SHORT)


@pytest.mark.long
def test_thousands_of_mutants_are_read_or_refused(
    targets: dict[str, Target], capsys: pytest.CaptureFixture[str], survived: Callable[..., None]
) -> None:
    """At least 2,000 mutants, always the same ones; how they ended is printed."""
    counts = {name: fuzz(name, targets[name], LONG) for name in NAMES}
    total = sum((found for found in counts.values()), Counter())
    rows = [[name, found["read"], found["refused"]] for name, found in counts.items()]
    with capsys.disabled():
        print(f"\n{report.table(['mutants of', 'read', 'refused'], rows)}")
    assert sum(total.values()) >= LEAST_CASES
    # Neither would say anything alone.
    assert min(total["read"], total["refused"]) > LEAST_CASES / 20
    survived(f"{sum(total.values()):,} mutated files", "any reader", "read or refused, all of them")
