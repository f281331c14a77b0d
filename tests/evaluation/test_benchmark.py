"""Promises of benchmark_hotpotqa.py, try_it.py and the modules that serve only them."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import make_corpus
from script_runner import load_script, refusal

from small_modernbert.data.evaluation_sets import load_retrieval_set
from small_modernbert.evaluation import benchmark, speed
from small_modernbert.models import encoders, vectors
from small_modernbert.runs import settings
from small_modernbert.runs.errors import UserError

WORDS = [
    "rain",
    "snow",
    "sun",
    "wind",
    "cloud",
    "river",
    "hill",
    "forest",
    "stone",
    "bridge",
    "boat",
]


def make_tokenizer() -> "object":
    """Make a word-level tokenizer of WORDS."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a teacher, its reduction, a student, a model2vec twin and data."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        Normalize,
        StaticEmbedding,
    )

    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    table = torch.nn.functional.normalize(torch.randn(len(WORDS) + 2, 16), dim=1).numpy()

    def static(width: int) -> StaticEmbedding:
        return StaticEmbedding(tokenizer, embedding_weights=table[:, :width].copy())

    teacher = SentenceTransformer(modules=[static(16), Normalize()], device="cpu")
    teacher.save_pretrained(str(folder / "teacher"), create_model_card=False)
    dense = Dense(16, 8, bias=False, activation_function=torch.nn.Identity())
    reduced = SentenceTransformer(
        modules=[*teacher, dense, Normalize()],
        device="cpu",
    )
    reduced.save_pretrained(str(folder / "reduced"), create_model_card=False)
    student = SentenceTransformer(modules=[static(8), Normalize()], device="cpu")
    student.save_pretrained(str(folder / "student"), create_model_card=False)

    from model2vec import StaticModel

    StaticModel(table[:, :8].copy(), tokenizer).save_pretrained(folder / "twin")
    (folder / "twin" / "modules.json").unlink(missing_ok=True)  # the bare model2vec form

    random = np.random.default_rng(0)
    documents = [" ".join(random.choice(WORDS, 6)) for _ in range(60)]
    tables = {
        "corpus": {"_id": [f"d{i}" for i in range(60)], "text": documents},
        "queries": {
            "_id": [f"q{i}" for i in range(20)],
            "text": [" ".join(documents[i].split()[:3]) for i in range(20)],
        },
        "qrels": {
            "query-id": [f"q{i}" for i in range(20)],
            "corpus-id": [f"d{i}" for i in range(20)],
        },
    }
    for part, columns in tables.items():
        (folder / "retrieval" / part).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / "retrieval" / part / "weather.parquet")
    pairs = {"sentence1": documents[:9], "sentence2": documents[1:10], "label": [0, 1, 1] * 3}
    pq.write_table(pa.table(pairs), folder / "mrpc.parquet")
    return folder


def flags(world: Path, *more: str) -> list[str]:
    """Return the flags of a complete benchmark over the made world."""
    return [
        *("--models", f"student={world / 'student'}", f"copy={world / 'student'}"),
        *("--teacher", str(world / "teacher"), "--reduced-teacher", str(world / "reduced")),
        *("--static-twin", str(world / "twin"), "--retrieval", "weather"),
        *("--retrieval-folder", str(world / "retrieval"), "--sts", str(world / "mrpc.parquet")),
        *("--speed-documents", "5", "--speed-queries", "5", "--recipe", "made", *more),
    ]


def test_the_benchmark_end_to_end(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All rows are there, nothing is encoded twice, and a rerun keeps and shows the table."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    encoded: list[str] = []
    encode_to = encoders.Encoder.encode_to

    def counting(self: encoders.Encoder, path: Path, *rest: object) -> np.ndarray:
        if not path.exists():
            encoded.append(self.name)
        return encode_to(self, path, *rest)

    monkeypatch.setattr(encoders.Encoder, "encode_to", counting)
    texts = make_corpus(tmp_path / "texts", {"train": [" ".join(WORDS[1:])], "held_out": WORDS[:1]})
    told = flags(world, "--training-text", str(texts))
    settings.run(load_script("benchmark_hotpotqa").__dict__, told)
    final = tmp_path / "made" / "benchmark_hotpotqa" / "final"
    results = json.loads((final / "results.json").read_text())
    rows = {row["label"]: row for row in results["rows"]}
    assert list(rows) == [
        "teacher",
        "reduced teacher",
        "student",
        "copy",
        "static twin",
        "student > reduced teacher",
        "BM25",
        "student + BM25",
        "teacher + BM25",
    ]
    # queries, documents and pairs, once for each of three distinct models: the reduced teacher
    # comes from the teacher's vectors, and the copy is the student
    assert sorted(encoded) == ["static twin"] * 3 + ["student"] * 3 + ["teacher"] * 3
    assert rows["copy"]["retrieval"] == rows["student"]["retrieval"]
    assert rows["teacher"]["share_of_teacher"] == 1
    assert rows["student"]["parameters"] == 8 * (len(WORDS) + 2)
    assert rows["student"]["parameters_without_embeddings"] == 0
    assert rows["reduced teacher"]["parameters_without_embeddings"] == 16 * 8
    assert rows["student"]["pairs"].keys() == {"mrpc"}
    assert rows["student"]["documents_per_second"] > 0
    # the same table, loaded by two libraries
    assert rows["static twin"]["quality"] == pytest.approx(rows["student"]["quality"], abs=0.02)
    assert rows["BM25"]["quality"] > 0.5
    assert (final / "results.png").stat().st_size > 1000
    # "rain" is the word that no training text holds
    asked = load_retrieval_set(world / "retrieval", "weather").queries
    new = sum(WORDS[0] in query.split() for query in asked)
    for row in rows.values():
        parts = row["by_words"]["weather"]
        assert (parts["new"]["queries"], parts["known"]["queries"]) == (new, 20 - new)
        whole = sum(part["queries"] * part["ndcg@10"] for part in parts.values()) / 20
        assert whole == pytest.approx(row["quality"])
    assert rows["teacher"]["share_by_words"] == {"new": 1, "known": 1}
    kept = parts["new"]["ndcg@10"] / rows["teacher"]["by_words"]["weather"]["new"]["ndcg@10"]
    assert row["share_by_words"]["new"] == row["shares_by_words"]["weather"]["new"] == kept
    shown = (final / "results.md").read_text()
    assert f"(weather: {new} of 20)" in shown and f"{100 * kept:.1f} %" in shown
    assert "is agreement" in shown and "## weather" in shown
    assert not (final.parent / "scratch").exists()
    capsys.readouterr()

    settings.run(load_script("benchmark_hotpotqa").__dict__, told)
    shown = capsys.readouterr().out
    assert "kept as it is" in shown
    assert "| reduced teacher" in shown


def test_a_killed_benchmark_goes_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors that were finished before a kill are not encoded again, and the result is equal."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    fetched: list[str] = []
    load = encoders.load_encoder

    def dying(folder: Path, name: str, *prompts: str) -> encoders.Encoder:
        if name == "static twin":
            raise RuntimeError("killed")
        return load(folder, name, *prompts)

    monkeypatch.setattr(encoders, "load_encoder", dying)
    with pytest.raises(RuntimeError, match="killed"):
        settings.run(load_script("benchmark_hotpotqa").__dict__, flags(world, "--no-bm25"))

    def watching(folder: Path, name: str, *prompts: str) -> encoders.Encoder:
        encoder = load(folder, name, *prompts)
        if name != "static twin":
            monkeypatch.setattr(
                encoder, "encode_batch", lambda texts, _: fetched.extend(texts) or 1
            )
        return encoder

    monkeypatch.setattr(encoders, "load_encoder", watching)
    monkeypatch.setattr(encoders, "reduction_of", lambda *_: lambda vectors: 1 / 0)
    settings.run(load_script("benchmark_hotpotqa").__dict__, flags(world, "--no-bm25"))
    assert fetched == []
    final = tmp_path / "made" / "benchmark_hotpotqa" / "final"
    assert len(json.loads((final / "results.json").read_text())["rows"]) == 6


def test_kept_vectors_serve_the_next_benchmark(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VECTORS: a benchmark of the same texts encodes none, one of other texts encodes its own."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    encoded: list[str] = []
    encode = vectors.write_vectors

    def counting(path: Path, *rest: object) -> None:
        encoded.append(path.name)
        encode(path, *rest)

    monkeypatch.setattr(encoders, "write_vectors", counting)
    monkeypatch.setattr(benchmark, "write_vectors", counting)
    scores = []
    for name, more in (("one", ()), ("two", ()), ("three", ("--max-queries", "3"))):
        script = load_script("benchmark_hotpotqa").__dict__
        settings.run(script, flags(world, "--vectors", "kept", "--variant", name, *more))
        folder = tmp_path / "made" / f"benchmark_hotpotqa@{name}"
        scores.append(json.loads((folder / "final" / "results.json").read_text())["rows"])
        assert not (folder / "scratch").exists()
        assert bool(encoded) == (name != "two")
        encoded.clear()
    assert len(list((tmp_path / "kept").iterdir())) == 2 * 4
    for one, two in zip(scores[0], scores[1], strict=True):
        assert one["retrieval"] == two["retrieval"] and one["pairs"] == two["pairs"]
    # Where vectors are kept is none of the results' properties.
    kept = flags(world, "--variant", "one", "--vectors", "elsewhere")
    settings.run(load_script("benchmark_hotpotqa").__dict__, kept)
    assert not (tmp_path / "elsewhere").exists()


def test_a_stage_without_a_reduced_teacher_costs_only_its_row(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where teacher and student are equally wide there is none, and the reader is told."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    (tmp_path / "made" / "create_distil_dataset" / "final").mkdir(parents=True)
    script = load_script("benchmark_hotpotqa")
    more = ["--reduced-teacher", "create_distil_dataset/reduced_teacher"]
    settings.override(script.__dict__, flags(world, *more))
    models, _ = script.find_inputs()
    assert list(models) == ["teacher", "student", "copy", "static twin"]
    assert "reduced teacher: " in capsys.readouterr().out
    more = ["--static-twin", "create_distil_dataset/twin"]
    settings.override(script.__dict__, flags(world, *more))
    with pytest.raises(UserError, match="static twin: .*create_distil_dataset/.*twin"):
        script.find_inputs()


def test_a_labelling_stage_names_its_reduced_teacher(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default, the labelling stage itself, finds the model below its final/."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    below = tmp_path / "made" / "create_distil_dataset" / "final" / "reduced_teacher"
    below.mkdir(parents=True)
    script = load_script("benchmark_hotpotqa")
    default = script.REDUCED_TEACHER
    for reference in (default, "create_distil_dataset/reduced_teacher"):
        settings.override(script.__dict__, flags(world, "--reduced-teacher", reference))
        assert script.find_inputs()[0]["reduced teacher"] == below


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--models", "a=sts_fine_tuning"], "run: python sts_fine_tuning.py --recipe made"),
        (["--models", "a=x/y", "a=x/z"], "label 'a' stands twice"),
        (["--sts", "assets/no.parquet"], "no.parquet is not there; run: python get_offline_assets"),
        (["--retrieval", "boolq"], "sets in this folder: weather"),
        (["--retrieval-folder", ""], "--retrieval-folder assets/retrieval"),
        (["--training-text", "mlm/create_dataset"], "run: python mlm/create_dataset.py"),
    ],
)
def test_wrong_references_are_named_with_their_cure(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    message: str,
) -> None:
    """What can't be used ends the run in one line, before anything is encoded."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    assert message in refusal("benchmark_hotpotqa", flags(world, *change), capsys)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no model"),
        ({"config.json": '{"model_type": "bert"}'}, "does not load"),
        ({"modules.json": "[", "config.json": "{}"}, "does not load"),
        ({"modules.json": "[]", "pytorch_model.bin": ""}, "pickle"),
    ],
)
def test_a_folder_without_a_usable_model_is_named(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    """A model that fails to load is an error with its label, never a missing row."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"^mine: .*{message}"):
        encoders.load_encoder(tmp_path, "mine")


def test_encoding_is_independent_of_order_and_batches(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorting, deduplication, batches and windows leave each text's vector in its own row."""
    encoder = encoders.load_encoder(world / "student", "mine")
    random = np.random.default_rng(5)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 30))) for _ in range(50)]
    texts += texts[:7]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert np.allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
    monkeypatch.setattr(encoders, "CHARACTERS_PER_BATCH", 200)
    monkeypatch.setattr(encoders, "WINDOW_TEXTS", 11)
    assert np.allclose(encoder.encode(texts), alone, atol=1e-6)
    stored = encoder.encode_to(tmp_path / "v" / "x.npy", texts, "x")
    assert np.allclose(stored, alone, atol=1e-6)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_encoding_equals_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    """A student's vectors are those that anyone who loads the folder gets, truncation included."""
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers.processors import TemplateProcessing
    from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

    from small_modernbert.models import inference, students

    backend = make_tokenizer()
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    pair = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        local_attention=8,
        pad_token_id=0,
        cls_token_id=pair[0][1],
        bos_token_id=pair[0][1],
        sep_token_id=pair[1][1],
        eos_token_id=pair[1][1],
    )
    students.Student(ModernBertModel(config), tokenizer, 24, pooling).save(tmp_path)
    encoder = encoders.load_encoder(tmp_path, "mine")
    assert inference.load_engine(encoder.model, "fp32").packed
    random = np.random.default_rng(5)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 60))) for _ in range(40)] + [""]
    reference = SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    assert np.allclose(encoder.encode(texts), vectors.normalise(reference), atol=1e-5)
    assert encoder.parameters - encoder.parameters_without_embeddings == 64 * 32


def test_another_teachers_reduction_is_not_taken_for_its_own(world: Path) -> None:
    """Only a reduced teacher whose body is this teacher shares its vectors; so does the teacher."""
    reduced = encoders.load_encoder(world / "reduced")
    teacher = encoders.load_encoder(world / "teacher")
    texts = [" ".join(WORDS), "rain on stone"]
    reduce = encoders.reduction_of(reduced, teacher)
    assert reduce is not None
    assert np.allclose(reduce(teacher.encode(texts)), reduced.encode(texts), atol=1e-5)
    assert encoders.reduction_of(reduced, encoders.load_encoder(world / "student")) is None
    itself, vectors = encoders.reduction_of(teacher, teacher), teacher.encode(texts)
    assert itself is not None and np.allclose(itself(vectors), vectors, atol=1e-6)


def test_the_speed_sample_is_fixed_by_the_seed(world: Path) -> None:
    """Every model is timed on the same texts."""
    sets = [load_retrieval_set(world / "retrieval", "weather")]
    documents, queries = speed.draw_sample(sets, 7, 1000, seed=1)
    assert (len(documents), len(queries)) == (7, 20)
    assert speed.draw_sample(sets, 7, 1000, seed=1) == (documents, queries)
    assert speed.draw_sample(sets, 7, 1000, seed=2) != (documents, queries)


def test_a_search_that_finds_nothing_has_no_row(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no query shares a word with a document, the report says so instead of zeros."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    folder = tmp_path / "silent"
    tables = {
        "corpus": {"_id": ["d1", "d2"], "text": ["rain", "snow"]},
        "queries": {"_id": ["q1"], "text": ["sun"]},
        "qrels": {"query-id": ["q1"], "corpus-id": ["d1"]},
    }
    for part, columns in tables.items():
        (folder / part).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / part / "silent.parquet")
    more = ["--retrieval", "silent", "--retrieval-folder", str(folder), "--static-twin", ""]
    settings.run(load_script("benchmark_hotpotqa").__dict__, flags(world, *more))
    final = tmp_path / "made" / "benchmark_hotpotqa" / "final"
    results = json.loads((final / "results.json").read_text())
    assert not any("BM25" in row["label"] for row in results["rows"])
    assert "no query of silent shares a word" in results["remarks"][0]
    assert "no row of BM25: no query of silent" in (final / "results.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--top-k", "0"], "--top-k 5"),
        (["--lines", "-1"], "--lines 6"),
        (["--bm25-weight", "2"], "--bm25-weight 0.5"),
        (["--question", " \t"], "QUESTION is blank"),
        (["--passages", "nowhere.parquet"], "nowhere.parquet is not there"),
    ],
)
def test_try_it_refuses_in_one_line(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    message: str,
) -> None:
    """What cannot be obeyed is said before anything is loaded, with the flag that works."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    arguments = ["--model", str(world / "student"), "--question", "rain", *change]
    assert message in refusal("try_it", arguments, capsys)


@pytest.mark.parametrize(
    "question", ["\udcff", "\x00", "unheard of", "rain " * 50_000, "\u0000\ud800"]
)
def test_try_it_answers_whatever_is_asked(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    question: str,
) -> None:
    """Bytes that are no text, words nobody knows, and a book are answered with passages."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    arguments = ["--model", str(world / "student"), "--recipe", "made", "--top-k", "500"]
    arguments += ["--passages", str(world / "retrieval" / "corpus"), "--question", question]
    settings.run(load_script("try_it").__dict__, arguments)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) >= 60 and max(map(len, shown.splitlines())) < 400


@pytest.mark.parametrize(
    "kind", ["txt", "md", "csv", "tsv", "jsonl", "json", "PARQUET", "jsonl.gz"]
)
def test_try_it_reads_passages_of_any_kind(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """Whatever kind of file the passages are in, and in a folder of them."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    text = "rain on the bridge"
    content = {
        "txt": text,
        "md": text,
        "csv": f"id,text\n1,{text}\n",
        "tsv": f"id\ttext\n1\t{text}\n",
        "jsonl": json.dumps({"text": text}),
        "json": json.dumps([{"text": text, "id": 1}]),
        "jsonl.gz": json.dumps({"text": text}),
    }
    path = tmp_path / "mine" / f"passages.{kind}"
    path.parent.mkdir()
    if kind == "PARQUET":
        pq.write_table(pa.table({"text": [text]}), path)
    else:
        packed = gzip.compress if kind.endswith("gz") else bytes
        path.write_bytes(packed(content[kind].encode()))
    arguments = ["--model", str(world / "student"), "--recipe", "made", "--question", "bridge"]
    for place in (path, path.parent):
        settings.run(load_script("try_it").__dict__, [*arguments, "--passages", str(place)])
        assert text in capsys.readouterr().out


def test_try_it_searches_by_words_too(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A word that the model has never seen still finds its passage, unless it is asked not to."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    texts = [" ".join(WORDS[row : row + 4]) for row in range(8)] + ["xylograph of a boat"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "passages.parquet")
    arguments = ["--model", str(world / "student"), "--recipe", "made", "--top-k", "1"]
    arguments += ["--passages", str(tmp_path / "passages.parquet"), "--question", "xylograph hill"]
    for weight, wanted in (("0.9", True), ("0", False)):
        settings.run(load_script("try_it").__dict__, [*arguments, "--bm25-weight", weight])
        assert ("xylograph of" in capsys.readouterr().out) == wanted


def test_try_it_answers_a_question(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The nearest passage comes first with its score; passages are encoded once per model."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    made = load_retrieval_set(world / "retrieval", "weather")
    arguments = ["--model", str(world / "student"), "--recipe", "made", "--top-k", "2"]
    arguments += ["--passages", str(world / "retrieval" / "corpus")]
    settings.run(load_script("try_it").__dict__, [*arguments, "--question", made.documents[4]])
    shown = capsys.readouterr().out
    assert made.documents[4] in shown
    assert "1.000" in shown
    stored = list((tmp_path / "made" / "try_it").glob("*/*.npz"))
    assert len(stored) == 1

    before = stored[0].stat().st_mtime_ns
    lines = f"{made.documents[5]}\n\n{made.documents[6]}\nquit\n{made.documents[7]}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff?\n" + lines.encode())))
    settings.run(load_script("try_it").__dict__, arguments)
    shown = capsys.readouterr().out
    assert shown.count("1.000") >= 2
    assert stored[0].stat().st_mtime_ns == before


def test_try_it_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained it says which command trains."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    with pytest.raises(SystemExit):
        settings.run(load_script("try_it").__dict__, ["--recipe", "made", "--question", "who?"])
    assert "make run" in capsys.readouterr().err
