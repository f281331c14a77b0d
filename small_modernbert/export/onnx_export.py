"""A trained student as a graph that other engines run: ONNX, and OpenVINO's form of it.

torch.export traces the student with both axes free; the graph takes token ids and their mask and
gives unit vectors, so a reader needs neither pooling nor normalisation of its own.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from small_modernbert.models.onnx_encoder import TOKENS_PER_BATCH, cut_by_length, pad
from small_modernbert.models.students import Student

logger = logging.getLogger(__name__)
OPSET = 20  # the first with Gelu
# The forms, each named by the file that its reader opens.
TORCH, GRAPH, INT8 = "model.safetensors", "onnx/model.onnx", "onnx/model_quantized.onnx"
OPENVINO = "openvino/openvino_model.xml"  # its weights lie beside it, in a .bin


class SentenceEncoder(nn.Module):
    """A student with pooling, head and normalisation: token ids and mask to unit vectors."""

    def __init__(self, student: Student) -> None:
        """Wrap a student."""
        super().__init__()
        self.model, self.head, self.pooling = student.body, student.head, student.pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return `(texts, width)` for two `(texts, tokens)` int64 tensors."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = attention_mask[..., None].to(hidden.dtype)
            # The sum and the mean have one direction; a head may tell them apart.
            pooled = (hidden * mask).sum(dim=1)
            if len(self.head):
                pooled = pooled / mask.sum(dim=1)
        for module in self.head:
            pooled = module({"sentence_embedding": pooled})["sentence_embedding"]
        return functional.normalize(pooled, dim=-1)


def export_onnx(student: Student, path: Path) -> None:
    """Write a student as one ONNX file: `input_ids`, `attention_mask` to `sentence_embedding`.

    Texts a batch and tokens a text are free. Nothing in the file tells of this machine.
    """
    model = student.body
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
                SentenceEncoder(student).eval(),
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
        logger.info(
            "openvino is not installed, so its form is not made; pip install openvino brings it"
        )
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    model = openvino.Core().read_model(str(onnx_file))
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return True


def token_batches(
    texts: Sequence[str], tokenizer: Tokenizer, pad_token_id: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return token ids and masks of texts, in batches of near-equal lengths."""
    ids = [text.ids for text in tokenizer.encode_batch(list(texts)) if text.ids]
    cut = cut_by_length([len(row) for row in ids], TOKENS_PER_BATCH)
    return [pad([ids[row] for row in rows], pad_token_id) for rows in cut]
