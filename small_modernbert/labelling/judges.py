"""Judges: models that say how well a text answers a query."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from small_modernbert.data.sources import answer_role
from small_modernbert.models import encoders, loading
from small_modernbert.models.encoders import Encoder
from small_modernbert.models.prompts import Role, encode_by_role
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder

SAFE = (
    "take another --judge, or if you trust its source, write it anew: "
    'python -c "from sentence_transformers import CrossEncoder as C; '
    "C('{folder}').save_pretrained('{folder}-safe')\""
)
logger = logging.getLogger(__name__)
Encode = Callable[[list[str], Role], np.ndarray]


class Score(Protocol):
    """What a judge makes of pairs of texts."""

    def __call__(self, pairs: Sequence[tuple[str, str]], roles: Sequence[Role] = ()) -> np.ndarray:
        """Return the scores of (anchor, text); see `Judge.score`."""
        ...


Scale = Literal["sigmoid", "logit", "cosine"]


@dataclass(frozen=True)
class Judge:
    """A loaded judge.

    Attributes:
        name: as reports show it.
        scale: what its scores are: the "logit" of a cross-encoder, or the "sigmoid" of it, from 0
            to 1; or a bi-encoder's "cosine", negative ones at 0. They are not comparable with one
            another, and what margin a loss may ask for differs: it is kept with the scores.
        score: pairs of (anchor, text) -> `(pairs,)` float32 on that scale, in the order given; the
            anchors' roles, if they are not all queries, decide a bi-encoder's prompts.
        encoder: of a bi-encoder, which can mine as well; None for a cross-encoder.
    """

    name: str
    scale: Scale
    score: Score
    encoder: Encoder | None = None

    def gap(self, higher: float, lower: float) -> float:
        """Return how far two scores are apart, both from 0 to 1: of logits, their sigmoids."""
        if self.scale == "logit":
            higher, lower = (float(1 / (1 + np.exp(-score))) for score in (higher, lower))
        return higher - lower


def load_judge(
    place: Path | str,
    revision: str | None = None,
    *,
    scale: Literal["sigmoid", "logit"] = "sigmoid",
    half: bool = True,
    query_prompt: str = "",
    document_prompt: str = "",
) -> Judge:
    """Load a judge from a folder or the hub, on the best device there is.

    A folder whose configuration names a sequence classifier is a cross-encoder; any other one
    must be a bi-encoder, see `encoders.load_encoder`.

    Args:
        place: the folder, or a hub id.
        revision: 40 hex digits pin a hub id; None takes the newest and says so.
        scale: of a cross-encoder's scores.
        half: matrix products in half precision on a GPU.
        query_prompt: of a bi-encoder whose folder names none.
        document_prompt: likewise.

    Raises:
        UserError: it can't be had, does not load, is not in safetensors, gives several scores, or
            is a bi-encoder that compares by the dot product, which has no scale.
    """
    name = place.name if isinstance(place, Path) else place
    if isinstance(place, str):
        place = encoders.fetch(f"{place}@{revision}" if revision else place)
    if is_cross_encoder(place):
        return _load_cross_encoder(place, name, scale, half)
    encoder = encoders.load_encoder(place, name, query_prompt, document_prompt)
    if encoder.similarity != "cosine":
        raise UserError(
            f"the judge {name} compares by the dot product, whose scores have no scale; "
            "name a cross-encoder, or a bi-encoder that compares by the cosine: --judge"
        )

    def encode(texts: list[str], role: Role) -> np.ndarray:
        with half_precision(encoder.model, half):
            return encoder.encode(texts, role=role)

    return Judge(name, "cosine", cosine_scores(encode), encoder)


def half_precision(model: Any, wanted: bool) -> AbstractContextManager[None]:  # noqa: ANN401  of any library
    """Return the context of forward passes on a GPU: fp16, which keeps scores apart; else none.

    bf16 has three bits less: logits of 5 would come in steps of 0.03. Weights stay fp32.
    """
    import torch

    device = getattr(model, "device", torch.device("cpu"))
    on_gpu = isinstance(device, torch.device) and device.type == "cuda"
    return torch.autocast("cuda", dtype=torch.float16, enabled=wanted and on_gpu)


def batch_factor(device: "torch.device") -> int:
    """Return how many times a CPU's batch, 2,048 tokens, suits a device: on a GPU one a GiB."""
    if device.type != "cuda":
        return 1
    import torch

    return max(1, torch.cuda.get_device_properties(device).total_memory >> 30)


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


def cosine_scores(encode: Encode) -> Score:
    """Return the score of a bi-encoder: the cosine, with negative ones at 0.

    Args:
        encode: texts and their role -> `(texts, width)` unit vectors.
    """

    def score(pairs: Sequence[tuple[str, str]], roles: Sequence[Role] = ()) -> np.ndarray:
        if not pairs:
            return np.zeros(0, dtype=np.float32)
        asking = roles or ["query"] * len(pairs)
        answering = [answer_role(role) for role in asking]
        anchors = encode_by_role(encode, [anchor for anchor, _ in pairs], asking)
        texts = encode_by_role(encode, [text for _, text in pairs], answering)
        return np.clip(np.einsum("ij,ij->i", anchors, texts), 0, 1).astype(np.float32)

    return score


def _load_cross_encoder(
    folder: Path, name: str, scale: Literal["sigmoid", "logit"], half: bool
) -> Judge:
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{name}: {folder} holds no safetensors file; nothing else is loaded; "
            f"{SAFE.format(folder=folder)}"
        )
    try:
        model = loading.load(
            "judge",
            folder,
            _open_cross_encoder,
            lambda model: model.predict([("A trial.", "A text.")], show_progress_bar=False),
        )
    except UserError as error:
        raise UserError(f"judge {name}: {folder} does not load: {error}") from error
    if model.num_labels != 1:
        raise UserError(
            f"judge {name}: it gives {model.num_labels} scores a pair; take one that gives a "
            "single score of relevance: --judge BAAI/bge-reranker-base"
        )
    return Judge(name, scale, _scorer(model, name, scale, half))


def _scorer(
    model: "CrossEncoder", name: str, scale: Literal["sigmoid", "logit"], half: bool
) -> Score:
    """Return the function that scores pairs with a cross-encoder."""
    # English has four to five characters a token; what is longer is truncated in any case.
    longest = int(min(model.max_seq_length or 512, 1e6)) * 5

    def score(pairs: Sequence[tuple[str, str]], roles: Sequence[Role] = ()) -> np.ndarray:
        logits = np.zeros(len(pairs), dtype=np.float32)
        lengths = [min(len(query) + len(text), longest) for query, text in pairs]
        for rows in cut_by_length(lengths, batch_factor(model.device)):
            batch = [pairs[row] for row in rows]
            with half_precision(model, half):
                logits[rows] = model.predict(batch, batch_size=len(rows), show_progress_bar=False)
        if not np.isfinite(logits).all():
            query, text = pairs[int(np.flatnonzero(~np.isfinite(logits))[0])]
            raise UserError(
                f"judge {name} gives NaN or infinity for {query[:80]!r} and {text[:80]!r}; "
                "run with --precision fp32, or take another judge"
            )
        if scale == "logit":
            return logits
        return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)

    return score


def _open_cross_encoder(folder: Path) -> "CrossEncoder":
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(
        str(folder),
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        activation_fn=torch.nn.Identity(),
    )
    loading.check_weights(model, folder)
    return model


def cut_by_length(lengths: Sequence[int], factor: int = 1) -> Iterator[list[int]]:
    """Yield row numbers in batches of near-equal lengths, the longest first.

    A batch, padded to its longest, has `factor` times the characters of a CPU's batch at most, and
    as many times its texts; or one row.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        rows = factor * encoders.CHARACTERS_PER_BATCH // max(1, lengths[order[0]])
        rows = min(max(1, rows), factor * encoders.TEXTS_PER_BATCH)
        yield order[:rows]
        order = order[rows:]
