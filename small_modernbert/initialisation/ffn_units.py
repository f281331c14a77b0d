"""Feed-forward units taken out of a copied model: those that say least, with their mean kept.

A unit's say is the variance of its activation on real text times the squared norm of what it writes
(a structured kind of Optimal Brain Damage, LeCun et al. 1990). What the units that go give on
average moves into the bias, so the layer after them sees the same mean; where there is no bias
(ModernBERT), a unit's say is its mean square, for its mean goes with it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from small_modernbert.models.copying import FAMILIES
from small_modernbert.runs.errors import UserError

STEP = 8  # a share is rounded to so many units: what matrix products take well


def count(model: PreTrainedModel, wanted: float) -> int:
    """Return how many units of a layer are meant.

    Args:
        model: the transformer.
        wanted: a number of them, or below 1 the share of those that there are.

    Raises:
        UserError: it is no such number.
    """
    if 0 < wanted < 1:
        return max(STEP, round(wanted * model.config.intermediate_size / STEP) * STEP)
    if wanted != int(wanted):
        raise UserError(f"FFN_UNITS is {wanted:g}; give a whole number, or a share below 1")
    return int(wanted)


@torch.inference_mode()
def keep_units(model: PreTrainedModel, sequences: Sequence[np.ndarray], units: int) -> float:
    """Keep so many feed-forward units of each layer, in place.

    Args:
        model: the transformer.
        sequences: token ids of some texts to look at the units on; a hundred are plenty.
        units: of each layer.

    Returns:
        The share of the units' say that is kept, on average over the layers.

    Raises:
        UserError: the model is of another family, or has fewer units.
    """
    config = model.config
    if config.model_type not in FAMILIES:
        raise UserError(
            f"FFN_UNITS: units are taken out of {', '.join(FAMILIES)} models, not out of a "
            f"{config.model_type}; keep them all: --ffn-units 0"
        )
    if not 0 < units <= config.intermediate_size:
        raise UserError(
            f"FFN_UNITS is {units}, and the donor's layers have {config.intermediate_size}: give "
            "no more than that"
        )
    model.eval()
    shares = []
    gated = config.model_type == "modernbert"
    # From the input up: each layer is looked at above what those under it have become.
    for layer in model.layers if gated else model.encoder.layer:
        parts = (layer.mlp.Wi, layer.mlp.Wo) if gated else (layer.intermediate, layer.output)
        reads, writes = (getattr(part, "dense", part) for part in parts)
        mean, variance = _look_at(model, writes, sequences)
        shares.append(_cut_layer(reads, writes, mean, variance, units))
    config.intermediate_size = units
    return float(np.mean(shares))


def _cut_layer(
    reads: nn.Linear, writes: nn.Linear, mean: torch.Tensor, variance: torch.Tensor, units: int
) -> float:
    """Keep the units whose output varies most; the mean of the others goes into the bias.

    Args:
        reads: into the units; with twice their number of outputs the second half are their gates.
        writes: out of them.
        mean: `(units,)`, of what they give.
        variance: likewise.
        units: that stay.

    Returns:
        The share of that variance that is kept.
    """
    moved = variance if writes.bias is not None else variance + mean.square()
    say = moved * writes.weight.square().sum(dim=0)
    kept = say.argsort(descending=True)[:units].sort().values
    gone = torch.ones_like(say, dtype=torch.bool)
    gone[kept] = False
    if writes.bias is not None:
        writes.bias.add_(writes.weight[:, gone] @ mean[gone])
    writes.weight = nn.Parameter(writes.weight[:, kept].clone())
    rows = torch.cat([kept + start for start in range(0, reads.out_features, len(say))])
    reads.weight = nn.Parameter(reads.weight[rows].clone())
    if reads.bias is not None:
        reads.bias = nn.Parameter(reads.bias[rows].clone())
    reads.out_features, writes.in_features = len(rows), units
    return float(say[kept].sum() / say.sum())


def _look_at(
    model: PreTrainedModel, writes: nn.Linear, sequences: Sequence[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of what a layer's units give over all tokens, `(units,)` each."""
    parts: list[torch.Tensor] = []

    def look(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        parts.append(given[0].flatten(0, -2))

    hook = writes.register_forward_pre_hook(look)
    try:
        for sequence in sequences:
            # One by one: no padding to tell from tokens.
            model(input_ids=torch.from_numpy(np.asarray(sequence, dtype=np.int64))[None])
    finally:
        hook.remove()
    values = torch.cat(parts)
    return values.mean(dim=0), values.var(dim=0)
