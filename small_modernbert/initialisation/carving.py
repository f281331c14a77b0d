"""GUIDE: a narrow ModernBERT carved out of a wide model, tensor by tensor.

The method is that of arXiv 2510.06502: the principal directions of the donor's embedding table
give an orthonormal projection P `(width, donor_width)`; with the student's stream standing for P
times the donor's, every matrix is folded through it, see `folding`. Which donor layers feed which
student layers (the first ones, or evenly spaced ones) is a separate choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from small_modernbert.initialisation.folding import (
    Donor,
    DonorBlock,
    fold_attention,
    fold_units,
    fold_writer,
    project_gain,
    stream_scale,
)
from small_modernbert.models.projection import principal_directions

How = Literal["copied", "projected", "fresh"]
TABLE = "model.embeddings.tok_embeddings.weight"


@dataclass(frozen=True)
class Carved:
    """A student's initial tensors.

    Attributes:
        tensors: name in the student's state dict -> value; those not listed stay fresh.
        how: name -> ("copied" | "projected" | "fresh", where it comes from or why it is fresh).
    """

    tensors: dict[str, torch.Tensor]
    how: dict[str, tuple[How, str]]


@torch.no_grad()
def carve(
    donor: Donor,
    student: dict[str, torch.Tensor],
    *,
    heads: int,
    layer_types: Sequence[str],
    donor_layers: Sequence[int],
    token_rows: torch.Tensor,
    centred: bool = False,
    norm_scale: bool = False,
) -> Carved:
    """Carve a student's tensors out of a donor.

    GUIDE's own form is one donor layer, the first. Of the table's mean it does not say whether it
    is taken off before the PCA; ours keeps it, see `principal_directions`.

    Args:
        donor: the weights to carve from.
        student: the blank student's state dict; it gives every shape, and the fresh rows of
            tokens that the donor does not have.
        heads: the student's attention heads.
        layer_types: the student's attention type per layer.
        donor_layers: donor layer for each student layer; student layers beyond the list stay fresh.
        token_rows: `(student_vocabulary,)`, each token's row in the donor's table, -1 for none.
        centred: whether the table's mean is taken off, before the PCA and from every row.
        norm_scale: whether gains make up for what a narrower LayerNorm does to the scale, see
            `stream_scale`.

    Raises:
        ValueError: the student is wider than the donor in any direction.
    """
    table, width = donor.embedding, student[TABLE].shape[1]
    if centred:
        table = table - table.mean(dim=0)
    projection = principal_directions(table, width)
    scale = stream_scale(table.shape[1], projection) if norm_scale else 1.0
    kind: How = "copied" if width == table.shape[1] else "projected"
    carving = _Carving(donor, student, projection.directions, scale, kind)
    kept = f"P {table.shape[1]} -> {width}, {float(projection.explained.sum()):.1%} of the table"
    carving.embed(table, token_rows, kept)
    for index, donor_layer in enumerate(donor_layers):
        carving.layer(index, donor_layer, heads, layer_types[index])
    carving.head(token_rows)
    for name in student:
        carving.how.setdefault(name, ("fresh", "nothing in the donor maps to it"))
    return Carved(carving.tensors, carving.how)


@dataclass
class _Carving:
    """A student that is being carved: its tensors so far, and how each came about.

    Attributes:
        donor: the weights to carve from.
        student: the blank state dict.
        directions: `(width, donor_width)`, of `principal_directions`.
        scale: of gains, see `stream_scale`.
        kind: what a carved tensor is.
    """

    donor: Donor
    student: dict[str, torch.Tensor]
    directions: torch.Tensor
    scale: float
    kind: How
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    how: dict[str, tuple[How, str]] = field(default_factory=dict)

    def put(self, name: str, value: torch.Tensor, source: str) -> None:
        """Take a tensor; the student's own says the shape and the dtype."""
        blank = self.student[name]
        if value.shape != blank.shape:
            raise ValueError(f"{name}: {tuple(value.shape)} for {tuple(blank.shape)}")
        self.tensors[name] = value.to(blank.dtype).contiguous()
        self.how[name] = (self.kind, source)

    def put_gain(self, name: str, gain: torch.Tensor, scale: float, source: str) -> None:
        """Take a norm's gain."""
        self.put(name, project_gain(gain, self.directions) * scale, source)

    def embed(self, table: torch.Tensor, token_rows: torch.Tensor, kept: str) -> None:
        """Fill the embedding and its norm; tokens that the donor lacks stay as they are."""
        known = token_rows >= 0
        rows = self.student[TABLE].clone()
        rows[known] = table[token_rows[known]] @ self.directions.T
        self.put(TABLE, rows, f"embedding, {kept}; {int((~known).sum()):,} rows fresh")
        name, source = "model.embeddings.norm.weight", "embedding norm, diag(P g P^T)"
        self.put_gain(name, self.donor.embedding_gain, self.scale, source)

    def layer(self, index: int, donor_layer: int, heads: int, attention_type: str) -> None:
        """Fill a layer from one of the donor's."""
        student, block = self.student, self.donor.blocks[donor_layer]
        prefix, source = f"model.layers.{index}.", f"donor layer {donor_layer}"
        if block.attention_type != attention_type:
            source += f" ({block.attention_type} there, {attention_type} here)"
        self._attention(prefix, block, heads, source)
        units = student[prefix + "mlp.Wo.weight"].shape[1]
        value, gate, out = fold_units(block, self.directions, units)
        note = f"{source}, {units} of {len(block.units_in)} units"
        if gate is None:
            gate = student[prefix + "mlp.Wi.weight"][units:]
            note += "; gate half fresh: the donor has no gate"
        self.put(prefix + "mlp.Wi.weight", torch.cat([value, gate]), note)
        self.put(prefix + "mlp.Wo.weight", out, source)
        for norm in ("attn_norm.weight", "mlp_norm.weight"):
            if prefix + norm in student:
                ones = torch.full_like(student[prefix + norm], self.scale)
                self.put(prefix + norm, ones, f"{source}: its gain is folded into the next matrix")

    def _attention(self, prefix: str, block: DonorBlock, heads: int, source: str) -> None:
        qkv_name, out_name = prefix + "attn.Wqkv.weight", prefix + "attn.Wo.weight"
        head_dim = self.student[out_name].shape[1] // heads
        donor_heads, donor_head_dim, _ = block.query.shape
        if head_dim > donor_head_dim:
            # No pairing of narrow heads keeps what they attend to: two patterns are not one.
            reason = f"heads of {head_dim}, and {source} has heads of {donor_head_dim}"
            self.how[qkv_name] = self.how[out_name] = ("fresh", reason)
            return
        qkv, out = fold_attention(block, self.directions, heads, head_dim)
        self.put(qkv_name, qkv, f"{source}, {heads} of {donor_heads} heads")
        self.put(out_name, out, source)

    def head(self, token_rows: torch.Tensor) -> None:
        """Fill the last norm, and the language-modelling head as far as both models have one."""
        donor, student, known = self.donor, self.student, token_rows >= 0
        if donor.final_gain is not None:
            name, source = "model.final_norm.weight", "final norm, diag(P g P^T)"
            self.put_gain(name, donor.final_gain, self.scale, source)
        if donor.head_dense is not None and "head.dense.weight" in student:
            dense = fold_writer(donor.head_dense @ self.directions.T, self.directions)
            self.put("head.dense.weight", dense, "MLM head, P W P^T")
        if donor.head_gain is not None and "head.norm.weight" in student:
            self.put_gain("head.norm.weight", donor.head_gain, 1.0, "MLM head's norm")
        if donor.decoder_bias is not None and "decoder.bias" in student:
            bias = torch.zeros_like(student["decoder.bias"])
            bias[known] = donor.decoder_bias[token_rows[known]]
            self.tensors["decoder.bias"] = bias
            self.how["decoder.bias"] = ("copied", "decoder bias")
        if "decoder.weight" in student:
            self.tensors["decoder.weight"] = self.tensors[TABLE]
            self.how["decoder.weight"] = (self.kind, "tied to the embedding")
