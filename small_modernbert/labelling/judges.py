"""Judges: models that say how well a text answers a query, on a scale from 0 to 1."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from small_modernbert.models import encoders, loading
from small_modernbert.models.encoders import Encoder
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)
GPU_FACTOR = 16  # a CPU's batch, which fits its cache, would leave a GPU idle
Score = Callable[[Sequence[tuple[str, str]]], np.ndarray]


@dataclass(frozen=True)
class Judge:
    """A loaded judge.

    Attributes:
        name: as reports show it.
        scale: what its scores are: the "sigmoid" of a cross-encoder's logit, or a bi-encoder's
            "cosine", negative ones at 0. The two are not comparable with one another.
        score: pairs of (query, text) -> `(pairs,)` float32 from 0 to 1, in the order given.
        encoder: of a bi-encoder, which can mine as well; None for a cross-encoder.
    """

    name: str
    scale: Literal["sigmoid", "cosine"]
    score: Score
    encoder: Encoder | None = None


def load_judge(place: Path | str, revision: str | None = None) -> Judge:
    """Load a judge from a folder or the hub, on the best device there is.

    A folder whose configuration names a sequence classifier is a cross-encoder; any other one
    must be a bi-encoder, see `encoders.load_encoder`.

    Args:
        place: the folder, or a hub id.
        revision: 40 hex digits pin a hub id; None takes the newest and says so.

    Raises:
        UserError: it can't be had, does not load, is not in safetensors, or gives several scores.
    """
    name = place.name if isinstance(place, Path) else place
    if isinstance(place, str):
        place = encoders.fetch(f"{place}@{revision}" if revision else place)
    if is_cross_encoder(place):
        return _load_cross_encoder(place, name)
    encoder = encoders.load_encoder(place, name)
    return Judge(name, "cosine", cosine_scores(encoder.encode), encoder)


def is_cross_encoder(folder: Path) -> bool:
    """Say whether a folder's configuration names a cross-encoder.

    Raises:
        UserError: a configuration is no JSON.
    """
    cure = "save the model again"
    own = folder / "config_sentence_transformers.json"
    if own.exists():
        stored = storage.read_json(own, cure)
        if isinstance(stored, dict) and stored.get("model_type") == "CrossEncoder":
            return True
    config = folder / "config.json"
    if not config.exists():
        return False
    stored = storage.read_json(config, cure)
    architectures = stored.get("architectures") if isinstance(stored, dict) else None
    return "ForSequenceClassification" in str(architectures)


def cosine_scores(encode: Callable[[list[str]], np.ndarray]) -> Score:
    """Return the score of a bi-encoder: the cosine, with negative ones at 0.

    Args:
        encode: texts -> `(texts, width)` unit vectors.
    """

    def score(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        if not pairs:
            return np.zeros(0, dtype=np.float32)
        vectors = encode([text for pair in pairs for text in pair])
        cosines = np.einsum("ij,ij->i", vectors[0::2], vectors[1::2])
        return np.clip(cosines, 0, 1).astype(np.float32)

    return score


def _load_cross_encoder(folder: Path, name: str) -> Judge:
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{name}: {folder} holds no safetensors file; nothing else is loaded")
    import torch
    from sentence_transformers import CrossEncoder

    try:
        with loading.explained("judge", folder):
            loading.check_folder(folder)
            model = CrossEncoder(
                str(folder),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
                activation_fn=torch.nn.Sigmoid(),
            )
            loading.check_weights(model, folder)
    except UserError as error:
        raise UserError(f"judge {name}: {folder} does not load: {error}") from error
    if model.num_labels != 1:
        raise UserError(
            f"judge {name}: it gives {model.num_labels} scores a pair; take one that gives a "
            "single score of relevance, such as BAAI/bge-reranker-base"
        )
    budget = encoders.CHARACTERS_PER_BATCH * (1 if model.device.type == "cpu" else GPU_FACTOR)
    # English has four to five characters a token; what is longer is truncated in any case.
    longest = int(min(model.max_seq_length or 512, 1e6)) * 5

    def score(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        scores = np.zeros(len(pairs), dtype=np.float32)
        lengths = [min(len(query) + len(text), longest) for query, text in pairs]
        for rows in cut_by_length(lengths, budget):
            scores[rows] = model.predict(
                [pairs[row] for row in rows], batch_size=len(rows), show_progress_bar=False
            )
        return scores

    return Judge(name, "sigmoid", score)


def cut_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of near-equal lengths, the longest first.

    A batch, padded to its longest, has `budget` characters at most, or one row.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        rows = budget // max(1, lengths[order[0]])
        rows = min(max(1, rows), encoders.TEXTS_PER_BATCH)
        yield order[:rows]
        order = order[rows:]
