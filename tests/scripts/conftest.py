"""Fixtures of the scripts' tests: a runs folder of a test's own, a module's world made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from training_world import TrainingWorld
from transformers import ModernBertModel, PreTrainedTokenizerFast


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a runs folder of its own; return that of the recipe "toy"."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs" / "toy"


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_student: Callable[..., ModernBertModel],
    tokenizer: PreTrainedTokenizerFast,
) -> TrainingWorld:
    """Make the module's `World` once, with a student of its shape `STUDENT`."""
    model = make_student(**request.module.STUDENT)
    return request.module.World(tmp_path_factory.mktemp("world"), model, tokenizer)
