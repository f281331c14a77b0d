"""Promises of contrastive training: batches without clashes, one gradient however it is made."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import Language
from sentence_transformers import SentenceTransformer
from sentence_transformers.evaluation import SequentialEvaluator
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    TripletEvaluator,
)
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data import training_examples
from small_modernbert.data.evaluation_sets import SentencePairs
from small_modernbert.data.pairs import Pair
from small_modernbert.data.token_store import TokenStore, tokenise
from small_modernbert.data.training_examples import Examples, Row
from small_modernbert.evaluation import validation
from small_modernbert.evaluation.matryoshka import check_dimensions
from small_modernbert.models import students, vectors
from small_modernbert.models.loading import load_backend
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.prompts import Prompts
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage
from small_modernbert.training import batches, contrastive, loop, losses
from small_modernbert.training.contrastive import ContrastiveTask

Make = Callable[..., ModernBertModel]
BUDGET = {"tokens_per_batch": 10_000, "rows_per_batch": 8, "window_batches": 4}


@pytest.fixture
def backend(wordpiece_folder: Path) -> Tokenizer:
    """Return the tokenizer as the stages load it."""
    return load_backend(wordpiece_folder, 64)


def make_rows(language: Language, rows: int = 48) -> list[Row]:
    """Return judged rows of two sources with 0 to 3 negatives each, and texts that many share."""
    found = []
    passages = [language.passage() for _ in range(rows)]
    for i, passage in enumerate(passages):
        others = [passages[(i + step) % rows].text for step in range(1, 1 + i % 4)]
        scores = [0.1 * (1 + step) for step in range(len(others))]
        source = "large" if i % 3 else "small"
        text = passage.text.partition(".")[0]
        found.append(Row(language.question(passage), text, others, source, 0.9, scores))
    return found


def make_store(texts: list[str], backend: Tokenizer) -> TokenStore:
    """Tokenise in memory."""
    sequences = list(tokenise(texts, backend))
    return TokenStore(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]))


def make_task(
    model: ModernBertModel,
    data: Examples,
    backend: Tokenizer,
    loss: contrastive.Loss | None = None,
    **settings: object,
) -> ContrastiveTask:
    """Make a task in batches of at most 8 rows."""
    return ContrastiveTask(
        PackedEncoder(model),
        data,
        make_store(data.texts, backend),
        loss or contrastive.mnrl(scale=20.0),
        dict,
        **{**BUDGET, "seed": 0, **settings},
    )


def clashing_keys(rows: int = 300, seed: int = 0) -> list[tuple[int, ...]]:
    """Return rows of three texts: an own one, one of thirty answers, and a common one by turns."""
    random = np.random.default_rng(seed)
    return [
        (1_000 + i, int(random.integers(30)), 500 if i % 10 == 0 else 2_000 + i)
        for i in range(rows)
    ]


def plan(
    keys: list[tuple[int, ...]],
    *,
    mix: str = "mixed",
    sources: np.ndarray | None = None,
    epoch: int = 0,
    **changes: int,
) -> batches.Epoch:
    """Plan an epoch of rows of 3 to 60 tokens."""
    lengths = np.random.default_rng(1).integers(3, 60, len(keys))
    sources = np.zeros(len(keys), dtype=np.int64) if sources is None else sources
    settings = {**BUDGET, "distinct": True, "seed": 0, "epoch": epoch, **changes}
    return batches.plan_epoch(keys, lengths, sources, mix=mix, **settings)


@pytest.mark.parametrize("mix", ["mixed", "proportional", "round_robin"])
def test_no_text_stands_twice_in_a_batch(mix: str) -> None:
    """Whatever the mix, a batch's texts all differ, no row comes twice, and none is lost."""
    keys = clashing_keys()
    found = plan(keys, mix=mix, sources=np.arange(300) % 3)
    for batch in found.batches:
        texts = [key for row in batch for key in keys[row]]
        assert len(texts) == len(set(texts))
        assert batches.FEWEST_ROWS <= len(batch) <= 8
    placed = np.concatenate([*found.batches, found.unplaced, found.left_out])
    assert sorted(placed) == list(range(300))
    assert len(found.unplaced) < 6


def test_a_clash_only_waits() -> None:
    """Rows that share an answer, thirty of each, all find a batch of their own in time."""
    keys = [(1_000 + i, i % 10) for i in range(300)]
    found = plan(keys)
    assert not len(found.unplaced)
    assert sum(map(len, found.batches)) == 300
    assert np.mean([len(batch) for batch in found.batches]) > 7


def test_what_cannot_be_placed_is_counted() -> None:
    """Rows that all share one text can be in no batch of two: they are named, not dropped."""
    shared = [(7, 1_000 + i) for i in range(20)]
    others = [(2_000 + i, 3_000 + i) for i in range(20)]
    found = plan(shared + others)
    in_batches = np.concatenate(found.batches)
    assert set(found.unplaced) <= set(range(20))
    assert len(in_batches) + len(found.unplaced) == 40
    assert len(found.unplaced) >= 20 - len(found.batches)
    assert set(range(20, 40)) <= set(in_batches)


def test_cost_stays_near_linear_where_many_share_a_text() -> None:
    """Thousands of rows that wait for one text are not looked at for every batch."""

    class Counting(tuple):
        looks = 0

        def __iter__(self) -> object:
            Counting.looks += 1
            return super().__iter__()

    rows = 4_000
    keys = [Counting((7 if i % 2 else 10_000 + i, 20_000 + i)) for i in range(rows)]
    list(batches.fill(np.arange(rows), keys, np.ones(rows, dtype=np.int64), 1_000, 8))
    assert Counting.looks < 6 * rows  # every batch against every waiting row: 1,000 x rows


def test_epochs_are_pure_and_differ() -> None:
    """An epoch planned again is equal; the next one is another."""
    keys = clashing_keys()
    one, again, two = plan(keys), plan(keys), plan(keys, epoch=1)
    assert len(one.batches) == len(again.batches)
    assert all((a == b).all() for a, b in zip(one.batches, again.batches, strict=True))
    assert not np.array_equal(np.concatenate(one.batches), np.concatenate(two.batches))


def test_lengths_are_grouped() -> None:
    """With a window of many batches a batch's rows have near-equal lengths; with one, mixed."""
    keys = [(i,) for i in range(400)]
    lengths = np.random.default_rng(1).integers(3, 60, 400)
    spreads = [
        np.mean([np.ptp(lengths[batch]) for batch in plan(keys, window_batches=window).batches])
        for window in (16, 1)
    ]
    assert spreads[0] < 0.2 * spreads[1]


def test_tokens_bound_a_batch() -> None:
    """No batch exceeds its tokens; a row that does so alone is counted as not placed."""
    keys = [(i,) for i in range(100)]
    lengths = np.full(100, 10)
    lengths[5] = 1_000
    settings = {**BUDGET, "tokens_per_batch": 35, "distinct": True, "seed": 0, "epoch": 0}
    found = batches.plan_epoch(keys, lengths, np.zeros(100, int), mix="mixed", **settings)
    assert max(lengths[batch].sum() for batch in found.batches) <= 35
    assert 5 in found.unplaced
    assert len(found.unplaced) <= 2


def test_round_robin_and_proportional_counts() -> None:
    """Proportional uses all of every source; round robin as many batches of each as of the least.

    Both have batches of one source only, mixed ones have not.
    """
    keys = [(i,) for i in range(160)]
    sources = np.repeat([0, 1, 2], [96, 48, 16])
    counts = {}
    for mix in ("proportional", "round_robin", "mixed"):
        found = plan(keys, mix=mix, sources=sources)
        of_batches = [set(sources[batch].tolist()) for batch in found.batches]
        counts[mix] = Counter(min(one) for one in of_batches)
        assert all(len(one) == 1 for one in of_batches) == (mix != "mixed")
        if mix == "round_robin":
            turns = [min(one) for one in of_batches]
            assert turns == [0, 1, 2] * (len(turns) // 3)
            assert Counter(sources[found.left_out].tolist()) == {0: 80, 1: 32}
        else:
            assert not len(found.left_out)
    assert counts["proportional"] == {0: 12, 1: 6, 2: 2}
    assert counts["round_robin"] == {0: 2, 1: 2, 2: 2}


def separate(model: ModernBertModel, data: Examples, backend: Tokenizer) -> torch.Tensor:
    """Return the mean of transformers' own hidden states of each text alone."""
    found = []
    for ids in tokenise(data.texts, backend):
        hidden = model(torch.from_numpy(ids.astype(np.int64))[None])[0][0]
        found.append(hidden.mean(dim=0))
    return torch.stack(found)


def oracle(name: str, vectors: torch.Tensor, data: Examples, batch: np.ndarray) -> torch.Tensor:
    """Write an objective out, row by row."""
    unit = functional.normalize(vectors)
    if name == "mnrl":
        negatives = [n for row in batch for n in data.texts_of(row)[2:]]
        stacks = (vectors[rows] for rows in (data.anchors[batch], data.positives[batch], negatives))
        return losses.multiple_negatives(*stacks, 20.0)
    values = []
    for row in batch:
        anchor, positive, *negatives = data.texts_of(row).tolist()
        scores = [unit[anchor] @ unit[text] for text in (positive, *negatives)]
        judge = data.negative_scores[data.offsets[row] : data.offsets[row + 1]].tolist()
        judge = [float(data.positive_scores[row]), *judge]
        if name == "margin_mse":
            for mine, its in zip(scores[1:], judge[1:], strict=True):
                values.append((scores[0] - mine - 0.7 * (judge[0] - its)) ** 2)
        else:
            student = torch.log_softmax(torch.stack(scores) / 0.1, dim=0)
            wanted = torch.log_softmax(torch.tensor(judge) / 0.2, dim=0)
            values.append((wanted.exp() * (wanted - student)).sum() * 0.1**2)
    return torch.stack(values).mean()


OBJECTIVES = {
    "mnrl": contrastive.mnrl(scale=20.0),
    "margin_mse": contrastive.margin_mse(scale=0.7),
    "kl": contrastive.score_kl(temperature=0.1, judge_temperature=0.2),
}


def gradients(model: ModernBertModel) -> dict[str, torch.Tensor]:
    """Return the model's gradients by name, and forget them."""
    found = {name: one.grad.clone() for name, one in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_packed_is_separate(
    make_student: Make, language: Language, backend: Tokenizer, name: str
) -> None:
    """A packed batch of rows with 0 to 3 negatives: loss and gradients of texts run one by one."""
    data, _ = training_examples.collect(make_rows(language))
    if name != "mnrl":
        data = data.with_negatives()
    task = make_task(make_student(), data, backend, OBJECTIVES[name], distinct=name == "mnrl")
    batch = np.arange(8)
    if name == "mnrl":
        batch = max(task.epoch(0), key=len)
    found, tokens = task.loss(batch)
    reference = make_student()
    wanted = oracle(name, separate(reference, data, backend), data, batch)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    of_batch = [text for row in batch for text in data.texts_of(row).tolist()]
    assert len(set(of_batch)) < len(of_batch) or name == "mnrl"
    assert tokens == sum(task.tokens.lengths[list(set(of_batch))])  # shared ones go through once
    found.backward()
    wanted.backward()
    for (parameter, mine), its in zip(
        gradients(task.model).items(), gradients(reference).values(), strict=True
    ):
        assert float((mine - its).abs().max()) < 1e-4 * max(1.0, float(its.abs().max())), parameter


@pytest.mark.parametrize("dimensions", [[], [32, 16, 8]])
@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("cached_tokens", [1, 150])
def test_cached_is_plain(
    make_student: Make,
    language: Language,
    backend: Tokenizer,
    name: str,
    dimensions: list[int],
    cached_tokens: int,
) -> None:
    """In many small passes the loss and every gradient are those of one pass, scaled as it is."""
    data = training_examples.collect(make_rows(language))[0].with_negatives()
    model = make_student()
    loss = contrastive.nested(OBJECTIVES[name], dimensions)
    found = []
    for tokens in (0, cached_tokens):
        task = make_task(model, data, backend, loss, cached_tokens=tokens)
        value, _ = task.loss(max(task.epoch(0), key=len))
        (0.25 * value).backward()  # as the training loop weighs an accumulated batch
        found.append((float(value.detach()), gradients(model)))
    (plain, wanted), (cached, mine) = found
    assert cached == pytest.approx(plain, rel=1e-5)
    for parameter, its in wanted.items():
        difference = float((mine[parameter] - its).abs().max())
        assert difference < 1e-5 * max(1.0, float(its.abs().max())), parameter


def test_cached_passes_are_small(
    make_student: Make, language: Language, backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass through the student, forward or again, exceeds the tokens that were given."""
    data, _ = training_examples.collect(make_rows(language))
    task = make_task(make_student(), data, backend, cached_tokens=150)
    sizes: list[tuple[int, bool]] = []
    pooled = PackedEncoder.pooled

    def note(encoder: PackedEncoder, batch: object) -> torch.Tensor:
        sizes.append((batch.tokens, torch.is_grad_enabled()))
        return pooled(encoder, batch)

    monkeypatch.setattr(PackedEncoder, "pooled", note)
    value, tokens = task.loss(max(task.epoch(0), key=len))
    assert not any(graph for _, graph in sizes)
    assert sum(size for size, _ in sizes) == tokens
    value.backward()
    assert max(size for size, _ in sizes) <= 150 < tokens
    assert sum(size for size, graph in sizes if graph) == tokens


def test_weights_of_accumulated_batches(
    make_student: Make, language: Language, backend: Tokenizer
) -> None:
    """A batch weighs what its loss is a mean over: rows, or negatives."""
    data, _ = training_examples.collect(make_rows(language))
    batch = np.array([1, 2, 3, 5])  # 1 + 2 + 3 + 1 negatives
    weights = [
        make_task(make_student(), data, backend, weight_by=kind).weight(batch)
        for kind in ("rows", "negatives")
    ]
    assert weights == [4.0, 7.0]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_training_lowers_the_loss(
    open_stage: Callable[..., Stage],
    make_student: Make,
    language: Language,
    backend: Tokenizer,
    name: str,
) -> None:
    """A few dozen steps on a tiny problem bring each objective well below its start."""
    data = training_examples.collect(make_rows(language))[0].with_negatives()
    model = make_student(deviation=0.02)
    task = make_task(model, data, backend, OBJECTIVES[name], distinct=name == "mnrl")
    everything = task.epoch(0)

    def mean_loss() -> dict[str, float]:
        with torch.no_grad():
            values = [float(task.loss(batch)[0]) for batch in everything]
        return {"loss": float(np.mean(values))}

    task.evaluate = mean_loss
    optimizer = loop.make_optimizer("adamw", model, learning_rate=3e-3, weight_decay=0.0)
    with open_stage() as stage:
        progress = loop.train(task, optimizer, loop.Plan(epochs=8, learning_rate=3e-3), stage)
    assert progress.latest["loss"] < 0.7 * progress.before["loss"]


def test_collect_numbers_texts_and_keeps_evaluation_texts_out() -> None:
    """A shared text has one number, texts that differ in case one key, and what leaks is counted.

    A leaking negative goes alone; a leaking anchor or positive takes its row along.
    """
    rows = [
        Row("A question", "An answer", ["another", "SECRET, text"], "one", 0.9, [0.1, 0.2]),
        Row("a question!", "An answer", [], "two"),
        Row("who", "secret text", ["another"], "two"),
    ]
    data, dropped = training_examples.collect(rows, {"exam": ["Secret text."]})
    assert len(data) == 2
    assert [[data.texts[text] for text in data.texts_of(row)] for row in range(2)] == [
        ["A question", "An answer", "another"],
        ["a question!", "An answer"],
    ]
    assert data.keys[data.anchors[0]] == data.keys[data.anchors[1]]
    assert data.anchors[0] != data.anchors[1]
    assert dropped == {"same text as in exam": 1, "negative: same text as in exam": 1}
    assert data.negative_scores.tolist() == pytest.approx([0.1])
    assert not data.judged and data.take(np.array([0])).judged
    assert data.rows_per_source() == {"one": 1, "two": 1}


def test_part_of_the_negatives() -> None:
    """`take` keeps each row's own negatives; `hardest` those that the judge scores highest."""
    rows = [
        Row("a", "b", ["c", "d", "e"], "s", 1.0, [0.2, 0.8, 0.5]),
        Row("f", "g", [], "s", 1.0, []),
        Row("h", "i", ["j"], "s", 1.0, [0.1]),
    ]
    data, _ = training_examples.collect(rows)

    def negatives(some: Examples) -> list[list[str]]:
        return [[some.texts[text] for text in some.texts_of(row)[2:]] for row in range(len(some))]

    assert negatives(data.take(np.array([2, 0]))) == [["j"], ["c", "d", "e"]]
    assert negatives(data.hardest(2)) == [["d", "e"], [], ["j"]]
    assert data.hardest(2).negative_scores.tolist() == pytest.approx([0.8, 0.5, 0.1])
    assert negatives(data.with_negatives()) == [["c", "d", "e"], ["j"]]


def test_rows_come_back(tmp_path: Path, language: Language) -> None:
    """Rows written down for a resumed run are the same rows, judged or not."""
    rows = [*make_rows(language), Row("one", "two", ["three"], "raw")]
    training_examples.write_rows(tmp_path, {"train": rows}, {"read": 49})
    one, again = (
        training_examples.collect(rows)[0],
        training_examples.collect(
            training_examples.rows_of(training_examples.reopen_rows(tmp_path), "train")
        )[0],
    )
    assert one.texts == again.texts
    for name in ("anchors", "positives", "negatives", "offsets", "sources", "negative_scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))


def test_draw() -> None:
    """A draw is seeded; an even one takes as many of each source as there are."""
    sources = ["a"] * 80 + ["b"] * 15 + ["c"] * 5
    even = training_examples.draw(sources, 30, 0, evenly=True)
    assert Counter(sources[row] for row in even) == {"a": 13, "b": 12, "c": 5}
    plain = training_examples.draw(sources, 30, 0, evenly=False)
    assert len(set(plain)) == 30 and np.array_equal(
        plain, training_examples.draw(sources, 30, 0, evenly=False)
    )
    assert not np.array_equal(plain, training_examples.draw(sources, 30, 1, evenly=False))
    assert len(training_examples.draw(sources, 0, 0, evenly=True)) == 100


def test_part() -> None:
    """A dev split of its own takes its pairs out of training; else some are held out."""
    pairs = [Pair(f"anchor {i}", f"positive {i}", (), "s") for i in range(100)]
    dev = [Pair("Anchor 3!", "positive 3", (), "s"), Pair("else", "where", (), "s")]
    train, kept = training_examples.part(pairs, dev, 50, 0)
    assert kept == dev and train == pairs[:3] + pairs[4:]
    train, kept = training_examples.part(pairs, [], 10, 0)
    assert len(kept) == 10 and sorted(train + kept, key=pairs.index) == pairs


def test_figures(make_student: Make, language: Language, backend: Tokenizer) -> None:
    """Figures are of the vectors: accuracy by negative, the judge's ranks and scale, dimensions."""
    rows = [
        Row("a", "b", ["c", "d"], "s", 0.9, [0.1, 0.5]),
        Row("e", "f", [], "s", 0.4, []),
    ]
    triplets = training_examples.collect(rows)[0].with_negatives()
    angles = {"a": 0.0, "b": 0.5, "c": 1.0, "d": 0.2, "e": 0.0, "f": 0.0}
    wide = np.array([[np.cos(angles[t]), np.sin(angles[t]), 0] for t in triplets.texts])
    found = validation.HeldOutTriplets(triplets).figures(wide.astype(np.float32))
    assert found["triplet_accuracy"] == 0.5  # c is farther than b, d is nearer
    margins = np.cos(0.5) - np.cos([1.0, 0.2])
    assert found["judge_scale"] == pytest.approx(margins @ [0.8, 0.4] / (0.8**2 + 0.4**2), rel=1e-4)
    # The farther c has the larger margin, and from the judge the larger one too.
    assert found["judge_spearman"] == pytest.approx(1)

    rows = [row._replace(negatives=row.negatives, source="s") for row in make_rows(language)]
    sentences = language.sentence_pairs(10)
    first, second, gold = (list(column) for column in zip(*sentences, strict=True))
    held_out = validation.HeldOutTriplets(training_examples.collect(rows)[0].with_negatives())
    watched = validation.Watched(
        held_out,
        SentencePairs("pairs", first, second, gold, graded=False),
        [language.retrieval_set("one")],
    )
    encoder = PackedEncoder(make_student())
    figures = watched.measure(encoder, backend, [32, 4])
    cut = vectors.shorten(held_out.encode(encoder, backend), 4)
    short = held_out.figures(cut)
    assert np.linalg.norm(cut, axis=1) == pytest.approx(1, abs=1e-5)
    assert figures["judge_spearman/4"] == pytest.approx(short["judge_spearman"])
    assert figures["judge_spearman/4"] != pytest.approx(figures["judge_spearman"])
    assert figures["one_ndcg@10"] == figures["retrieval_ndcg@10"] != figures["retrieval_ndcg@10/4"]
    assert "pairs_average_precision/4" in figures
    assert not {"one_ndcg@10/4", "judge_scale/4", "judge_spearman/32"} & figures.keys()
    assert set(watched.texts()) == {"one", "pairs"}


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        ([384, 128], "--dimensions 256 128"),  # the default on a narrower student
        ([64, 64], "each once"),
    ],
)
def test_dimensions_must_suit(dimensions: list[int], message: str) -> None:
    """Dimensions that the student does not have are refused, with flags that work."""
    with pytest.raises(UserError, match=message):
        check_dimensions(dimensions, 256)
    assert check_dimensions([64, 128], 256) == [256, 128, 64]


def test_tokens_must_be_those_of_the_texts(
    make_student: Make, language: Language, backend: Tokenizer
) -> None:
    """Another number of tokenised texts than texts is refused."""
    data, _ = training_examples.collect(make_rows(language))
    tokens = make_store(data.texts, backend).head(3)
    with pytest.raises(ValueError, match="3 of"):
        ContrastiveTask(
            PackedEncoder(make_student()), data, tokens, OBJECTIVES["mnrl"], dict, seed=0, **BUDGET
        )


def test_margins_of_a_cross_encoder_are_of_its_logits() -> None:
    """Logits come back out of the sigmoid, so 9 and 7 stay apart; a bi-encoder's cosines stay."""

    def sigmoid(*logits: float) -> list[float]:
        return [1 / (1 + np.exp(-logit)) for logit in logits]

    assert contrastive.takes_logits("auto", "sigmoid")
    assert not contrastive.takes_logits("auto", "cosine")
    assert not contrastive.takes_logits("scores", "sigmoid")
    judged = [Row("a", "b", ["c", "d"], "s", *sigmoid(9), sigmoid(7, -8))]
    scored = training_examples.collect(judged)[0]
    found = contrastive.with_logits(scored)
    assert found.positive_scores == pytest.approx([9], abs=1e-2)
    assert found.negative_scores == pytest.approx([7, -8], abs=1e-2)
    ends = contrastive.with_logits(
        training_examples.collect([Row("a", "b", ["c"], "s", 1.0, [0.0])])[0]
    )
    assert np.isfinite([*ends.positive_scores, *ends.negative_scores]).all()
    # What each asks of a student whose cosines are 0.6, 0.5 and -0.2.
    vectors = {"a": (1.0, 0.0), "b": (0.6, 0.8), "c": (0.5, 0.75**0.5), "d": (-0.2, 0.96**0.5)}
    anchors, positives = (torch.tensor([vectors[name]]) for name in "ab")
    negatives = torch.tensor([vectors["c"], vectors["d"]])

    def loss(rows: Examples, scale: float) -> float:
        owners = torch.tensor([0, 0])
        scores = (torch.from_numpy(rows.positive_scores), torch.from_numpy(rows.negative_scores))
        judge = contrastive.Judged(owners, *scores)
        return float(contrastive.margin_mse(scale=scale)(anchors, positives, negatives, judge))

    by_logits = (0.1 - 0.05 * 2) ** 2 + (0.8 - 0.05 * 17) ** 2
    assert loss(found, contrastive.LOGIT_MARGIN) == pytest.approx(by_logits / 2, abs=1e-3)
    by_scores = (0.1 - 0.00079) ** 2 + (0.8 - 0.99954) ** 2
    assert loss(scored, 1.0) == pytest.approx(by_scores / 2, abs=1e-4)


def test_graded_pairs_are_measured_as_by_their_evaluators(
    make_student: Make,
    language: Language,
    backend: Tokenizer,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Accuracy, Pearson, Spearman and the sequential score are those of sentence-transformers."""
    rows = [
        row._replace(negatives=row.negatives[:1], negative_scores=row.negative_scores[:1])
        for row in make_rows(language)
        if row.negatives
    ]
    sentences = language.sentence_pairs(20)
    gold = [float(place % 7) / 7 for place in range(len(sentences))]
    first, second = [pair[0] for pair in sentences], [pair[1] for pair in sentences]
    student = students.Student(make_student(), tokenizer, 64)
    student.save(tmp_path / "student")
    theirs = SequentialEvaluator(
        [
            TripletEvaluator(
                *([row.anchor for row in rows], [row.positive for row in rows]),
                [row.negatives[0] for row in rows],
                name="all-nli-dev",
            ),
            EmbeddingSimilarityEvaluator(first, second, gold, name="sts-dev"),
        ]
    )(SentenceTransformer(str(tmp_path / "student"), device="cpu"))
    watched = validation.Watched(
        validation.HeldOutTriplets(training_examples.collect(rows)[0]),
        SentencePairs("sts-dev", first, second, gold, graded=True),
    )
    figures = watched.measure(student.encoder(), student.backend)
    for mine, its in (
        ("triplet_accuracy", "all-nli-dev_cosine_accuracy"),
        ("sts-dev_pearson", "sts-dev_pearson_cosine"),
        ("sts-dev_spearman", "sts-dev_spearman_cosine"),
    ):
        assert figures[mine] == pytest.approx(theirs[its], abs=1e-5), mine
    assert watched.sequential_score(figures) == pytest.approx(theirs["sequential_score"], abs=1e-5)


def test_prompts_stand_before_what_they_are_for() -> None:
    """An anchor is asked as a query, all else stored as a document, in training and held out."""
    rows = [Row("a", "b", ["c"], "s"), Row("d", "a", [], "s")]
    data = training_examples.collect(rows)[0]
    watched = validation.Watched(validation.HeldOutTriplets(data))
    prompts = Prompts(query="q: ", document="d: ")
    train, seen = contrastive.with_prompts(data, watched, prompts)
    assert sorted(train.texts) == ["d: b", "d: c", "q: a", "q: d"]
    assert seen.held_out.rows.texts == train.texts
    assert contrastive.with_prompts(data, watched, Prompts())[0].texts == data.texts


def test_where_nobody_asks_no_text_is_a_query() -> None:
    """Rows of like texts get the plain prompt on both sides; what asks elsewhere stays a query."""
    rows = [Row("a", "b", ["c"], "s"), Row("e", "f", ["g", "b"], "s", role="text")]
    rows.append(Row("a", "h", [], "s", role="text"))
    data = training_examples.collect(rows)[0]
    made = data.with_prompts("q: ", "d: ", "t: ")
    assert set(made.texts) == {"q: a", "d: b", "d: c", "t: e", "t: f", "t: g", "t: h"}
    assert made.take(np.array([1])).asking.tolist() == [False]
