"""Promises of storage.py: files and folders are wholly there or not there."""

import hashlib
import os
from pathlib import Path

import pytest

from small_modernbert import storage
from small_modernbert.errors import UserError


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
