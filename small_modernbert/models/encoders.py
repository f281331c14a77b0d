"""One way to turn texts into vectors, whatever the model: load_encoder(folder).encode(texts).

Folders may be of sentence-transformers, of transformers (pooled by the mean, and said so) or of
model2vec; a file is a form of an export, run by another engine. Importing this module is cheap;
loading a model imports torch.
"""

import importlib.util
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from small_modernbert.models import loading
from small_modernbert.models.onnx_encoder import DESCRIPTION, ENGINES, OnnxEncoder
from small_modernbert.models.prompts import (
    Prompts,
    Role,
    choose_prompts,
    encode_by_role,
    prompt_tokens,
    prompts_of,
)
from small_modernbert.models.vectors import normalise, open_vectors, write_vectors
from small_modernbert.runs import hub, report, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.hub import split_revision

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Sorted by length inside windows of this many texts, so that memory is flat over any corpus.
WINDOW_TEXTS = 16_384
# A padded batch is bounded by its characters, about four to a token: 2,048 tokens, whose
# activations stay in a CPU's cache (all-MiniLM-L6-v2: 1.4 x the speed of 8,192).
CHARACTERS_PER_BATCH = 8_192
TEXTS_PER_BATCH = 256
GPU_FACTOR = 32  # a GPU is fastest when it is full: 65,536 tokens
# A model's other exports, its training and its card are no part of it.
OTHER_FOLDERS = frozenset({"onnx", "openvino", ".cache", "pairs", "checkpoints", "eval"})
MODEL_FILES = frozenset({".safetensors", ".json", ".txt", ".model", ".vocab", ".bpe", ".tiktoken"})
# Of ours and of trainers: what a run did, not what the model does.
RECORDS = re.compile(
    r"(run|manifest|dimensions|transfer|trainer_state|\w*results|requirements|license)\.(json|txt)",
    re.IGNORECASE,
)
logger = logging.getLogger(__name__)


@dataclass
class Encoder:
    """A loaded model that encodes texts.

    Attributes:
        name: as the tables show it.
        encode_batch: texts of similar length with their prompt -> `(texts, width)` vectors, of any
            norm.
        longest: characters of a text that can matter; the rest is truncated in any case.
        parameters: weights in the model; None where an export's record does not say.
        parameters_without_embeddings: those that are not in an embedding table.
        size_bytes: what the model takes on disk.
        model: the object that was loaded.
        prompts: what stands in front of a text, by the part that it plays.
        similarity: how the model compares: the "cosine", for which its vectors are brought to unit
            length, or the "dot" product, for which their length counts.
        batch_factor: how many times CHARACTERS_PER_BATCH a batch may hold.
        engine: what runs an exported form; "" for torch and model2vec.
    """

    name: str
    encode_batch: Callable[[list[str], str], np.ndarray]
    longest: int
    parameters: int | None
    parameters_without_embeddings: int | None
    size_bytes: int
    model: Any = None
    prompts: Prompts = field(default_factory=Prompts)
    similarity: Literal["cosine", "dot"] = "cosine"
    batch_factor: int = 1
    engine: str = ""

    def encode_queries(self, queries: Sequence[str], description: str | None = None) -> np.ndarray:
        """Encode questions, with the prompt that the model wants before them; see `encode`."""
        return self.encode(queries, description, "query")

    def encode_documents(self, texts: Sequence[str], description: str | None = None) -> np.ndarray:
        """Encode what answers, with the prompt that the model wants before it; see `encode`."""
        return self.encode(texts, description, "document")

    def encode(
        self, texts: Sequence[str], description: str | None = None, role: Role = "text"
    ) -> np.ndarray:
        """Return `(texts, width)` float32 vectors whose products are the model's similarities.

        They are of unit length unless the model compares by the dot product. Equal texts are
        encoded once.

        Args:
            texts: any number of them, in any order.
            description: labels a progress bar for work of more than five seconds.
            role: the part that they play, which decides the prompt.

        Raises:
            UserError: a vector holds NaN or infinity.
        """
        prompt = self.prompts.of(role)
        unique = list(dict.fromkeys(texts))
        row_of = {text: row for row, text in enumerate(unique)}
        order = sorted(range(len(unique)), key=lambda row: len(unique[row]))
        label = description or self.name
        vectors: np.ndarray | None = None
        with report.progress(description=label, total=len(unique), unit=" texts") as bar:
            # The longest batch first: what does not fit into memory fails at once.
            for rows in reversed(self._cut(order, unique)):
                batch = self.encode_batch([unique[row] for row in rows], prompt)
                batch = normalise(batch) if self.similarity == "cosine" else batch
                if not np.isfinite(batch).all():
                    row = rows[int(np.flatnonzero(~np.isfinite(batch).all(axis=1))[0])]
                    raise UserError(
                        f"{self.name} gives NaN or infinity for the text {unique[row][:80]!r}; "
                        f"{loading.CURE}"
                    )
                if vectors is None:
                    vectors = np.empty((len(unique), batch.shape[1]), dtype=np.float32)
                vectors[rows] = batch
                bar.update(len(rows))
        if vectors is None:
            raise ValueError("there is no text to encode")
        if len(unique) == len(texts):
            return vectors
        return vectors[[row_of[text] for text in texts]]

    def encode_to(
        self,
        path: Path,
        texts: Sequence[str],
        description: str,
        role: Role | Sequence[Role] = "text",
    ) -> np.ndarray:
        """Encode into a `.npy` file unless it is there, and return it as a memory map.

        Window by window, so neither the texts (which may be a lazy column) nor the vectors need
        to fit into memory. The file appears only when it is complete. The texts may have a role
        each.
        """
        if open_vectors(path, len(texts)) is None:

            def encode(start: int) -> np.ndarray:
                window = list(texts[start : start + WINDOW_TEXTS])
                roles = [role] * len(window) if isinstance(role, str) else role[start:]
                return encode_by_role(
                    lambda some, own: self.encode(some, description, own),
                    window,
                    roles[: len(window)],
                )

            write_vectors(path, len(texts), map(encode, range(0, len(texts), WINDOW_TEXTS)))
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _cut(self, order: list[int], texts: list[str]) -> list[list[int]]:
        batches: list[list[int]] = [[]]
        for row in order:
            # Sorted ascending, so this text is the one that the batch would be padded to.
            padded = min(max(len(texts[row]), 1), self.longest) * (len(batches[-1]) + 1)
            full = (
                padded > self.batch_factor * CHARACTERS_PER_BATCH
                or len(batches[-1]) >= self.batch_factor * TEXTS_PER_BATCH
            )
            if batches[-1] and full:
                batches.append([])
            batches[-1].append(row)
        return [batch for batch in batches if batch]


def digest_model(folder: Path) -> str:
    """Return one digest for all models that encode alike, whatever else lies beside them.

    All that a model's own `encode` uses counts: weights, tokenizer with its settings and special
    tokens, configuration, module folders, prompts, lengths. Cards, records of runs, other exports
    and mined pairs do not. Of an exported form it is that of its own files.
    """
    if folder.is_file():
        paths, root = _form_files(folder), export_of(folder)
    else:
        paths, root = storage.list_files(folder), folder
        paths = [path for path in paths if _belongs(path, folder)]
    return storage.digest_json(
        {path.relative_to(root).as_posix(): storage.sha256_file(path) for path in paths}
    )


def export_of(form: Path) -> Path:
    """Return the folder of the export that a file is a form of.

    Raises:
        UserError: no export.json stands above it.
    """
    for folder in form.parents[:2]:
        if (folder / DESCRIPTION).is_file():
            return folder
    raise UserError(
        f"{form} is no form of an export: there is no {DESCRIPTION} above it; make one: "
        "python export_model.py"
    )


def _form_files(form: Path) -> list[Path]:
    """Return what a form needs to encode: itself, its weights, tokenizer and description."""
    weights = form.with_suffix(".bin")  # of OpenVINO
    beside = [export_of(form) / name for name in ("tokenizer.json", DESCRIPTION)]
    return [form, *([weights] if weights.is_file() else []), *beside]


def _belongs(path: Path, folder: Path) -> bool:
    """Say whether a file is of the model itself."""
    parts = path.relative_to(folder).parts
    return (
        path.suffix in MODEL_FILES
        and not OTHER_FOLDERS.intersection(parts[:-1])
        and not RECORDS.fullmatch(path.name)
    )


def fetch(reference: str) -> Path:
    """Return the folder of a hub model, `id@revision` if pinned; download it when it is not there.

    Raises:
        UserError: it can't be had; the message names `make run`.
    """
    return hub.fetch_model(*split_revision(reference))


def load_encoder(
    folder: Path, name: str | None = None, query_prompt: str = "", document_prompt: str = ""
) -> Encoder:
    """Load the model in a folder, whose kind is told by its files, or a form of an export.

    Args:
        folder: of the model; or a file, for ENGINES to run.
        name: as tables and messages show it; the folder's name if None.
        query_prompt: for a model that names no prompt for queries.
        document_prompt: likewise for documents.

    Raises:
        UserError: there is no model, it is not in safetensors, or it does not load.
    """
    name = name or folder.name
    if folder.is_file():
        return _load_exported(folder, name, query_prompt, document_prompt)
    if not ((folder / "modules.json").exists() or (folder / "config.json").exists()):
        raise UserError(
            f"{name}: {folder} holds no model (no modules.json, no config.json); {loading.CURE}"
        )
    open_model = _load_static if _is_model2vec(folder) else _load_sentence_transformer
    try:
        return loading.load(
            "model",
            folder,
            lambda place: open_model(place, name, query_prompt, document_prompt),
            lambda encoder: encoder.encode_batch(["A trial."], ""),
        )
    except UserError as error:
        raise UserError(f"{name}: {folder} does not load: {error}") from error


def size_on_disk(folder: Path) -> int:
    """Return the bytes of a model's files: weights, tokenizer and configuration."""
    # stat follows the links of the hub's cache.
    return sum(path.stat().st_size for path in folder.rglob("*") if _belongs(path, folder))


def reduction_of(reduced: Encoder, teacher: Encoder) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return what turns the teacher's vectors into the reduced teacher's, if that is all it does.

    A reduced teacher is the teacher followed by Dense and Normalize, or the teacher itself where
    the student is as wide, so its vectors need no second pass over the texts. Whether it is so is
    tried on a few texts, not assumed.

    Returns:
        `(texts, teacher width)` unit vectors -> `(texts, reduced width)` unit vectors, or None.
    """
    modules = list(reduced.model) if hasattr(reduced.model, "_modules") else []
    dense = (i for i, module in enumerate(modules) if type(module).__name__ == "Dense")
    first = next(dense, len(modules))
    if not modules or reduced.prompts != teacher.prompts:
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
        agreement = np.einsum("ij,ij->i", guessed, reduced.encode(probes))
    except (RuntimeError, ValueError):  # the widths do not fit: another teacher
        return None
    return reduce if float(agreement.min()) > 0.9999 else None


def _is_model2vec(folder: Path) -> bool:
    if (folder / "modules.json").exists():
        return False
    config = storage.read_json(folder / "config.json", "save the model again")
    # transformers always writes a model_type; model2vec writes its own one, or none (0.10).
    known = isinstance(config, dict)
    return known and config.get("model_type", "model2vec") == "model2vec"


def _load_sentence_transformer(
    folder: Path, name: str, query_prompt: str, document_prompt: str
) -> Encoder:
    from small_modernbert.models.architecture import count_weights

    if not (folder / "modules.json").exists():
        logger.info("%s: %s has no pooling of its own; the mean is taken", name, folder)
    model = loading.open_sentence_transformer(folder)
    parameters, without_embeddings = count_weights(model)
    tokens = model.max_seq_length
    return Encoder(
        name=name,
        encode_batch=_batch_encoder(model),
        # A static model has no limit; the batch's budget alone bounds it then.
        longest=int(min(float(tokens or 1e9), 1e9)) * 5,
        parameters=parameters,
        parameters_without_embeddings=without_embeddings,
        size_bytes=size_on_disk(folder),
        model=model,
        prompts=prompts_of(model, query_prompt, document_prompt),
        similarity=_similarity(model, name),
        batch_factor=1 if model.device.type == "cpu" else GPU_FACTOR,
    )


def _similarity(model: "SentenceTransformer", name: str) -> Literal["cosine", "dot"]:
    """Return how a model's vectors are compared.

    Raises:
        UserError: by a distance, which no search here ranks by.
    """
    if (said := loading.compares_by(model)) not in ("cosine", "dot"):
        raise UserError(
            f"{name} compares by {said}; models are ranked by cosine or dot product here. If its "
            'vectors can be compared by the cosine, say "similarity_fn_name": "cosine" in its '
            "config_sentence_transformers.json"
        )
    return "dot" if said == "dot" else "cosine"


def _batch_encoder(model: "SentenceTransformer") -> Callable[[list[str], str], np.ndarray]:
    """Return what encodes a batch behind a prompt: packed where that is the model's own result."""
    from small_modernbert.models.inference import load_engine
    from small_modernbert.models.teachers import token_ids

    engine = load_engine(model, "fp32")

    def padded(texts: list[str], prompt: str) -> np.ndarray:
        # A prompt is always given, so that the model's default does not come in unasked.
        return np.asarray(
            model.encode(
                texts,
                prompt=prompt,
                batch_size=len(texts),
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        )

    def packed(texts: list[str], prompt: str) -> np.ndarray:
        ids = token_ids(model, texts, prompt)
        # A tokenizer without special tokens makes nothing of an empty text.
        if not all(ids):
            return padded(texts, prompt)
        budget = sum(map(len, ids))
        return engine.encode(
            ids, tokens_per_batch=budget, prompt_tokens=prompt_tokens(model, prompt)
        )

    return packed if engine.packed else padded


def _load_static(folder: Path, name: str, query_prompt: str, document_prompt: str) -> Encoder:
    from model2vec import StaticModel

    try:
        model = StaticModel.from_pretrained(folder)
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error}") from error
    return Encoder(
        name=name,
        encode_batch=lambda texts, prompt: np.asarray(
            model.encode([prompt + text for text in texts], use_multiprocessing=False)
        ),
        longest=5 * (model.max_length or 10**9),
        parameters=model.embedding.size,
        parameters_without_embeddings=0,
        size_bytes=size_on_disk(folder),
        model=model,
        prompts=Prompts(query=query_prompt, document=document_prompt),
    )


def _load_exported(form: Path, name: str, query_prompt: str, document_prompt: str) -> Encoder:
    """Load a form of an export; it computes on the CPU, with as many threads as torch would.

    Raises:
        UserError: it is none, its engine is not installed, or it does not load.
    """
    folder, engine = export_of(form), ENGINES.get(form.suffix)
    if engine is None:
        raise UserError(f"{name}: {form} is neither of {', '.join(ENGINES)}; name another file")
    if importlib.util.find_spec(engine) is None:
        raise UserError(
            f"{name}: {form} runs in {engine}, which is not installed; run: pip install {engine}, "
            "or name another form of the model"
        )
    import torch

    described = storage.read_json(folder / DESCRIPTION, "run: python export_model.py --overwrite")
    with loading.explained("form of an export", form):
        encoder = OnnxEncoder(
            folder, form.relative_to(folder).as_posix(), threads=torch.get_num_threads()
        )
        if not np.isfinite(encoder.encode(["A trial."])).all():
            raise UserError(f"{name}: {form} gives NaN or infinity; {loading.CURE}")
    return Encoder(
        name=name,
        encode_batch=lambda texts, prompt: encoder.encode(texts, prompt=prompt),
        longest=5 * encoder.max_tokens,
        parameters=described.get("parameters"),
        parameters_without_embeddings=described.get("parameters_without_embeddings"),
        size_bytes=sum(path.stat().st_size for path in _form_files(form)),
        model=encoder,
        prompts=choose_prompts(
            encoder.prompts, encoder.default_prompt, query_prompt, document_prompt
        ),
        batch_factor=GPU_FACTOR,  # it cuts its batches itself, by tokens
        engine=engine,
    )
