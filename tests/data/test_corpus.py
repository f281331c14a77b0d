"""The corpus, from sources to shards: sources.py, corpus*.py."""

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import make_wordpiece_tokenizer

from small_modernbert.data import (
    corpus_building,
    corpus_selection,
    evaluation_sets,
    shards,
    sources,
    workers,
)
from small_modernbert.data.chunking import Chunker
from small_modernbert.data.cleaning import Reason
from small_modernbert.data.corpus import open_corpus
from small_modernbert.data.duplicates import MinHash
from small_modernbert.data.hub_datasets import TEXT_SOURCES, select_texts
from small_modernbert.data.keys import text_key, words_key
from small_modernbert.runs import settings, storage
from small_modernbert.runs.errors import UserError

WORDS = [f"word{number}" for number in range(300)]


def make_text(number: int, words: int) -> str:
    """Return a text of its own, in sentences of ten words."""
    chooser = np.random.default_rng(number)
    drawn = chooser.choice(WORDS, words)
    lines = (" ".join(drawn[i : i + 10]).capitalize() for i in range(0, words, 10))
    return ". ".join(lines) + "."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer that knows the words."""
    return make_wordpiece_tokenizer(tmp_path_factory.mktemp("tokenizer"), WORDS)


@pytest.fixture
def offline_text(tmp_path: Path) -> Path:
    """600 short texts, 100 passages, 5 documents, and bad rows of every kind."""
    rows: list[tuple[str | None, str]] = [(make_text(i, 8), "short") for i in range(600)]
    rows += [(make_text(1_000 + i, 40), "passage") for i in range(100)]
    rows += [(make_text(2_000 + i, 400), "document") for i in range(5)]
    rows += [
        (None, "bad"),
        ("", "bad"),
        (" \n", "bad"),
        ("a b", "bad"),
        ("1 2 3 4 5 6 7 8 9", "bad"),
    ]
    rows += [(make_text(3, 8).upper(), "copy"), (make_text(1_003, 40) + " Word7.", "copy")]
    path = tmp_path / "train.parquet"
    pq.write_table(
        pa.table({"text": [text for text, _ in rows], "source": [label for _, label in rows]}), path
    )
    return path


@pytest.fixture
def script(
    tmp_path: Path, tokenizer: Path, offline_text: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Path]]:
    """A function that runs mlm/create_dataset.py with flags and returns its final/."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))

    def run(*flags: str, before: Callable[[ModuleType], None] | None = None) -> Path:
        module = importlib.reload(importlib.import_module("mlm.create_dataset"))
        fixed = ["--recipe", "r", "--sources", "offline", "--offline-text", str(offline_text)]
        fixed += ["--tokenizer", str(tokenizer), "--max-tokens", "64", "--held-out-rows", "50"]
        fixed += ["--passage-tokens", "30", "--shard-rows", "200"]
        settings.override(vars(module), [*fixed, *flags])
        if before is not None:
            before(module)
        module.main()
        return tmp_path / "runs" / "r" / "mlm" / "create_dataset" / "final"

    yield run


def read_rows(folder: Path, split: str) -> list[dict[str, Any]]:
    """Return all rows of a split."""
    return [row for batch in open_corpus(folder).batches(split) for row in batch.to_pylist()]


def test_table_of_sources_is_complete() -> None:
    """Every source has columns, a licence, and is joined in a way that exists."""
    assert set(TEXT_SOURCES) == {
        "msmarco",
        "philosophy",
        "npr",
        "finewiki",
        "offline",
    }
    for source in TEXT_SOURCES.values():
        assert source.columns
        assert source.licence
        assert source.join in ("each", "joined")
        assert len(source.roles) in (0, len(source.texts))


@pytest.mark.parametrize("names", [["npr", "nrp"], [], ["npr", "npr"]])
def test_wrong_selections_are_refused(names: list[str]) -> None:
    """An unknown, repeated or missing name is refused, and those that exist are named."""
    with pytest.raises(UserError, match="msmarco philosophy npr"):
        select_texts(names)


def test_triplets_are_broken_into_their_texts() -> None:
    """Each column of a row is a text of its own, a missing one too, so that it is counted."""
    source = TEXT_SOURCES["msmarco"]
    batch = {"query": ["q1", "q2"], "positive": ["p1", "p2"], "negative": ["n1", None]}
    cells = list(sources.flatten(source, batch))
    assert [cell.value for cell in cells] == [*("q1", "p1", "n1"), *("q2", "p2", None)]
    assert [cell.role for cell in cells] == ["query", "document", "document"] * 2


def test_a_row_may_say_its_role() -> None:
    """A column names the role where it names one; elsewhere the column's own role stands."""
    source = sources.TextSource(name="mine", id="x", texts=("text",), role="role")
    batch = {"text": ["a", "b", "c"], "role": ["query", None, "poem"]}
    assert [cell.role for cell in sources.flatten(source, batch)] == ["query", "text", "text"]


def test_title_and_body_are_joined() -> None:
    """One text a row; a missing part is left out; a row of nothing stays to be counted."""
    source = TEXT_SOURCES["npr"]
    batch = {"title": ["T", None, None], "body": ["B", "B", " "]}
    assert list(sources.flatten(source, batch)) == [
        ("T\n\nB", "npr", "document"),
        ("B", "npr", "document"),
        (None, "npr", "document"),
    ]


def test_hub_source_is_read_from_a_local_folder(tmp_path: Path) -> None:
    """A dataset's rows come through, capped by a seeded choice that is not its head."""
    rows = [{"title": f"t{i}", "body": f"b{i}"} for i in range(100)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = dataclasses.replace(TEXT_SOURCES["npr"], id=str(tmp_path))
    read = [title for batch in sources.read_source(source, 1) for title in batch["title"]]
    assert read == [row["title"] for row in rows]
    capped = dataclasses.replace(source, cap=20)
    read = [title for batch in sources.read_source(capped, 1) for title in batch["title"]]
    assert len(set(read)) == 20
    assert read != [row["title"] for row in rows[:20]]


def test_parquet_source_is_capped_by_the_seed(offline_text: Path) -> None:
    """A cap on a file is a seeded choice among all its rows, in their order."""
    source = dataclasses.replace(TEXT_SOURCES["offline"], id=str(offline_text), cap=100)

    def read(seed: int) -> list[Any]:
        return [text for batch in sources.read_source(source, seed) for text in batch["text"]]

    assert read(1) == read(1) != read(2)
    assert len(read(1)) == 100
    assert sources.count_source(source) == 100


def test_missing_columns_are_named(tmp_path: Path) -> None:
    """A file with other columns is refused before it is read."""
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"content": ["a"], "source": ["b"]}), path)
    source = dataclasses.replace(TEXT_SOURCES["offline"], id=str(path))
    with pytest.raises(UserError, match="no column 'text'; it has: content, source"):
        next(sources.read_source(source, 1))


def test_bytes_that_are_no_text_are_counted(tmp_path: Path) -> None:
    """A string column with invalid UTF-8 neither stops the run nor hides its other rows."""
    path = tmp_path / "bytes.parquet"
    binary = pa.array([b"good", b"\xff\xfe bad", None], pa.binary())
    text = pa.StringArray.from_buffers(3, *binary.buffers()[1:], binary.buffers()[0])
    pq.write_table(pa.table({"text": text, "source": ["a"] * 3}), path)
    source = dataclasses.replace(TEXT_SOURCES["offline"], id=str(path))
    cells = [cell for batch in sources.read_source(source, 1) for cell in batch["text"]]
    assert cells == ["good", b"\xff\xfe bad", None]


def test_cap_takes_passages_first_and_lets_labels_take_turns() -> None:
    """Passages up to their share, then short texts, then the rest; small labels are not drowned."""
    label = np.array([0] * 80 + [1] * 10 + [2] * 100, dtype=np.int32)
    passage = label < 2
    lots = np.random.default_rng(0).integers(0, 2**63, len(label), dtype=np.uint64)
    order = corpus_selection.rank_for_cap(lots, passage, label, max_passages=30)
    assert sorted(order.tolist()) == list(range(len(label)))
    assert passage[order[:30]].all()
    assert (label[order[:30]] == 1).sum() == 10
    assert (label[order[30:130]] == 2).all()
    assert passage[order[130:]].all()


def test_corpus_is_what_it_says(script: Callable[..., Path]) -> None:
    """Shards, manifest and table agree; every text read is kept or dropped for a reason."""
    final = script()
    corpus = open_corpus(final)
    manifest = corpus.index
    train, held_out = read_rows(final, "train"), read_rows(final, "held_out")
    assert manifest["columns"] == {
        **{name: "string" for name in ("text", "source", "role")},
        "tokens": "int32",
    }
    assert manifest["rows"] == {"train": len(train), "held_out": len(held_out)} == corpus.counts
    assert len(held_out) == 50
    assert sum(row["tokens"] for row in train + held_out) == manifest["tokens"]
    assert max(row["tokens"] for row in train + held_out) <= 64
    assert len([name for name in manifest["shards"] if name.startswith("train/")]) > 1
    for counts in manifest["sources"].values():
        dropped = sum(counts[reason] for reason in Reason)
        assert counts["read"] + counts["extra chunks"] == counts["kept"] + dropped
    assert manifest["sources"]["bad"] | {"kept": 0} == manifest["sources"]["bad"]
    assert manifest["sources"]["bad"][Reason.NOT_TEXT] == 1
    assert manifest["sources"]["bad"][Reason.BLANK] == 2
    assert manifest["sources"]["copy"][Reason.EXACT] == 1
    assert manifest["sources"]["copy"][Reason.NEAR] == 1
    assert manifest["sources"]["document"]["extra chunks"] > 30
    record = json.loads((final.parent / "run.json").read_text())
    assert record["rows"] == manifest["sources"]
    assert "near duplicate" in (final / "corpus.md").read_text()
    assert not (final.parent / "scratch").exists()


def test_rows_are_shuffled(script: Callable[..., Path]) -> None:
    """Kinds of text are spread over the corpus, in all its shards and the held-out part."""
    final = script()
    rows = read_rows(final, "train")
    first = sum(row["source"] == "short" for row in rows[: len(rows) // 2])
    second = sum(row["source"] == "short" for row in rows[len(rows) // 2 :])
    assert first == pytest.approx(second, rel=0.3)
    assert len({row["source"] for row in read_rows(final, "held_out")}) > 1


def test_nothing_of_the_held_out_part_is_trained_on(script: Callable[..., Path]) -> None:
    """No held-out text is in the training part, nor a near duplicate of one."""
    final = script("--held-out-rows", "200")
    train = [row["text"] for row in read_rows(final, "train")]
    held_out = [row["text"] for row in read_rows(final, "held_out")]
    assert not {text_key(text) for text in train} & {text_key(text) for text in held_out}

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return set(zip(words, words[1:], words[2:], strict=False))

    sets = [shingles(text) for text in train]
    for mine in map(shingles, held_out):
        assert max(len(mine & other) / len(mine | other) for other in sets) < 0.9


def test_cap_counts_the_held_out_part(script: Callable[..., Path]) -> None:
    """MAX_TEXTS is the size of all; what it leaves out is counted, passages are in."""
    final = script("--max-texts", "300", "--passage-share", "0.4")
    rows = read_rows(final, "train") + read_rows(final, "held_out")
    assert len(rows) == 300
    assert sum(row["tokens"] >= 30 for row in rows) == 120
    counts = open_corpus(final).index["sources"]
    assert counts["short"][Reason.CAP] == 600 - 180


def test_seed_decides(script: Callable[..., Path]) -> None:
    """The same seed gives the same bytes, another another choice and order."""
    first = storage.digest_folder(script())
    assert storage.digest_folder(script("--overwrite")) == first
    assert storage.digest_folder(script("--overwrite", "--seed", "7")) != first


def test_a_finished_corpus_is_kept(
    script: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run does nothing and says so."""
    final = script()
    before = (final / "corpus.json").stat().st_mtime_ns
    script()
    assert "kept as it is" in capsys.readouterr().out
    assert (final / "corpus.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("where", ["while a source is read", "while shards are written"])
def test_killed_and_run_again_gives_the_same_bytes(
    script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A kill at any place leaves nothing that changes the result; done sources are not reread."""
    wanted = storage.digest_folder(script())
    reads = []
    read_source, write_shard = sources.read_source, shards.write_shard

    def read_and_die(*arguments: Any) -> Iterator[Any]:  # noqa: ANN401  passed on
        reads.append("started")
        yield next(read_source(*arguments))
        if where == "while a source is read":
            raise KeyboardInterrupt

    def write_and_die(*arguments: Any) -> None:  # noqa: ANN401  passed on
        write_shard(*arguments)
        if "train" in str(arguments[0]):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_source", read_and_die)
        patch.setattr(shards, "write_shard", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            script("--overwrite")

    def read_again(*arguments: Any) -> Iterator[Any]:  # noqa: ANN401  passed on
        reads.append("again")
        yield from read_source(*arguments)

    monkeypatch.setattr(sources, "read_source", read_again)
    assert storage.digest_folder(script()) == wanted
    assert reads == (["started", "again"] if "source" in where else ["started"])


def test_unknown_script_is_the_reason(
    script: Callable[..., Path], tmp_path: Path, tokenizer: Path
) -> None:
    """Texts that a tokenizer does not know are no duplicates of each other, and are named."""
    chooser = np.random.default_rng(0)
    words = ["ፀሐይ", "ልጅ", "ጨረቃ", "ሰላም", "መጽሐፍ", "መንገድ", "ተራራ", "ወንዝ"]
    lines = [" ".join(chooser.choice(words, 12)) for _ in range(50)]
    path = tmp_path / "am.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="50 of 50 .*script unknown to the tokenizer 50"):
        script("--offline-text", str(path), "--held-out-rows", "1")
    path.write_text("\n".join(line * 9 for line in lines[:5]), encoding="utf-8")
    with pytest.raises(UserError, match=r"(\d+) of \1 rows .*script unknown to the tokenizer \1"):
        script("--offline-text", str(path), "--held-out-rows", "1", "--overwrite")
    # Half of the words known: each text is compared by its own words.
    mixed = [f"{line} {make_text(number, 16)}" for number, line in enumerate(lines)]
    path.write_text("\n".join([*mixed, mixed[0] + " word7"]), encoding="utf-8")
    final = script("--offline-text", str(path), "--held-out-rows", "1", "--overwrite")
    counts = open_corpus(final).index["sources"]["am"]
    assert (counts["kept"], counts[Reason.NEAR]) == (50, 1)
    assert "yours to state" in (final / "corpus.md").read_text(encoding="utf-8")


def test_texts_of_evaluation_sets_do_not_train(script: Callable[..., Path], tmp_path: Path) -> None:
    """What stands in a set of LEAK_SETS is dropped for that reason, whole or 13 words of it."""
    document, question = make_text(1_000, 40), make_text(3, 8)
    sets = {
        "corpus": {"_id": ["d0", "d1"], "text": [document, "Another answer altogether."]},
        "queries": {"_id": ["q0"], "text": [question.upper()]},
        "qrels": {"query-id": ["q0"], "corpus-id": ["d0"], "score": [1]},
    }
    for part, columns in sets.items():
        path = tmp_path / "sets" / part / "toy.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), path)
    before = {row["text"] for row in read_rows(script(), "train")}
    assert {document, question} <= before
    flags = ("--retrieval-folder", str(tmp_path / "sets"), "--leak-sets", "toy", "--overwrite")
    final = script(*flags)
    counts = open_corpus(final).index["sources"]
    assert counts["passage"][Reason.LEAK] == counts["short"][Reason.LEAK] == 1
    rows = read_rows(final, "train") + read_rows(final, "held_out")
    assert not {document, question} & {row["text"] for row in rows}
    # Nor may a part of a longer text be one of those that are too short for 13 words.
    short = sorted(map(words_key, (question, "Another answer altogether.")))
    assert open_corpus(final).kept_apart == short


def test_texts_of_evaluation_sets_do_not_train_from_the_hub(
    script: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that is named by its id loses what stands in NanoBEIR's sets, read by its id."""
    question, document = make_text(7, 8), make_text(8, 40)
    write_hub_dataset(
        tmp_path / "nano",
        queries={"_id": ["q0"], "text": [question]},
        corpus={"_id": ["d0", "d1"], "text": [f"It says: {document}", "Another one."]},
        qrels={"query-id": ["q0"], "corpus-id": ["d0"]},
    )
    texts = [make_text(number, 8) for number in range(20, 60)]
    rows = {"text": [*texts, question.upper(), document]}
    write_hub_dataset(tmp_path / "source", split="train", own=rows)
    hub_source = sources.TextSource(
        name="mine", id=str(tmp_path / "source"), config="own", texts=("text",), revision=None
    )
    assert sources.find_files(hub_source) is None  # read as the hub's
    monkeypatch.setitem(TEXT_SOURCES, "mine", hub_source)
    monkeypatch.setattr(evaluation_sets, "NANOBEIR", str(tmp_path / "nano"))
    monkeypatch.setattr(evaluation_sets.load_nanobeir, "__defaults__", (None,))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    final = script("--sources", "mine", "--held-out-rows", "1", "--leak-sets", "NanoToy")
    counts = open_corpus(final).index["sources"]["mine"]
    assert (counts["read"], counts["kept"], counts[Reason.LEAK]) == (42, 40, 2)


def write_hub_dataset(folder: Path, split: str = "NanoToy", **configs: dict[str, Any]) -> None:
    """Write a data set as the hub keeps it: a card that names its configurations, and shards."""
    card = ["---", "configs:"]
    for name, columns in configs.items():
        path = folder / name / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), path)
        card += [f"- config_name: {name}", "  data_files:", f"  - split: {split}"]
        card += [f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---"]))


# A run that is refused, what its message says, and the same run as it was told.
CURES: dict[str, tuple[list[str], str, list[str]]] = {
    "another column": (
        [],
        "has no column 'text'; it has: content; .*--text-column",
        ["--text-column", "content"],
    ),
    "no text at all": (
        ["--text-column", "content", "--min-characters", "9999"],
        "--max-lost-share 1 --overwrite",
        ["--text-column", "content", "--min-characters", "12"],
    ),
    "too many held out": (
        ["--text-column", "content", "--held-out-rows", "99"],
        "lower --held-out-rows",
        ["--text-column", "content", "--held-out-rows", "9"],
    ),
}


@pytest.mark.parametrize("name", CURES)
def test_a_refused_corpus_is_made_as_told(
    name: str, script: Callable[..., Path], tmp_path: Path
) -> None:
    """Obeying the message makes the corpus, without redoing or removing anything."""
    path = tmp_path / "own.jsonl"
    rows = [json.dumps({"content": make_text(number, 8)}) for number in range(30)]
    path.write_text("\n".join(rows))
    refused, message, told = CURES[name]
    fixed = ("--offline-text", str(path), "--held-out-rows", "5")
    with pytest.raises(UserError, match=message):
        script(*fixed, *refused)
    assert open_corpus(script(*fixed, *told)).index["sources"]["own"]["kept"] == 30


def test_other_settings_are_refused(script: Callable[..., Path]) -> None:
    """A finished corpus of other settings is not overwritten in silence."""
    script()
    with pytest.raises(UserError, match="MAX_TEXTS: 0 -> 300"):
        script("--max-texts", "300")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--held-out-rows", "100000"], "lower --held-out-rows"),  # more than there is
        (["--near-threshold", "1.5"], "--near-threshold 1.5"),
        (["--offline-text", "nowhere.parquet"], "python get_offline_assets.py"),
        (["--tokenizer", str(Path(__file__).parent)], "tokenizer.json is not there"),
        (["--sources", "wikipedia"], "no such source: wikipedia"),
        (["--max-tokens", "6"], "--max-tokens"),
    ],
)
def test_wrong_settings_name_the_cure(
    script: Callable[..., Path], flags: list[str], message: str
) -> None:
    """What cannot work is one line that says which flag or command to use."""
    with pytest.raises(UserError, match=message):
        script(*flags)


def flip_a_byte(path: Path) -> None:
    """Damage the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "is not there"),  # gone
        (flip_a_byte, "damaged"),  # a flipped bit
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "damaged"),  # cut short
        (lambda path: pq.write_table(pq.read_table(path)[:-1], path), "damaged"),  # rows gone
    ],
)
def test_damaged_shards_are_named(
    script: Callable[..., Path], damage: Callable[[Path], Any], message: str
) -> None:
    """A shard that is not the one that was written is never read in silence."""
    final = script()
    damage(final / "train" / "shard-00001.parquet")
    with pytest.raises(UserError, match=f"shard-00001.parquet.*{message}.*create_dataset"):
        list(open_corpus(final).texts())


def test_memory_stays_flat(
    tmp_path: Path, tokenizer: Path, offline_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source is spilled batch by batch: no more than one batch of texts is held at once."""
    held: list[int] = []
    chunk = Chunker.chunk

    def watch(self: Chunker, texts: list[str]) -> list[list[tuple[str, int]]]:
        held.append(len(texts))
        return chunk(self, texts)

    monkeypatch.setattr(Chunker, "chunk", watch)
    table = pa.concat_tables([pq.read_table(offline_text)] * 20)
    path = tmp_path / "large.parquet"
    pq.write_table(table, path, row_group_size=1_000)
    source = dataclasses.replace(TEXT_SOURCES["offline"], id=str(path))
    preparation = corpus_building.Preparation(
        source, tokenizer / "tokenizer.json", 64, MinHash(16, 0.8, 1), 5
    )
    spill = corpus_building.write_spill(tmp_path / "spill", preparation, 1)
    assert max(held) <= sources.READ_ROWS
    assert len(held) >= table.num_rows // sources.READ_ROWS
    assert spill.rows == len(spill.numbers("key"))


def test_several_processes_give_the_same_corpus(
    tmp_path: Path, tokenizer: Path, offline_text: Path
) -> None:
    """Rows come back in order and counts add up, whoever prepared them."""
    path = tmp_path / "large.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(offline_text)] * 20), path)
    source = dataclasses.replace(TEXT_SOURCES["offline"], id=str(path))
    preparation = corpus_building.Preparation(
        source, tokenizer / "tokenizer.json", 64, MinHash(16, 0.8, 1), 5
    )
    alone = corpus_building.write_spill(tmp_path / "alone", preparation, 1)
    with workers.pool(2) as executor:
        shared = corpus_building.write_spill(tmp_path / "shared", preparation, 1, executor)
    assert shared.index == alone.index
    assert storage.digest_folder(shared.folder) == storage.digest_folder(alone.folder)
