"""Reading donors: ModernBERT, BERT and MPNet weights in the one notation of `folding`."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from small_modernbert.initialisation.folding import Donor, DonorBlock
from small_modernbert.runs.errors import UserError


def read_donor(model: PreTrainedModel) -> Donor:
    """Return a model's weights as a donor.

    Raises:
        UserError: the family is none that we can carve from.
    """
    kind = model.config.model_type
    if kind not in READERS:
        raise UserError(
            f"cannot carve a student from a {kind} model; name another --donor, of: "
            f"{', '.join(READERS)}"
        )
    with torch.no_grad():
        return READERS[kind](model)


# Why a donor's tensor has no place in a student; the first pattern that a name has.
_LEFT = (
    (r"(^|\.)decoder\.weight$", "untied: the student's decoder is its embedding table"),
    (r"position_embeddings", "ModernBERT turns queries and keys instead (RoPE)"),
    (r"relative_attention_bias", "ModernBERT turns queries and keys instead (RoPE)"),
    (r"token_type_embeddings", "ModernBERT has no token types"),
    (r"(^|\.)(pooler|classifier)\.", "the student has none"),
    (r"bias$", "the student has no biases but the decoder's"),
)


def left_tensors(model: PreTrainedModel, layers: Sequence[int]) -> dict[str, str]:
    """Return why each of a donor's tensors that nothing is made of is left behind, by its name.

    Args:
        model: the donor.
        layers: those that something is made of.
    """
    shared = model.get_input_embeddings().weight.data_ptr()
    left = {}
    for name, tensor in model.state_dict().items():
        number = re.search(r"layers?\.(\d+)\.", name)
        why = next((reason for pattern, reason in _LEFT if re.search(pattern, name)), "")
        if number and int(number[1]) not in layers:
            left[name] = "of a layer that nothing is made of"
        elif why and tensor.data_ptr() != shared and name != "decoder.bias":
            left[name] = why
    return left


def _split_heads(weight: torch.Tensor, heads: int) -> torch.Tensor:
    return weight.unflatten(0, (heads, -1))


def _read_modernbert(model: PreTrainedModel) -> Donor:
    bare = getattr(model, "model", model)
    heads = model.config.num_attention_heads
    blocks = []
    for layer in bare.layers:
        query, key, value = layer.attn.Wqkv.weight.chunk(3)
        units, gate = layer.mlp.Wi.weight.chunk(2)
        norm = layer.attn_norm
        blocks.append(
            DonorBlock(
                query=_split_heads(query, heads),
                key=_split_heads(key, heads),
                value=_split_heads(value, heads),
                attention_out=layer.attn.Wo.weight.unflatten(1, (heads, -1)),
                units_in=units,
                units_gate=gate,
                units_out=layer.mlp.Wo.weight,
                attention_gain=norm.weight if isinstance(norm, nn.LayerNorm) else None,
                units_gain=layer.mlp_norm.weight,
                attention_type=layer.attention_type,
            )
        )
    head = getattr(model, "head", None)
    decoder = getattr(model, "decoder", None)
    return Donor(
        embedding=bare.embeddings.tok_embeddings.weight,
        embedding_gain=bare.embeddings.norm.weight,
        blocks=blocks,
        final_gain=bare.final_norm.weight,
        head_dense=head.dense.weight if head is not None else None,
        head_gain=head.norm.weight if head is not None else None,
        decoder_bias=decoder.bias if decoder is not None else None,
        left_behind=[] if head is not None else ["MLM head: the donor has none"],
    )


def _read_bert_family(
    model: PreTrainedModel, parts: Callable[[nn.Module], tuple[nn.Linear, ...]], extra: list[str]
) -> Donor:
    heads = model.config.num_attention_heads
    blocks = []
    # Post-norm: what a layer's attention reads was normed at the end of the layer before.
    gain = model.embeddings.LayerNorm.weight
    for layer in model.encoder.layer:
        query, key, value, out, norm = parts(layer)
        blocks.append(
            DonorBlock(
                query=_split_heads(query.weight, heads),
                key=_split_heads(key.weight, heads),
                value=_split_heads(value.weight, heads),
                attention_out=out.weight.unflatten(1, (heads, -1)),
                units_in=layer.intermediate.dense.weight,
                units_gate=None,
                units_out=layer.output.dense.weight,
                # Layer 0 of a ModernBERT has no norm of its own either: the embedding's serves.
                attention_gain=None if not blocks else gain,
                units_gain=norm.weight,
            )
        )
        gain = layer.output.LayerNorm.weight
    return Donor(
        embedding=model.embeddings.word_embeddings.weight,
        embedding_gain=model.embeddings.LayerNorm.weight,
        blocks=blocks,
        final_gain=gain,
        left_behind=[
            "position embeddings: ModernBERT turns queries and keys instead (RoPE)",
            "all biases of linear layers and norms: ModernBERT has none",
            "the norms' places: post-norm there, pre-norm here; their gains are folded in",
            *extra,
        ],
    )


def _read_bert(model: PreTrainedModel) -> Donor:
    def parts(layer: nn.Module) -> tuple[nn.Linear, ...]:
        attention, output = layer.attention.self, layer.attention.output
        return attention.query, attention.key, attention.value, output.dense, output.LayerNorm

    return _read_bert_family(
        model, parts, ["token type embeddings and pooler: ModernBERT has none"]
    )


def _read_mpnet(model: PreTrainedModel) -> Donor:
    def parts(layer: nn.Module) -> tuple[nn.Linear, ...]:
        attention = layer.attention.attn
        return attention.q, attention.k, attention.v, attention.o, layer.attention.LayerNorm

    return _read_bert_family(model, parts, ["relative attention bias: ModernBERT has none"])


READERS = {"modernbert": _read_modernbert, "bert": _read_bert, "mpnet": _read_mpnet}
