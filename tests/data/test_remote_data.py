"""What lies elsewhere is read as what lies here: texts, corpora, labels by the URL of a folder."""

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import make_wordpiece_tokenizer
from script_runner import load_script

from small_modernbert.data import file_rows, labels, outlets
from small_modernbert.data.corpus import open_corpus
from small_modernbert.runs import places, references, settings
from small_modernbert.runs.errors import UserError

WORDS = [f"word{number}" for number in range(200)]
URL = "memory://bucket/labels"


@pytest.fixture
def label_url(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> str:
    """Return the URL of three shards of labels, with texts of their own."""
    vectors = np.random.default_rng(0).normal(size=(3, 10, 4))
    for number in range(3):
        texts = [f"text {number} {row}" for row in range(10)]
        path = labels.shard_path(tmp_path / "labels", "train", number)
        labels.write_shard(path, texts, vectors[number])
    labels.write_index(tmp_path / "labels", 4, {"train": 3})
    memory.put(str(tmp_path / "labels"), "/bucket/", recursive=True)
    return URL


def write_texts(folder: Path) -> None:
    """Write 120 texts as Parquet, gzipped JSON lines, CSV and text, 30 each."""
    chooser = np.random.default_rng(0)
    texts = [" ".join(chooser.choice(WORDS, 12)) for _ in range(120)]
    folder.mkdir()
    pq.write_table(pa.table({"text": texts[:30]}), folder / "a.parquet")
    lines = "\n".join(json.dumps({"text": text}) for text in texts[30:60])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "c.csv").write_text("text\n" + "\n".join(texts[60:90]), encoding="utf-8-sig")
    (folder / "deep").mkdir()
    (folder / "deep" / "d.txt").write_text("\n".join(texts[90:]), encoding="utf-8")


def make_corpus(
    place: str, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch, *more: str
) -> Path:
    """Make a corpus of the texts of a place; return its folder."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    tokenizer = make_wordpiece_tokenizer(tmp_path / "tokenizer", WORDS)
    flags = ["--recipe", recipe, "--sources", "offline", "--offline-text", place]
    flags += ["--tokenizer", str(tokenizer), "--held-out-rows", "10", "--shard-rows", "40"]
    settings.run(load_script("mlm/create_dataset").__dict__, [*flags, *more])
    return tmp_path / "runs" / recipe / "mlm" / "create_dataset" / "final"


def test_a_corpus_of_texts_elsewhere_is_that_of_the_same_texts_here(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of file, the same rows and sources, sent elsewhere too; run.json knows of it."""
    write_texts(tmp_path / "mine")
    memory.put(str(tmp_path / "mine"), "/bucket/", recursive=True)
    here = make_corpus(str(tmp_path / "mine"), tmp_path, "here", monkeypatch)
    url = ["--output-url", "memory://bucket/corpus"]
    there = make_corpus("memory://bucket/mine", tmp_path, "there", monkeypatch, *url)
    assert not list(there.rglob("shard-*"))
    sent = open_corpus(places.reopen(url[1]))
    assert list(sent.texts("train")) == list(open_corpus(there).texts("train"))
    assert open_corpus(here).index["shards"] == open_corpus(there).index["shards"]
    record = json.loads((there.parent / "run.json").read_text())
    read = record["inputs"]["source offline"]
    assert read["path"] == "memory://bucket/mine"
    assert read["digest"] == places.fingerprint(places.reopen(read["path"]))
    assert {source for source in open_corpus(there).index["sources"]} == {"a", "b", "c", "deep/d"}


def test_files_are_named_below_what_they_share(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    """Files of two folders of a bucket keep the folders' names; what shares nothing, its own."""
    for name in ("x/a.txt", "y/a.txt"):
        memory.pipe(f"/bucket/{name}", b"one text")
    (tmp_path / "own.txt").write_text("mine")
    urls = [places.reopen(f"memory://bucket/{name}") for name in ("x/a.txt", "y/a.txt")]
    assert [file.name for file in file_rows.find_files(*urls, cure="")] == ["x/a", "y/a"]
    mixed = file_rows.find_files(*urls, tmp_path / "own.txt", cure="")
    assert [file.name for file in mixed][-1] == "own"


def test_labels_elsewhere_are_read_shard_by_shard(label_url: str, tmp_path: Path) -> None:
    """The same cells as on the disk; of what was fetched nothing stays."""
    there = labels.open_labels(references.need(label_url, "toys", "labels", ""))
    here = labels.open_labels(tmp_path / "labels")
    assert list(there.texts("train")) == list(here.texts("train"))
    vectors = [
        each.vectors("train", tmp_path / f"{number}.f16")
        for number, each in enumerate((here, there))
    ]
    assert np.array_equal(*vectors)
    there.verify()


def test_one_shard_at_a_time_lies_on_this_disk(
    label_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is read there is no other; afterwards there is none."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    fetched = []
    for _ in labels.open_labels(places.reopen(label_url)).batches("train", rows=3):
        fetched.append([path.name for path in (tmp_path / "temporary").rglob("*.parquet")])
    assert fetched == [[f"shard-{number:05d}.parquet"] for number in range(3) for _ in range(4)]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("train/shard-00001.parquet", None, "shard-00001.parquet is not there"),
        ("train/shard-00001.parquet", b"short", "is damaged: 5 bytes, not"),
        ("labels.json", b"{", "is not valid JSON"),
        ("labels.json", None, "labels.json is not there"),
    ],
)
def test_damage_elsewhere_is_named(
    memory: fsspec.AbstractFileSystem, label_url: str, name: str, content: bytes | None, why: str
) -> None:
    """As on the disk: before anything is read, with the URL."""
    path = f"/bucket/labels/{name}"
    memory.rm(path) if content is None else memory.pipe(path, content)
    with pytest.raises(UserError, match=why) as error:
        labels.open_labels(places.reopen(label_url))
    assert f"{URL}/{name}" in str(error.value)


def test_a_changed_byte_elsewhere_is_found(
    memory: fsspec.AbstractFileSystem, label_url: str
) -> None:
    """A shard of the right size with other bytes is told by its sha256."""
    path = "/bucket/labels/train/shard-00001.parquet"
    content = bytearray(memory.cat(path))
    content[40] ^= 1
    memory.pipe(path, bytes(content))
    with pytest.raises(UserError, match=f"{URL}/train/shard-00001.parquet is damaged: its sha256"):
        labels.open_labels(places.reopen(label_url)).verify()


def test_shards_that_were_sent_away_are_read_from_there(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    """The folder of the stage has the index alone, and opens as if it had the shards."""
    outlet = outlets.open_outlet("memory://bucket/sent/", "labels.json", False, tmp_path / "notes")
    folder = tmp_path / "final"
    for number in range(2):
        path = labels.shard_path(folder, "train", number)
        labels.write_shard(path, [f"text {number}"], np.full((1, 4), number), facts={"tokens": 3})
        outlet.send(path)
        assert outlet.has(path)
        assert not path.exists()
    paths = [labels.shard_path(folder, "train", number) for number in range(2)]
    assert labels.add_facts(paths, outlet) == {"tokens": 6}
    labels.write_index(folder, 4, {"train": 2}, outlet=outlet)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["labels.json"]
    for place in (folder, places.reopen("memory://bucket/sent")):
        opened = labels.open_labels(place)
        assert list(opened.texts("train")) == ["text 0", "text 1"]
    memory.rm("/bucket/sent/train/shard-00001.parquet")
    with pytest.raises(UserError, match="memory://bucket/sent/train/shard-00001.parquet is not th"):
        labels.open_labels(folder)


@pytest.mark.parametrize("url", ["file:///etc", "/etc", "../other", 5, {"a": 1}])
def test_an_index_leads_nowhere_else_on_this_disk(label_url: str, tmp_path: Path, url: Any) -> None:  # noqa: ANN401  JSON
    """Shards are beside their index, or at a URL that is no file of this machine."""
    index = json.loads((tmp_path / "labels" / "labels.json").read_text())
    (tmp_path / "labels" / "labels.json").write_text(json.dumps({**index, "url": url}))
    with pytest.raises(UserError, match="its shards.*(on this disk|is no URL)"):
        labels.open_labels(tmp_path / "labels")


@pytest.mark.parametrize(
    ("url", "resumed", "why"),
    [
        ("memory://bucket/labels", False, "holds finished shards .* another --output-url"),
        ("memory://bucket/labels", True, ""),
        ("memory://bucket/other", False, ""),
        ("file:///tmp/labels", False, "is on this disk"),
        ("labels", False, "is no URL"),
    ],
)
def test_finished_shards_elsewhere_are_never_overwritten(
    label_url: str, url: str, resumed: bool, why: str
) -> None:
    """Only the run that was killed between its index and its end may write them again."""
    if not why:
        assert outlets.open_outlet(url, "labels.json", resumed, Path()).url == url
        return
    with pytest.raises(UserError, match=f"OUTPUT_URL: .*{why}"):
        outlets.open_outlet(url, "labels.json", resumed, Path())
