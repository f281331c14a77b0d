"""Promises of compiling.py: equal losses and gradients, few compilations, a decision said."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import ModernBertModel

from small_modernbert.models import forward
from small_modernbert.models.packing import pack
from small_modernbert.runs.errors import UserError
from small_modernbert.training import compiling

MIXES = ([5, 9, 30], [3], [100, 20, 2], [64, 64], [7, 1, 44])  # the window is 64 each way


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget what was compiled before and after."""

    def forget() -> None:
        torch.compiler.reset()
        counters.clear()
        forward.compiled_end.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # traced and differentiated by torch.compile, computed by torch's own kernels
        pytest.param(
            "inductor",  # what a run uses
            marks=pytest.mark.skipif(not compiling.has_compiler(), reason="no C++ compiler"),
        ),
    ],
)
def test_compiled_equals_eager(
    fresh: None,
    backend: str,
    make_student: Callable[..., ModernBertModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loss and every gradient are the same to 1e-5, and other lengths compile nothing anew."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = make_student()
    names = list(model.state_dict())
    scale = torch.linspace(-1, 1, model.config.hidden_size)
    random = np.random.default_rng(0)
    graphs = []
    for lengths in MIXES:
        batch = pack([random.integers(5, model.config.vocab_size, length) for length in lengths])
        results = []
        for compiled in (False, True):
            model.zero_grad()
            hidden = forward.hidden_states(model, batch, compiled=compiled)
            loss = (hidden * scale).pow(2).mean()
            loss.backward()
            results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        for eager, found in zip(*results, strict=True):
            torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 1 <= graphs[0] <= 3
    assert graphs[-1] == graphs[0]
    assert not counters["graph_break"]
    assert list(model.state_dict()) == names


def test_feed_forward_of_a_gpu_keeps_its_names(
    fresh: None,
    make_student: Callable[..., ModernBertModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is compiled on a GPU computes the same, under the same names of the weights."""
    model = make_student()
    names = list(model.state_dict())
    hidden = torch.randn(1, 20, model.config.hidden_size)
    wanted = [layer.mlp(hidden) for layer in model.layers]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert compiling.settle("on", model, 1)
    for layer, result in zip(model.layers, wanted, strict=True):
        torch.testing.assert_close(layer.mlp(hidden), result, rtol=1e-5, atol=1e-5)
        layer.mlp(torch.randn(1, 31, model.config.hidden_size))
    assert list(model.state_dict()) == names
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("wanted", "device", "steps", "compiled", "reason"),
    [
        ("auto", "cpu", 100_000, False, "torch.compile off: on a CPU it gains nothing"),
        ("auto", "cuda", 1_999, False, "torch.compile off: 1,999 steps are too few"),
        ("auto", "cuda", 2_000, True, "torch.compile on: 2,000 steps earn its start-up back"),
        ("on", "cpu", 1, True, "torch.compile on: as set"),
        ("off", "cuda", 100_000, False, "torch.compile off: as set"),
    ],
)
def test_decision_goes_by_device_and_length_and_is_said(
    wanted: compiling.Compile,
    device: str,
    steps: int,
    compiled: bool,
    reason: str,
    make_student: Callable[..., ModernBertModel],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A long run on a GPU compiles, anything else only when told to; the log says why."""
    caplog.set_level("INFO", logger="small_modernbert")
    monkeypatch.setattr(ModernBertModel, "device", torch.device(device))
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    assert compiling.settle(wanted, make_student(), steps) == compiled
    assert reason in caplog.text


def test_a_missing_compiler_is_named_with_its_cure(
    make_student: Callable[..., ModernBertModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to compile without a C++ compiler, a run ends before its first step."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"no C\+\+ compiler here; install g\+\+"):
        compiling.settle("on", make_student(), 10)
    assert not compiling.settle("auto", make_student(), 10)
