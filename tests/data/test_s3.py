"""A recipe whose texts and labels lie in a bucket, on a real S3 server of this machine (moto's).

Not in the suite's own environment: pip install -r requirements-storage.txt 'moto[server]'
"""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import Language, make_small_models, make_teacher
from script_runner import load_script

from small_modernbert.data.labels import open_labels
from small_modernbert.runs import lineage, places, settings
from small_modernbert.runs.errors import UserError

WHY = "pip install -r requirements-storage.txt 'moto[server]'"
pytest.importorskip("s3fs", reason=WHY)
pytest.importorskip("moto.server", reason=WHY)
pytestmark = pytest.mark.enable_socket


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the URL of an empty bucket."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    name = uuid.uuid4().hex  # the server's state outlives it
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def run(script: str, *flags: str) -> None:
    """Run a script in this process."""
    settings.run(load_script(script).__dict__, ["--recipe", "r", *flags])


def test_from_texts_of_a_bucket_to_a_student(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts come from the bucket, labels go there, and a student streams them: the same bits."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    language = Language(0, topics=6, words_per_topic=10)
    make_small_models(tmp_path, language.words)
    make_teacher(tmp_path / "wide", language.words, language.topics, max_length=64)
    for name in ("a", "b"):
        table = pa.table({"text": [language.passage().text for _ in range(60)]})
        with places.open_url(f"{bucket}/texts/{name}.parquet", "X").open("wb") as stream:
            pq.write_table(table, stream)
    texts = ["--sources", "offline", "--offline-text", f"{bucket}/texts/*.parquet"]
    tokens = ["--tokenizer", str(tmp_path / "tokenizer"), "--max-tokens", "64"]
    run("mlm/create_dataset", *texts, *tokens, "--held-out-rows", "8")
    student = ["--student", str(tmp_path / "student")]
    teacher = ["--teacher", str(tmp_path / "wide"), "--rows-per-shard", "16"]
    url = f"{bucket}/labels"
    run("create_distil_dataset", *student, *teacher, "--output-url", url)
    final = tmp_path / "runs" / "r" / "create_distil_dataset" / "final"
    assert not list(final.rglob("shard-*"))
    here, there = open_labels(final), open_labels(places.reopen(url))
    assert len(there.index["shards"]) > 6
    assert list(here.texts("train")) == list(there.texts("train"))
    there.place.fs.get(there.place.path, str(tmp_path / "copy"), recursive=True)
    few = ["--window-rows", "40", "--rows-per-batch", "8", "--epochs", "2", "--held-out-rows", "8"]
    few += ["--validation-sets", "--precision", "fp32", *student]
    weights = []
    for variant, labels in (("here", str(tmp_path / "copy")), ("there", url), ("sent", str(final))):
        run("distil_modernbert", *few, "--labels", labels, "--variant", variant)
        made = tmp_path / "runs" / "r" / f"distil_modernbert@{variant}" / "final"
        weights.append((made / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(*("create_distil_dataset", *student, *teacher, "--output-url", url, "--variant", "x"))
    assert "holds finished shards (labels.json)" in capsys.readouterr().err


def test_what_is_not_there_is_said(bucket: str) -> None:
    """A key or a bucket that is not there is told in a line, with the URL."""
    for url in (f"{bucket}/none", "s3://nobody-has-this/x"):
        with pytest.raises(UserError, match=f"X: {url} is not there; make it"):
            places.find(url, "X", "make it")


def test_a_changed_file_is_another_input(bucket: str) -> None:
    """Raw texts are known by their ETag: the same bytes again are no change."""
    place = places.open_url(f"{bucket}/texts/a.txt", "X")
    before = []
    for text in (b"one", b"one", b"two"):
        place.fs.pipe_file(place.path, text)
        place.fs.invalidate_cache()
        before.append(lineage.digest_input(place))
    assert before[0] == before[1] != before[2]
