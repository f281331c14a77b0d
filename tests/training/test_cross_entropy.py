"""Promises of cross_entropy.py: torch's own numbers, chunk by chunk."""

import pytest
import torch
from torch.nn import functional

from small_modernbert.training import cross_entropy

POSITIONS, WIDTH, VOCABULARY = 23, 16, 50


def inputs() -> tuple[torch.Tensor, ...]:
    """Return hidden states, weight, bias and labels."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((POSITIONS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    parts = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    return *parts, torch.randint(VOCABULARY, (POSITIONS,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_torch(monkeypatch: pytest.MonkeyPatch, chunk: int, with_bias: bool) -> None:
    """Loss and every gradient are those of a dense pass, whatever the chunk."""
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    results = []
    for ours in (True, False):
        hidden, weight, bias, labels = inputs()
        used = bias if with_bias else None
        if ours:
            loss = cross_entropy.linear_cross_entropy(hidden, weight, used, labels)
        else:
            logits = functional.linear(hidden, weight, used)
            loss = functional.cross_entropy(logits, labels, reduction="sum")
        (loss / 7).backward()
        results.append([loss.detach(), hidden.grad, weight.grad, bias.grad])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_half_precision_is_close() -> None:
    """With bf16 products the loss stays fp32 and close."""
    hidden, weight, bias, labels = inputs()
    with torch.inference_mode():
        exact, half = (
            cross_entropy.linear_cross_entropy(hidden, weight, bias, labels, dtype)
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(exact), rel=0.01)


def test_no_positions_no_loss() -> None:
    """A batch without a masked token costs nothing and has no NaN in its gradients."""
    hidden, weight, bias, labels = inputs()
    loss = cross_entropy.linear_cross_entropy(hidden[:0], weight, bias, labels[:0])
    assert float(loss.detach()) == 0
    loss.backward()
    assert weight.grad is None or not weight.grad.isnan().any()
