"""What contenders share: texts of realistic lengths, students, our stages run as by a user."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from small_modernbert.runs import references, settings
from small_modernbert.runs.errors import UserError

# Log-normal lengths of web text: with a spread of 0.9 the mean is 90 and the 99th percentile 487.
MEDIAN_TOKENS = 60
SPREAD = 0.9
TOKENS_PER_WORD = 1.3  # WordPiece on this text, punctuation included
SPECIAL_TOKENS = 2
TEXT = "assets/text/train.parquet"
TEACHER = "assets/models/all-MiniLM-L6-v2"


def locate(reference: str) -> Path:
    """Return an input of the repository.

    Raises:
        UserError: it is not there.
    """
    path = references.ROOT / reference
    if not path.exists():
        raise UserError(f"{path} is not there; run: make assets")
    return path


def draw_lengths(rows: int, seed: int, longest: int, median: float = MEDIAN_TOKENS) -> np.ndarray:
    """Return `(rows,)` seeded log-normal numbers of tokens, special tokens included."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), SPREAD, rows)
    return np.clip(np.rint(drawn), SPECIAL_TOKENS + 1, longest).astype(np.int64)


def make_texts(
    source: Path, rows: int, *, seed: int, longest: int = 512, median: float = MEDIAN_TOKENS
) -> list[str]:
    """Return real text, joined and cut to log-normal lengths.

    Args:
        source: a Parquet file with the column `text`.
        rows: texts wanted.
        seed: of the lengths, and of the order in which the source's texts are joined.
        longest: tokens of a text at most, about.
        median: tokens of the median text.
    """
    lengths = draw_lengths(rows, seed, longest, median)
    words_of = np.maximum(1, np.rint((lengths - SPECIAL_TOKENS) / TOKENS_PER_WORD)).astype(int)
    pool = read_texts(source)
    order = np.random.default_rng(seed).permutation(len(pool))
    words: list[str] = []
    place = 0
    while len(words) < words_of.sum():
        words.extend(pool[order[place % len(order)]].split())
        place += 1
    ends = np.cumsum(words_of)
    return [" ".join(words[end - count : end]) for end, count in zip(ends, words_of, strict=True)]


def write_texts(path: Path, texts: list[str]) -> None:
    """Write texts where every contender reads them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"text": pa.array(texts, pa.string()), "source": ["bench"] * len(texts)}
    pq.write_table(pa.table(columns), path)


def read_texts(path: Path) -> list[str]:
    """Return the texts of a Parquet file."""
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=["text"])["text"].to_pylist()


def make_student(
    folder: Path, tokenizer_folder: Path, seed: int, preset: str, vocabulary: int = 0, **shape: int
) -> None:
    """Write a student of random weights as a sentence-transformers folder.

    Args:
        folder: to write.
        tokenizer_folder: whose tokenizer it has.
        seed: of the weights.
        preset: of architecture.py.
        vocabulary: rows of the embedding table; 0 = as the tokenizer asks.
        shape: what differs from the preset.
    """
    import torch
    from transformers import ModernBertModel

    from small_modernbert.models import architecture, students

    tokenizer = students.load_tokenizer(tokenizer_folder)
    config = architecture.configure(architecture.choose(preset, **shape), tokenizer)
    config.vocab_size = vocabulary or config.vocab_size
    torch.manual_seed(seed)
    students.Student(ModernBertModel(config), tokenizer, config.max_position_embeddings).save(
        folder
    )


def run_stage(script: str, recipe: str, **flags: Any) -> Path:  # noqa: ANN401  constants
    """Run one of our scripts in this process, as its user would; return its stage's folder.

    Args:
        script: its name, as in `mlm/pre_train`.
        recipe: its recipe; what stands there is made again.
        flags: its constants, in lower case; RUNS says where it writes.
    """
    sys.path.insert(0, str(references.ROOT))
    name = script.replace("/", ".")
    sys.modules.pop(name, None)  # with its constants as they are written, not as last set
    module = importlib.import_module(name)
    words = ["--recipe", recipe, "--overwrite"]
    for name, value in flags.items():
        flag = f"--{name}".replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    settings.override(vars(module), words)
    module.main()
    variant = f"@{module.VARIANT}" if module.VARIANT else ""
    return references.runs_folder() / recipe / f"{script}{variant}"


def steps_of(stage: Path) -> list[dict[str, float]]:
    """Return the steps of a training stage (tokens, batches, seconds), without its first one.

    What a stage does beside its steps (evaluations, checkpoints) is in none of them.
    """
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "seconds" in line][1:]
