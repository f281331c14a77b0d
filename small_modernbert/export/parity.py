"""How far each exported form is from the torch model, on texts of every length, and how fast."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from small_modernbert.models import architecture, encoders, vectors
from small_modernbert.models.onnx_encoder import DESCRIPTION
from small_modernbert.models.students import Student
from small_modernbert.runs import report, storage
from small_modernbert.runs.errors import UserError

# For a model that came without texts: several scripts, numbers, code, punctuation.
SENTENCES = (
    "The river rises in the hills and reaches the sea after four hundred kilometres.",
    "Which of the two bridges was built first, and by whom?",
    "Add 250 g of flour, a pinch of salt and 1.5 dl of water; knead for ten minutes.",
    "def mean(values): return sum(values) / len(values)  # of a non-empty list",
    "La bibliothèque est fermée le dimanche, sauf en décembre.",
    "Ночью температура опустилась до минус двадцати градусов.",
    "光合成は光のエネルギーを使って糖をつくる。",
    "ok",
)


@dataclass(frozen=True)
class Parity:
    """How far vectors are from those of the torch model.

    Attributes:
        mean_cosine: over the texts.
        min_cosine: of the worst text.
        max_error: the largest difference of a single number.
    """

    mean_cosine: float
    min_cosine: float
    max_error: float


def compare(wanted: np.ndarray, given: np.ndarray) -> Parity:
    """Compare two arrays of `(texts, width)` unit vectors, row by row.

    Raises:
        UserError: a vector is not finite.
    """
    if not np.isfinite(given).all():
        raise UserError(
            "the exported model gives NaN or infinite vectors; install the versions we pin, then "
            "export again: pip install -r requirements.txt"
        )
    cosines = np.minimum(np.einsum("ij,ij->i", wanted, given, dtype=np.float64), 1)
    figures = (cosines.mean(), cosines.min(), np.abs(wanted - given).max())
    return Parity(*(round(float(figure), 7) for figure in figures))


def probes(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int, number: int) -> list[str]:
    """Cut texts to a ladder of lengths: nothing, one token, ... up to more than the maximum.

    Args:
        texts: taken in turn, joined where one is too short.
        tokenizer: without truncation.
        max_tokens: the model's; the longest probe is longer, since cutting is part of the form.
        number: rungs at most, evenly spaced by ratio.

    Raises:
        UserError: no text has a token.
    """
    usable = [text for text in texts if tokenizer.encode(text, add_special_tokens=False).ids]
    if not usable:
        raise UserError("TEXTS: no text has a token in the student's vocabulary; give others")
    source = itertools.cycle(usable)
    ladder = [""]
    for rung in np.unique(np.geomspace(1, max_tokens, number).round().astype(int)):
        text = next(source)
        while len(cut := tokenizer.encode(text, add_special_tokens=False)) < rung:
            text = f"{text} {next(source)}"
        ladder.append(text[: cut.offsets[rung - 1][1]])
    return ladder


def torch_encoder(
    folder: Path, max_tokens: int, prompt: str | None = None
) -> Callable[[Sequence[str]], np.ndarray]:
    """Return what sentence-transformers makes of texts with a folder: fp32, on the CPU.

    Args:
        folder: of the model.
        max_tokens: longer texts are cut.
        prompt: in place of the model's default one.

    Raises:
        UserError: the folder does not load.
    """
    model = encoders.load_encoder(folder).model.to("cpu").float()
    model.max_seq_length = max_tokens

    def encode(texts: Sequence[str]) -> np.ndarray:
        named = {"prompt": prompt, "batch_size": 8, "show_progress_bar": False}
        return vectors.normalise(model.encode(list(texts), **named))

    return encode


def table(folder: Path, parity: dict[str, Parity], speeds: Mapping[str, float]) -> str:
    """Return the table of what each form weighs, how far it is off and how fast it is.

    Args:
        folder: the export.
        parity: of each form.
        speeds: texts a second of each form; empty where that was not measured.
    """
    rows = []
    for form, figures in parity.items():
        size = sum((folder / name).stat().st_size for name in _files(folder, form))
        cosines = (f"{figures.mean_cosine:.6f}", f"{figures.min_cosine:.6f}")
        row = [form, f"{size / 1e6:.1f}", *cosines, f"{figures.max_error:.1e}"]
        rows.append([*row, f"{speeds[form]:,.0f}"] if speeds else row)
    names = ["form", "MB", "mean cosine", "least cosine", "largest error"]
    return report.table(names + ["texts/s"] * bool(speeds), rows)


def describe(
    folder: Path, student: Student, parity: dict[str, Parity], speeds: Mapping[str, float]
) -> None:
    """Write export.json: what goes in, what comes out, each file's digest, parity and speed.

    Args:
        folder: the export.
        student: that was exported.
        parity: of each form that is checked; empty before any is.
        speeds: texts a second of each form; empty where that was not measured.
    """
    tokens = ["batch", "tokens"]
    parameters, without_embeddings = architecture.count_weights(student.body, student.head)
    content = {
        "inputs": {"input_ids": tokens, "attention_mask": tokens},
        "input_type": "int64",
        "outputs": {"sentence_embedding": ["batch", student.width]},
        "output_type": "float32, unit length",
        "dimensions": student.width,
        "parameters": parameters,
        "parameters_without_embeddings": without_embeddings,
        "max_tokens": student.max_tokens,
        "pad_token_id": student.tokenizer.pad_token_id,
        "pooling": student.pooling,
        "prompts": student.usage.prompts,
        "default_prompt_name": student.usage.default_prompt_name,
        "files": {
            name: {
                "bytes": (folder / name).stat().st_size,
                "sha256": storage.sha256_file(folder / name),
            }
            for form in parity
            for name in _files(folder, form)
        },
        "parity": {form: vars(figures) for form, figures in parity.items()},
        "texts_per_second": {form: round(speed, 1) for form, speed in speeds.items()},
    }
    storage.write_json(folder / DESCRIPTION, content)


def _files(folder: Path, form: str) -> list[str]:
    weights = str(Path(form).with_suffix(".bin"))
    return [form, weights] if (folder / weights).exists() else [form]
