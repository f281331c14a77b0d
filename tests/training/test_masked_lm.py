"""Promises of masked_lm.py: the packed, sparse loss is the plain one, and it falls."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ModernBertForMaskedLM, PreTrainedTokenizerFast

from small_modernbert.data.token_store import TokenStore, tokenise
from small_modernbert.models import forward, students
from small_modernbert.models.loading import load_backend
from small_modernbert.models.packing import pack
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage
from small_modernbert.training import loop, masked_lm
from small_modernbert.training.masked_lm import MaskedTask
from small_modernbert.training.masking import IGNORED

Make = Callable[..., ModernBertForMaskedLM]


@pytest.fixture
def tokens(texts: list[str], wordpiece_folder: Path) -> TokenStore:
    """Return the tokenised texts."""
    mixed = [texts[place] for place in np.random.default_rng(0).permutation(len(texts))]
    sequences = list(tokenise(mixed, load_backend(wordpiece_folder, 64)))
    return TokenStore(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]))


@pytest.fixture
def make_task(
    make_student: Make, tokenizer: PreTrainedTokenizerFast, tokens: TokenStore
) -> Callable[..., MaskedTask]:
    """Return a function that makes a task: 45 texts to train on, 15 held out."""
    held_out = TokenStore(tokens.ids, tokens.offsets[45:])

    def make(**shape: float) -> MaskedTask:
        return MaskedTask(
            make_student(masked_lm=True, **shape),
            tokenizer,
            tokens.head(45),
            held_out,
            sequence_tokens=64,
            sequences_per_batch=4,
            probability=0.3,
            precision="fp32",
            seed=42,
        )

    return make


def dense_losses(
    model: ModernBertForMaskedLM, ids: torch.Tensor, labels: torch.Tensor, lengths: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Run transformers' own dense model over each sequence alone.

    Returns:
        The mean loss over all masked tokens, and the number that it got right, out of how many.
    """
    model.sparse_prediction = False
    total, right, count = torch.zeros(()), torch.zeros(()), 0
    for mine, wanted in zip(ids.split(lengths), labels.split(lengths), strict=True):
        masked = int((wanted != IGNORED).sum())
        if not masked:
            continue  # the mean over no token is NaN
        output = model(input_ids=mine[None], labels=wanted[None])
        assert output.logits.shape == (1, len(mine), model.config.vocab_size)
        total = total + output.loss * masked
        right = right + (output.logits[0].argmax(dim=1) == wanted).sum()
        count += masked
    return total / count, right, count


@pytest.mark.parametrize("own_pass", [True, False])
def test_loss_equals_the_dense_one(
    make_task: Callable[..., MaskedTask],
    make_student: Make,
    monkeypatch: pytest.MonkeyPatch,
    own_pass: bool,
) -> None:
    """Loss and gradients equal those of the dense model on the same masked inputs, one by one."""
    if not own_pass:
        monkeypatch.setattr(forward, "supports", lambda model: False)
    task, reference = make_task(), make_student(masked_lm=True)
    batch = task.epoch(0)[0]
    packed, labels = task.masked(task.train, batch)
    wanted, _, count = dense_losses(reference, packed.input_ids[0], labels, packed.lengths)
    found, tokens = task.loss(batch)
    assert count > 20
    assert tokens == packed.tokens == task.weight(batch)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    found.backward()
    wanted.backward()
    for (name, mine), its in zip(
        task.model.named_parameters(), reference.parameters(), strict=True
    ):
        size = max(1.0, float(its.grad.abs().max()))
        assert float((mine.grad - its.grad).abs().max()) < 1e-4 * size, name


def test_held_out_figures_equal_the_dense_ones(
    make_task: Callable[..., MaskedTask], make_student: Make
) -> None:
    """Held-out loss and accuracy are means over all masked tokens of all held-out texts."""
    task, reference = make_task(), make_student(masked_lm=True)
    totals = np.zeros(3)
    with torch.no_grad():
        for batch in task.held_out_batches:
            packed, labels = task.masked(task.held_out, batch)
            loss, right, count = dense_losses(
                reference, packed.input_ids[0], labels, packed.lengths
            )
            totals += (float(loss) * count, float(right), count)
    figures = task.evaluate()
    assert figures["held_out_loss"] == pytest.approx(totals[0] / totals[2], rel=1e-5)
    assert figures["masked_accuracy"] == pytest.approx(totals[1] / totals[2])
    assert task.evaluate() == figures  # one fixed draw of masks


def test_epochs_cover_the_corpus_with_masks_of_their_own(
    make_task: Callable[..., MaskedTask], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Each epoch holds each text once, differently masked; special tokens stay visible."""
    task = make_task()
    seen = []
    for epoch in (0, 1):
        chosen = {}
        for batch in task.epoch(epoch):
            packed, labels = task.masked(task.train, batch)
            assert packed.tokens <= 4 * 64
            ids = packed.input_ids[0].split(packed.lengths)
            for row, mine, wanted in zip(
                packed.rows, ids, labels.split(packed.lengths), strict=True
            ):
                whole = torch.where(wanted == IGNORED, mine, wanted)
                assert whole.tolist() == task.train[row].tolist()
                assert mine[0] == tokenizer.cls_token_id
                assert mine[-1] == tokenizer.sep_token_id
                chosen[int(row)] = tuple((wanted != IGNORED).tolist())
        assert sorted(chosen) == list(range(45))
        seen.append(chosen)
    assert sum(seen[0][row] != seen[1][row] for row in range(45)) > 35


def test_masks_belong_to_the_text(make_task: Callable[..., MaskedTask]) -> None:
    """A text is masked alike in any batch of its epoch, at any place in it."""
    task = make_task()
    row = int(np.argmax(task.train.lengths))
    alone, _ = task.masked(task.train, (0, np.array([row])))
    packed, _ = task.masked(task.train, (0, np.array([(row + 1) % 45, (row + 2) % 45, row])))
    assert packed.input_ids[0].split(packed.lengths)[2].tolist() == alone.input_ids[0].tolist()
    assert task.mask_id in alone.input_ids


def test_no_masked_token_is_no_nan(make_task: Callable[..., MaskedTask]) -> None:
    """A batch in which the draw hides nothing has loss 0 and a zero gradient, not NaN."""
    task = make_task()
    task.probability = 0.0
    loss, _ = task.loss(task.epoch(0)[0])
    loss.backward()
    assert float(loss.detach()) == 0
    for parameter in task.model.parameters():
        assert parameter.grad is None or not parameter.grad.any()
    assert task.evaluate() == {"held_out_loss": 0.0, "masked_accuracy": 0.0}


def test_without_held_out_texts_there_is_no_figure(
    make_student: Make, tokenizer: PreTrainedTokenizerFast, tokens: TokenStore
) -> None:
    """No text, no loss of 0 that no training could beat."""
    task = MaskedTask(
        make_student(masked_lm=True),
        tokenizer,
        tokens,
        tokens.head(0),
        sequence_tokens=64,
        sequences_per_batch=4,
        probability=0.3,
        precision="fp32",
        seed=42,
    )
    assert task.held_out_batches == []
    assert task.evaluate() == {}


def test_only_masked_positions_are_predicted(make_task: Callable[..., MaskedTask]) -> None:
    """Head and decoder run over masked positions only: `(masked, hidden_size)`."""
    task = make_task()
    packed = pack([np.array([2, 90, 4, 95, 3]), np.array([2, 4, 3])])
    labels = torch.full((8,), IGNORED)
    labels[[2, 6]] = torch.tensor([92, 91])
    hidden, wanted = task.chosen(packed, labels)
    assert hidden.shape == (2, task.model.config.hidden_size)
    assert wanted.tolist() == [92, 91]
    everywhere = forward.hidden_states(task.model.model, packed)[0]
    torch.testing.assert_close(hidden, task.model.head(everywhere)[[2, 6]])


def train(
    task: MaskedTask, stage: Stage, epochs: int = 5, stop_after: int | None = None
) -> loop.Progress:
    """Train with StableAdamW; die in the loss after `stop_after` calls."""
    optimizer = loop.make_optimizer(
        "stable_adamw", task.model, learning_rate=2e-3, weight_decay=0.01
    )
    plan = loop.Plan(
        epochs=epochs,
        learning_rate=2e-3,
        accumulate=2,
        checkpoint_every=4,
        evaluate_every=3,
        select_by="held_out_loss",
        lower_is_better=True,
    )
    if stop_after is not None:
        loss, calls = task.loss, []

        def dying(batch: object) -> tuple[torch.Tensor, int]:
            calls.append(1)
            if len(calls) > stop_after:
                raise KeyboardInterrupt
            return loss(batch)

        task.loss = dying
    return loop.train(task, optimizer, plan, stage)


def test_training_lowers_the_loss(
    open_stage: Callable[..., Stage], make_task: Callable[..., MaskedTask]
) -> None:
    """A few dozen steps bring the held-out loss well below that of the blank student."""
    task = make_task(deviation=0.02)
    with open_stage() as stage:
        progress = train(task, stage, epochs=12)
    assert progress.before["held_out_loss"] == pytest.approx(np.log(192), abs=0.3)
    assert progress.latest["held_out_loss"] < progress.before["held_out_loss"] - 0.5
    assert task.model.decoder.weight is task.model.model.embeddings.tok_embeddings.weight


def test_interrupted_pre_training_ends_equal(
    open_stage: Callable[..., Stage], make_task: Callable[..., MaskedTask]
) -> None:
    """A real model, tied decoder and all, ends bit for bit equal after a kill mid-accumulation."""
    whole = make_task(deviation=0.02)
    with open_stage(VARIANT="whole") as stage:
        wanted = train(whole, stage)
    with pytest.raises(KeyboardInterrupt), open_stage() as stage:
        train(make_task(deviation=0.02), stage, stop_after=13)
    again = make_task(deviation=0.02, seed=5)  # other weights: the checkpoint's must win
    with open_stage() as stage:
        assert stage.resumed
        found = train(again, stage)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert (found.latest, found.best_step) == (wanted.latest, wanted.best_step)
    assert found.latest == again.evaluate()


def test_held_out_masks_are_no_training_pass() -> None:
    """The held-out draw has an epoch number that training cannot reach."""
    assert masked_lm.HELD_OUT_EPOCH >= 2**31


def test_mixture_draws_by_weight() -> None:
    """Copies come as often as their source's weight says, with numbers of their own."""
    weights = masked_lm.mixture_weights(["news=2.5", "web=0"], ["news", "web", "books"] * 40)
    assert weights.tolist() == [2.5, 0.0, 1.0] * 40
    passes = [masked_lm.draw(120, weights, 42, epoch) for epoch in range(50)]
    for drawn in passes:
        assert len(set(drawn.tolist())) == len(drawn)
        sources = drawn % 120 % 3
        assert not (sources == 1).any()
        assert (sources == 2).sum() == 40
        assert 80 <= (sources == 0).sum() <= 120
    assert np.mean([(drawn % 3 == 0).sum() for drawn in passes]) == pytest.approx(100, abs=3)
    assert np.array_equal(passes[3], masked_lm.draw(120, weights, 42, 3))
    assert masked_lm.draw(4, None, 42, 0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("entry", ["news", "news=much", "news=-1", "papers=1"])
def test_mixture_that_does_not_read_is_refused(entry: str) -> None:
    """A weight that is none, or a source that is not there, is named."""
    with pytest.raises(UserError, match=entry.partition("=")[0]):
        masked_lm.mixture_weights([entry], ["news", "web"])


@pytest.mark.parametrize(
    ("lengths", "weights", "now", "refused"),
    [
        ([40, 128, 90], None, 512, True),  # texts of the first phase, packed
        ([40, 129, 90], None, 512, False),
        ([40, 400, 90], [1.0, 0.0, 1.0], 512, True),  # the long one is never drawn
        ([40, 128, 90], None, 128, False),  # nothing is extended
        ([], None, 512, True),
    ],
)
def test_extension_wants_longer_texts(
    lengths: list[int], weights: list[float] | None, now: int, refused: bool
) -> None:
    """Longer sequences without a longer text are refused, with the command that cuts a corpus."""
    given = np.asarray(lengths, dtype=np.int64)
    drawn = None if weights is None else np.asarray(weights)
    if not refused:
        masked_lm.check_extension(given, drawn, 128, now)
        return
    with pytest.raises(
        UserError, match=r"create_dataset.py --variant long --max-tokens 512, .*@long"
    ):
        masked_lm.check_extension(given, drawn, 128, now)


def test_context_extension(
    open_stage: Callable[..., Stage],
    make_task: Callable[..., MaskedTask],
    make_student: Make,
    tokenizer: PreTrainedTokenizerFast,
    tokens: TokenStore,
    tmp_path: Path,
) -> None:
    """A second phase starts from the first one's weights and lowers the loss on long sequences.

    Its texts are joined to three times the length, its global layers turn more slowly, its
    mixture leaves a part of the texts out.
    """
    first = make_task(deviation=0.02)
    with open_stage() as stage:
        train(first, stage, epochs=8)
    students.Student(first.model, tokenizer, 64).save(tmp_path)
    student = students.load_student(tmp_path, masked_lm=True)
    model = student.transformer
    plain = forward.hidden_states(model.model, pack([tokens[0], tokens[1]]))
    student.extend_context(192, 160_000.0 / 7)
    assert model.config.max_position_embeddings >= 192
    slower = forward.hidden_states(model.model, pack([tokens[0], tokens[1]]))
    assert not torch.allclose(plain, slower)
    long = TokenStore(tokens.ids, tokens.offsets[::3])
    assert long.lengths.max() > 64
    weights = np.ones(15)
    weights[:5] = [0, 2, 2, 2, 0]
    task = MaskedTask(
        model,
        tokenizer,
        long.head(15),
        TokenStore(long.ids, long.offsets[15:]),
        sequence_tokens=192,
        sequences_per_batch=1,
        probability=0.3,
        precision="fp32",
        seed=42,
        weights=weights,
    )
    rows = np.concatenate([batch[1] for batch in task.epoch(0)])
    assert sorted(rows % 15) == [1, 1, 2, 2, 3, 3, *range(5, 15)]
    with open_stage(VARIANT="long") as stage:
        progress = train(task, stage, epochs=8)
    assert progress.latest["held_out_loss"] < progress.before["held_out_loss"] - 0.05
    student.save(tmp_path / "long")
    again = students.load_student(tmp_path / "long", masked_lm=True).transformer
    assert again.config.rope_parameters["full_attention"]["rope_theta"] == 160_000.0 / 7
    torch.testing.assert_close(
        forward.hidden_states(again.model, pack([long[0]])),
        forward.hidden_states(model.model, pack([long[0]])),
    )
