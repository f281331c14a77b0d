"""Vectors as arrays: made unit length, cut to fewer dimensions, kept in a file."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from small_modernbert.runs import storage

logger = logging.getLogger(__name__)


def open_vectors(path: Path, rows: int) -> np.ndarray | None:
    """Map a `.npy` file of so many vectors; None if it is not there, or is none."""
    if not path.exists():
        return None
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s cannot be used (%s) and is made again", path, error)
        return None
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != rows:
        logger.warning("%s cannot be used (it holds other vectors) and is made again", path)
        return None
    return vectors


def write_vectors(path: Path, rows: int, windows: Iterable[np.ndarray]) -> None:
    """Write windows of vectors, `rows` rows in all, to a `.npy` file that appears when complete.

    Raises:
        ValueError: the windows hold another number of rows.
    """
    with storage.replacing(path) as beside:
        out, start = None, 0
        for window in windows:
            if out is None:
                out = np.lib.format.open_memmap(beside, "w+", np.float32, (rows, window.shape[1]))
            out[start : start + len(window)] = window
            start += len(window)
        if out is None or start != rows:
            raise ValueError(f"{path}: {rows} rows wanted, {start} came")
        out.flush()


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Return the rows at length 1, float32; a zero row stays zero."""
    wide = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norms > 0, norms, 1)


def shorten(vectors: np.ndarray, dimension: int) -> np.ndarray:
    """Return the first numbers of vectors as unit vectors: `(n, width)` -> `(n, dimension)`."""
    return normalise(vectors[:, :dimension])
