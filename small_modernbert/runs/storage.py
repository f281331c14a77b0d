"""Files that are either wholly there or not there: atomic writes, digests, room, locks."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from small_modernbert.runs.disk_faults import ELSEWHERE
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    import numpy as np

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
    # A file's name may hold bytes that are no UTF-8.
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


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


def describe_files(root: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return path relative to `root` -> size, mtime_ns and sha256 of every file."""
    described = {}
    for path in paths:
        status = path.stat()
        described[path.relative_to(root).as_posix()] = {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": sha256_file(path),
        }
    return described


def find_damage(root: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return what is wrong with the files that `describe_files` once described, or None.

    A file is only read again when its size still fits but its time does not (a copied folder), or
    was not written down.
    """
    for name, known in files.items():
        try:
            status = (root / name).stat()
        except FileNotFoundError:
            return f"{name} is missing"
        if status.st_size != known["size"]:
            return f"{name} has {status.st_size:,} bytes, not {known['size']:,}"
        if (
            status.st_mtime_ns != known.get("mtime_ns")
            and sha256_file(root / name) != known["sha256"]
        ):
            return f"{name} has changed"
    return None


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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place to write a file to, which takes the name `path` when the block ends.

    A reader sees the old file or the whole new one, never half of it; a block that raises leaves
    the old one. Its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        yield beside
        fsync_path(beside)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)  # half a file on a full disk helps nobody
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text`, atomically; see `replacing`."""
    try:
        with replacing(path) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        if error.errno and not error.filename:  # what write() raises names no file
            error.filename = str(path)
        raise


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
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {cure}") from None


def read_array(path: Path, *, mapped: bool = False) -> "np.ndarray":
    """Read an array of ours; `mapped` leaves it on the disk.

    Raises:
        UserError: the file is damaged, or pickled.
    """
    import numpy as np

    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it and run the same command again"
        ) from None


def publish(beside: Path, final: Path) -> None:
    """Give a finished folder its name: flush it, then rename it into place.

    An existing `final` is moved aside first and removed last, so that a kill in between leaves
    either the old folder or the new one under a name that `recover` knows.
    """
    _share(beside)
    fsync_tree(beside)
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        remove(old)
        final.rename(old)
    beside.rename(final)
    fsync_path(final.parent)
    remove(old)


def _share(folder: Path) -> None:
    """Give files the rights that the user's umask allows: safetensors makes them private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in list_files(folder):
        if path.stat().st_mode & 0o777 == 0o600 and not path.is_symlink():
            path.chmod(0o666 & ~mask)


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


def check_space(folder: Path, needed: int) -> None:
    """Make sure that `needed` bytes fit on the disk of `folder`, which need not exist yet.

    Quotas and limits on single files are not seen here; `explain` tells them when they strike.

    Raises:
        UserError: less is free.
    """
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{folder} needs {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there; "
            f"{ELSEWHERE}, then run the same command again"
        )


def take_lock(path: Path, busy: str, wait: Callable[[str], object] | None = None) -> TextIO:
    """Lock a file until the returned stream is closed, and write our process id into it.

    Args:
        path: the file; its folder must exist.
        busy: the message if another process has it, with {owner} for that one.
        wait: called with that message before waiting for it; None = do not wait.

    Raises:
        UserError: another process has it, or the file system has no locks.
    """
    stream = path.open("a+")
    try:
        # The kernel drops the lock with its owner: what a killed one left in the file is stale.
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        owner = stream.read().strip()
        busy = busy.format(owner=f"process {owner or 'unknown'}")
        if wait is None:
            stream.close()
            raise UserError(busy) from None
        wait(busy)
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        stream.close()
        raise UserError(
            f"{path} cannot be locked ({error.strerror}): two runs at once would spoil each other; "
            "use a file system with locks (on NFS: mount it with them), or RUNS=/elsewhere"
        ) from None
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()
    return stream
