"""Promises of graded_pairs.py: scores that spread, held-out texts that stay out, honest names."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data import graded_pairs, labels
from small_modernbert.data.evaluation_sets import SentencePairs
from small_modernbert.data.graded_pairs import GradedPairs, PairSplits
from small_modernbert.data.token_store import TokenStore, tokenise
from small_modernbert.evaluation import metrics
from small_modernbert.evaluation.validation import HeldOutPairs, Watched
from small_modernbert.labelling import graded_mining
from small_modernbert.models.loading import load_backend
from small_modernbert.models.module_files import write_tokenizer
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.packing import pack
from small_modernbert.runs.errors import UserError
from small_modernbert.training import graded_similarity
from small_modernbert.training.graded_similarity import PairTask

Make = Callable[..., ModernBertModel]
WIDTH = 12


def make_vectors(texts: int, seed: int = 0) -> np.ndarray:
    """Return unit vectors in loose clusters of ten."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(-(-texts // 10), WIDTH))
    vectors = np.repeat(centres, 10, axis=0)[:texts] + 0.5 * random.normal(size=(texts, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_labels(folder: Path, train: int = 300, held_out: int = 60) -> labels.Labels:
    """Write label shards of numbered texts: short ones, and every third of twenty words."""
    rows = {"train": train, "held_out": held_out}
    for seed, (split, number) in enumerate(rows.items()):
        texts = [f"{split} text {i}" + " and so on" * (6 * (i % 3 == 0)) for i in range(number)]
        vectors = make_vectors(number, seed)
        half = number // 2
        for index, part in enumerate((slice(0, half), slice(half, None))):
            path = labels.shard_path(folder, split, index)
            labels.write_shard(path, texts[part], vectors[part])
    labels.write_index(folder, WIDTH, dict.fromkeys(rows, 2))
    return labels.open_labels(folder)


def make_pairs(*rows: tuple[str, str, float]) -> GradedPairs:
    """Return pairs from rows."""
    first, second, scores = zip(*rows, strict=True)
    return GradedPairs(list(first), list(second), np.asarray(scores, dtype=np.float32))


def number_pairs(number: int, prefix: str = "text") -> GradedPairs:
    """Return pairs of different texts with rising scores."""
    return make_pairs(*((f"{prefix} {i} a", f"{prefix} {i} b", i / number) for i in range(number)))


def write_parquet(path: Path, **columns: list) -> Path:
    """Write a Parquet file, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, write_page_checksum=True)
    return path


def test_mined_scores_are_cosines_that_spread() -> None:
    """Mined pairs fill every range of the cosine evenly where random pairs leave it empty."""
    vectors = make_vectors(1_000)
    first, second, scores = graded_mining.mine(vectors, 400, (1,))
    np.testing.assert_allclose(scores, (vectors[first] * vectors[second]).sum(axis=1), atol=1e-6)
    assert len(scores) == 400
    assert (first != second).all()
    assert len({frozenset(pair) for pair in zip(first, second, strict=True)}) == 400
    counts, edges = np.histogram(scores, bins=10)
    others = np.random.default_rng(0).integers(1_000, size=(2, 400))
    random_counts = np.histogram((vectors[others[0]] * vectors[others[1]]).sum(axis=1), edges)[0]
    assert counts[2:].min() >= 20 and counts[-2:].sum() > 80  # the far end is rare itself
    assert random_counts[-2:].sum() < 15


def test_mining_is_seeded() -> None:
    """Equal seeds give equal pairs, other seeds other pairs."""
    vectors = make_vectors(200)
    one, same, other = (graded_mining.mine(vectors, 50, (seed,)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one[0], same[0])
    np.testing.assert_array_equal(one[1], same[1])
    assert one[0].tolist() != other[0].tolist()


def test_spread_takes_all_of_a_sparse_range() -> None:
    """Rare scores are all taken, common ones share the rest evenly, and no row comes twice."""
    scores = np.array([0.0] * 100 + [0.5] * 100 + [1.0] * 3)
    rows = graded_mining.spread(scores, 43, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 43
    assert [int((scores[rows] == value).sum()) for value in (0.0, 0.5, 1.0)] == [20, 20, 3]


def test_mined_held_out_pairs_come_from_held_out_labels(tmp_path: Path) -> None:
    """Training pairs hold training texts only, held-out pairs held-out texts only."""
    found = make_labels(tmp_path)
    splits = graded_mining.mine_splits(found, pairs=80, held_out=30, texts=200, max_words=0, seed=4)
    assert (len(splits.train), len(splits.held_out)) == (80, 30)
    assert all(text.startswith("train ") for text in splits.train.texts())
    assert all(text.startswith("held_out ") for text in splits.held_out.texts())
    assert splits.figure == "teacher_agreement_spearman"


def test_sample_is_bounded_and_keeps_text_and_label_together(tmp_path: Path) -> None:
    """At most so many texts are held, none longer than asked, each with its own vector."""
    found = make_labels(tmp_path)
    vectors = make_vectors(300)
    texts, sampled = graded_mining.sample_labels(found, "train", 120, 10, (0,))
    numbers = [int(text.split()[2]) for text in texts]
    assert 60 < len(texts) < 120 and all(number % 3 for number in numbers)
    assert numbers == sorted(numbers)
    np.testing.assert_allclose(sampled, vectors[numbers], atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(sampled, axis=1), 1, atol=1e-6)
    assert len(graded_mining.sample_labels(found, "train", 120, 0, (0,))[0]) == 120


def test_too_few_labels_are_refused(tmp_path: Path) -> None:
    """Labels without held-out rows say which command makes more."""
    found = make_labels(tmp_path, held_out=4)
    with pytest.raises(UserError, match=r"4 held_out texts are too few.*create_distil_dataset"):
        graded_mining.mine_splits(found, pairs=9, held_out=9, texts=99, max_words=0, seed=0)


def test_no_held_out_or_evaluation_text_is_trained_on() -> None:
    """A training pair goes when either side is, or quotes, a text that something is measured on."""
    held_out = number_pairs(12, "held")
    quoted = "one two three four five six seven eight nine ten eleven twelve thirteen"
    train = make_pairs(
        ("HELD 3, b!", "fresh one", 0.1),
        ("fresh two", "a sentence of MRPC", 0.2),
        ("fresh three", f"they said {quoted} fourteen", 0.3),
        ("fresh four", "fresh five", 0.4),
    )
    splits = graded_pairs.keep_apart(
        PairSplits(train, held_out, "people", {"blank": 2}),
        {"mrpc": ["A sentence of MRPC."], "boolq-dev": [f"zero {quoted}"]},
    )
    assert splits.train.texts() == ["fresh four", "fresh five"]
    assert splits.train.scores.tolist() == [pytest.approx(0.4)]
    assert splits.dropped == {
        "blank": 2,
        "same text as in the held-out pairs": 1,
        "same text as in mrpc": 1,
        "13 words in a row as in boolq-dev": 1,
    }


def test_nothing_left_is_refused() -> None:
    """Pairs that all share texts with the held-out ones leave nothing, and that is an error."""
    pairs = number_pairs(20)
    with pytest.raises(UserError, match="leave 0 to train on"):
        graded_pairs.keep_apart(PairSplits(pairs, pairs, "people"), {})


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_scores_that_are_all_equal_are_refused(part: str) -> None:
    """There is no order among them: every figure of them would be nan, and no step a better one."""
    words = ["rain", "snow", "wind", "hail", "fog", "sun", "ice", "dew", "heat", "frost", "storm"]
    parts = {}
    for name in ("train", "held_out"):
        rows = [
            (f"{name} {word}", f"{word} of {name}", i * (name != part))
            for i, word in enumerate(words)
        ]
        parts[name] = make_pairs(*rows)
    splits = PairSplits(parts["train"], parts["held_out"], "people")
    with pytest.raises(UserError, match="have the score 0: there is no order"):
        graded_pairs.keep_apart(splits, {})


def test_bad_rows_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows without two texts or a finite score are dropped, counted and the first one is named."""
    path = write_parquet(
        tmp_path / "pairs.parquet",
        sentence1=["one", None, " ", "four", "five", *("more",) * 20],
        sentence2=["two"] * 25,
        score=[0.5, 0.5, 0.5, None, math.nan, *(0.25,) * 20],
    )
    with caplog.at_level("WARNING", logger="small_modernbert.training.graded_similarity"):
        splits = graded_pairs.read_files(path, 3, 0)
    assert sorted(splits.dropped.values()) == [2, 2]
    assert len(splits.train) + len(splits.held_out) == 21
    assert splits.figure == "sts_spearman"
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if "row 2:" in message]
    assert [message for message in messages if "row 4:" in message]


def test_a_folder_keeps_its_own_splits(tmp_path: Path) -> None:
    """A validation file is the held-out set, a test file is not read at all."""
    for name in ("train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"):
        pairs = number_pairs(15, name.partition("-")[0])
        columns = dict(
            zip(graded_pairs.COLUMNS, (pairs.first, pairs.second, pairs.scores), strict=True)
        )
        write_parquet(tmp_path / "data" / f"{name}.parquet", **columns)
    splits = graded_pairs.read_files(tmp_path, 5, 0)
    assert {text.split()[0] for text in splits.train.texts()} == {"train"}
    assert {text.split()[0] for text in splits.held_out.texts()} == {"validation"}


def test_one_file_is_split_by_the_seed(tmp_path: Path) -> None:
    """Without a validation file the held-out pairs are drawn with the seed, a fifth at most."""
    pairs = number_pairs(50)
    path = tmp_path / "pairs.parquet"
    write_parquet(path, sentence1=pairs.first, sentence2=pairs.second, score=pairs.scores.tolist())
    one, same, many = (graded_pairs.read_files(path, wanted, 1) for wanted in (8, 8, 40))
    assert (len(one.held_out), len(one.train), len(many.held_out)) == (8, 42, 10)
    assert one.held_out.first == same.held_out.first
    assert not set(one.held_out.first) & set(one.train.first)


def test_who_graded_is_remembered_in_the_file(tmp_path: Path) -> None:
    """Pairs that a teacher scored are read as such again, so they can never pass for STS."""
    splits = PairSplits(number_pairs(20), number_pairs(12, "other"), "teacher", {"blank": 3})
    assert graded_pairs.reopen(tmp_path) is None
    graded_pairs.write_pairs(tmp_path, splits)
    again = graded_pairs.reopen(tmp_path)
    assert again is not None
    assert again.figure == "teacher_agreement_spearman"
    assert again.dropped == {"blank": 3}
    assert again.train.texts() == splits.train.texts()
    assert again.held_out.scores.tolist() == splits.held_out.scores.tolist()
    shard = tmp_path / "train" / "shard-00000.parquet"
    moved = shard.rename(tmp_path / "mine.parquet")
    assert graded_pairs.read_files(moved, 4, 0).scored_by == "teacher"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("column", "has no column 'score'"),
        ("bytes", "cannot be read"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, damage: str, message: str) -> None:
    """A file without scores, or a broken one, is an error that names it."""
    path = tmp_path / "pairs.parquet"
    if damage == "column":
        write_parquet(path, sentence1=["a"], sentence2=["b"], kind=[1])
    else:
        path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=message) as caught:
        graded_pairs.read_files(path, 1, 0)
    assert str(path) in str(caught.value)


def test_hub_pairs_keep_the_hubs_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STS-B's train split is trained on, its validation split held out, its revision passed on."""
    asked = []

    def stream(name: str, config: None, split: str, revision: str, columns: tuple) -> list:
        asked.append((name, split, revision))
        pairs = number_pairs(15, split)
        return [dict(zip(columns, (pairs.first, pairs.second, pairs.scores.tolist()), strict=True))]

    monkeypatch.setattr(graded_pairs.hub, "stream_rows", stream)
    splits = graded_pairs.read_hub("sentence-transformers/stsb@abc")
    assert asked == [
        ("sentence-transformers/stsb", "train", "abc"),
        ("sentence-transformers/stsb", "validation", "abc"),
    ]
    assert splits.train.first[0].startswith("train")
    assert splits.held_out.first[0].startswith("validation")
    assert splits.figure == "sts_spearman"


def test_only_cosines_can_be_copied() -> None:
    """Scores from 0 to 5 are fine where the loss ranks; where it copies them, their scale is told.

    The range in the message is one that works.
    """
    pairs = number_pairs(10)
    wide = PairSplits(GradedPairs(pairs.first, pairs.second, 5 * pairs.scores), pairs, "people")
    assert graded_similarity.scale_scores(wide, "cosent", []) is wide
    with pytest.raises(UserError, match="from 0 to 4.5.*--objective cosent") as refused:
        graded_similarity.scale_scores(wide, "cosine", [])
    told = re.search(r"--score-range (\S+) (\S+),", str(refused.value))
    scaled = graded_similarity.scale_scores(wide, "cosine", [float(told[1]), float(told[2])])
    assert scaled.train.scores == pytest.approx(pairs.scores)
    assert scaled.held_out.scores == pytest.approx(pairs.scores / 5)


@pytest.mark.parametrize(
    ("scores", "scored_by", "bounds", "wanted"),
    [
        ([-1.0, 0.5], "people", [], [-1.0, 0.5]),  # cosines, or 0 to 1
        ([1.0, 3.0], "people", [1, 5], [0.0, 0.5]),
        ([-1.0, 1.0], "people", [-1, 1], [0.0, 1.0]),
        ([0.2, 0.4], "teacher", [0, 5], [0.2, 0.4]),  # a teacher's are cosines
        ([0.0, 6.0], "people", [0, 5], "not from 0 to 5"),
        ([0.0, 1.0], "people", [5, 0], "is no range"),
        ([0.0, 1.0], "people", [5], "is no range"),
    ],
)
def test_scores_are_scaled_from_their_bounds(
    scores: list[float], scored_by: str, bounds: list[float], wanted: list[float] | str
) -> None:
    """People's scores come to 0 to 1; what is out of the bounds is refused."""
    given = GradedPairs(["a", "b"], ["c", "d"], np.array(scores, np.float32))
    splits = PairSplits(given, given.take([]), scored_by)
    if isinstance(wanted, str):
        with pytest.raises(UserError, match=wanted):
            graded_similarity.scale_scores(splits, "cosine", bounds)
    else:
        scaled = graded_similarity.scale_scores(splits, "cosine", bounds)
        assert scaled.train.scores == pytest.approx(wanted)


@pytest.fixture
def backend(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> "object":
    """Return the tokenizer of a student folder."""
    write_tokenizer(tmp_path, tokenizer, 48)
    return load_backend(tmp_path, 48)


@pytest.mark.parametrize("objective", ["cosent", "cosine"])
def test_packed_loss_is_the_loss_of_each_text_on_its_own(
    make_student: Make, backend: "object", texts: list[str], objective: str
) -> None:
    """Both sides of a batch in one packed pass give the formula over texts encoded one by one."""
    encoder = PackedEncoder(make_student())
    ids = list(tokenise(texts[:40], backend))
    store = TokenStore(np.concatenate(ids), np.cumsum([0, *map(len, ids)]))
    scores = np.random.default_rng(0).random(20).astype(np.float32)
    task = PairTask(
        encoder,
        store,
        scores,
        graded_similarity.loss_function(objective, 20.0),
        dict,
        tokens_per_batch=10_000,
        rows_per_batch=6,
        seed=3,
    )
    batches = task.epoch(0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(20))
    assert task.epoch(1)[0].tolist() != batches[0].tolist()
    batch = batches[0]
    loss, tokens = task.loss(batch)
    assert task.weight(batch) == len(batch)
    assert tokens == sum(len(store[2 * i]) + len(store[2 * i + 1]) for i in batch)
    alone = [encoder.pooled(pack([one]))[0].detach() for one in ids]
    cosines = [
        float(torch.nn.functional.cosine_similarity(alone[2 * i], alone[2 * i + 1], dim=0))
        for i in batch
    ]
    wanted = scores[batch]
    if objective == "cosine":
        expected = np.mean((np.array(cosines) - wanted) ** 2)
    else:
        wrong = [
            math.exp(20 * (cosines[j] - cosines[i]))
            for i in range(len(batch))
            for j in range(len(batch))
            if wanted[i] > wanted[j]
        ]
        expected = math.log(1 + sum(wrong))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_figures_carry_the_right_names(
    make_student: Make, backend: "object", texts: list[str]
) -> None:
    """Scores in the student's own order give 1, under the name of who graded them."""
    encoder = PackedEncoder(make_student())
    own = encoder.encode_texts(texts, backend)
    cosines = metrics.pair_scores(own[0::2], own[1::2])
    pairs = GradedPairs(texts[0::2], texts[1::2], np.exp(cosines))
    ids = list(tokenise(pairs.texts(), backend))
    store = TokenStore(np.concatenate(ids), np.cumsum([0, *map(len, ids)]))
    labelled = SentencePairs(
        "mrpc", pairs.first, pairs.second, list(cosines > np.median(cosines)), graded=False
    )
    for scored_by, name in graded_pairs.FIGURES.items():
        splits = PairSplits(pairs, pairs, scored_by)
        held_out = HeldOutPairs(store, pairs.scores, splits.figure)
        found = Watched(held_out, labelled).measure(encoder, backend)
        wanted = {name: 1, "mrpc_average_precision": 1, **metrics.collapse(own)}
        assert found == pytest.approx(wanted)


def test_written_record_counts(tmp_path: Path) -> None:
    """pairs.json says who graded, how many pairs there are, and what was dropped."""
    splits = PairSplits(number_pairs(20), number_pairs(12, "other"), "people", {"blank": 3})
    graded_pairs.write_pairs(tmp_path, splits)
    record = json.loads((tmp_path / graded_pairs.LAYOUT.index).read_text(encoding="utf-8"))
    assert record["rows"] == {"train": 20, "held_out": 12}
    assert record["scored_by"] == "people"
    assert record["dropped"] == {"blank": 3}


@pytest.mark.parametrize(
    "text",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
@pytest.mark.parametrize("score", [pa.decimal128(3, 2), pa.float32()], ids=str)
def test_other_types_are_read(tmp_path: Path, text: pa.DataType, score: pa.DataType) -> None:
    """Text as polars and pandas write it, and scores as DuckDB does, are texts and numbers."""
    sides = [[f"text {i} {side}" for i in range(20)] for side in "ab"]
    scores = pa.array([i / 20 for i in range(20)], pa.float64()).cast(score)
    columns = [*(pa.array(side).cast(text) for side in sides), scores]
    path = tmp_path / "pairs.parquet"
    write_parquet(path, **dict(zip(graded_pairs.COLUMNS, columns, strict=True)))
    splits = graded_pairs.read_files(path, 4, 0)
    assert (len(splits.train), len(splits.held_out), sum(splits.dropped.values())) == (16, 4, 0)
    for pairs in (splits.train, splits.held_out):
        for first, second, value in zip(pairs.first, pairs.second, pairs.scores, strict=True):
            number = int(first.split()[1])
            assert (first, second) == (sides[0][number], sides[1][number])
            assert value == pytest.approx(number / 20)
