"""Promises of places.py: a URL is read or refused by name, and known again by what lies there."""

from pathlib import Path

import fsspec
import pytest
from script_runner import refusal

from small_modernbert.runs import lineage, places, references
from small_modernbert.runs.errors import UserError


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        *(("s3://bucket/x", True), ("memory://a", True), ("hf://datasets/a/b", True)),
        *(("owner/name", False), ("/a//b", False), ("C:/x", False), ("query: what", False)),
        *(("s3://", False), ("see http:// there", False)),
    ],
)
def test_what_a_url_is(reference: str, expected: bool) -> None:
    """A scheme, and something behind it."""
    assert places.is_url(reference) is expected


@pytest.mark.parametrize(
    ("script", "flags", "named"),
    [
        ("distil_modernbert", ["--student", "s3://bucket/model"], "--student s3://bucket/model: "),
        ("create_distil_dataset", ["--teacher", "https://hub/a/b"], "--teacher https://hub/a/b: "),
        ("prepare_documents", ["--documents", "gs://b/notes"], "--documents gs://b/notes: "),
        ("export_model", ["--retrieval-folder", "hf://a/b"], "--retrieval-folder hf://a/b: "),
        ("benchmark_hotpotqa", ["--sts", "s3://b/x.parquet"], "--sts s3://b/x.parquet: "),
    ],
)
def test_a_url_that_is_not_taken_is_refused_by_name(
    script: str, flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is neither a hub id nor a folder: the message has the flag and what to do instead."""
    said = refusal(script, flags, capsys)
    assert named in said
    takers = "--offline-text, --corpus, --labels, --output-url"
    assert f"only {takers} take a URL; fetch it" in said


@pytest.mark.parametrize(
    ("script", "flag", "url", "shown"),
    [
        ("mlm/create_dataset", "offline-text", "https://b.s3/x?a=1&X-Amz-Signature=hush", "=***"),
        ("create_distil_dataset", "output-url", "s3://id:hush@b/labels", "s3://id:***@b/labels"),
        ("distil_modernbert", "labels", "https://b.blob/x?sig=hush", "https://b.blob/x?sig=***"),
    ],
)
def test_a_url_with_a_secret_is_refused(
    script: str, flag: str, url: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would stand in run.json and in indexes: the environment is named in its place."""
    said = refusal(script, [f"--{flag}", url], capsys)
    assert f"--{flag} " in said
    assert f"{shown}: a URL stands in run.json, and this one holds a secret; give that by" in said
    assert "hush" not in said


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("memory://b/none", r"CORPUS: memory://b/none is not there; make it"),
        ("memory://b/*.txt", r"CORPUS: memory://b/\*.txt is not there; make it"),
        ("nonsense://b/x", r"there is no nonsense://; give s3://, gs://, hf:// or https://"),
        ("oci://b/x", r"needs what is not installed .*pip install -r requirements-storage.txt"),
    ],
)
def test_what_cannot_be_found_is_said(
    memory: fsspec.AbstractFileSystem, url: str, why: str
) -> None:
    """Nothing there, a scheme that nobody knows, a library that is missing: each has its cure."""
    with pytest.raises(UserError, match=why):
        references.need(url, "toys", "CORPUS", "make it")


def test_wildcards_name_files_and_a_file_url_the_disk(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    """Files of a pattern come in the order of their names; file:// is a path like any other."""
    for name in ("b", "a", "c"):
        memory.pipe(f"/texts/{name}.txt", b"x")
    memory.pipe("/texts/c.csv", b"x")
    found = places.find("memory://texts/*.txt", "X", "")
    assert list(map(str, found)) == [f"memory://texts/{name}.txt" for name in "abc"]
    assert places.find(f"file://{tmp_path}", "X", "") == [tmp_path]
    assert not places.is_remote(places.find(f"file://{tmp_path}", "X", "")[0])


def test_a_place_is_known_again_until_it_changes(memory: fsspec.AbstractFileSystem) -> None:
    """Raw files by what the file system says of them, shards by the sha256 in their index."""
    memory.pipe("/texts/a.txt", b"one")
    raw = references.need("memory://texts", "toys", "X", "")
    before = lineage.digest_input(raw)
    assert lineage.digest_input(raw) == before
    memory.pipe("/texts/a.txt", b"two")
    assert lineage.digest_input(raw) != before
    for bucket in ("one", "two"):
        memory.pipe(f"/{bucket}/corpus.json", b'{"shards": {"train/shard-00000.parquet": 1}}')
        memory.pipe(f"/{bucket}/train/shard-00000.parquet", bucket.encode())
    one, two = (references.need(f"memory://{bucket}", "toys", "X", "") for bucket in ("one", "two"))
    assert lineage.digest_input(one) == lineage.digest_input(two)
    memory.pipe("/two/corpus.json", b'{"shards": {}}')
    assert lineage.digest_input(one) != lineage.digest_input(two)


def test_raw_files_are_not_read_to_be_known(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket of .json data may hold terabytes."""
    memory.pipe("/texts/a.json", b'[{"text": "a", "shards": 1}]')
    memory.pipe("/texts/b.parquet", b"x")
    monkeypatch.setattr(type(memory), "cat_file", None)
    assert places.fingerprint(places.reopen("memory://texts"))


def test_what_a_library_of_a_storage_raises_is_one_line(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kind it is; passwords stay out of it."""

    def fail(*_: object, **__: object) -> bool:
        raise RuntimeError("no way to https://me:secret@host\n at all")

    monkeypatch.setattr(type(memory), "exists", fail)
    with pytest.raises(UserError, match="cannot be read.*credentials") as error:
        places.find("memory://b/x", "CORPUS", "")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
