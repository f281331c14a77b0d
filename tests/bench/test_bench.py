"""Promises of bench/: fair turns, right ratios, honest verdicts, operations well counted."""

import importlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import Language
from script_runner import run_process

from small_modernbert.runs import settings, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT

# The scripts import one another as a script's own folder lets them: by their bare names.
sys.path.append(str(ROOT / "bench"))
ceiling, claims, document, harness, inputs = map(
    importlib.import_module, ("ceiling", "claims", "document", "harness", "inputs")
)
SCRIPTS = ("mlm_pretraining", "teacher_labels", "distillation", "corpus", "encoding", "scaling")
MIB = 1 << 20


def load(name: str) -> ModuleType:
    """Import one of the scripts without running it."""
    return importlib.import_module(name)


# Contenders: module-level, since each runs in a process of its own.


def noting(path: str, name: str) -> Callable[..., Any]:
    """Prepare a contender that writes down its name, its round and its process."""

    def work(number: int, clock: Any) -> Any:  # noqa: ANN401  a Clock
        with Path(path).open("a") as stream:
            stream.write(f"{name} {number} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
        return harness.Work(10.0 * (number + 1))

    return work


def allocating(mib: list[int]) -> Callable[..., Any]:
    """Prepare a contender that takes so much memory in each round."""

    def work(number: int, clock: Any) -> Any:  # noqa: ANN401  a Clock
        return harness.Work(float(np.ones(mib[number] * MIB, dtype=np.uint8).sum()))

    return work


def starting(children: list[int]) -> Callable[..., Any]:
    """Prepare a contender that starts so many processes of 70 MiB in each round, all at once."""
    code = f"import time; memory = b'x' * (70 * {MIB}); print(flush=True); time.sleep(0.5)"

    def work(number: int, clock: Any) -> Any:  # noqa: ANN401  a Clock
        command = [sys.executable, "-S", "-c", code]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(children[number])
        ]
        for one in started:
            one.communicate()
        return harness.Work(1.0)

    return work


def raising() -> Callable[..., Any]:
    """Prepare a contender that cannot be prepared."""
    raise ValueError("no such model")


def dying() -> Callable[..., Any]:
    """Prepare a contender whose process ends as if it had run out of memory."""

    def work(number: int, clock: Any) -> Any:  # noqa: ANN401  a Clock
        print("last words", flush=True)
        os._exit(3)

    return work


def result(seconds: list[float], amounts: list[float], **work: float) -> Any:  # noqa: ANN401  a Result
    """Return a result of given rounds; CPU time is twice the wall time."""
    samples = tuple(
        harness.Sample(one, 2 * one, harness.Work(amount, **work), peak_mib=100.0 * one)
        for one, amount in zip(seconds, amounts, strict=True)
    )
    return harness.Result("given", samples)


def row(value: float, **fields: Any) -> Any:  # noqa: ANN401  a Row
    """Return a claim with this figure."""
    return claims.Row("rows/s", "datasets", harness.Spread(value, value, value), **fields)


def test_contenders_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    """Ours, peer, ours, peer: the warm-up first, each side always in its own single process."""
    path = tmp_path / "turns"
    names = ("ours", "peer")
    results = harness.run(
        [harness.Contender(name, noting, {"path": str(path), "name": name}) for name in names],
        rounds=3,
        threads=1,
    )
    turns = [line.split() for line in path.read_text().splitlines()]
    assert [(name, int(number)) for name, number, _, _ in turns] == [
        (name, number) for number in range(4) for name in names
    ]
    processes = {name: {process for one, _, process, _ in turns if one == name} for name in names}
    assert len(processes["ours"]) == len(processes["peer"]) == 1
    assert processes["ours"] != processes["peer"]
    assert {threads for *_, threads in turns} == {"1"}
    # The warm-up did 10, and is not among the samples.
    assert [one.work.amount for one in results["peer"].samples] == [20.0, 30.0, 40.0]
    assert all(one.seconds > 0 and one.cpu_seconds >= 0 for one in results["ours"].samples)


def test_peak_memory_is_of_the_round() -> None:
    """A round's peak holds what it took, not what an earlier round had taken."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process forget its peak")
    contender = harness.Contender("hungry", allocating, {"mib": [0, 200, 1]})
    found = harness.run([contender], rounds=2, threads=1)["hungry"]
    large, small = (one.peak_mib for one in found.samples)
    assert 190 < large - small < 210
    assert found.peak_mib == large
    assert found.ready_mib > 1


def test_peak_memory_is_that_of_all_processes() -> None:
    """Children count together, each with what it takes itself, and only in their own round."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("this system does not list a process's children")
    contender = harness.Contender("parent", starting, {"children": [0, 3, 0]})
    large, small = harness.run([contender], rounds=2, threads=1)["parent"].samples
    assert 3 * 70 < large.peak_mib - small.peak_mib < 3 * 100


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (raising, "ValueError: no such model"),  # an exception: its traceback
        (dying, "exit code 3: last words"),  # a process that is gone: what it printed
    ],
)
def test_a_failed_contender_is_named(prepare: Callable[..., Any], message: str) -> None:
    """A contender that fails ends the run with its name and its reason."""
    with pytest.raises(RuntimeError, match="(?s)loser.*" + message):
        harness.run([harness.Contender("loser", prepare)], rounds=1, threads=1)


def test_clock_counts_what_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting again forgets the set-up; stopping early leaves out what follows."""
    walls, cpus = iter([0.0, 10.0, 13.0]), iter([0.0, 20.0, 25.0])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(walls))
    monkeypatch.setattr(harness, "_cpu_seconds", lambda: next(cpus))
    clock = harness.Clock()
    clock.start()
    clock.start()
    clock.stop()
    clock.stop()  # as the harness does after a contender that stopped it
    assert (clock.seconds, clock.cpu_seconds) == (3.0, 5.0)


def test_ratios_are_of_rates_round_by_round() -> None:
    """The ratio is of amounts a second, inside each round; the median is not that of the times."""
    ours = result([1.0, 2.0, 4.0], [100.0, 100.0, 100.0])  # 100, 50, 25 a second
    peer = result([2.0, 1.0, 8.0], [50.0, 20.0, 100.0])  # 25, 20, 12.5
    spread = harness.compare(ours, peer, "seconds")
    assert (spread.median, spread.low, spread.high) == (2.5, 2.0, 4.0)
    assert harness.compare(ours, peer, "cpu_seconds") == spread
    assert ours.rate == 50.0
    assert ours.peak_mib == 400.0
    with pytest.raises(ValueError):
        harness.compare(ours, result([1.0], [1.0]), "seconds")


def test_padding_and_share_of_the_ceiling() -> None:
    """Padding is real over processed tokens; the share is useful operations over the ceiling's."""
    found = result([2.0, 4.0], [1.0, 1.0], tokens=30.0, processed=40.0, flops=8.0)
    assert found.padding == 0.75
    assert result([1.0], [1.0]).padding is None
    spread = harness.share(found, 10.0)
    assert (spread.low, spread.high) == (0.2, 0.4)


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (row(2.0, least=2.0), "met"),  # the bound itself is met
        (row(1.99, least=2.0), "not met"),
        (row(1.2, most=1.2), "met"),
        (row(1.21, most=1.2), "not met"),
        (row(0.1), "reported"),  # nothing was promised
        (row(math.nan, least=2.0), "not met"),
        # A fast run with wrong vectors, or with too much memory, keeps no promise.
        (row(9.0, least=2.0, checks=(claims.Check("difference", 1e-3, most=1e-5),)), "not met"),
        (row(9.0, least=2.0, checks=(claims.Check("difference", 1e-6, most=1e-5),)), "met"),
        (row(9.0, least=2.0, checks=(claims.Check("cosine", math.nan, least=0.9),)), "not met"),
    ],
)
def test_verdict(figure: Any, verdict: str) -> None:  # noqa: ANN401  a Row
    """Met means: the median is inside its bounds, and every check beside it holds."""
    assert figure.verdict == verdict


def publish(rows: list[Any]) -> dict[str, Any]:
    """Publish rows under the name of a script, and return what was kept."""
    claims.publish("bench/corpus.py", rows, setting="Two sources.", ceilings={"bf16": 2e11})
    return storage.read_json(claims.result_path("corpus"), "")


def test_table_shows_figures_bounds_and_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has its bound, its spread and its verdict; a reason stands only where it is missed."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    ours, peer = result([1.0, 1.0, 1.0], [30, 25, 20]), result([1.0, 1.0, 1.0], [10, 10, 10])
    named = ("datasets", "`load_dataset` and so on.")
    check = claims.Check("texts that differ", 2.0, most=0)
    made = [
        claims.versus("fast", ours, peer, named, least=2.0, reason="never shown"),
        claims.versus("faster", ours, peer, named, least=3.0, reason="tokenising is 80 %"),
        claims.versus("wrong", ours, peer, named, least=2.0, checks=[check]),
        claims.of_ceiling("steps", result([1.0], [1.0], flops=1e11), {"bf16": 2e11}, 0.6),
    ]
    text = document.markdown_of_script("corpus", publish(made))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:2] == "| "}
    assert re.search(r"≥ 2 +\| 2\.50 \(2\.00–3\.00\).*\| met +\|$", lines["fast"])
    assert re.search(r"≥ 3 .*25 / 10.*\| not met +\|$", lines["faster"])
    assert lines["wrong"].rstrip("| ").endswith("not met")
    share = lines["steps, share of the bf16 matrix-product rate"]
    assert re.search(r"≥ 0\.6 +\| 0\.50 .*50%.*not met", share)
    assert "tokenising is 80 %" in text
    assert "never shown" not in text
    assert "- wrong: texts that differ 2 (≤ 0): not met" in text
    assert text.count("`load_dataset` and so on.") == 1


def test_documents_keep_other_machines_and_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new run replaces its own machine's figures only; a script that fails is in the table."""
    run_all = load("run_all")
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    kept = publish([row(7.0, least=2.0)])
    elsewhere = {"machine": document.machine() | {"name": "another GPU"}, "scripts": {}}
    elsewhere["scripts"]["corpus"] = kept
    storage.write_json(tmp_path / "benchmarks.json", {"another": elsewhere})
    monkeypatch.setattr(run_all, "OUTPUT", str(tmp_path))
    monkeypatch.setattr(run_all, "SCRIPTS", ("no_such_script", "corpus"))
    monkeypatch.setattr(run_all, "ONLY", ["no_such_script"])
    with pytest.raises(SystemExit) as ended:
        run_all.main()
    assert ended.value.code == 1
    stored = storage.read_json(tmp_path / "benchmarks.json", "")
    assert stored.pop("another") == elsewhere
    (mine,) = stored.values()
    assert mine["scripts"]["no_such_script"]["rows"][0]["verdict"] == "failed"
    text = (tmp_path / "BENCHMARKS.md").read_text(encoding="utf-8")
    assert "## another GPU" in text
    assert "Did not finish: exit code 2" in text
    assert "1 failed" in capsys.readouterr().out
    monkeypatch.setattr(run_all, "ONLY", ["teacher"])
    with pytest.raises(UserError, match="no such benchmark: teacher"):
        run_all.main()


def test_matrix_product_rate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both formats have a rate, and a script's ceiling is the best of its rounds."""
    monkeypatch.setattr(ceiling, "SHAPES", ((64, 32, 48), (32, 32, 32)))
    figures = ceiling.gemm()(1, harness.Clock()).figures
    assert set(figures) == {"fp32", "bf16"}
    assert min(figures.values()) > 0
    rounds = [{"fp32": 3.0, "bf16": 9.0}, {"fp32": 4.0, "bf16": 8.0}]
    samples = tuple(harness.Sample(1.0, 1.0, harness.Work(1.0, figures=one)) for one in rounds)
    assert claims.ceilings(harness.Result("ceiling", samples)) == {"fp32": 4.0, "bf16": 9.0}


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 9, 30])
def test_visible_pairs_are_those_of_the_mask(length: int) -> None:
    """The formula counts what attention's own band mask lets through: edges, window, beyond."""
    import torch

    from small_modernbert.models.attention import band

    for reach in (1, 4, 8):
        wanted = int(band(length, reach, torch.device("cpu")).sum())
        assert ceiling.visible_pairs([length], reach) == wanted
    assert ceiling.visible_pairs([length, 3], None) == length**2 + 9


def test_useful_operations_by_hand(make_student: Callable[..., Any]) -> None:
    """One layer of 4 inputs, written out: what each product multiplies and adds, times two."""
    config = make_student(num_hidden_layers=2, hidden_size=16, intermediate_size=24).config
    # Wqkv 16 x 48, Wo 16 x 16, Wi 16 x 48 (value and gate), Wo 24 x 16, over 5 + 12 tokens.
    weights = 2 * (16 * 48 + 16 * 16 + 16 * 48 + 24 * 16) * 17
    # Layer 0 sees all, layer 1 four to each side: 5 tokens whole, 12 x 9 - 4 x 5 pairs.
    pairs = (25 + 144) + (25 + 12 * 9 - 20)
    # Scores and their product with the values: 2 x 16 each for a pair, over all the heads.
    assert ceiling.encoder_flops(config, [5, 12]) == 2 * weights + 4 * 16 * pairs
    head_and_decoder = 2 * 3 * (16 * 16 + 16 * config.vocab_size)
    assert ceiling.prediction_flops(config, 3) == head_and_decoder


def test_useful_operations_as_torch_counts_them(
    make_student: Callable[..., Any], teacher_folder: Path
) -> None:
    """Where nothing is padded and no window cuts, torch's own counter finds the same number."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel

    ours = make_student(local_attention=64)
    for model in (ours, AutoModel.from_pretrained(teacher_folder)):
        model.set_attn_implementation("eager")  # its products are visible to the counter
        counter = FlopCounterMode(display=False)
        ids = torch.full((2, 7), 5)
        with counter, torch.no_grad():
            hidden = model(input_ids=ids).last_hidden_state
        assert hidden.shape[:2] == (2, 7)
        by_torch = counter.get_total_flops()
        pooler = 2 * 2 * model.config.hidden_size**2 if hasattr(model, "pooler") else 0
        # Rotary angles are products too, and a few numbers large.
        assert ceiling.encoder_flops(model.config, [7, 7]) == pytest.approx(
            by_torch - pooler, rel=0.01
        )


def test_lengths_are_realistic() -> None:
    """Median 60, mean 90, 99th percentile about 489 tokens, as in web text; equal seeds, equal."""
    drawn = inputs.draw_lengths(200_000, seed=0, longest=10_000)
    assert np.median(drawn) == pytest.approx(60, rel=0.02)
    assert drawn.mean() == pytest.approx(90, rel=0.02)
    assert np.percentile(drawn, 99) == pytest.approx(489, rel=0.03)
    assert inputs.draw_lengths(1_000, seed=0, longest=100).max() == 100
    assert (drawn[:50] == inputs.draw_lengths(200_000, seed=0, longest=10_000)[:50]).all()


@pytest.fixture
def source(tmp_path: Path, language: Language) -> Path:
    """Return a Parquet file of 80 passages with their source."""
    passages = [language.passage().text for _ in range(80)]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": passages, "source": ["invented"] * 80}), path)
    return path


def test_texts_are_joined_and_cut_from_real_ones(source: Path) -> None:
    """Each text has the words that its drawn length asks for, and they are the source's words."""
    texts = inputs.make_texts(source, 300, seed=1, longest=64)
    lengths = inputs.draw_lengths(300, 1, 64)
    words = [len(text.split()) for text in texts]
    assert np.allclose(words, np.maximum(1, (lengths - 2) / inputs.TOKENS_PER_WORD), atol=0.51)
    known = set(" ".join(pq.read_table(source)["text"].to_pylist()).split())
    assert set(" ".join(texts).split()) <= known
    assert texts == inputs.make_texts(source, 300, seed=1, longest=64)
    assert texts != inputs.make_texts(source, 300, seed=2, longest=64)


def test_missing_assets_name_their_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that is not there is said to be made by `make assets`."""
    with pytest.raises(UserError, match="run: make assets"):
        inputs.locate("assets/no/such.parquet")


def test_trainer_batches_are_alike_and_never_the_same() -> None:
    """No row is in two rounds; grouped ones are of near-equal lengths, and cover short and long."""
    lengths = inputs.draw_lengths(4_000, seed=0, longest=512)
    for grouped in (False, True):
        batches = inputs.trainer_batches(lengths, 32, grouped, 8, seed=0)
        rounds = [batches(number) for number in range(1, 5)]
        assert all(len(one) == 8 and {len(batch) for batch in one} == {32} for one in rounds)
        rows = [row for one in rounds for batch in one for row in batch]
        assert len(set(rows)) == len(rows)
        fill = [
            lengths[sum(one, [])].sum() / sum(32 * lengths[batch].max() for batch in one)
            for one in rounds
        ]
        assert (min(fill) > 0.8) if grouped else (max(fill) < 0.4)
        means = [lengths[sum(one, [])].mean() for one in rounds]
        assert max(means) < 1.35 * min(means)
        assert len(batches(0)) == 1


def test_tokens_are_counted_with_and_without_padding(teacher_folder: Path) -> None:
    """What a peer's model is given is counted, whether it is called with names or with a dict."""
    import torch
    from sentence_transformers import SentenceTransformer

    teacher = SentenceTransformer(str(teacher_folder), device="cpu")
    count = inputs.count_tokens(teacher[0])
    named = inputs.count_tokens(teacher[0].model)
    encoded = teacher.tokenize(["the of", "the of and in is"])
    real, processed = int(encoded["attention_mask"].sum()), encoded["input_ids"].numel()
    teacher.encode(["the of", "the of and in is"])
    assert (count.real, count.processed) == (real, processed)
    assert real < processed
    teacher[0].model(input_ids=torch.ones(2, 3, dtype=torch.long))
    assert (named.real, named.processed) == (6, 6)


@pytest.fixture
def world(tmp_path: Path, source: Path, wordpiece_folder: Path, teacher_folder: Path) -> Path:
    """Return a folder with texts and a small student, as the scripts lay it out."""
    inputs.write_texts(
        tmp_path / "texts.parquet", inputs.make_texts(source, 48, seed=0, longest=40)
    )
    inputs.make_student(tmp_path / "student", "offline", wordpiece_folder, seed=0)
    return tmp_path


def test_masked_contenders_train_on_real_tokens(world: Path, wordpiece_folder: Path) -> None:
    """Ours and the Trainer take their steps; each counts the real tokens of its own batches."""
    script = load("mlm_pretraining")
    common = {
        "folder": str(world),
        "tokenizer": str(wordpiece_folder),
        "longest": 40,
        "masking": 0.3,
        "preset": "offline",
        "vocabulary": 192,
        "seed": 0,
    }
    ours = script.ours(**common, sequences=2, steps=2)
    first, second = (ours(number, harness.Clock()) for number in (0, 1))
    assert first.tokens == first.processed
    assert 40 < first.tokens <= 80  # two bins of 40 tokens
    assert first.tokens < second.tokens <= 160
    peer = script.trainer(**common, batch=4, grouped=False, steps=2)
    clock = harness.Clock()
    found = peer(1, clock)
    assert found.tokens < found.processed
    assert found.flops == pytest.approx(second.flops * found.tokens / second.tokens, rel=0.2)
    assert clock.seconds > 0  # the callback started and stopped it


def test_labelling_contenders_give_the_same_vectors(world: Path, teacher_folder: Path) -> None:
    """The vectors of ours and of the peer's map are compared, text by text, and agree."""
    script = load("teacher_labels")
    common = {"folder": str(world), "teacher": str(teacher_folder), "texts": 12, "warmup": 4}
    made = {
        "fp32": script.ours(**common, tokens_per_batch=64, wanted="fp32"),
        "auto": script.ours(**common, tokens_per_batch=64, wanted="bf16"),
        "map": script.mapped(**common),
        "encode": script.encoded(**common),
    }
    done = {name: one(1, harness.Clock()) for name, one in made.items()}
    assert {one.amount for one in done.values()} == {12}
    assert len({one.tokens for one in done.values()}) == 1
    (world / "ours-bf16-1.npy").rename(world / "ours-auto-1.npy")
    checks = script.compare_vectors(world, [1], rounded=False)
    assert checks["fp32"].met
    assert checks["default"].met
    assert checks["default"].value < 1 - 1e-7  # another precision than the peer's
    np.save(world / "ours-fp32-1.npy", np.load(world / "ours-fp32-1.npy")[::-1])
    assert not script.compare_vectors(world, [1], rounded=False)["fp32"].met


def test_distillation_contenders_train_on_the_same_texts(world: Path) -> None:
    """Ours and the Trainer see the same real tokens, the Trainer with padding."""
    script = load("distillation")
    common = {"folder": str(world), "texts": 16, "warmup": 4, "seed": 0}
    ours = script.ours(**common, rows_per_batch=8, tokens_per_batch=1_024)(1, harness.Clock())
    peer = script.trainer(**common, batch=8)(1, harness.Clock())
    assert ours.amount == peer.amount == 16
    assert ours.tokens == ours.processed == peer.tokens < peer.processed
    assert ours.flops > 0


def test_encoding_contenders_encode_the_same_texts(world: Path) -> None:
    """Packed and padded encoding count the same real tokens of the same texts."""
    script = load("encoding")
    common = {
        "model": str(world / "student"),
        "texts": str(world / "texts.parquet"),
        "size": 12,
    }
    packed, padded = (make(**common)(1, harness.Clock()) for make in (script.packed, script.padded))
    assert packed.amount == padded.amount == 12
    assert packed.tokens == padded.tokens <= padded.processed


def test_corpora_of_both_sides_hold_the_same_texts(
    tmp_path: Path, source: Path, wordpiece_folder: Path
) -> None:
    """Our corpus and the peer's hold the same distinct texts; a text too many would be noticed."""
    script = load("corpus")
    sources = script.write_sources(source, tmp_path, 30)
    assert [pq.read_metadata(path).num_rows for path in sources] == [30, 30]
    arguments = {
        "folder": str(tmp_path),
        "sources": sources,
        "tokenizer": str(wordpiece_folder),
        "max_tokens": 24,
        "min_characters": 12,
        "seed": 0,
    }
    results = harness.run(
        [harness.Contender(side.__name__, side, arguments) for side in (script.ours, script.peer)],
        rounds=1,
        threads=1,
    )
    assert {one.samples[0].work.amount for one in results.values()} == {60}
    assert script.texts_of_one(tmp_path) == 0
    path = tmp_path / "peer-1.parquet"
    texts = pq.read_table(path)["text"].to_pylist()
    assert len(texts) > 60  # longer ones were cut
    inputs.write_texts(path, [*texts, "one more"])
    assert script.texts_of_one(tmp_path) == 1


def test_growth_is_judged_against_the_cheapest_size() -> None:
    """Cost per token is compared with the best smaller size, memory with the one before."""
    script = load("scaling")
    # 1 x is dear because of its start-up; from 4 x to 16 x the cost per token doubles.
    sizes = [result([10.0], [10.0], tokens=10.0), result([4.0], [40.0], tokens=40.0)]
    sizes.append(result([32.0], [160.0], tokens=160.0))
    cost, memory = script.judge("labels", sizes)
    assert cost.wall.median == pytest.approx(2.0)
    assert cost.verdict == "not met"
    assert memory.wall.median == pytest.approx(8.0)
    flat = [result([1.0], [10.0 * size], tokens=10.0 * size) for size in (1, 4, 16)]
    assert [one.verdict for one in script.judge("mlm", flat)] == ["met", "met"]


@pytest.mark.parametrize("name", [*SCRIPTS, "run_all"])
def test_help_shows_every_constant(name: str) -> None:
    """--help needs nothing heavy, and shows each constant with its comment."""
    finished = run_process(["-X", "importtime", f"bench/{name}.py", "--help"]).check()
    imported = re.findall(r"^import time:.*\| +(\S+)$", finished.errors, re.MULTILINE)
    assert not {"torch", "transformers", "datasets"} & set(imported)
    constants = settings.read_constants(ROOT / "bench" / f"{name}.py")
    assert {"QUICK", "THREADS"} <= {constant.name for constant in constants}
    for constant in constants:
        assert constant.help, f"{constant.name} has no comment"
        assert f"--{constant.name.lower().replace('_', '-')}" in finished.output
    assert finished.output.split("╭")[0].count(f"python bench/{name}.py") >= 2


def test_all_scripts_are_run() -> None:
    """`make bench` runs every script of bench/ that measures something."""
    measuring = {
        path.stem
        for path in (ROOT / "bench").glob("*.py")
        if "claims.publish(" in path.read_text(encoding="utf-8")
    }
    assert measuring == set(load("run_all").SCRIPTS) == set(SCRIPTS)
