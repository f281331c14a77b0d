"""An int8 copy of an exported graph that stays close to it.

onnxruntime's `quantize_dynamic` alone gives one scale to a whole table and one to all activations
of a matrix product. A student that began as a static model (initialisation/static_table.py) has
two dimensions thirty times the others: everything else is lost in the rounding. Three exact
rewritings come first:

- each product's inputs are divided, channel by channel, and its matrix is multiplied, so that
  both sides share the outliers (SmoothQuant, Xiao et al., arXiv 2211.10438, with alpha 0.75);
- the embedding table gets a scale per column and one per row, and is looked up as int8;
- matrices get a scale per output channel, in 7 bits: with 8, processors without VNNI saturate.

Measured on students of recipes/offline.sh, mean cosine to fp32 over 128 held-out texts: the small
ModernBERT 0.9999 (onnxruntime's own defaults, smoke size: 0.951), three layers of MiniLM 0.9986.
With the paper's alpha of 0.5 these had 0.9898, nearly all of it lost in one product: a unit of the
first layer's feed-forward part reaches 38 where half of them stay below 2, and its weights 8. A
matrix has a scale per channel, the activations one for all, so outliers belong into the matrix.
Activations are scaled per batch, so a text's vector depends a little on what it is encoded with.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic

ALPHA = 0.75  # the share of an outlier that the matrix takes
LEVELS = 127  # of int8, symmetric


def quantise(path: Path, to: Path, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write the int8 copy of a graph.

    Args:
        path: the fp32 graph, of `onnx_export.export_onnx`.
        to: the file to write.
        batches: token ids and masks of real texts, to see how large the activations are.
    """
    model = onnx.load(path)
    smooth(model, activation_peaks(model, batches))
    quantise_table(model)
    # The exporter's shapes are not ours any more, and the quantiser would trust them.
    del model.graph.value_info[:]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a preprocessing that only infers shapes
    try:
        quantize_dynamic(
            model,
            to,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)


def activation_peaks(
    model: onnx.ModelProto, batches: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return, for each input of a product with a matrix, its largest magnitude by channel."""
    names = list(dict.fromkeys(node.input[0] for node in _products(model)))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in names:
        watched.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = SessionOptions()
    options.log_severity_level = 3
    session = InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    peaks: dict[str, np.ndarray] = {}
    for ids, mask in batches:
        inputs = session.run(names, {"input_ids": ids, "attention_mask": mask})
        for name, values in zip(names, inputs, strict=True):
            # What stands at padded places is nobody's, and must not widen a scale.
            real = np.abs(values[mask.astype(bool)]).max(axis=0)
            peaks[name] = np.maximum(peaks.get(name, 0), real)
    return peaks


def smooth(model: onnx.ModelProto, peaks: dict[str, np.ndarray]) -> None:
    """Move outliers of the activations into the matrices, in place; the function stays the same."""
    tensors = _tensors(model)
    for number, node in enumerate(_products(model)):
        weight = numpy_helper.to_array(tensors[node.input[1]])
        reach = np.maximum(peaks[node.input[0]], 1e-5)
        largest = np.maximum(np.abs(weight).max(axis=1), 1e-5)
        share = reach**ALPHA / largest ** (1 - ALPHA)
        share = (share / np.exp(np.log(share).mean())).astype(np.float32)
        # A matrix of its own: two products may share one.
        matrix, factor, scaled = (f"{part}_{number}" for part in ("matrix", "share", "smooth"))
        model.graph.initializer.append(numpy_helper.from_array(weight * share[:, None], matrix))
        model.graph.initializer.append(numpy_helper.from_array(1 / share, factor))
        _insert(model, node, [helper.make_node("Mul", [node.input[0], factor], [scaled])])
        node.input[:] = [scaled, matrix]
    _drop_unused(model)


def quantise_table(model: onnx.ModelProto) -> None:
    """Store the embedding table as int8 with a scale per row and one per column, in place."""
    tensors = _tensors(model)
    node = next(
        node
        for node in model.graph.node
        if node.op_type == "Gather" and len(getattr(tensors.get(node.input[0]), "dims", ())) == 2
    )
    table = numpy_helper.to_array(tensors[node.input[0]])
    columns = np.sqrt((table**2).mean(axis=0, dtype=np.float64)).astype(np.float32)
    columns[columns == 0] = 1
    even = table / columns
    rows = (np.abs(even).max(axis=1, keepdims=True) / LEVELS).astype(np.float32)
    rows[rows == 0] = 1
    stored = {
        "table_int8": np.rint(even / rows).astype(np.int8),
        "table_rows": rows,
        "table_columns": columns,
    }
    for name, values in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    ids = node.input[1]
    _insert(
        model,
        node,
        [
            helper.make_node("Gather", ["table_int8", ids], ["token_int8"], axis=0),
            helper.make_node("Cast", ["token_int8"], ["token"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["table_rows", ids], ["token_row"], axis=0),
            helper.make_node("Mul", ["token", "token_row"], ["token_even"]),
            helper.make_node("Mul", ["token_even", "table_columns"], [node.output[0]]),
        ],
    )
    model.graph.node.remove(node)
    _drop_unused(model)


def _tensors(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _products(model: onnx.ModelProto) -> list[NodeProto]:
    """Return the products of activations with a matrix of the model."""
    tensors = _tensors(model)
    return [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in tensors]


def _insert(model: onnx.ModelProto, before: NodeProto, nodes: Sequence[NodeProto]) -> None:
    place = next(i for i, n in enumerate(model.graph.node) if n.output[0] == before.output[0])
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    for tensor in list(model.graph.initializer):
        if tensor.name not in used:
            model.graph.initializer.remove(tensor)
