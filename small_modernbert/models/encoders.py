"""One way to turn texts into unit vectors, whatever the model: load_encoder(folder).encode(texts).

Folders may be of sentence-transformers, of transformers (pooled by the mean, and said so) or of
model2vec. Importing this module is cheap; loading a model imports torch.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from small_modernbert.models import loading
from small_modernbert.models.vectors import normalise, open_vectors, write_vectors
from small_modernbert.runs import hub, report, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.hub import split_revision

# Sorted by length inside windows of this many texts, so that memory is flat over any corpus.
WINDOW_TEXTS = 16_384
# A padded batch is bounded by its characters, about four to a token: 2,048 tokens, whose
# activations stay in a CPU's cache (all-MiniLM-L6-v2: 1.4 x the speed of 8,192).
CHARACTERS_PER_BATCH = 8_192
TEXTS_PER_BATCH = 256
# A model's other exports and its card do not count as its size.
NOT_SIZE = frozenset({"onnx", "openvino", ".cache"})
logger = logging.getLogger(__name__)


@dataclass
class Encoder:
    """A loaded model that encodes texts.

    Attributes:
        name: as the tables show it.
        encode_batch: texts of similar length -> `(texts, width)` vectors, of any norm.
        longest: characters of a text that can matter; the rest is truncated in any case.
        parameters: weights in the model.
        parameters_without_embeddings: those that are not in an embedding table.
        size_bytes: what the model takes on disk.
        model: the object that was loaded.
    """

    name: str
    encode_batch: Callable[[list[str]], np.ndarray]
    longest: int
    parameters: int
    parameters_without_embeddings: int
    size_bytes: int
    model: Any = None

    def encode(self, texts: Sequence[str], description: str | None = None) -> np.ndarray:
        """Return `(texts, width)` float32 unit vectors; equal texts are encoded once.

        Args:
            texts: any number of them, in any order.
            description: labels a progress bar for work of more than five seconds.

        Raises:
            UserError: a vector holds NaN or infinity.
        """
        unique = list(dict.fromkeys(texts))
        row_of = {text: row for row, text in enumerate(unique)}
        order = sorted(range(len(unique)), key=lambda row: len(unique[row]))
        label = description or self.name
        vectors: np.ndarray | None = None
        with report.progress(description=label, total=len(unique), unit=" texts") as bar:
            # The longest batch first: what does not fit into memory fails at once.
            for rows in reversed(self._cut(order, unique)):
                found = normalise(self.encode_batch([unique[row] for row in rows]))
                if not np.isfinite(found).all():
                    row = rows[int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])]
                    raise UserError(
                        f"{self.name} gives NaN or infinity for the text {unique[row][:80]!r}; "
                        f"{loading.CURE}"
                    )
                if vectors is None:
                    vectors = np.empty((len(unique), found.shape[1]), dtype=np.float32)
                vectors[rows] = found
                bar.update(len(rows))
        if vectors is None:
            raise ValueError("there is no text to encode")
        if len(unique) == len(texts):
            return vectors
        return vectors[[row_of[text] for text in texts]]

    def encode_to(self, path: Path, texts: Sequence[str], description: str) -> np.ndarray:
        """Encode into a `.npy` file unless it is there, and return it as a memory map.

        Window by window, so neither the texts (which may be a lazy column) nor the vectors need
        to fit into memory. The file appears only when it is complete.
        """
        if open_vectors(path, len(texts)) is None:
            starts = range(0, len(texts), WINDOW_TEXTS)
            windows = (
                self.encode(list(texts[start : start + WINDOW_TEXTS]), description)
                for start in starts
            )
            write_vectors(path, len(texts), windows)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _cut(self, order: list[int], texts: list[str]) -> list[list[int]]:
        batches: list[list[int]] = [[]]
        for row in order:
            # Sorted ascending, so this text is the one that the batch would be padded to.
            padded = min(max(len(texts[row]), 1), self.longest) * (len(batches[-1]) + 1)
            full = padded > CHARACTERS_PER_BATCH or len(batches[-1]) >= TEXTS_PER_BATCH
            if batches[-1] and full:
                batches.append([])
            batches[-1].append(row)
        return [batch for batch in batches if batch]


def digest_model(reference: Path | str) -> str:
    """Return one digest for all folders that encode alike, whatever else lies in them.

    Weights, tokenizer, configuration and modules count; cards, run files and mined pairs do not.
    A hub id stands for itself.
    """
    if isinstance(reference, str):
        return reference
    decisive = {"config.json", "tokenizer.json", "modules.json", "sentence_bert_config.json"}
    return storage.digest_json(
        {
            path.relative_to(reference).as_posix(): storage.sha256_file(path)
            for path in storage.list_files(reference)
            if path.suffix == ".safetensors" or path.name in decisive
        }
    )


def fetch(reference: str) -> Path:
    """Return the folder of a hub model, `id@revision` if pinned; download it when it is not there.

    Raises:
        UserError: it can't be had; the message names `make run`.
    """
    return hub.fetch_model(*split_revision(reference))


def load_encoder(folder: Path, name: str | None = None) -> Encoder:
    """Load the model in a folder; its form is told by its files.

    Raises:
        UserError: there is no model, it is not in safetensors, or it does not load.
    """
    name = name or folder.name
    if not ((folder / "modules.json").exists() or (folder / "config.json").exists()):
        raise UserError(f"{name}: {folder} holds no model (no modules.json, no config.json)")
    load = _load_static if _is_model2vec(folder) else _load_sentence_transformer
    try:
        with loading.explained("model", folder):
            loading.check_folder(folder)
            encoder = load(folder, name)
            # A model that cannot encode one text must not fail after an hour of others.
            if not np.isfinite(encoder.encode_batch(["A trial."])).all():
                raise ValueError("it gives NaN or infinity")
    except UserError as error:
        raise UserError(f"{name}: {folder} does not load: {error}") from error
    return encoder


def size_on_disk(folder: Path) -> int:
    """Return the bytes of a model's files: weights, tokenizer and configuration."""
    total = 0
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.suffix in {".safetensors", ".json", ".txt", ".model"} and not (
            NOT_SIZE & set(parts)
        ):
            total += path.stat().st_size  # follows the links of the hub's cache
    return total


def reduction_of(reduced: Encoder, teacher: Encoder) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return what turns the teacher's vectors into the reduced teacher's, if that is all it does.

    A reduced teacher is the teacher followed by Dense and Normalize, so its vectors need no
    second pass over the texts. Whether it is so is tried on a few texts, not assumed.

    Returns:
        `(texts, teacher width)` unit vectors -> `(texts, reduced width)` unit vectors, or None.
    """
    modules = list(reduced.model) if hasattr(reduced.model, "_modules") else []
    first = next((i for i, m in enumerate(modules) if type(m).__name__ == "Dense"), None)
    if first is None:
        return None
    import torch

    def reduce(vectors: np.ndarray) -> np.ndarray:
        pieces = []
        with torch.inference_mode():
            for start in range(0, len(vectors), WINDOW_TEXTS):
                piece = np.array(vectors[start : start + WINDOW_TEXTS], dtype=np.float32)
                features = {"sentence_embedding": torch.from_numpy(piece).to(reduced.model.device)}
                for module in modules[first:]:
                    features = module(features)
                pieces.append(features["sentence_embedding"].float().cpu().numpy())
        return normalise(np.concatenate(pieces))

    probes = ["A small model.", "Which river flows through Vienna?", "Rain fell on the hills. " * 9]
    try:
        guessed = reduce(teacher.encode(probes))
    except RuntimeError:  # the widths do not fit: another teacher
        return None
    agreement = np.einsum("ij,ij->i", guessed, reduced.encode(probes))
    return reduce if float(agreement.min()) > 0.9999 else None


def _is_model2vec(folder: Path) -> bool:
    if (folder / "modules.json").exists():
        return False
    config = storage.read_json(folder / "config.json", "save the model again")
    # transformers always writes a model_type; model2vec writes its own one, or none (0.10).
    known = isinstance(config, dict)
    return known and config.get("model_type", "model2vec") == "model2vec"


def _load_sentence_transformer(folder: Path, name: str) -> Encoder:
    import torch
    from sentence_transformers import SentenceTransformer

    from small_modernbert.models.inference import load_engine
    from small_modernbert.models.teachers import token_ids

    if not (folder / "modules.json").exists():
        logger.info("%s: %s has no pooling of its own; the mean is taken", name, folder)
    model = SentenceTransformer(
        str(folder),
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True, "dtype": torch.float32},
    )
    loading.check_weights(model, folder)
    model.eval()

    def encode_batch(texts: list[str]) -> np.ndarray:
        vectors = model.encode(
            texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(vectors)

    engine = load_engine(model, "fp32")
    if engine.packed and not model.default_prompt_name:
        padded = encode_batch

        def encode_batch(texts: list[str]) -> np.ndarray:
            ids = token_ids(model, texts)
            # A tokenizer without special tokens makes nothing of an empty text.
            if not all(ids):
                return padded(texts)
            return engine.encode(ids, tokens_per_batch=sum(map(len, ids)))

    tables = {
        id(parameter): parameter.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag)
        for parameter in module.parameters()
    }
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = model.max_seq_length
    return Encoder(
        name=name,
        encode_batch=encode_batch,
        # A static model has no limit; the batch's budget alone bounds it then.
        longest=int(min(float(tokens or 1e9), 1e9)) * 5,
        parameters=parameters,
        parameters_without_embeddings=parameters - sum(tables.values()),
        size_bytes=size_on_disk(folder),
        model=model,
    )


def _load_static(folder: Path, name: str) -> Encoder:
    from model2vec import StaticModel

    try:
        model = StaticModel.from_pretrained(folder)
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error}") from error
    return Encoder(
        name=name,
        encode_batch=lambda texts: np.asarray(model.encode(texts, use_multiprocessing=False)),
        longest=5 * (model.max_length or 10**9),
        parameters=model.embedding.size,
        parameters_without_embeddings=0,
        size_bytes=size_on_disk(folder),
        model=model,
    )
