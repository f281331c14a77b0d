"""Promises of export_model.py, onnx_export.py, parity.py, int8.py, onnx_encoder.py, the page."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from browser import browse, needs_browser
from huggingface_hub import HfApi, ModelCard
from miniature import Language
from onnxruntime import InferenceSession
from onnxruntime.quantization import quantize_dynamic
from script_runner import load_script, run_process
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.export import (
    browser_page,
    export_card,
    golden_vectors,
    int8,
    onnx_export,
    parity,
)
from small_modernbert.initialisation import static_table
from small_modernbert.models import card_examples, encoders, module_files, students
from small_modernbert.models.loading import load_backend
from small_modernbert.models.onnx_encoder import OnnxEncoder, cut_by_length, pad
from small_modernbert.models.vectors import normalise
from small_modernbert.runs import settings, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT

Make = Callable[..., ModernBertModel]
MAX_TOKENS = 200
# Beyond the half window (64) on both sides: layers that see everything would give other vectors.
SHAPE = {"num_hidden_layers": 2, "max_position_embeddings": 256, "local_attention": 128}
FORMS = (onnx_export.GRAPH, onnx_export.INT8, onnx_export.OPENVINO)
EXACT = (onnx_export.GRAPH, onnx_export.OPENVINO)


def make_static(model: ModernBertModel) -> ModernBertModel:
    """Start a student as static_table.py does: two dimensions many times as loud as the others."""
    width = model.config.hidden_size
    random = np.random.default_rng(0)
    table = random.normal(size=(model.config.vocab_size, width))
    # as Zipf's weights do: few entries weigh much, most of them little
    table *= np.geomspace(0.02, 1, len(table))[:, None]
    static_table.start_static(model, static_table.scale_to_fit(table), residual_scale=0.02)
    return model


def write_texts(folder: Path, texts: list[str]) -> Path:
    """Write a Parquet file of texts."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), folder / "texts.parquet")
    return folder / "texts.parquet"


@pytest.fixture(scope="module")
def long_texts() -> list[str]:
    """Return 150 texts of 1 to about 400 words, of an invented language."""
    language = Language(0, topics=6, words_per_topic=10)
    passages = [language.passage().text for _ in range(140)]
    long = [" ".join(passages[start : start + 7]) for start in range(6)]
    return [*passages, *long, *language.words[-4:]]


@pytest.fixture(scope="module")
def student(
    tmp_path_factory: pytest.TempPathFactory, make_student: Make, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Return the folder of a student that began static, with a window of 128 and 200 tokens."""
    folder = tmp_path_factory.mktemp("students") / "student"
    model = make_static(make_student(hidden_size=64, **SHAPE))
    students.Student(model, tokenizer, MAX_TOKENS).save(folder)
    storage.write_text(folder / "README.md", "# A student\n")
    return folder


def export(runs: Path, student: Path, texts: Path, *more: str) -> Path:
    """Run the script in this process and return its final/."""
    flags = ["--student", str(student), "--texts", str(texts), "--recipe", "made", "--threads", "1"]
    flags += ["--speed-texts", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS", str(runs))
        settings.run(load_script("export_model").__dict__, [*flags, *more])
    variant = f"@{more[more.index('--variant') + 1]}" if "--variant" in more else ""
    return runs / "made" / f"export_model{variant}" / "final"


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, student: Path, long_texts: list[str]
) -> Iterator[Path]:
    """Return the final/ of the script on that student."""
    folder = tmp_path_factory.mktemp("export")
    yield export(folder / "runs", student, write_texts(folder / "texts", long_texts))


def of_torch(folder: Path, texts: list[str]) -> np.ndarray:
    """Return what sentence-transformers makes of texts."""
    return SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=4)


@pytest.mark.parametrize("form", EXACT)
def test_exact_forms_equal_torch(
    exported: Path, student: Path, long_texts: list[str], form: str
) -> None:
    """From nothing to more than the maximum, in mixed batches: torch's vectors, to 1e-5."""
    texts = ["", "x", *long_texts]
    encoder = OnnxEncoder(exported, form, threads=1)
    found = encoder.encode(texts)
    lengths = [len(row) for row in encoder._tokenizer.encode_batch(texts)]
    assert min(lengths) == 2 and max(lengths) == MAX_TOKENS and sorted(lengths)[-3] > 130
    np.testing.assert_allclose(found, of_torch(student, texts), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_sliding_window_is_in_the_graph(
    exported: Path, student: Path, long_texts: list[str], tmp_path: Path
) -> None:
    """A student whose local layers saw everything would give other vectors for long texts only."""
    shutil.copytree(student, tmp_path / "wide")
    config = storage.read_json(student / "config.json", "")
    storage.write_json(tmp_path / "wide" / "config.json", config | {"local_attention": 1024})
    wide = onnx_export.SentenceEncoder(students.load_student(tmp_path / "wide")).eval()
    encoder = OnnxEncoder(exported, threads=1)
    ids = [row.ids for row in encoder._tokenizer.encode_batch(long_texts)]
    found = encoder.encode(long_texts)
    for begin, end, same in ((1, 60, True), (180, MAX_TOKENS + 1, False)):
        rows = [row for row, one in enumerate(ids) if begin <= len(one) < end][:3]
        assert len(rows) == 3
        with torch.no_grad():
            wanted = wide(*map(torch.from_numpy, pad([ids[row] for row in rows], 0))).numpy()
        errors = np.abs(found[rows] - wanted).max(axis=1)
        assert errors.max() < 1e-5 if same else errors.min() > 1e-4


def test_int8_stays_close(exported: Path, student: Path, long_texts: list[str]) -> None:
    """Texts that were not calibrated with keep their direction; the file is far smaller."""
    texts = long_texts[::-1][:60]
    found = OnnxEncoder(exported, onnx_export.INT8, threads=1).encode(texts)
    cosines = (found * of_torch(student, texts)).sum(axis=1)
    assert cosines.mean() > 0.999
    assert cosines.min() > 0.99


def test_int8_beats_the_quantisers_defaults(
    exported: Path, student: Path, long_texts: list[str], tmp_path: Path
) -> None:
    """With loud dimensions, one scale for everything loses several times as much."""
    shutil.copytree(exported, tmp_path / "plain")
    model = onnx.load(exported / onnx_export.GRAPH)
    del model.graph.value_info[:]
    quantize_dynamic(model, tmp_path / "plain" / onnx_export.INT8)
    wanted = of_torch(student, long_texts[:40])
    lost = [
        1 - (OnnxEncoder(folder, onnx_export.INT8).encode(long_texts[:40]) * wanted).sum(1).mean()
        for folder in (exported, tmp_path / "plain")
    ]
    assert lost[0] < lost[1] / 5


def test_smoothing_alone_changes_nothing(exported: Path, long_texts: list[str]) -> None:
    """Moving outliers from activations to matrices is exact; only the rounding after it is not."""
    model = onnx.load(exported / onnx_export.GRAPH)
    backend = load_backend(exported, MAX_TOKENS)
    batches = onnx_export.token_batches(long_texts[:20], backend, 0)
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(model)
    peaks = int8.activation_peaks(model, batches)
    int8.smooth(smoothed, peaks)
    again = int8.activation_peaks(smoothed, batches)
    loud = [np.median(values.max() / values) for values in peaks.values()]
    even = [np.median(values.max() / values) for values in again.values()]
    assert max(even) < max(loud) / 2
    inputs = {"input_ids": batches[0][0], "attention_mask": batches[0][1]}
    before, after = (
        InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, inputs
        )[0]
        for one in (model, smoothed)
    )
    np.testing.assert_allclose(after, before, atol=2e-5)


def test_folder_still_loads_with_sentence_transformers(
    exported: Path, student: Path, long_texts: list[str]
) -> None:
    """The export is a student folder too: same weights, vectors and card, which tells the forms."""
    np.testing.assert_array_equal(
        of_torch(exported, long_texts[:9]), of_torch(student, long_texts[:9])
    )
    students.load_student(student).check_reload(exported)
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# A student\n\n## With ONNX\n")
    modules = storage.read_json(exported / "modules.json", "")
    assert modules[0]["type"] == "sentence_transformers.models.Transformer"


def test_description_and_record(exported: Path) -> None:
    """export.json names shapes, limits, digests and parity; run.json has the same figures."""
    told = storage.read_json(exported / "export.json", "")
    assert told["inputs"] == {name: ["batch", "tokens"] for name in ("input_ids", "attention_mask")}
    assert told["outputs"] == {"sentence_embedding": ["batch", 64]}
    assert (told["dimensions"], told["max_tokens"], told["pooling"]) == (64, MAX_TOKENS, "mean")
    counted = encoders.load_encoder(exported)
    assert told["parameters"] == counted.parameters
    assert told["parameters_without_embeddings"] == counted.parameters_without_embeddings > 0
    graph = onnx.load(exported / onnx_export.GRAPH).graph
    dims = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert dims == told["inputs"] | told["outputs"]
    assert set(told["files"]) == {onnx_export.TORCH, *FORMS, "openvino/openvino_model.bin"}
    for name, file in told["files"].items():
        assert file["sha256"] == storage.sha256_file(exported / name)
        assert file["bytes"] == (exported / name).stat().st_size
    assert set(told["parity"]) == {onnx_export.TORCH, *FORMS}
    for form in (onnx_export.TORCH, *EXACT):
        assert told["parity"][form]["min_cosine"] > 1 - 1e-5
        assert told["parity"][form]["max_error"] < 1e-5
    assert 0.99 < told["parity"][onnx_export.INT8]["min_cosine"] < 1
    record = storage.read_json(exported.parent / "run.json", "")
    assert record["metrics"] == told["parity"]
    assert set(told["texts_per_second"]) == {onnx_export.TORCH, *FORMS}
    assert min(told["texts_per_second"].values()) > 0
    assert "| texts/s |" in (exported / "README.md").read_text(encoding="utf-8")
    assert record["rows"]["calibration"] == 64
    assert record["rows"]["probes"] > 30
    int8_bytes = told["files"][onnx_export.INT8]["bytes"]
    assert int8_bytes < told["files"][onnx_export.GRAPH]["bytes"]


def test_nothing_tells_of_this_machine(exported: Path) -> None:
    """No file of the export names a folder of this machine, the student's included."""
    for path in storage.list_files(exported):
        content = path.read_bytes()
        for place in (ROOT, Path(torch.__file__).parent.parent, exported.parents[3]):
            assert str(place).encode() not in content, path


def test_equal_runs_make_equal_files(
    exported: Path, student: Path, long_texts: list[str], tmp_path: Path
) -> None:
    """A second export is the first, byte for byte: the graph and its int8 copy.

    OpenVINO numbers its nodes through the life of a process; its weights are equal.
    """
    again = export(tmp_path / "runs", student, write_texts(tmp_path / "texts", long_texts))
    for path in storage.list_files(exported):
        name = path.relative_to(exported)
        # these two tell the speed of the moment
        if name.suffix != ".xml" and name.name not in ("export.json", "README.md"):
            assert (again / name).read_bytes() == path.read_bytes(), name
    told = [storage.read_json(final / "export.json", "")["parity"] for final in (exported, again)]
    assert told[0] == told[1]


def test_cls_pooling_fewer_tokens_and_own_texts(
    tmp_path: Path,
    make_student: Make,
    tokenizer: PreTrainedTokenizerFast,
    long_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A student that pools by [CLS] works; MAX_TOKENS cuts; openvino and texts may be missing."""
    students.Student(make_student(), tokenizer, 64, "cls").save(tmp_path / "cls")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    flags = ["--student", str(tmp_path / "cls"), "--recipe", "made", "--max-tokens", "24"]
    settings.run(load_script("export_model").__dict__, [*flags, "--no-int8"])
    final = tmp_path / "runs" / "made" / "export_model" / "final"
    assert [path.name for path in (final / "onnx").iterdir()] == ["model.onnx"]
    assert not (final / "openvino").exists()
    shown = capsys.readouterr().out
    assert "openvino is not installed" in shown
    assert "| onnx/model.onnx " in shown
    reference = SentenceTransformer(str(tmp_path / "cls"), device="cpu")
    reference.max_seq_length = 24
    wanted = reference.encode(long_texts[:20])
    np.testing.assert_allclose(OnnxEncoder(final).encode(long_texts[:20]), wanted, atol=1e-5)
    assert storage.read_json(final / "export.json", "")["pooling"] == "cls"


def test_recipes_held_out_texts_are_the_default(tmp_path: Path) -> None:
    """Without TEXTS the texts that no training saw are taken, where the recipe has a corpus."""
    script = load_script("export_model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS", str(tmp_path))
        assert script.find_texts() == []
        held_out = tmp_path / script.RECIPE / "mlm" / "create_dataset" / "final" / "held_out"
        file = write_texts(held_out, ["a text"])
        assert script.find_texts() == [file]


def test_calibration_and_check_do_not_share_texts(tmp_path: Path) -> None:
    """int8 is judged by texts that it was not fitted to."""
    script = load_script("export_model")
    file = write_texts(tmp_path, [f"text {number}" for number in range(200)])
    calibration, probes = script.draw_texts([file])
    assert len(calibration) == 64 and len(probes) == 136
    assert not set(calibration) & set(probes)


def test_probes_climb_from_nothing_to_beyond_the_limit(
    exported: Path, long_texts: list[str]
) -> None:
    """Lengths rise from no token by ratio; the last is cut by every reader."""
    backend = load_backend(exported, 1 << 30)
    made = parity.probes(["", *long_texts], backend, MAX_TOKENS, 30)
    lengths = [len(backend.encode(text, add_special_tokens=False)) for text in made]
    assert lengths[:3] == [0, 1, 2] and lengths == sorted(set(lengths))
    assert lengths[-1] == MAX_TOKENS  # and two special tokens
    assert len(lengths) > 20
    with pytest.raises(UserError, match="TEXTS"):
        parity.probes(["", " "], backend, MAX_TOKENS, 30)


def test_a_form_that_is_off_is_refused(
    exported: Path, student: Path, make_student: Make, tmp_path: Path, long_texts: list[str]
) -> None:
    """Figures are measured against the student that was given: another one's export fails."""
    script = load_script("export_model")
    other = tmp_path / "other"
    shutil.copytree(student, other)
    model = make_static(make_student(hidden_size=64, seed=1, **SHAPE))
    module_files.write_transformer(other, model, students.load_tokenizer(student), MAX_TOKENS)
    forms = [onnx_export.GRAPH]
    assert script.measure(student, exported, forms, long_texts[:9], MAX_TOKENS)
    with pytest.raises(UserError, match=r"is off by .*TOLERANCE 0.0001"):
        script.measure(other, exported, forms, long_texts[:9], MAX_TOKENS)


def test_int8_that_lost_too_much_is_refused(
    exported: Path, student: Path, long_texts: list[str]
) -> None:
    """Its mean cosine is bounded too, by a bound of its own, and the cure is named."""
    script = load_script("export_model")
    forms = [onnx_export.GRAPH, onnx_export.INT8]
    assert script.measure(student, exported, forms, long_texts[:9], MAX_TOKENS)
    script.INT8_TOLERANCE = 1e-7
    with pytest.raises(UserError, match="INT8_TOLERANCE 1e-07; leave it out: --no-int8"):
        script.measure(student, exported, forms, long_texts[:9], MAX_TOKENS)


RUNTIME = ROOT / browser_page.CACHE
FILE_SERVER = """
import http.server, sys
from functools import partial
handler = partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@needs_browser
@pytest.mark.skipif(
    not browser_page.is_whole(RUNTIME),
    reason=f"no {browser_page.CACHE}; run: python -m small_modernbert.export.browser_page",
)
@pytest.mark.parametrize(("form", "tolerance"), [("fp32", 1e-4), ("int8", 1e-3)])
def test_a_browser_gives_the_same_vectors(
    exported: Path, long_texts: list[str], tmp_path: Path, form: str, tolerance: float
) -> None:
    """fp32 as torch's and int8 as onnxruntime's, from one token to one more than it reads."""
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    browser_page.write(folder, RUNTIME)
    file = {"fp32": onnx_export.GRAPH, "int8": onnx_export.INT8}[form]
    encoder = OnnxEncoder(folder, file, threads=1)
    rows = storage.read_json(folder / golden_vectors.FILE, "")["texts"]
    rows.append({"text": max(long_texts, key=len), "tokens": MAX_TOKENS})  # it is cut
    for row in rows:
        if form == "int8" or "vector" not in row:
            row["vector"] = encoder.encode([row["text"]])[0].tolist()
    storage.write_json(folder / golden_vectors.FILE, {"texts": rows})
    server = subprocess.Popen(
        [sys.executable, "-c", FILE_SERVER, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{int(server.stdout.readline())}/browser/?form={form}"
        dom = browse(address, tmp_path, "--virtual-time-budget=20000")
    finally:
        server.kill()
        server.wait()
    told = re.search(r"(\d+) golden texts: no number differs by more than ([\d.e+-]+) from", dom)
    assert told is not None, dom[-2000:]
    assert int(told[1]) == golden_vectors.TEXTS + 1
    assert float(told[2]) < tolerance
    scores = [float(score) for score in re.findall(r'class="score">([-\d.]+)<', dom)]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)


def test_vectors_that_are_not_finite_are_refused() -> None:
    """NaN is never a cosine."""
    found = np.eye(3, dtype=np.float32)
    assert parity.compare(found, found) == parity.Parity(1.0, 1.0, 0.0)
    with pytest.raises(UserError, match="NaN"):
        parity.compare(found, np.where(found > 0, np.nan, found))


@pytest.mark.parametrize("case", ["prompts", "tokens", "texts", "no texts"])
def test_what_cannot_be_exported(
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    """What a graph cannot do, too long a text: one line, no final/."""
    folder, more, message = student, [], ""
    if case == "prompts":
        folder, message = tmp_path / "prompted", "leaves its prompts out of the pooling"
        prompted = students.load_student(student)
        prompted.usage.prompts, prompted.usage.include_prompt = {"query": "q: "}, False
        prompted.save(folder)
    elif case == "tokens":
        more, message = ["--max-tokens", "257"], "takes 256 tokens, not 257"
    elif case == "texts":
        more, message = ["--texts", "no-such.parquet"], "no-such.parquet is not there"
    else:
        (tmp_path / "empty").mkdir()
        more, message = ["--texts", str(tmp_path / "empty")], "no Parquet file"
    texts = write_texts(tmp_path / "texts", ["a text"])
    with pytest.raises(SystemExit) as stop:
        export(tmp_path / "runs", folder, texts, *more)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert not list((tmp_path / "runs").rglob("final"))


def test_encoder_needs_neither_torch_nor_transformers(exported: Path) -> None:
    """A server that has only onnxruntime and tokenizers can encode."""
    program = f"""
import sys
for name in ("torch", "transformers", "sentence_transformers", "onnx"):
    sys.modules[name] = None
from small_modernbert.models.onnx_encoder import OnnxEncoder
for file in {FORMS!r}:
    print(OnnxEncoder({str(exported)!r}, file, 1).encode(["is it?", "", "a text"]).shape)
"""
    finished = run_process(["-c", program]).check()
    assert finished.output.split("\n")[:-1] == ["(3, 64)"] * 3


def test_encoder_keeps_order_and_bounds_batches(exported: Path, long_texts: list[str]) -> None:
    """Whatever the batches, each text has its own vector in its own row; no text, no row."""
    encoder = OnnxEncoder(exported, threads=1)
    shuffled = [*long_texts[:30], "", *long_texts[-5:]]
    alone = np.concatenate([encoder.encode([text]) for text in shuffled])
    for budget in (1, 300, 10**6):
        np.testing.assert_allclose(encoder.encode(shuffled, budget), alone, atol=1e-5)
    assert encoder.encode([]).shape == (0, 64)
    lengths = [3, 50, 7, 7, 200, 1]
    batches = cut_by_length(lengths, 60)
    assert sorted(row for rows in batches for row in rows) == list(range(6))
    for rows in batches:
        assert len(rows) == 1 or max(lengths[row] for row in rows) * len(rows) <= 60


@pytest.mark.parametrize("missing", ["export.json", "tokenizer.json", onnx_export.GRAPH])
def test_encoder_names_what_is_missing(exported: Path, tmp_path: Path, missing: str) -> None:
    """A folder that is no export is named, with the file that it lacks."""
    shutil.copytree(exported, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        OnnxEncoder(tmp_path / "copy")


def benchmark_flags(folder: Path, *models: str) -> list[str]:
    """Return the flags of a benchmark of models over the set that lies in a folder."""
    return [
        *("--models", *models, "--retrieval", "made", "--retrieval-folder", str(folder)),
        *("--teacher", "", "--reduced-teacher", "", "--sts", "--no-bm25", "--recipe", "made"),
        *("--speed-documents", "4", "--speed-queries", "4", "--overwrite"),
    ]


def test_forms_are_rows_of_the_benchmark(
    exported: Path,
    student: Path,
    long_texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In fp32 a form ranks as the torch model does; sizes are its own, weights are counted once."""
    monkeypatch.setenv("RUNS", str(exported.parents[2]))
    names = [str(number) for number in range(40)]
    queries = [" ".join(text.split()[:4]) for text in long_texts[:40]]
    tables = {
        "corpus": {"_id": names, "text": long_texts[:40]},
        "queries": {"_id": names, "text": queries},
        "qrels": {"query-id": names, "corpus-id": names},
    }
    for part, columns in tables.items():
        (tmp_path / part).mkdir()
        pq.write_table(pa.table(columns), tmp_path / part / "made.parquet")
    forms = dict(zip(("onnx", "int8", "openvino"), FORMS, strict=True))
    given = [f"{label}=export_model/{form}" for label, form in forms.items()]
    script = load_script("benchmark_hotpotqa").__dict__
    settings.run(script, benchmark_flags(tmp_path, f"student={student}", *given))
    results = exported.parents[1] / "benchmark_hotpotqa/final/results.json"
    rows = {row["label"]: row for row in storage.read_json(results, "")["rows"]}
    for label, form in forms.items():
        row = rows[label]
        assert row["parameters"] == rows["student"]["parameters"]
        assert row["documents_per_second"] > 0 and row["queries_per_second"] > 0
        assert row["size_bytes"] > (exported / form).stat().st_size
        assert ("openvino" if label == "openvino" else "onnxruntime") in row["note"]
        far = 0.1 if label == "int8" else 1e-9
        assert row["quality"] == pytest.approx(rows["student"]["quality"], abs=far)
    assert rows["int8"]["size_bytes"] < rows["onnx"]["size_bytes"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("elsewhere/onnx/model.onnx", "model.onnx is no form of an export: .* export_model.py"),
        ("export_model/onnx/no.onnx", "no.onnx is not there; name a file that its export has"),
        ("copy/onnx/model.onnx", "cannot load .*model.onnx: .*python export_model.py --overwrite"),
        ("export_model/openvino/openvino_model.xml", "not installed; run: pip install openvino"),
    ],
)
def test_what_is_no_form_is_refused_with_the_cure(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    """A file without an export, or without its engine, ends the benchmark in one line."""
    monkeypatch.setenv("RUNS", str(exported.parents[2]))
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in ("elsewhere", "copy"):
        (tmp_path / name / "onnx").mkdir(parents=True)
        (tmp_path / name / "onnx/model.onnx").write_bytes(b"no graph")
    for name in ("export.json", "tokenizer.json"):
        shutil.copy(exported / name, tmp_path / "copy")
    reference = place if place.startswith("export_model") else str(tmp_path / place)
    script = load_script("benchmark_hotpotqa")
    with pytest.raises(UserError, match=message):
        settings.override(script.__dict__, benchmark_flags(tmp_path, f"a={reference}"))
        form = script.find_model("a", reference)
        script.whole_model(form)
        encoders.load_encoder(form, "a")


def test_rerun_keeps_and_other_settings_are_refused(
    exported: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished export stays as it is; another setting is named."""
    runs, texts = exported.parents[2], exported.parents[3] / "texts" / "texts.parquet"
    before: dict[str, Any] = json.loads((exported.parent / "run.json").read_text("utf-8"))
    export(runs, student, texts)
    assert "kept as it is" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        export(runs, student, texts, "--no-int8")
    assert "INT8: True -> False" in capsys.readouterr().err
    assert json.loads((exported.parent / "run.json").read_text("utf-8")) == before


def test_bert_with_a_head_and_prompts(
    tmp_path: Path, teacher_folder: Path, texts: list[str]
) -> None:
    """A BERT with a Dense layer is exported whole; the encoder puts its prompts in front."""
    student = students.load_student(teacher_folder)
    torch.manual_seed(0)
    student.head = torch.nn.Sequential(modules.Dense(48, 20))
    student.usage.prompts, student.usage.default_prompt_name = {"query": "is the "}, None
    student.save(tmp_path / "student")
    final = export(tmp_path / "runs", tmp_path / "student", write_texts(tmp_path / "t", texts))
    reference = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    for form in EXACT:
        encoder = OnnxEncoder(final, form, threads=1)
        assert encoder.dimensions == 20
        np.testing.assert_allclose(encoder.encode(texts), reference.encode(texts), atol=1e-5)
        given = encoder.encode(texts, prompt_name="query")
        np.testing.assert_allclose(given, reference.encode_query(texts), atol=1e-5)
        row = encoders.load_encoder(final / form)
        given = row.encode_queries(texts)
        assert np.einsum("ij,ij->i", given, normalise(reference.encode_query(texts))).min() > 0.9999
        given = row.encode_documents(texts)
        assert np.einsum("ij,ij->i", given, normalise(reference.encode(texts))).min() > 0.9999


@pytest.mark.parametrize("reader", ["sentence-transformers", "transformers", onnx_export.GRAPH])
def test_golden_vectors_are_those_of_right_readers(exported: Path, reader: str) -> None:
    """Texts beyond the sliding window among them, every reader gives what torch gave."""
    rows = storage.read_json(exported / golden_vectors.FILE, "")["texts"]
    lengths = [row["tokens"] for row in rows]
    assert lengths == sorted(lengths) and lengths[0] <= 4 and 128 < lengths[-1] <= MAX_TOKENS
    equal, line = golden_vectors.check(exported, reader)
    assert equal and line.endswith("equal"), line


def test_golden_vectors_find_a_reader_without_the_window(exported: Path, tmp_path: Path) -> None:
    """A reader that attends to everything is right on short texts, and is told where it is not."""
    wide = tmp_path / "wide"
    shutil.copytree(exported, wide, ignore=shutil.ignore_patterns("onnx", "openvino"))
    config = storage.read_json(wide / "config.json", "")
    storage.write_json(wide / "config.json", config | {"local_attention": 1024})
    equal, line = golden_vectors.check(wide, "sentence-transformers")
    assert not equal
    assert int(re.search(r"from (\d+) tokens on", line)[1]) > 64


@pytest.mark.parametrize("url", ["http://here/v1/embeddings", "http://here/embed"])
def test_golden_vectors_ask_servers(
    exported: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both forms of asking are spoken; a server's half precision passes, other vectors do not."""
    rows = storage.read_json(exported / golden_vectors.FILE, "")["texts"]
    known = {row["text"]: np.float16(row["vector"]).tolist() for row in rows}

    def answer(request: Any, timeout: int) -> io.StringIO:  # noqa: ANN401  urllib's
        if request.full_url.endswith("/models"):
            return io.StringIO(json.dumps({"data": [{"id": "mine"}]}))
        asked = json.loads(request.data)
        if "inputs" in asked:
            return io.StringIO(json.dumps([known[asked["inputs"][0]]]))
        assert asked["model"] == "mine"
        return io.StringIO(json.dumps({"data": [{"embedding": known[asked["input"][0]]}]}))

    monkeypatch.setattr(golden_vectors.urllib.request, "urlopen", answer)
    assert golden_vectors.check(exported, url)[0]
    known[rows[-1]["text"]] = known[rows[0]["text"]]
    equal, line = golden_vectors.check(exported, url)
    assert not equal and f"from {rows[-1]['tokens']} tokens on" in line


def test_cards_onnx_program_runs(exported: Path) -> None:
    """The program in the card gives unit vectors out of tokens, as sentence-transformers does."""
    card = (exported / "README.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", card, re.S)[1]
    names: dict[str, Any] = {}
    exec(program.replace(card_examples.FOLDER, str(exported)), names)
    wanted = of_torch(exported, ["how do tides work", "The moon pulls at the oceans."])
    np.testing.assert_allclose(names["vectors"], wanted, atol=1e-5)


def test_card_has_the_benchmark_of_this_very_model(tmp_path: Path) -> None:
    """A row counts if its digest is the model's; a model made again since has none."""
    folder = tmp_path / "benchmark_hotpotqa"
    entry = {"path": "x", "digest": "mine"}
    record = {"format": 1, "status": "finished", "settings": {}, "inputs": {"model small": entry}}
    row = {
        "label": "small", "retrieval": {"sciq": {"ndcg@10": 0.51239}}, "parameters": 7,
        "documents_per_second": 3.2,
    }  # fmt: skip
    results = {
        "rows": [
            row,
            row | {"label": "teacher"},
            row | {"label": "another"},
            row | {"label": "small > reduced teacher"},
        ],
        "machine": {"processor": "P", "threads": 2},
        "sets": {"sciq": {"queries": 5, "documents": 6}},
    }
    storage.write_json(folder / "run.json", record)
    storage.write_json(folder / "final" / "results.json", results)
    (result,), text = export_card._benchmark(tmp_path, {"output_digest": "mine"})
    assert (result.dataset_name, result.metric_value) == ("sciq", 0.5124)
    assert "| this model > reduced teacher |" in text
    assert "| this model  " in text and "teacher" in text and "another" not in text
    assert export_card._benchmark(tmp_path, {"output_digest": "other"}) == ([], "")


def test_students_of_ours_get_a_card_of_their_stages(
    exported: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lineage, licence and examples of the stage; forms, check and ONNX of the export."""
    final = tmp_path / "distil_modernbert" / "final"
    shutil.copytree(student, final, ignore=shutil.ignore_patterns("README.md"))
    record = {
        "format": 1, "script": "distil_modernbert", "status": "finished", "steps": 3,
        "settings": {"SEED": 4, "OBJECTIVE": "mse"}, "inputs": {},
    }  # fmt: skip
    storage.write_json(final.parent / "run.json", record)
    made: list[str] = []
    monkeypatch.setattr(storage, "write_text", lambda path, text: made.append(text))
    stage = type("Stage", (), {"building": tmp_path, "folder_of_recipe": tmp_path / "mine"})()
    loaded = students.load_student(final)
    export_card.write(stage, loaded, final, "| form |", licence="mit", language=["en"])
    (text,) = made
    data = ModelCard(text).data
    assert (data.license, data.language) == ("mit", "en")
    for heading in ("How it was made", "With ONNX", "Forms", "Is it read rightly?", "Limits"):
        assert f"## {heading}\n" in text
    assert "# mine/distil_modernbert\n" in text and "OBJECTIVE mse" in text


def test_push_is_asked_for_and_private(
    exported: Path, student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A finished export goes up with its card, into a private repository, and only on --push."""
    pushed: list[dict[str, Any]] = []

    def create(self: HfApi, name: str, **given: Any) -> None:  # noqa: ANN401  the hub's
        pushed.append({"name": name, **given})

    def upload(self: HfApi, *, folder_path: Path, **given: Any) -> Any:  # noqa: ANN401  the hub's
        pushed.append({"files": sorted(path.name for path in folder_path.iterdir()), **given})
        return type("Commit", (), {"commit_url": "https://hub/me/small/commit/1"})

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setenv("HF_TOKEN", "hf_ThisIsTheSecretOfTheTests")
    runs, texts = exported.parents[2], exported.parents[3] / "texts" / "texts.parquet"
    named = ("--model-repository-name", "me/small")
    export(runs, student, texts, *named)
    assert not pushed  # a name and a token alone upload nothing
    export(runs, student, texts, *named, "--push")
    assert (pushed[0]["name"], pushed[0]["private"]) == ("me/small", True)
    assert {"README.md", "model.safetensors", "onnx", "golden_vectors.json"} <= set(
        pushed[1]["files"]
    )
    assert "https://hub/me/small/commit/1" in capsys.readouterr().out
    export(runs, student, texts, *named, "--push", "--public")
    assert pushed[2]["private"] is False
    with pytest.raises(SystemExit):
        export(runs, student, texts, "--push")
    assert "--push needs a repository" in capsys.readouterr().err


def test_smaller_vectors_are_measured_where_sets_are_named(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a set nothing is searched; with one the exported folder itself is measured."""
    script = load_script("export_model")
    assert script.measure_compact(exported) == ""
    asked: list[Any] = []

    def measure(encoder: Any, sets: list[str], dimensions: list[int]) -> str:  # noqa: ANN401
        asked.extend([encoder.size_bytes > 0, sets, dimensions])
        return "| a table |"

    monkeypatch.setattr("small_modernbert.data.evaluation_sets.load_named", lambda names, _: names)
    monkeypatch.setattr("small_modernbert.export.compact_vectors.measure", measure)
    script.RETRIEVAL, script.DIMENSIONS = ["sciq"], [16]
    assert script.measure_compact(exported) == "| a table |"
    assert asked == [True, ["sciq"], [16]]


@pytest.mark.parametrize("speeds", [{}, {"model.safetensors": 12.0}])
def test_forms_are_told_with_their_speed_or_without(
    tmp_path: Path, speeds: dict[str, float]
) -> None:
    """--speed-texts 0 measures no speed: the table of forms then has no such column."""
    (tmp_path / "model.safetensors").write_bytes(bytes(2_000_000))
    told = parity.table(tmp_path, {"model.safetensors": parity.Parity(1.0, 1.0, 0.0)}, speeds)
    assert "| 2.0 " in told and ("texts/s" in told) is bool(speeds)
