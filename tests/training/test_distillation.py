"""Promises of distillation.py: a packed encoder, a task that learns, figures that warn."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import Language
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data import labels
from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.data.token_store import TokenStore, tokenise
from small_modernbert.evaluation.validation import HeldOutTexts, Watched
from small_modernbert.models import forward, prompts, students
from small_modernbert.models.loading import load_backend
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.prompts import Prompts
from small_modernbert.runs.stages import Stage
from small_modernbert.training import distillation, loop, losses
from small_modernbert.training.distillation import DistillationTask

Make = Callable[..., ModernBertModel]
WIDTH = 32


@pytest.fixture
def backend(wordpiece_folder: Path) -> Tokenizer:
    """Return the tokenizer as the stages load it."""
    return load_backend(wordpiece_folder, 64)


@pytest.fixture
def tokens(texts: list[str], backend: Tokenizer) -> TokenStore:
    """Return the tokenised texts."""
    sequences = list(tokenise(texts, backend))
    return TokenStore(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]))


@pytest.fixture
def vectors(tokens: TokenStore) -> np.ndarray:
    """Return labels that a student can learn: the mean of a random row per token."""
    table = np.random.default_rng(0).normal(size=(192, WIDTH))
    rows = np.stack([table[tokens[row]].mean(axis=0) for row in range(len(tokens))])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def make_task(
    model: ModernBertModel,
    tokens: TokenStore,
    vectors: np.ndarray,
    objective: str = "cosine",
    evaluate: Callable[[], dict[str, float]] = dict,
) -> DistillationTask:
    """Make a task over all texts, in batches of at most 8 texts and 256 tokens."""
    return DistillationTask(
        PackedEncoder(model),
        tokens,
        vectors,
        distillation.loss_function(objective, 0.1),
        evaluate,
        tokens_per_batch=256,
        rows_per_batch=8,
        seed=0,
    )


def one_by_one(model: ModernBertModel, tokens: TokenStore, rows: np.ndarray) -> torch.Tensor:
    """Return the mean of transformers' own hidden states of each text alone."""
    found = [model(torch.from_numpy(tokens[row].astype(np.int64))[None])[0][0] for row in rows]
    return torch.stack([hidden.mean(dim=0) for hidden in found])


@pytest.mark.parametrize("own_pass", [True, False])
@pytest.mark.parametrize("tokens_per_batch", [64, 500, 100_000])
def test_encoding_does_not_depend_on_batches(
    make_student: Make,
    tokens: TokenStore,
    monkeypatch: pytest.MonkeyPatch,
    tokens_per_batch: int,
    own_pass: bool,
) -> None:
    """Whatever the budget and the pass, each text has its own unit vector, in the given order."""
    if not own_pass:
        monkeypatch.setattr(forward, "supports", lambda model: False)
    rows = np.arange(len(tokens))
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(one_by_one(make_student(), tokens, rows))
    encoder = PackedEncoder(make_student(), tokens_per_batch=tokens_per_batch)
    found = encoder.encode([tokens[row] for row in rows])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_bf16_stays_close(make_student: Make, tokens: TokenStore) -> None:
    """In bf16 the vectors differ by rounding only, and the weights stay fp32."""
    sequences = [tokens[row] for row in range(len(tokens))]
    exact = PackedEncoder(make_student()).encode(sequences)
    encoder = PackedEncoder(make_student(), precision="bf16")
    found = encoder.encode(sequences)
    assert 1 - 1e-6 > float((found * exact).sum(axis=1).min()) > 0.98
    assert all(parameter.dtype == torch.float32 for parameter in encoder.model.parameters())


@pytest.mark.parametrize("objective", ["mse", "cosine", "kl"])
def test_loss_is_the_objective_over_the_batch(
    make_student: Make, tokens: TokenStore, vectors: np.ndarray, objective: str
) -> None:
    """A batch's loss and its gradients are the objective's of the texts run one by one."""
    task, reference = make_task(make_student(), tokens, vectors, objective), make_student()
    batch = max(task.epoch(0), key=len)
    found, count = task.loss(batch)
    student = one_by_one(reference, tokens, batch)
    teacher = torch.from_numpy(vectors[batch].astype(np.float32))
    wanted = {
        "mse": lambda: losses.mse(student, teacher),
        "cosine": lambda: losses.cosine(student, teacher),
        "kl": lambda: losses.kl(student, teacher, 0.1),
    }[objective]()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert count == tokens.lengths[batch].sum()
    assert task.weight(batch) == len(batch)
    found.backward()
    wanted.backward()
    for (name, mine), its in zip(
        task.model.named_parameters(), reference.parameters(), strict=True
    ):
        size = max(1.0, float(its.grad.abs().max()))
        assert float((mine.grad - its.grad).abs().max()) < 1e-4 * size, name


@pytest.mark.parametrize("own_pass", [True, False])
def test_a_frozen_table_changes_no_other_gradient(
    make_student: Make,
    tokens: TokenStore,
    vectors: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    own_pass: bool,
) -> None:
    """It has no gradient, does not decay and has no state to resume; all else trains as ever."""
    if not own_pass:
        monkeypatch.setattr(forward, "supports", lambda model: False)
    task, whole = (make_task(make_student(), tokens, vectors) for _ in range(2))
    table = task.model.get_input_embeddings().weight.requires_grad_(False)
    before = table.clone()
    batch = task.epoch(0)[0]
    for each in (task, whole):
        each.loss(batch)[0].backward()
    for mine, its in zip(task.model.parameters(), whole.model.parameters(), strict=True):
        if mine is not table:
            torch.testing.assert_close(mine.grad, its.grad, rtol=1e-6, atol=1e-8)
    optimizer = loop.make_optimizer("adamw", task.model, learning_rate=0.1, weight_decay=0.5)
    optimizer.step()
    assert table.grad is None
    assert torch.equal(table, before)
    assert all(each is not table for group in optimizer.param_groups for each in group["params"])
    assert len(optimizer.state) == sum(1 for _ in task.model.parameters()) - 1


@pytest.mark.parametrize("rows", [1, 2])
def test_kl_skips_a_batch_too_small_to_rank(
    make_student: Make, tokens: TokenStore, vectors: np.ndarray, rows: int
) -> None:
    """The last batch of a window may hold one or two texts: loss 0 and no gradient, no error."""
    task = make_task(make_student(), tokens, vectors, "kl")
    loss, _ = task.loss(np.arange(rows))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not any(parameter.grad.any() for parameter in task.model.parameters())


def test_epochs_hold_every_text_once(
    make_student: Make, tokens: TokenStore, vectors: np.ndarray
) -> None:
    """Each epoch trains on each text once, in an order of its own, planned again equal."""
    task = make_task(make_student(), tokens, vectors)
    again = make_task(make_student(), tokens, vectors)
    orders = [np.concatenate(task.epoch(epoch)) for epoch in (0, 1)]
    for epoch, order in enumerate(orders):
        assert sorted(order) == list(range(len(tokens)))
        assert np.array_equal(order, np.concatenate(again.epoch(epoch)))
    assert not np.array_equal(*orders)


def test_texts_and_labels_must_pair(
    make_student: Make, tokens: TokenStore, vectors: np.ndarray
) -> None:
    """Another number of labels than texts is refused, never cut to fit."""
    with pytest.raises(ValueError, match=f"{len(tokens)} texts for 3 labels"):
        make_task(make_student(), tokens, vectors[:3])


def watch(tokens: TokenStore, labels: np.ndarray, sets: Sequence[RetrievalSet] = ()) -> Watched:
    """Return what watches labelled texts and retrieval sets."""
    return Watched(HeldOutTexts(tokens, labels), sets=sets)


def test_training_brings_the_student_to_its_teacher(
    open_stage: Callable[..., Stage],
    make_student: Make,
    tokens: TokenStore,
    vectors: np.ndarray,
    backend: Tokenizer,
) -> None:
    """A few dozen steps raise the cosine to the teacher's vectors far above the start."""
    model = make_student(deviation=0.02)
    encoder = PackedEncoder(model)

    def evaluate() -> dict[str, float]:
        return watch(tokens, vectors).measure(encoder, backend)

    task = make_task(model, tokens, vectors, "cosine", evaluate)
    optimizer = loop.make_optimizer("stable_adamw", model, learning_rate=3e-3, weight_decay=0.01)
    plan = loop.Plan(epochs=6, learning_rate=3e-3, select_by="held_out_cosine")
    with open_stage() as stage:
        progress = loop.train(task, optimizer, plan, stage)
    assert progress.latest["held_out_cosine"] > progress.before["held_out_cosine"] + 0.4


def test_held_out_figures(
    make_student: Make,
    tokens: TokenStore,
    language: Language,
    backend: Tokenizer,
) -> None:
    """A student that is its own teacher scores 1; retrieval sets are named, and averaged."""
    encoder = PackedEncoder(make_student())
    own = encoder.encode([tokens[row] for row in range(len(tokens))]).astype(np.float16)
    sets = [language.retrieval_set(name) for name in ("one", "two")]
    figures = watch(tokens, 3 * own, sets).measure(encoder, backend)
    assert figures["held_out_cosine"] == pytest.approx(1, abs=1e-3)
    both = [figures["one_ndcg@10"], figures["two_ndcg@10"]]
    assert figures["retrieval_ndcg@10"] == pytest.approx(np.mean(both))
    assert all(0 < score <= 1 for score in both)
    nothing = watch(tokens.head(0), own[:0]).measure(encoder, backend)
    assert nothing == {}


@pytest.fixture
def labelled(tmp_path: Path, texts: list[str]) -> Callable[..., labels.Labels]:
    """Return what writes labels of the texts, of which every third is a query."""

    def write(**facts: object) -> labels.Labels:
        roles = ["query" if row % 3 == 0 else "document" for row in range(len(texts))]
        for split, part in (("train", slice(5, None)), ("held_out", slice(0, 5))):
            given = texts[part]
            shard = labels.shard_path(tmp_path / "labels", split, 0)
            labels.write_shard(shard, given, np.ones((len(given), WIDTH)), roles[part])
        labels.write_index(tmp_path / "labels", WIDTH, dict.fromkeys(labels.SPLITS, 1), facts)
        return labels.open_labels(tmp_path / "labels")

    return write


@pytest.fixture
def student(make_student: Make, tokenizer: PreTrainedTokenizerFast) -> students.Student:
    """Return a student that reads 64 tokens."""
    return students.Student(make_student(), tokenizer, 64)


QUERY, DOCUMENT = "query: ", "passage: "


def test_prompts_are_trained_with_by_role(
    open_stage: Callable[..., Stage],
    labelled: Callable[..., labels.Labels],
    student: students.Student,
    tmp_path: Path,
) -> None:
    """A text is tokenised behind the prompt of its role; the saved student names the prompts."""
    found = labelled(prompts={"text": "", "query": QUERY, "document": DOCUMENT})
    with open_stage({"labels": found.folder}) as stage:
        prompts.settle(stage, student, True, found.index["prompts"])
        assert stage.record.facts["prompts_trained_with"] is True
        tokens = distillation.tokenise(stage, found, student, alike=False)
    roles = list(found.column("train", "role"))
    for row, text in enumerate(found.texts("train")):
        prompt = {"query": QUERY, "document": DOCUMENT}[roles[row]]
        assert tokens["train"][row].tolist() == student.backend.encode(prompt + text).ids
    student.save(tmp_path / "saved")
    again = students.load_student(tmp_path / "saved")
    assert again.prompts == Prompts(query=QUERY, document=DOCUMENT)
    model = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    wanted = PackedEncoder(student.transformer).encode_texts([QUERY + "sun"], student.backend)
    assert model.encode_query(["sun"]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("teacher_tokens", "cut", "student_tokens", "alike", "said"),
    [
        (8, 30, 64, False, "are longer than the 8 tokens that their teacher read"),
        (8, 30, 64, True, ""),  # cut for both
        (8, 0, 64, False, ""),  # the teacher cut nothing: the texts are short to its tokenizer
        (64, 0, 8, False, "python create_distil_dataset.py --max-tokens 8 --overwrite"),
        (64, 0, 64, False, ""),
    ],
)
def test_lengths_of_teacher_and_student(
    open_stage: Callable[..., Stage],
    labelled: Callable[..., labels.Labels],
    student: students.Student,
    capsys: pytest.CaptureFixture[str],
    teacher_tokens: int,
    cut: int,
    student_tokens: int,
    alike: bool,
    said: str,
) -> None:
    """What one of them cuts and the other reads is counted and said; a constant cuts for both."""
    found = labelled(max_tokens=teacher_tokens, cut=cut)
    student.max_tokens = student_tokens
    whole = [len(student.cut_at(4_096).encode(text).ids) for text in found.texts("train")]
    with open_stage({"labels": found.folder}) as stage:
        tokens = distillation.tokenise(stage, found, student, alike)["train"]
        figures = stage.record.facts["lengths"]
    limit = min(student_tokens, teacher_tokens) if alike else student_tokens
    assert tokens.lengths.tolist() == [min(length, limit) for length in whole]
    assert figures["cut_by_student"] == sum(length > limit for length in whole)
    if "longer_than_teacher" in figures:
        longer = sum(min(length, limit) > teacher_tokens for length in whole)
        assert figures["longer_than_teacher"] == (longer if cut else 0)
    warnings = capsys.readouterr().out
    assert said in warnings and ("cut" in warnings) == bool(said)
