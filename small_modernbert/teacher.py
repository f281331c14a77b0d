"""Teachers: sentence-transformers models that label text, and their reduction."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from small_modernbert import hub
from small_modernbert.guide import Projection
from small_modernbert.students import load_error


def load_teacher(reference: Path | str, revision: str | None = None) -> SentenceTransformer:
    """Load a teacher from a folder or the hub, for inference, on the best device there is.

    Raises:
        UserError: it does not load, or the hub cannot be reached.
    """
    try:
        with hub.cached_if_unreachable(reference, revision):
            teacher = SentenceTransformer(
                str(reference),
                revision=revision,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as error:
        raise load_error("teacher", reference, error) from None
    teacher.eval()
    return teacher


def token_ids(teacher: SentenceTransformer, texts: Sequence[str]) -> list[list[int]]:
    """Return each text's token ids as the teacher sees them: special tokens, truncation."""
    encoded = teacher.tokenizer(
        list(texts),
        truncation=True,
        max_length=teacher.max_seq_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return encoded["input_ids"]


@torch.inference_mode()
def encode_ids(
    teacher: SentenceTransformer,
    sequences: Sequence[Sequence[int]],
    *,
    tokens_per_batch: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Encode token ids in batches of near-equal lengths and about `tokens_per_batch` tokens.

    Args:
        teacher: the model; all its modules run, so a reduced teacher gives reduced vectors.
        sequences: token ids of each text, special tokens included.
        tokens_per_batch: bound on the padded tokens of a batch.
        advance: called with the number of rows done after each batch.

    Returns:
        `(texts, dimension)` float32, in the order given.
    """
    lengths = np.asarray([len(sequence) for sequence in sequences])
    order = np.argsort(-lengths, kind="stable")
    pad = teacher.tokenizer.pad_token_id
    result: np.ndarray | None = None
    begin = 0
    while begin < len(order):
        # Longest first: a batch's padded size is its first length times its rows, and too large a
        # budget shows at once instead of at the end.
        width = int(lengths[order[begin]])
        rows = order[begin : begin + max(1, tokens_per_batch // width)]
        begin += len(rows)
        ids = np.full((len(rows), width), pad, dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : lengths[row]] = sequences[row]
        features = {
            "input_ids": torch.from_numpy(ids).to(teacher.device),
            "attention_mask": torch.from_numpy(
                (np.arange(width) < lengths[rows, None]).astype(np.int64)
            ).to(teacher.device),
        }
        vectors = teacher(features)["sentence_embedding"].float().cpu().numpy()
        if result is None:
            result = np.empty((len(order), vectors.shape[1]), dtype=np.float32)
        result[rows] = vectors
        advance(len(rows))
    if result is None:
        dimension = teacher.get_embedding_dimension()
        return np.empty((0, dimension), dtype=np.float32)
    return result


def encode_texts(
    teacher: SentenceTransformer, texts: Sequence[str], *, tokens_per_batch: int
) -> np.ndarray:
    """Encode texts; see `encode_ids`."""
    return encode_ids(teacher, token_ids(teacher, texts), tokens_per_batch=tokens_per_batch)


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Return the rows scaled to unit length; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


def project(vectors: np.ndarray, projection: Projection) -> np.ndarray:
    """Map teacher vectors to the student's width, unit length, float32."""
    return normalise(vectors.astype(np.float32) @ projection.directions.numpy().T)


def reduce_teacher(teacher: SentenceTransformer, projection: Projection) -> SentenceTransformer:
    """Return the teacher followed by a Dense layer with the projection, and a normalisation.

    The Dense layer has no bias: the mean is not subtracted, see `guide.principal_directions`.
    """
    from sentence_transformers.models import Dense, Normalize

    width, dimension = projection.directions.shape
    dense = Dense(dimension, width, bias=False, activation_function=torch.nn.Identity())
    with torch.no_grad():
        dense.linear.weight.copy_(projection.directions)
    reduced = SentenceTransformer(modules=[*teacher, dense, Normalize()], device=teacher.device)
    reduced.eval()
    return reduced


def save_teacher(teacher: SentenceTransformer, folder: Path) -> None:
    """Write a teacher as a sentence-transformers folder: equal teachers, equal files.

    A fast tokenizer remembers the truncation of its last call and would save it: what a run has
    encoded so far, or a resumed one has not, is none of the file's business.
    """
    teacher.tokenizer.backend_tokenizer.no_truncation()
    teacher.tokenizer.backend_tokenizer.no_padding()
    teacher.save(str(folder), create_model_card=False)
