"""What the tests share: an invented language, its tokenizers and teacher, small students, stages.

Everything is made in process; pytest-socket keeps the network away. Heavy imports stand inside the
fixtures, so that a test that needs no model does not pay for them.
"""

import gc
import os
import runpy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from miniature import Language, make_bpe_tokenizer, make_teacher, make_wordpiece_tokenizer

from small_modernbert.data import row_formats
from small_modernbert.models import prompts
from small_modernbert.runs import hub, machine, references, stages

# Before torch is imported: tiny models gain nothing from a second thread, and on a busy machine
# its threads wait for each other (a test of one second then takes fifty).
os.environ.setdefault("OMP_NUM_THREADS", "1")
machine.prepare()
# Figures are those of a CPU wherever the suite runs; what a GPU makes of it: make gpu-check.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Started in the background, or under nohup, the suite and its children would ignore these.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

if TYPE_CHECKING:
    import fsspec
    from transformers import ModernBertModel, PreTrainedTokenizerFast

SCRIPT = '''"""A stage that trains a toy."""

STEPS: int = 3  # how many
NAMES: list[str] = ["one"]  # of what
RECIPE: str = "toys"  # the folder
VARIANT: str = ""  # another folder
OVERWRITE: bool = False  # redo
'''


def pytest_collection_finish() -> None:
    """Leave what the tests have imported, a million objects, out of each search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def runs_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep every test away from the real runs/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


@pytest.fixture(autouse=True)
def nothing_was_warned_of() -> None:
    """Let each test see what a process says once."""
    hub.warn_unpinned.cache_clear()
    prompts.warn_of_unread.cache_clear()
    hub.revisions.clear()
    row_formats.say.cache_clear()


@pytest.fixture
def memory() -> Iterator["fsspec.AbstractFileSystem"]:
    """Return fsspec's file system in memory (memory://), empty."""
    import fsspec

    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


@pytest.fixture
def open_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., stages.Stage]:
    """Return a function that opens the stage of a toy script, with constants changed by name."""
    repository = tmp_path / "repository"
    repository.mkdir()
    script = repository / "train_toy.py"
    script.write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setattr(references, "ROOT", repository)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))

    def open_it(
        inputs: dict[str, Path | str] | None = None,
        **constants: Any,  # noqa: ANN401  whatever the script's constants are
    ) -> stages.Stage:
        return stages.Stage({**runpy.run_path(str(script)), **constants}, inputs)

    return open_it


@pytest.fixture(scope="session")
def language() -> Language:
    """Return a language of 60 content words."""
    return Language(0, topics=6, words_per_topic=10)


@pytest.fixture(scope="session")
def texts(language: Language) -> list[str]:
    """Return 60 texts of mixed lengths: single words, questions, passages."""
    passages = [language.passage() for _ in range(25)]
    return [
        *(passage.text for passage in passages),
        *(language.question(passage) for passage in passages),
        *language.words[-9:],
        "x",
    ]


@pytest.fixture(scope="session")
def wordpiece_folder(tmp_path_factory: pytest.TempPathFactory, language: Language) -> Path:
    """Return the folder of a WordPiece tokenizer of about 180 entries."""
    return make_wordpiece_tokenizer(tmp_path_factory.mktemp("wordpiece"), language.words)


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """Return the folder of a byte-level BPE tokenizer in ModernBERT's style."""
    return make_bpe_tokenizer(tmp_path_factory.mktemp("bpe"), texts, entries=400)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, language: Language) -> Path:
    """Return the folder of a tiny BERT sentence encoder, 48 wide, 64 tokens."""
    folder = tmp_path_factory.mktemp("teacher")
    return make_teacher(folder, language.words, language.topics, max_length=64)


@pytest.fixture(scope="session")
def tokenizer(wordpiece_folder: Path) -> "PreTrainedTokenizerFast":
    """Return the WordPiece tokenizer."""
    from small_modernbert.models.students import load_tokenizer

    return load_tokenizer(wordpiece_folder)


@pytest.fixture(scope="session")
def make_student(tokenizer: "PreTrainedTokenizerFast") -> Callable[..., "ModernBertModel"]:
    """Return a function that makes a small student; large weights, so that every part matters."""
    import torch
    from transformers import ModernBertForMaskedLM, ModernBertModel

    from small_modernbert.models.architecture import Shape, configure

    def make(
        *, seed: int = 0, masked_lm: bool = False, deviation: float = 0.2, **shape: int
    ) -> ModernBertModel:
        small = {
            "num_hidden_layers": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "head_dim": 8,
            "max_position_embeddings": 64,
            "local_attention": 8,
        }
        config = configure(Shape(**{**small, **shape}), tokenizer)
        config.initializer_range = deviation
        torch.manual_seed(seed)
        model = (ModernBertForMaskedLM if masked_lm else ModernBertModel)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # gains of the norms, otherwise all ones
                    parameter.uniform_(0.5, 1.5)
        return model.eval()

    return make
