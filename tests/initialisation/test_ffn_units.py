"""Promises of ffn_units.py: what says nothing goes unnoticed, and the mean of the rest stays."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertModel, ModernBertModel

from small_modernbert.initialisation import ffn_units
from small_modernbert.runs.errors import UserError


def sequences() -> list[np.ndarray]:
    """Return token ids of some texts."""
    random = np.random.default_rng(2)
    return [random.integers(5, 60, size=3 + row % 7).astype(np.int32) for row in range(20)]


def load(folder: Path) -> BertModel:
    """Load the tiny teacher's transformer."""
    return BertModel.from_pretrained(folder).eval()


@torch.no_grad()
def states(model: BertModel) -> torch.Tensor:
    """Return the last hidden states of all the texts' tokens."""
    return torch.cat(
        [
            model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0]
            for ids in sequences()
        ]
    )


def test_constant_units_go_unnoticed(teacher_folder: Path) -> None:
    """Units that give one number on every token are taken out first, and nothing changes."""
    model = load(teacher_folder)
    width = model.config.intermediate_size
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.intermediate.dense.weight[::3] = 0
            layer.intermediate.dense.bias[::3] = 1.5
    wanted = states(model)
    kept = width - len(range(0, width, 3))
    share = ffn_units.keep_units(model, sequences(), kept)
    assert share == pytest.approx(1, abs=1e-6)
    assert model.config.intermediate_size == kept
    torch.testing.assert_close(states(model), wanted, atol=1e-4, rtol=0)


def test_a_cut_model_reloads(teacher_folder: Path, tmp_path: Path) -> None:
    """Fewer units than say something change the states a little, and are saved as they are."""
    model = load(teacher_folder)
    wanted = states(model)
    share = ffn_units.keep_units(model, sequences(), model.config.intermediate_size // 2)
    assert 0.5 < share < 1
    cut = states(model)
    assert 0 < (cut - wanted).abs().mean() < wanted.abs().mean()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(states(load(tmp_path)), cut, atol=1e-5, rtol=0)


def test_gated_units_that_give_nothing_go_unnoticed(
    make_student: Callable[..., ModernBertModel], tmp_path: Path
) -> None:
    """A ModernBERT's unit goes with its gate; saved, it loads as it is."""
    model = make_student()
    width = model.config.intermediate_size
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.Wi.weight[width + 1 :: 2] = 0  # gates
    wanted = states(model)
    ffn_units.keep_units(model, sequences(), width // 2)
    torch.testing.assert_close(states(model), wanted, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = ModernBertModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(states(loaded), states(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("wanted", "there", "units"),
    [(0.8333, 1536, 1280), (0.8333, 3072, 2560), (0.01, 96, 8), (40, 96, 40)],
)
def test_a_share_is_of_the_donors_own_units(wanted: float, there: int, units: int) -> None:
    """Five sixths of whatever the donor has, in steps that matrix products take well."""
    model = SimpleNamespace(config=SimpleNamespace(intermediate_size=there))
    assert ffn_units.count(model, wanted) == units


def test_what_cannot_be_cut(teacher_folder: Path) -> None:
    """Another family, or more units than there are, is refused by name."""
    with pytest.raises(UserError, match="give a whole number"):
        ffn_units.count(load(teacher_folder), 40.5)
    other = SimpleNamespace(config=SimpleNamespace(model_type="albert"))
    with pytest.raises(UserError, match="not out of a albert"):
        ffn_units.keep_units(other, sequences(), 8)
    with pytest.raises(UserError, match="FFN_UNITS is 9999"):
        ffn_units.keep_units(load(teacher_folder), sequences(), 9_999)
