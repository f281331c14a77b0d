"""An exported student on a CPU, without torch and without transformers.

    from small_modernbert.models.onnx_encoder import OnnxEncoder
    encoder = OnnxEncoder("runs/offline/export_model/final", "onnx/model_quantized.onnx", threads=2)
    vectors = encoder.encode(["a text", "another"])

Needs numpy, tokenizers and onnxruntime (or openvino, for its files). The file stands alone: it may
be copied to a server that has nothing else of ours.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

DESCRIPTION = "export.json"
ENGINES = {".onnx": "onnxruntime", ".xml": "openvino"}  # by the ending of what they run
TOKENS_PER_BATCH = 2_048  # padding included; what stays in a CPU's cache beats larger batches
TEXTS_AT_ONCE = 16_384  # tokenised and sorted together, so that memory is flat over any corpus

Infer = Callable[[np.ndarray, np.ndarray], np.ndarray]


class OnnxEncoder:
    """Turns texts into unit vectors with one file of an exported folder.

    Attributes:
        dimensions: width of the vectors.
        max_tokens: longer texts are cut, special tokens included.
        prompts: beginnings of texts by name, as the model was trained with.
        default_prompt: name of the one for neither queries nor documents; None for none.
    """

    def __init__(self, folder: Path | str, file: str = "onnx/model.onnx", threads: int = 0) -> None:
        """Load the tokenizer and one model file.

        Args:
            folder: the final/ of export_model.py.
            file: below it: .onnx runs in onnxruntime, .xml in openvino.
            threads: of the engine; 0 leaves the number to it.

        Raises:
            FileNotFoundError: the folder is not an export, or has no such file.
        """
        folder = Path(folder)
        for needed in (DESCRIPTION, "tokenizer.json", file):
            if not (folder / needed).is_file():
                raise FileNotFoundError(f"{folder / needed} is not there; run: export_model.py")
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        self.dimensions: int = description["dimensions"]
        self.max_tokens: int = description["max_tokens"]
        self.prompts: dict[str, str] = description.get("prompts", {})
        self.default_prompt: str | None = description.get("default_prompt_name")
        self._pad: int = description["pad_token_id"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(self.max_tokens)
        self._tokenizer.no_padding()
        start = _openvino if ENGINES.get(Path(file).suffix) == "openvino" else _onnxruntime
        self._infer: Infer = start(folder / file, threads)

    def encode(
        self,
        texts: Sequence[str],
        tokens_per_batch: int = TOKENS_PER_BATCH,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Return `(texts, dimensions)` float32 unit vectors, in the order given.

        Texts are batched by length, so little padding is computed.

        Args:
            texts: any number of them.
            tokens_per_batch: padding included.
            prompt_name: of the prompt in front of each, such as "query"; None for the model's
                default prompt, if it has one.
            prompt: the text itself, in place of a named one; "" for none.
        """
        if prompt is None:
            prompt = self.prompts.get(prompt_name or self.default_prompt or "", "")
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            window = [prompt + text for text in texts[start : start + TEXTS_AT_ONCE]]
            ids = [encoded.ids for encoded in self._tokenizer.encode_batch_fast(window)]
            # A tokenizer without special tokens makes nothing of an empty text.
            ids = [row or [self._pad] for row in ids]
            for rows in cut_by_length([len(row) for row in ids], tokens_per_batch):
                batch, mask = pad([ids[row] for row in rows], self._pad)
                vectors[[start + row for row in rows]] = self._infer(batch, mask)
        return vectors


def cut_by_length(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Return batches of row numbers of near-equal lengths, the longest first.

    Args:
        lengths: tokens of each text.
        tokens_per_batch: bound on rows times the longest row; a text longer than it goes alone.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    for row in order:
        # Sorted, so a batch is as wide as its first row.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def pad(ids: Sequence[Sequence[int]], pad_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids padded at the end, and their mask: two `(texts, tokens)` int64 arrays."""
    width = max(len(row) for row in ids)
    batch = np.full((len(ids), width), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for place, row in enumerate(ids):
        batch[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return batch, mask


def _onnxruntime(path: Path, threads: int) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; a warning a start says nothing to a user
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def infer(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return infer


def _openvino(path: Path, threads: int) -> Infer:
    import openvino

    # fp32 unless asked: on a processor with bf16 units it would round without a word.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def infer(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        outputs = request.infer({"input_ids": ids, "attention_mask": mask})
        return np.array(outputs["sentence_embedding"])

    return infer
