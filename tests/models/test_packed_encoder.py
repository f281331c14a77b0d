"""Promises of packed_encoder.py and bert_forward.py: a transformer's own vectors and gradients."""

import copy

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Dense, Dropout
from torch import nn
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel, PreTrainedModel

from small_modernbert.models import attention, bert_forward, packed_encoder
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.packing import pack

SIZES = {
    "vocab_size": 80,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
LENGTHS = (1, 3, 3, 17, 40, 40, 60)


def make(kind: str, **changes: object) -> PreTrainedModel:
    """Return a small transformer whose every weight matters; its configuration has dropout."""
    kinds = {"bert": (BertConfig, BertModel), "mpnet": (MPNetConfig, MPNetModel)}
    config, model = kinds[kind]
    torch.manual_seed(0)
    made = model(config(**SIZES | changes))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(0, 0.2)
            if "LayerNorm.weight" in name:
                parameter.add_(1)
    return made.train()


@pytest.fixture
def sequences() -> list[np.ndarray]:
    """Return token ids of several lengths, no padding's among them."""
    draw = np.random.default_rng(0)
    return [draw.integers(5, SIZES["vocab_size"], length) for length in LENGTHS]


def reference(model: PreTrainedModel, sequences: list[np.ndarray], pooling: str) -> torch.Tensor:
    """Return pooled vectors of transformers' own padded pass, without dropout."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = torch.from_numpy(sequence), 1
    hidden = model.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    if pooling == "cls":
        return hidden[:, 0]
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the gradients that there are."""
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_vectors_and_gradients_are_transformers(
    kind: str, pooling: str, sequences: list[np.ndarray]
) -> None:
    """Packed or padded, vectors and every gradient are those of the model's own padded pass."""
    model = make(kind)
    exact = copy.deepcopy(model)
    encoder = PackedEncoder(model, pooling)
    assert encoder.packs == (kind == "bert")
    weights = torch.randn(len(sequences), SIZES["hidden_size"])
    ours, theirs = encoder.pooled(pack(sequences)), reference(exact, sequences, pooling)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    own, wanted = gradients(model), gradients(exact)
    assert own.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_bert_packs_through_registered_attention(
    sequences: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU transformers' BERT runs packed by our attention function: the same vectors."""
    model = make("bert")
    wanted = reference(copy.deepcopy(model), sequences, "mean")
    encoder = PackedEncoder(model)
    monkeypatch.setattr(bert_forward, "supports", lambda model: False)
    called: list[int] = []
    forward = attention.forward_packed
    monkeypatch.setattr(
        attention, "forward_packed", lambda *given: (called.append(1), forward(*given))[1]
    )
    torch.testing.assert_close(encoder.pooled(pack(sequences)), wanted, atol=1e-5, rtol=1e-5)
    assert called


def test_bf16_trains_near_fp32(sequences: list[np.ndarray]) -> None:
    """In bf16 BERT's vectors and gradients point where those of fp32 point."""
    exact, half = make("bert"), make("bert")
    for model, precision in ((exact, "fp32"), (half, "bf16")):
        PackedEncoder(model, precision=precision).pooled(pack(sequences)).square().sum().backward()
    for name, wanted in gradients(exact).items():
        cosine = nn.functional.cosine_similarity(
            gradients(half)[name].flatten(), wanted.flatten(), dim=0
        )
        # A key's bias moves all scores of a query alike: its gradient is only rounding.
        assert cosine > 0.98 or "key.bias" in name, (name, cosine)


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "relu"}, {"is_decoder": True}, {"position_embedding_type": "rotary"}]
)
def test_other_berts_are_left_to_transformers(changes: dict[str, object]) -> None:
    """What our pass does not compute is not taken for what it does."""
    assert not bert_forward.supports(make("bert", **changes))


def test_head_is_trained_along(sequences: list[np.ndarray]) -> None:
    """A Dense layer gives the vectors' width, and is among what is trained."""
    dense = Dense(24, 10, bias=False, activation_function=nn.Identity())
    encoder = PackedEncoder(make("bert"), head=nn.Sequential(dense))
    assert encoder.width == 10
    vectors = encoder.pooled(pack(sequences))
    assert vectors.shape == (len(sequences), 10)
    vectors.sum().backward()
    trained = dict(encoder.model.named_parameters())
    assert trained["head.0.linear.weight"].grad.abs().sum() > 0
    assert encoder.encode(sequences).shape == (len(sequences), 10)
    assert PackedEncoder(make("bert")).model.__class__ is BertModel


@pytest.mark.parametrize("with_weights", [False, True])
def test_dropout_of_a_head_is_off(with_weights: bool, sequences: list[np.ndarray]) -> None:
    """A model that carries a Dropout is measured, and trained, as its own encode runs."""
    dense = [Dense(24, 10)] if with_weights else []
    plain = PackedEncoder(make("bert"), head=nn.Sequential(*dense))
    dropping = PackedEncoder(plain.transformer, head=nn.Sequential(*dense, Dropout(0.5)).train())
    np.testing.assert_array_equal(dropping.encode(sequences), plain.encode(sequences))
    dropping.model.train()
    batch = pack(sequences)
    assert torch.equal(dropping.pooled(batch), plain.pooled(batch))


def test_padded_pass_puts_tokens_back(sequences: list[np.ndarray]) -> None:
    """The padded pass returns every token's vector in the packed order."""
    model = make("mpnet").eval()
    packed = packed_encoder.padded_hidden_states(model, pack(sequences))[0]
    assert len(packed) == sum(LENGTHS)
    alone = packed_encoder.padded_hidden_states(model, pack(sequences[3:4]))[0]
    begin = sum(LENGTHS[:3])
    torch.testing.assert_close(packed[begin : begin + LENGTHS[3]], alone, atol=1e-5, rtol=1e-5)
