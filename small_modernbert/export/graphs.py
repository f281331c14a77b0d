"""A trained student as a graph that other engines run, and how far each form is from the original.

torch.export traces the student with both axes free; the graph takes token ids and their mask and
gives unit vectors, so a reader needs neither pooling nor normalisation of its own.
"""

import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import ModernBertModel

from small_modernbert.export.onnx_encoder import DESCRIPTION, TOKENS_PER_BATCH, cut_by_length, pad
from small_modernbert.models import encoders, vectors
from small_modernbert.runs import report, storage
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)
OPSET = 20  # the first with Gelu
# The forms, each named by the file that its reader opens.
TORCH, GRAPH, INT8 = "model.safetensors", "onnx/model.onnx", "onnx/model_int8.onnx"
OPENVINO = "openvino/openvino_model.xml"  # its weights lie beside it, in a .bin
MODULES = {"Transformer", "Pooling", "Normalize"}
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


class SentenceEncoder(nn.Module):
    """A student with its pooling and normalisation: token ids and mask to unit vectors."""

    def __init__(self, model: ModernBertModel, pooling: str) -> None:
        """Wrap a bare student; `pooling` is "mean" or "cls"."""
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return `(texts, hidden_size)` for two `(texts, tokens)` int64 tensors."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return functional.normalize(hidden[:, 0], dim=-1)
        # The sum and the mean have one direction.
        kept = hidden * attention_mask[..., None].to(hidden.dtype)
        return functional.normalize(kept.sum(dim=1), dim=-1)


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


def compare(wanted: np.ndarray, found: np.ndarray) -> Parity:
    """Compare two arrays of `(texts, width)` unit vectors, row by row.

    Raises:
        UserError: a vector is not finite.
    """
    if not np.isfinite(found).all():
        raise UserError("the exported model gives NaN or infinite vectors; use another version")
    cosines = np.minimum(np.einsum("ij,ij->i", wanted, found, dtype=np.float64), 1)
    figures = (cosines.mean(), cosines.min(), np.abs(wanted - found).max())
    return Parity(*(round(float(figure), 7) for figure in figures))


def check_modules(folder: Path) -> None:
    """Raise if a folder does more than a transformer, a pooling and a normalisation.

    Raises:
        UserError: it has a module that the graph would leave out.
    """
    path = folder / "modules.json"
    if not path.exists():
        return
    kinds = [m["type"].rpartition(".")[2] for m in storage.read_json(path, "write it again")]
    if others := [kind for kind in kinds if kind not in MODULES]:
        raise UserError(
            f"{folder} has a module of the kind {others[0]}; only a transformer with pooling and "
            "normalisation is exported: name a student, such as distil_modernbert"
        )


def export_onnx(model: ModernBertModel, pooling: str, path: Path) -> None:
    """Write a student as one ONNX file: `input_ids`, `attention_mask` to `sentence_embedding`.

    Texts a batch and tokens a text are free. Nothing in the file tells of this machine.
    """
    before = model.config._attn_implementation
    # sdpa gives the same numbers out of half as many nodes again.
    model.set_attn_implementation("eager")
    axes = {0: "batch", 1: "tokens"}
    # Two tensors: one object given twice would be traced as one input.
    example = tuple(torch.ones(2, 8, dtype=torch.long) for _ in range(2))
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # It warns that torchvision is missing, and that two inputs share their axes.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                SentenceEncoder(model, pooling).eval(),
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=["input_ids", "attention_mask"],
                output_names=["sentence_embedding"],
                dynamic_shapes={"input_ids": axes, "attention_mask": axes},
                verbose=False,
            )
    finally:
        exporter.setLevel(level)
        model.set_attn_implementation(before)
    made = program.model_proto
    _forget_source(made)
    onnx.checker.check_model(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(made, path)


def _forget_source(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes at every node: stack traces with this machine's paths."""
    graph = model.graph
    parts: list[Any] = [model, graph, *graph.node, *graph.initializer, *graph.value_info]
    for part in [*parts, *graph.input, *graph.output]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def export_openvino(onnx_file: Path, path: Path) -> bool:
    """Write OpenVINO's form of an ONNX file, in fp32; False where openvino is not installed."""
    try:
        import openvino
    except ImportError:
        logger.info("openvino is not installed, so its form is not made")
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    model = openvino.Core().read_model(str(onnx_file))
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return True


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
    found = [""]
    for rung in np.unique(np.geomspace(1, max_tokens, number).round().astype(int)):
        text = next(source)
        while len(cut := tokenizer.encode(text, add_special_tokens=False)) < rung:
            text = f"{text} {next(source)}"
        found.append(text[: cut.offsets[rung - 1][1]])
    return found


def token_batches(
    texts: Sequence[str], tokenizer: Tokenizer, pad_token_id: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return token ids and masks of texts, in batches of near-equal lengths."""
    ids = [found.ids for found in tokenizer.encode_batch(list(texts)) if found.ids]
    cut = cut_by_length([len(row) for row in ids], TOKENS_PER_BATCH)
    return [pad([ids[row] for row in rows], pad_token_id) for rows in cut]


def torch_encoder(folder: Path, max_tokens: int) -> Callable[[Sequence[str]], np.ndarray]:
    """Return what sentence-transformers makes of texts with a folder: fp32, on the CPU.

    Raises:
        UserError: the folder does not load.
    """
    model = encoders.load_encoder(folder).model.to("cpu").float()
    model.max_seq_length = max_tokens

    def encode(texts: Sequence[str]) -> np.ndarray:
        return vectors.normalise(model.encode(list(texts), batch_size=8, show_progress_bar=False))

    return encode


def table(folder: Path, parity: dict[str, Parity]) -> str:
    """Return the table of what each form weighs and how far it is off."""
    rows = []
    for form, figures in parity.items():
        size = sum((folder / name).stat().st_size for name in _files(folder, form))
        cosines = (f"{figures.mean_cosine:.6f}", f"{figures.min_cosine:.6f}")
        rows.append([form, f"{size / 1e6:.1f}", *cosines, f"{figures.max_error:.1e}"])
    return report.table(["form", "MB", "mean cosine", "least cosine", "largest error"], rows)


def describe(folder: Path, parity: dict[str, Parity], **more: int | str) -> None:
    """Write export.json: what goes in, what comes out, each file's digest and its parity.

    Args:
        folder: the export.
        parity: of each form that is checked; empty before any is.
        more: `dimensions`, `max_tokens`, `pad_token_id`, `pooling`.
    """
    tokens = ["batch", "tokens"]
    content = {
        "inputs": {"input_ids": tokens, "attention_mask": tokens},
        "input_type": "int64",
        "outputs": {"sentence_embedding": ["batch", more["dimensions"]]},
        "output_type": "float32, unit length",
        **more,
        "files": {
            name: {
                "bytes": (folder / name).stat().st_size,
                "sha256": storage.sha256_file(folder / name),
            }
            for form in parity
            for name in _files(folder, form)
        },
        "parity": {form: vars(figures) for form, figures in parity.items()},
    }
    storage.write_json(folder / DESCRIPTION, content)


def _files(folder: Path, form: str) -> list[str]:
    weights = str(Path(form).with_suffix(".bin"))
    return [form, weights] if (folder / weights).exists() else [form]
