"""What the machine can do, and what a model needs: matrix-product rates and useful operations.

Useful are the multiply-adds of matrix products that the mathematics asks for, two operations each:
real tokens only, attention inside the window only, predictions at masked positions only. Norms,
softmax, optimizer and everything done twice are not counted, so a share of the peak is honest.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from measure import Round, Rounds, Work, synchronise

# (rows, inputs, outputs) of products in a small ModernBERT, and a wider one that suits any kernel.
SHAPES = ((4096, 384, 1536), (2048, 384, 8192), (2048, 1024, 1024))
GPU_SHAPES = ((8192, 8192, 8192), (16384, 1024, 4096))  # a small product leaves a GPU idle
REPEATS = 5
# Backward takes the gradient of the inputs and that of the weights: twice the forward pass.
TRAINING = 3


def products() -> Round:
    """Prepare a contender whose rounds measure the best matrix-product rate in each format."""
    return lambda number: Work(1.0, figures=product_rates())


def product_rates() -> dict[str, float]:
    """Return the best rate of a matrix product in fp32 and bf16, operations a second."""
    import torch
    from torch.nn import functional

    from small_modernbert.models.precision import default_device

    device = default_device()
    shapes = SHAPES if device.type == "cpu" else GPU_SHAPES
    best = {"fp32": 0.0, "bf16": 0.0}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for rows, inputs, outputs in shapes:
            left = torch.randn(rows, inputs, device=device).to(dtype)
            right = torch.randn(outputs, inputs, device=device).to(dtype)
            for _ in range(REPEATS):
                synchronise()
                begun = time.perf_counter()
                functional.linear(left, right)
                synchronise()
                seconds = time.perf_counter() - begun
                best[name] = max(best[name], 2 * rows * inputs * outputs / seconds)
    return best


def ceilings(rounds: Rounds) -> dict[str, float]:
    """Return the best rate of each format in any round of `products`."""
    return {name: max(work.figures[name] for work in rounds) for name in rounds[0].figures}


def visible_pairs(lengths: np.ndarray | Sequence[int], reach: int | None) -> float:
    """Return how many (query, key) pairs attend, with keys at most `reach` tokens away (None: all).

    A token at the edge sees fewer: n (2 r + 1) - r (r + 1) pairs for n > r tokens.
    """
    sizes = np.asarray(lengths, dtype=np.float64)
    whole = sizes**2
    if reach is None:
        return float(whole.sum())
    banded = sizes * (2 * reach + 1) - reach * (reach + 1)
    return float(np.where(sizes <= reach + 1, whole, banded).sum())


def encoder_flops(config: Any, lengths: np.ndarray | Sequence[int]) -> float:  # noqa: ANN401  a transformers configuration
    """Return the operations of one forward pass of a BERT or a ModernBERT over some sequences.

    Args:
        config: of the model; ModernBERT's feed-forward has a gate, BERT's has not.
        lengths: tokens of each sequence, without padding.
    """
    width, inner = config.hidden_size, config.intermediate_size
    modern = config.model_type == "modernbert"
    weights = 4 * width * width + (3 if modern else 2) * width * inner
    kinds = config.layer_types if modern else ["full_attention"] * config.num_hidden_layers
    total = 0.0
    for kind in kinds:
        reach = config.local_attention // 2 if kind == "sliding_attention" else None
        total += 2 * weights * float(np.sum(lengths)) + 4 * width * visible_pairs(lengths, reach)
    return total


def prediction_flops(config: Any, predictions: float) -> float:  # noqa: ANN401  a transformers configuration
    """Return the operations of the head and the decoder at so many masked positions."""
    return 2 * predictions * config.hidden_size * (config.hidden_size + config.vocab_size)
