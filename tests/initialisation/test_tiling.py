"""Promises of tiling.py: its own size is the identity, larger sizes repeat from the middle."""

from collections.abc import Callable

import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

from small_modernbert.initialisation import donor_transfer, tiling
from small_modernbert.models.students import Student

IDS = torch.tensor([[1, 7, 9, 30, 2, 8]])


def make(layers: int, width: int, units: int, heads: int) -> ModernBertForMaskedLM:
    """Return a small model with large weights, so that every part matters."""
    torch.manual_seed(layers)
    config = ModernBertConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=units,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        local_attention=4,
        initializer_range=0.3,
        pad_token_id=0,
    )
    model = ModernBertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def fill(small: ModernBertForMaskedLM, large: ModernBertForMaskedLM) -> list[int]:
    """Fill the large model; return its layers' sources."""
    tensors, sources = tiling.tile_model(small.state_dict(), small.config, large.config)
    assert tensors.keys() == large.state_dict().keys()
    large.load_state_dict(tensors)
    return sources


def test_own_size_is_the_identity() -> None:
    """Tiling a model to its own shape gives every tensor, and every logit, back."""
    small, other = make(4, 32, 48, 4), make(4, 32, 48, 4)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert fill(small, other) == [0, 1, 2, 3]
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert torch.equal(small(IDS).logits, other(IDS).logits)


def test_middle_stays_and_repeats() -> None:
    """Width grows from the middle, whole heads and halves repeat; layers repeat as neighbours."""
    small, large = make(3, 32, 48, 4), make(6, 64, 80, 8)
    sources = fill(small, large)
    assert sources == [0, 0, 1, 1, 2, 2]
    ours, theirs = large.state_dict(), small.state_dict()
    table = ours["model.embeddings.tok_embeddings.weight"]
    assert torch.equal(table[:, 16:48], theirs["model.embeddings.tok_embeddings.weight"])
    assert torch.equal(table[:, :16], theirs["model.embeddings.tok_embeddings.weight"][:, 16:])
    qkv = ours["model.layers.1.attn.Wqkv.weight"].view(3, 8, 8, 64)
    wanted = theirs["model.layers.0.attn.Wqkv.weight"].view(3, 4, 8, 32)
    assert torch.equal(qkv[:, 2:6, :, 16:48], wanted)
    assert torch.equal(qkv[:, :2, :, 16:48], wanted[:, 2:])
    both = ours["model.layers.2.mlp.Wi.weight"].view(2, 80, 64)
    wanted = theirs["model.layers.1.mlp.Wi.weight"].view(2, 48, 32)
    assert torch.equal(both[:, 16:64, 16:48], wanted)
    written = ours["model.layers.2.mlp.Wo.weight"][16:48, 16:64]
    assert torch.equal(written, theirs["model.layers.1.mlp.Wo.weight"])
    assert torch.isfinite(large(IDS).logits).all()


@pytest.mark.parametrize(
    ("large", "small"),
    [((4, 16, 48, 2), (4, 32, 48, 4)), ((2, 32, 48, 4), (4, 32, 48, 4))],
    ids=["narrower", "shallower"],
)
def test_smaller_is_refused(large: tuple[int, ...], small: tuple[int, ...]) -> None:
    """Tiling does not shrink a model."""
    source, target = make(*small), make(*large)
    with pytest.raises(ValueError, match="larger"):
        tiling.tile_model(source.state_dict(), source.config, target.config)


def test_other_heads_are_refused() -> None:
    """Heads of another width cannot be repeated whole."""
    small, large = make(2, 32, 48, 4), make(2, 64, 48, 4)
    with pytest.raises(ValueError, match="head width 16 here, 8"):
        tiling.tile_model(small.state_dict(), small.config, large.config)


def test_middle_is_the_middle() -> None:
    """An even surplus is split evenly; the order inside is kept."""
    assert tiling.tiled_rows(6, 2).tolist() == [0, 1, 0, 1, 0, 1]
    assert tiling.tiled_rows(7, 3).tolist() == [1, 2, 0, 1, 2, 0, 1]
    assert tiling.tiled_rows(3, 3).tolist() == [0, 1, 2]


def test_layers_are_spaced_evenly() -> None:
    """Base into large, 22 layers into 28: the first stays first, the last last, some come twice."""
    spaced = tiling.spaced_layers(28, 22)
    assert spaced[:6] == [0, 1, 2, 2, 3, 4] and spaced[-1] == 21
    assert sorted(set(spaced)) == list(range(22)) and spaced == sorted(spaced)


def test_an_untied_decoder_does_not_become_the_table(
    tokenizer: PreTrainedTokenizerFast, make_student: Callable[..., ModernBertForMaskedLM]
) -> None:
    """A donor's own decoder is listed as left; the student's decoder is still its table."""
    model = make_student(masked_lm=True, num_hidden_layers=2)
    untied = ModernBertForMaskedLM(
        ModernBertConfig(**{**model.config.to_dict(), "tie_word_embeddings": False})
    ).eval()
    blank = make_student(masked_lm=True, seed=1, hidden_size=64)
    student, donor = Student(blank, tokenizer, 64), Student(untied, tokenizer, 64)
    layers, transfer = donor_transfer.tile(student, donor, "small")
    assert layers == [0, 0, 1, 1]
    assert transfer["donor: decoder.weight"] == (
        "left",
        "untied: the student's decoder is its embedding table",
    )
    table = untied.get_input_embeddings().weight
    assert torch.equal(blank.decoder.weight[:, 16:48], table)
    assert transfer["decoder.weight"][0] == "tiled"
