"""Promises of disk_faults.py: whichever library could not write, the cure is told, and where."""

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from small_modernbert.runs import disk_faults, storage
from small_modernbert.runs.errors import UserError


def limited(write: Callable[[Path], Any], path: Path) -> str | None:
    """Write with files of at most 1,000 bytes, in a child; return what was raised, and told."""
    said = path.with_name("said")
    if os.fork() == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write(path)
        except Exception as error:
            told = disk_faults.explain(error, path.parent)
            said.write_text(f"{type(error).__name__}: {error}\n{told}"[:900], encoding="utf-8")
        finally:
            os._exit(0)
    os.wait()
    return said.read_text(encoding="utf-8") if said.exists() else None


def save_tensors(path: Path) -> None:
    """Write as Rust does."""
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1000)}, path)


def save_tokenizer(path: Path) -> None:
    """Write as Rust does, elsewhere."""
    from tokenizers import Tokenizer, models

    vocabulary = {f"entry-{number}": number for number in range(200)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="entry-0")).save(str(path))


def save_table(path: Path) -> None:
    """Write as Arrow does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": np.random.default_rng(0).random(1000)}), path)


def save_state(path: Path) -> None:
    """Write as torch does."""
    import torch

    torch.save({"a": torch.zeros(1000)}, path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: storage.write_text(path, "x" * 2000),
        lambda path: path.write_bytes(bytes(2000)),
        lambda path: np.save(path, np.zeros(1000)),
        save_tensors,
        save_tokenizer,
        save_table,
        save_state,
    ],
    ids=["ours", "python", "numpy", "safetensors", "tokenizers", "arrow", "torch"],
)
def test_failed_write_is_explained(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    """Whichever library cannot write, and however it puts it, the cure is told, and where."""
    raised = limited(write, tmp_path / "file.npy")
    assert raised is not None, "nothing was raised"
    assert str(tmp_path) in raised.splitlines()[-1], raised
    assert "could not be written or read: " in raised.splitlines()[-1], raised
    assert "ulimit -f" in raised.splitlines()[-1], raised


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no right to"),
        (errno.EIO, "the disk reports an error"),
    ],
)
def test_each_failure_has_its_cure(number: int, cure: str) -> None:
    """What the user can cure is told by path and cure; what caused another error counts too."""
    error = OSError(number, os.strerror(number), "/runs/file")
    assert cure in str(disk_faults.explain(error))
    assert str(disk_faults.explain(error)).startswith("/runs/file could not be written or read")
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = error
    told = disk_faults.explain(wrapped)
    assert (told is not None) is (number in disk_faults.FULL)


def test_other_errors_are_not_explained_away() -> None:
    """A missing file, a wrong type or a user error is not taken for a full disk."""
    missing = FileNotFoundError(errno.ENOENT, "No such file", "/runs/file")
    for error in (
        missing,
        TypeError("12 requested"),
        UserError("disk full, errno 28"),
        ValueError(),
    ):
        assert disk_faults.explain(error) is None
