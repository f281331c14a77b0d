"""Files that are either wholly there or not there: atomic writes, digests, folder manifests."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from small_modernbert.errors import UserError

CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal, reading it in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def digest_json(value: Any) -> str:  # noqa: ANN401  anything that JSON can carry
    """Return a sha256 over the canonical JSON form of `value`: equal values, equal digests."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def list_files(folder: Path) -> list[Path]:
    """Return every file below `folder`, sorted by its relative path.

    Links to files count as what they point to: the hub's cache consists of them.
    """
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def digest_folder(folder: Path) -> str:
    """Return one digest over the names and contents of all the files below `folder`."""
    return digest_json(
        {path.relative_to(folder).as_posix(): sha256_file(path) for path in list_files(folder)}
    )


def fsync_path(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush every file and every folder below `folder`, then `folder` itself."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink():
            fsync_path(path)
    fsync_path(folder)


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401  anything that JSON can carry
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path, cure: str) -> Any:  # noqa: ANN401  anything that JSON can carry
    """Read a JSON file of ours.

    Raises:
        UserError: the file is missing or no JSON; `cure` is appended to the message.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there; {cure}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {cure}") from None


def publish(beside: Path, final: Path) -> None:
    """Give a finished folder its name: flush it, then rename it into place.

    An existing `final` is moved aside first and removed last, so that a kill in between leaves
    either the old folder or the new one under a name that `recover` knows.
    """
    fsync_tree(beside)
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        remove(old)
        final.rename(old)
    beside.rename(final)
    fsync_path(final.parent)
    remove(old)


def recover(final: Path) -> None:
    """Undo a `publish` that was killed between its two renames."""
    old = final.with_name(f"{final.name}.old")
    if old.exists():
        if final.exists():
            remove(old)
        else:
            old.rename(final)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
