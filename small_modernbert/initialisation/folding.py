"""A donor in one notation for every family, and its weights folded through a projection.

With P `(width, donor_width)` orthonormal and a stream that stands for P times the donor's, a matrix
that reads the stream becomes W P^T and one that writes to it P W (GUIDE, arXiv 2510.06502).
Attention heads and GeGLU units are then picked evenly.

LayerNorm does not commute with a rotation, so at a smaller width no layer's output can come back
exactly; at equal width P is the identity and everything does.

Pure functions over tensors; no files, no models loaded.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch

from small_modernbert.models.projection import Projection


def evenly(count: int, total: int) -> list[int]:
    """Pick `count` of `total` heads or units at even distances, the first always among them.

    Raises:
        ValueError: there are fewer than `count`.
    """
    if count > total:
        raise ValueError(f"cannot pick {count} of {total}")
    return [index * total // count for index in range(count)]


def choose_layers(selection: Literal["first", "uniform"], count: int, total: int) -> list[int]:
    """Return the donor layer for each of `count` student layers.

    "uniform" steps by ceil(total / count) where that fits (22 into 6: 0, 4, 8, 12, 16, 20), else
    takes a rounded even spacing from the first to the last layer (22 into 12). A student deeper
    than its donor repeats layers in order.
    """
    if count > total:
        return [index * total // count for index in range(count)]
    if selection == "first" or count == total:
        return list(range(count))
    step = -(-total // count)
    if (count - 1) * step < total:
        return [index * step for index in range(count)]
    return [round(index * (total - 1) / max(count - 1, 1)) for index in range(count)]


@dataclass(frozen=True)
class DonorBlock:
    """One layer of a donor, in one notation for every family.

    Attributes:
        query: `(heads, head_dim, donor_width)`; key and value alike.
        key: see query.
        value: see query.
        attention_out: `(donor_width, heads, head_dim)`.
        units_in: `(units, donor_width)`, the activated half of a GLU, or the whole of an FFN.
        units_gate: `(units, donor_width)`, the gate half; None where the family has none.
        units_out: `(donor_width, units)`.
        attention_gain: `(donor_width,)`, gain of the norm that attention reads; None without one.
        units_gain: `(donor_width,)`, gain of the norm that the FFN reads.
        attention_type: "full_attention" or "sliding_attention".
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attention_out: torch.Tensor
    units_in: torch.Tensor
    units_gate: torch.Tensor | None
    units_out: torch.Tensor
    attention_gain: torch.Tensor | None
    units_gain: torch.Tensor
    attention_type: str = "full_attention"


@dataclass(frozen=True)
class Donor:
    """A donor's weights in one notation; `initialisation.donors` reads them.

    Attributes:
        embedding: `(donor_vocabulary, donor_width)`.
        embedding_gain: `(donor_width,)`, gain of the norm after the embedding.
        blocks: layers, in order.
        final_gain: `(donor_width,)`, gain of the last norm; None where there is none.
        head_dense: `(donor_width, donor_width)` of the MLM head, if it has one.
        head_gain: `(donor_width,)` of the MLM head's norm.
        decoder_bias: `(donor_vocabulary,)` of the MLM head.
        left_behind: what the family has and ModernBERT has not, with the reason.
    """

    embedding: torch.Tensor
    embedding_gain: torch.Tensor
    blocks: list[DonorBlock]
    final_gain: torch.Tensor | None = None
    head_dense: torch.Tensor | None = None
    head_gain: torch.Tensor | None = None
    decoder_bias: torch.Tensor | None = None
    left_behind: list[str] = field(default_factory=list)


def project_gain(gain: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Return the diagonal of P diag(gain) P^T: the gain, as far as a diagonal can carry it."""
    return directions.square() @ gain


def stream_scale(donor_width: int, projection: Projection) -> float:
    """Return by how much a narrower LayerNorm's output is smaller than the donor's, projected.

    A LayerNorm gives each of its dimensions a variance of 1. The donor's output, seen along the k
    of d directions that P keeps, has more than that: what is kept of d is spread over k. The share
    that is kept is the table's; deeper in the stream it is only near to it.
    """
    share = float(projection.explained.sum())
    return (share * donor_width / len(projection.directions)) ** 0.5


def fold_reader(
    weight: torch.Tensor, gain: torch.Tensor | None, directions: torch.Tensor
) -> torch.Tensor:
    """Return W diag(gain) P^T: a matrix that read the donor's normed stream, on the student's."""
    return (weight if gain is None else weight * gain) @ directions.T


def fold_writer(weight: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Return P W: a matrix that wrote to the donor's stream, on the student's."""
    return directions @ weight


def rotary_pairs(head_dim: int, donor_head_dim: int) -> list[int]:
    """Pick the donor's rotary pairs whose frequencies are the student's, as head positions.

    Pair i of n turns by theta^(-i/n): every (donor_pairs / pairs)-th pair of a wider head has
    exactly the frequencies of a narrower one. A pair's two halves stand head_dim / 2 apart.

    Raises:
        ValueError: the donor's heads are narrower.
    """
    pairs, donor_pairs = head_dim // 2, donor_head_dim // 2
    chosen = evenly(pairs, donor_pairs)
    return [*chosen, *(donor_pairs + pair for pair in chosen)]


def fold_attention(
    block: DonorBlock, directions: torch.Tensor, heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Carve one attention layer.

    Heads are picked evenly. Where the student's heads are narrower, matching rotary pairs are
    picked inside them, and queries and keys grow by (donor_head_dim / head_dim)^(1/4) each, which
    keeps the expected size of a score under its 1 / sqrt(head_dim).

    Returns:
        Wqkv `(3 * heads * head_dim, width)` and Wo `(width, heads * head_dim)`.
    """
    donor_heads, donor_head_dim, donor_width = block.query.shape
    picked = torch.tensor(evenly(heads, donor_heads))
    inside = torch.tensor(rotary_pairs(head_dim, donor_head_dim))
    grow = (donor_head_dim / head_dim) ** 0.25
    rows = []
    for part, factor in ((block.query, grow), (block.key, grow), (block.value, 1.0)):
        chosen = part.index_select(0, picked).index_select(1, inside)
        flat = chosen.reshape(heads * head_dim, donor_width) * factor
        rows.append(fold_reader(flat, block.attention_gain, directions))
    out = block.attention_out.index_select(1, picked).index_select(2, inside)
    out = out.reshape(donor_width, heads * head_dim)
    return torch.cat(rows), fold_writer(out, directions)


def fold_units(
    block: DonorBlock, directions: torch.Tensor, units: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Carve one feed-forward layer; a unit's value and gate rows are picked together.

    Returns:
        value half `(units, width)`, gate half alike or None, and Wo `(width, units)`.
    """
    picked = torch.tensor(evenly(units, len(block.units_in)))
    value = fold_reader(block.units_in.index_select(0, picked), block.units_gain, directions)
    gate = None
    if block.units_gate is not None:
        gate = fold_reader(block.units_gate.index_select(0, picked), block.units_gain, directions)
    return value, gate, fold_writer(block.units_out.index_select(1, picked), directions)
