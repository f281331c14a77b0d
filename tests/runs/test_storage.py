"""Promises of storage.py: files and folders are wholly there or not there."""

import errno
import fcntl
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError


def make_folder(path: Path, **files: str) -> Path:
    """Make a folder with the given files."""
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text, encoding="utf-8")
    return path


def test_sha256_of_a_file_larger_than_a_chunk(tmp_path: Path) -> None:
    """The digest of a file does not depend on the pieces it is read in."""
    data = os.urandom(storage.CHUNK_BYTES + 17)
    (tmp_path / "data").write_bytes(data)
    assert storage.sha256_file(tmp_path / "data") == hashlib.sha256(data).hexdigest()


def test_digest_json_is_canonical() -> None:
    """Equal values have equal digests whatever the order of their keys; others differ."""
    assert storage.digest_json({"a": 1, "b": [2]}) == storage.digest_json({"b": [2], "a": 1})
    assert storage.digest_json({"a": 1}) != storage.digest_json({"a": 2})


def test_digest_folder_sees_names_contents_and_places(tmp_path: Path) -> None:
    """A folder's digest changes with any file's content, name or place, and with nothing else."""
    digest = storage.digest_folder(make_folder(tmp_path / "one", a="1", b="2"))
    assert digest == storage.digest_folder(make_folder(tmp_path / "two", b="2", a="1"))
    assert digest != storage.digest_folder(make_folder(tmp_path / "three", a="1", b="3"))
    assert digest != storage.digest_folder(make_folder(tmp_path / "four", a="1", c="2"))
    make_folder(tmp_path / "one" / "below", b="2")
    assert digest != storage.digest_folder(tmp_path / "one")


def test_digest_reads_linked_files(tmp_path: Path) -> None:
    """A folder of links, as the hub's cache has them, has the digest of what they point to."""
    plain = make_folder(tmp_path / "plain", a="1")
    linked = make_folder(tmp_path / "linked")
    (linked / "a").symlink_to(plain / "a")
    assert storage.digest_folder(linked) == storage.digest_folder(plain)


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that dies half way leaves the old content under the name."""
    path = tmp_path / "below" / "run.json"
    storage.write_json(path, {"n": "é"})

    def full(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        storage.write_json(path, {"n": 2})
    assert storage.read_json(path, "") == {"n": "é"}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Until the block ends the old file stands; a block that raises leaves it, and no rest."""
    path = tmp_path / "below" / "vectors.npy"
    with storage.replacing(path) as beside:
        beside.write_bytes(b"old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), storage.replacing(path) as beside:
        beside.write_bytes(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["vectors.npy"]


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_unreadable_json_names_file_and_cure(tmp_path: Path, content: bytes | None) -> None:
    """A missing or damaged JSON file is an error that names the file and the cure."""
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json .*; do this"):
        storage.read_json(path, "do this")


def test_publish_replaces(tmp_path: Path) -> None:
    """Publishing gives the built folder its name, replaces an older one and leaves nothing over."""
    final = tmp_path / "final"
    for content in ("old", "new"):
        beside = make_folder(tmp_path / "final.partial", file=content)
        make_folder(beside / "below", file=content)
        storage.publish(beside, final)
        assert (final / "file").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_published_weights_are_as_readable_as_other_files(
    tmp_path: Path, mask: int, mode: int
) -> None:
    """The weights, which safetensors makes private, get the rights that the umask allows."""
    import torch
    from safetensors.torch import save_file

    beside = make_folder(tmp_path / "final.partial")
    before = os.umask(mask)
    try:
        save_file({"a": torch.zeros(9)}, beside / "model.safetensors")
        storage.publish(beside, tmp_path / "final")
    finally:
        os.umask(before)
    assert (tmp_path / "final" / "model.safetensors").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(("renames", "content"), [(0, "old"), (1, "old"), (2, "new")])
def test_recover_after_a_kill_while_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, content: str
) -> None:
    """A kill before, between or after the two renames leaves the old folder or the new one."""
    final = make_folder(tmp_path / "final", file="old")
    beside = make_folder(tmp_path / "final.partial", file="new")
    rename, done = Path.rename, []

    def dying_rename(path: Path, target: Path) -> Path:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", dying_rename)
        storage.publish(beside, final)
        raise KeyboardInterrupt  # after both, before the old one is gone
    if renames == 2:
        make_folder(tmp_path / "final.old", file="old")
    storage.recover(final)
    assert (final / "file").read_text() == content
    assert not (tmp_path / "final.old").exists()
    storage.recover(final)  # again: nothing to do
    assert (final / "file").read_text() == content


def test_remove_does_not_follow_links(tmp_path: Path) -> None:
    """Removing a link to a folder removes the link; removing what is not there is no error."""
    folder = make_folder(tmp_path / "kept", file="1")
    link = tmp_path / "link"
    link.symlink_to(folder)
    storage.remove(link)
    assert not link.exists()
    assert (folder / "file").exists()
    storage.remove(folder / "file")
    storage.remove(folder / "file")
    storage.remove(folder)
    assert not folder.exists()


def test_damage_is_named(tmp_path: Path) -> None:
    """A missing, longer or changed file is named; another time alone is no damage."""
    folder = make_folder(tmp_path / "folder", a="one", b="two")
    files = storage.describe_files(folder, storage.list_files(folder))
    assert list(files) == ["a", "b"]
    os.utime(folder / "a", ns=(1, 1))
    assert storage.find_damage(folder, files) is None
    (folder / "a").write_text("0ne", encoding="utf-8")
    assert storage.find_damage(folder, files) == "a has changed"
    (folder / "a").write_text("longer", encoding="utf-8")
    assert storage.find_damage(folder, files) == "a has 6 bytes, not 3"
    (folder / "a").unlink()
    assert storage.find_damage(folder, files) == "a is missing"


def test_space_is_looked_for(tmp_path: Path) -> None:
    """What does not fit is refused before it is written, with both figures and the cure."""
    folder = tmp_path / "not" / "there" / "yet"
    storage.check_space(folder, 0)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(
        UserError, match=r"needs .* MB, and .* MB are free there; .*RUNS=/elsewhere"
    ):
        storage.check_space(folder, free + (1 << 40))
    assert not folder.exists()


def test_lock_is_taken_once(tmp_path: Path) -> None:
    """A second one is refused with the owner's number; a closed one is free again."""
    first = storage.take_lock(tmp_path / "lock", "in use by {owner}")
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        storage.take_lock(tmp_path / "lock", "in use by {owner}")
    first.close()
    storage.take_lock(tmp_path / "lock", "").close()


def test_disk_without_locks_is_not_taken_for_a_busy_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a network disk has no locks, that is said, not that another process runs."""

    def no_locks(stream: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\).*RUNS=") as said:
        storage.take_lock(tmp_path / "lock", "in use by {owner}")
    assert "in use" not in str(said.value)


def test_damaged_array_is_named(tmp_path: Path) -> None:
    """An array cut short, empty, or pickled is refused with its cure; a whole one is read."""
    path = tmp_path / "vectors.npy"
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(path, whole)
    assert (storage.read_array(path) == whole).all()
    assert (storage.read_array(path, mapped=True) == whole).all()
    data = path.read_bytes()
    pickled = np.array([{"a": 1}], dtype=object)
    for damage in (
        lambda: path.write_bytes(data[:-5]),
        lambda: path.write_bytes(b""),
        lambda: np.save(path, pickled, allow_pickle=True),
    ):
        damage()
        with pytest.raises(UserError, match=r"vectors\.npy is damaged .* run the same command"):
            storage.read_array(path)
