"""Promises of attention.py and forward.py: packed equals one by one, and nothing leaks."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ModernBertModel

from small_modernbert.models import attention, cpu_attention, forward
from small_modernbert.models.packing import PackedBatch, pack

Make = Callable[..., ModernBertModel]
Forward = Callable[[ModernBertModel, PackedBatch], torch.Tensor]
LONGEST, HALF = 64, 4  # of the students that make_student makes: local_attention is 8

MIXES = {
    "one token": [1],
    "one sequence": [LONGEST],
    "equal": [7, 7, 7],
    "around the window": [1, 2, HALF, HALF + 1, HALF + 2, 2 * HALF, 2 * HALF + 1, LONGEST],
    "falling": [LONGEST, 30, 9, 5, 4, 2, 1, 1],
    "by turns": [1, 12, 1, 12, LONGEST, 12],
    **{
        f"random {seed}": np.random.default_rng(seed).integers(1, LONGEST + 1, 9).tolist()
        for seed in range(3)
    },
}


def by_registered_attention(model: ModernBertModel, batch: PackedBatch) -> torch.Tensor:
    """Run transformers' own pass with the registered packed attention."""
    attention.use_packed_attention(model)
    return attention.forward_packed(model, batch).last_hidden_state[0]


def by_own_pass(model: ModernBertModel, batch: PackedBatch) -> torch.Tensor:
    """Run our own pass."""
    return forward.hidden_states(model, batch)[0]


def by_products(model: ModernBertModel, batch: PackedBatch) -> torch.Tensor:
    """Run our own pass with the attention that bf16 takes, in fp32, in small blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "attend", cpu_attention.attend)
        return forward.hidden_states(model, batch)[0]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short sequences take every path: weights kept or not, many blocks, few rows at once."""
    monkeypatch.setattr(cpu_attention, "KEEP", 2 * HALF)
    monkeypatch.setattr(cpu_attention, "BLOCK", HALF)
    monkeypatch.setattr(cpu_attention, "BUDGET", 100)


both_ways = pytest.mark.parametrize("run", [by_registered_attention, by_own_pass, by_products])


def make_sequences(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    """Return random sequences of ordinary tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(5, 180, length) for length in lengths]


def one_by_one(model: ModernBertModel, sequences: list[np.ndarray]) -> torch.Tensor:
    """Run transformers' own unpadded sdpa pass over each sequence alone: `(T, hidden_size)`."""
    assert model.config._attn_implementation == "sdpa"
    outputs = [model(torch.from_numpy(ids)[None]).last_hidden_state[0] for ids in sequences]
    return torch.cat(outputs)


def gradients(model: nn.Module, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return every parameter's gradient of a fixed random function of the hidden states."""
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5))
    (hidden * weights).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@both_ways
@pytest.mark.parametrize("mix", list(MIXES))
def test_packed_equals_one_by_one(make_student: Make, run: Forward, mix: str) -> None:
    """Outputs and every gradient of a packed batch are those of its sequences run alone."""
    sequences = make_sequences(MIXES[mix])
    reference, packed = make_student(), make_student()
    wanted, found = one_by_one(reference, sequences), run(packed, pack(sequences))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    wanted, found = gradients(reference, wanted), gradients(packed, found)
    for name, gradient in wanted.items():
        size = float(gradient.abs().max())
        error = float((found[name] - gradient).abs().max())
        assert error <= 1e-5 * max(1.0, size), (name, size)
    assert max(float(gradient.abs().max()) for gradient in wanted.values()) > 0.1


@both_ways
def test_window_counts(make_student: Make, monkeypatch: pytest.MonkeyPatch, run: Forward) -> None:
    """The equality has teeth: a window wider by one token, or none, is far outside of it."""
    sequences = make_sequences([LONGEST, 9])
    wanted = one_by_one(make_student(), sequences)
    exact = attention.band

    def wider(length: int, reach: int, device: torch.device) -> torch.Tensor:
        return exact(length, reach + 1, device)

    def none(length: int, reach: int, device: torch.device) -> torch.Tensor:
        return exact(length, length, device)

    for wrong in (wider, none):
        for module in (attention, forward, cpu_attention):
            monkeypatch.setattr(module, "band", wrong)
        error = (run(make_student(), pack(sequences)) - wanted).detach().abs().max()
        assert float(error) > 1e-2


def test_band_is_inclusive_on_both_sides() -> None:
    """A token sees `reach` tokens to each side, and itself."""
    mask = attention.band(6, 2, torch.device("cpu"))
    assert mask[0].tolist() == [True, True, True, False, False, False]
    assert mask[3].tolist() == [False, True, True, True, True, True]
    assert torch.equal(mask, mask.T)


@both_ways
def test_sequences_do_not_see_each_other(make_student: Make, run: Forward) -> None:
    """Changing one sequence leaves the outputs of all others as they were."""
    lengths = [5, 5, 12, 30, 30, LONGEST]
    sequences = make_sequences(lengths)
    with torch.no_grad():
        before = run(make_student(), pack(sequences)).split(lengths)
        for changed in range(len(lengths)):
            other = list(sequences)
            other[changed] = (sequences[changed] + 17) % 180
            after = run(make_student(), pack(other)).split(lengths)
            for place, (one, two) in enumerate(zip(before, after, strict=True)):
                difference = float((one - two).abs().max())
                assert difference > 1e-2 if place == changed else difference <= 1e-6


@both_ways
def test_place_in_the_batch_does_not_matter(make_student: Make, run: Forward) -> None:
    """A sequence comes out the same first, last, or alone."""
    sequences = make_sequences([9, 30, 1, 17])
    with torch.no_grad():
        forwards = run(make_student(), pack(sequences)).split([9, 30, 1, 17])
        backwards = run(make_student(), pack(sequences[::-1])).split([17, 1, 30, 9])
    for one, two in zip(forwards, reversed(backwards), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_every_layer_pattern(make_student: Make) -> None:
    """The equality holds for local layers only, global ones only, and one head."""
    sequences = make_sequences([3, 20, 41])
    for shape in ({"global_every": 1}, {"global_every": 2}, {"head_dim": 32}, {"head_dim": 2}):
        model = make_student(**shape)
        with torch.no_grad():
            wanted = one_by_one(model, sequences)
            for run in (by_own_pass, by_registered_attention):
                torch.testing.assert_close(run(model, pack(sequences)), wanted, atol=1e-5, rtol=0)


def test_unprepared_model_is_refused(make_student: Make) -> None:
    """A model that would let sequences see each other is not run."""
    with pytest.raises(ValueError, match="use_packed_attention"):
        attention.forward_packed(make_student(), pack(make_sequences([3, 4])))


def test_own_pass_knows_its_limits(make_student: Make) -> None:
    """Our own pass refuses a model that it does not cover."""
    model = make_student()
    assert forward.supports(model)
    assert not forward.supports(nn.Linear(2, 2))
    for name, value in (("mlp_dropout", 0.1), ("hidden_activation", "relu")):
        other = make_student()
        setattr(other.config, name, value)
        assert not forward.supports(other)
        with pytest.raises(ValueError, match="dropout"):
            forward.hidden_states(other, pack(make_sequences([3])))


def test_stretches() -> None:
    """Equal lengths side by side are one call, elsewhere they are not."""
    assert attention.stretches((3, 3, 1, 3)) == ((2, 3), (1, 1), (1, 3))


@pytest.mark.parametrize("reach", [None, 0, 4])
def test_flash_attention_call(monkeypatch: pytest.MonkeyPatch, reach: int | None) -> None:
    """FlashAttention gets boundaries, shapes and an inclusive window that mean what we mean.

    The stand-in computes what torch documents for these arguments, plainly.
    """
    calls = []

    def varlen(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        calls.append((cu_seq_q, cu_seq_k, max_q, max_k, window_size))
        output = torch.empty_like(q)
        ends = cu_seq_q.tolist()
        for begin, end in zip(ends, ends[1:], strict=False):
            scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[begin:end]) * scale
            places = torch.arange(end - begin)
            ahead = places[None, :] - places[:, None]
            left, right = window_size
            if left >= 0:
                scores = scores.masked_fill((ahead < -left) | (ahead > right), -torch.inf)
            output[begin:end] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[begin:end])
        return output

    monkeypatch.setattr(attention, "varlen_attn", varlen)
    lengths, heads, width = (3, 9, 9, 1), 2, 4
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, heads, sum(lengths), width, generator=generator)
    found = attention.flash_attention(query, key, value, lengths, 0.5, reach)
    ((ends, same_ends, longest, same_longest, window),) = calls
    assert ends.tolist() == same_ends.tolist() == [0, 3, 12, 21, 22]
    assert ends.dtype == torch.int32
    assert longest == same_longest == 9
    assert window == ((-1, -1) if reach is None else (reach, reach))
    assert found.shape == (1, sum(lengths), heads, width)
    on_cpu, _ = attention.packed_attention(
        nn.Identity(), query, key, value, None,
        lengths=lengths, scaling=0.5, sliding_window=None if reach is None else reach + 1,
    )  # fmt: skip
    torch.testing.assert_close(found, on_cpu, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("window", "reach"), [(5, 4), (None, None)])
def test_flash_attention_is_chosen_on_cuda(
    monkeypatch: pytest.MonkeyPatch, window: int | None, reach: int | None
) -> None:
    """On CUDA FlashAttention runs, with the reach and not transformers' +1."""
    seen = []

    def record(*arguments: object) -> str:
        seen.append(arguments)
        return "output"

    monkeypatch.setattr(attention, "has_flash_attention", lambda dtype, width: True)
    monkeypatch.setattr(attention, "flash_attention", record)
    query = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, shape=(1, 2, 5, 8))
    outcome = attention.packed_attention(
        nn.Identity(), query, "k", "v", None, lengths=[2, 3], scaling=0.5, sliding_window=window
    )
    assert outcome == ("output", None)
    assert seen == [(query, "k", "v", (2, 3), 0.5, reach)]


def test_half_precision_is_close(make_student: Make) -> None:
    """In bf16 the outputs stay fp32, and outputs and gradients point where those of fp32 do."""
    sequences = make_sequences(MIXES["around the window"])
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = make_student()
        hidden = forward.hidden_states(model, pack(sequences), dtype)[0]
        assert hidden.dtype == torch.float32
        found[dtype] = {"outputs": hidden.detach()} | gradients(model, hidden)
    for name, wanted in found[torch.float32].items():
        half = found[torch.bfloat16][name]
        assert half.dtype == torch.float32
        cosine = nn.functional.cosine_similarity(half.flatten(), wanted.flatten(), dim=0)
        assert float(cosine) > 0.999, name
        assert not torch.equal(half, wanted), name
