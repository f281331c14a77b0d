"""Promises of bench/: fair turns, right ratios, honest verdicts, operations well counted."""

import importlib
import math
import os
import re
import subprocess
import sys
import time
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
document, inputs, measure, peak = map(
    importlib.import_module, ("document", "inputs", "measure", "peak")
)
SCRIPTS = ("mlm_pretraining", "teacher_labels", "distillation", "corpus", "encoding", "scaling")
MIB = 1 << 20


def load(name: str) -> ModuleType:
    """Import one of the scripts without running it."""
    return importlib.import_module(name)


# Contenders: module-level, since each runs in a process of its own.


def noting(path: str, name: str) -> Callable[..., Any]:
    """Prepare a contender that writes down its name, its round and its process."""

    def work(number: int) -> Any:  # noqa: ANN401  a Work
        with Path(path).open("a") as stream:
            stream.write(f"{name} {number} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
        return measure.Work(10.0 * (number + 1))

    return work


def allocating(mib: list[int], children: list[int]) -> Callable[..., Any]:
    """Prepare a contender that takes so much memory in each round, and starts so many children."""
    code = f"import time; memory = b'x' * (70 * {MIB}); time.sleep(0.8)"

    def work(number: int) -> Any:  # noqa: ANN401  a Work
        memory = np.ones(mib[number] * MIB, dtype=np.uint8)
        command = [sys.executable, "-S", "-c", code]
        for child in [subprocess.Popen(command) for _ in range(children[number])]:
            child.wait()
        time.sleep(0.3)
        return measure.Work(float(memory.sum()))

    return work


def raising() -> Callable[..., Any]:
    """Prepare a contender that cannot be prepared."""
    raise ValueError("no such model")


def rounds_of(seconds: list[float], amounts: list[float], **work: float) -> list[Any]:
    """Return rounds of given seconds and amounts."""
    return [
        measure.Work(amount, took, peak_mib=100.0 * took, **work)
        for took, amount in zip(seconds, amounts, strict=True)
    ]


def row(value: float, **fields: Any) -> Any:  # noqa: ANN401  a claim
    """Return a claim with this figure."""
    return measure.claim("rows/s", measure.spread([value]), ("datasets", ""), **fields)


def test_contenders_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    """Ours, peer, ours, peer: the warm-up first, each side always in its own single process."""
    path = tmp_path / "turns"
    names = ("ours", "peer")
    done = measure.run(
        [measure.Contender(name, noting, {"path": str(path), "name": name}) for name in names],
        rounds=3,
        threads=1,
    )
    turns = [line.split() for line in path.read_text().splitlines()]
    assert [(name, int(number)) for name, number, _, _ in turns] == [
        (name, number) for number in range(4) for name in names
    ]
    processes = {name: {turn[2] for turn in turns if turn[0] == name} for name in names}
    assert len(processes["ours"]) == len(processes["peer"]) == 1
    assert processes["ours"] != processes["peer"]
    assert {threads for *_, threads in turns} == {"1"}
    # The warm-up did 10, and is not among the rounds.
    assert [work.amount for work in done["peer"]] == [20.0, 30.0, 40.0]
    assert all(work.seconds > 0 for work in done["ours"])


def test_peak_memory_is_of_the_round_and_of_all_processes() -> None:
    """A round's peak holds what it and its children took, not what an earlier round had taken."""
    sizes = {"mib": [0, 200, 1, 1], "children": [0, 0, 0, 3]}
    (works,) = measure.run(
        [measure.Contender("hungry", allocating, sizes)], rounds=3, threads=1
    ).values()
    large, small, parents = (work.peak_mib for work in works)
    assert 180 < large - small < 220
    assert 3 * 60 < parents - small < 3 * 110
    assert measure.peak_mib(works) == max(large, parents)


def test_a_failed_contender_ends_the_run_with_its_reason() -> None:
    """A contender that fails is not passed over."""
    with pytest.raises(ValueError, match="no such model"):
        measure.run([measure.Contender("loser", raising)], rounds=1, threads=1)


def test_ratios_are_of_rates_round_by_round() -> None:
    """The ratio is of amounts a second, inside each round; the median is not that of the times."""
    ours = rounds_of([1.0, 2.0, 4.0], [100.0, 100.0, 100.0])  # 100, 50, 25 a second
    peer = rounds_of([2.0, 1.0, 8.0], [50.0, 20.0, 100.0])  # 25, 20, 12.5
    assert measure.ratio(ours, peer) == {"median": 2.5, "low": 2.0, "high": 4.0}
    assert measure.rate(ours) == 50.0
    assert measure.peak_mib(ours) == 400.0
    with pytest.raises(ValueError):
        measure.ratio(ours, rounds_of([1.0], [1.0]))
    share = measure.share(rounds_of([2.0, 4.0], [1.0, 1.0], flops=8.0), 10.0)
    assert (share["low"], share["high"]) == (0.2, 0.4)


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
        (row(9.0, least=2.0, checks=[measure.check("apart", 1e-3, most=1e-5)]), "not met"),
        (row(9.0, least=2.0, checks=[measure.check("apart", 1e-6, most=1e-5)]), "met"),
        (row(9.0, least=2.0, checks=[measure.check("cosine", math.nan, least=0.9)]), "not met"),
    ],
)
def test_verdict(figure: dict[str, Any], verdict: str) -> None:
    """Met means: the median is inside its bounds, and every check beside it holds."""
    assert figure["verdict"] == verdict


def publish(claims: list[Any]) -> dict[str, Any]:
    """Publish claims under the name of a script, and return what was kept."""
    measure.publish(
        "bench/corpus.py", claims, setting="Two sources.", ceilings={"bf16": 2e11}, begun=0.0
    )
    return storage.read_json(measure.result_path("corpus"), "")


def test_table_shows_figures_bounds_and_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has its bound, its spread and its verdict; a reason stands only where it is missed."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    done = {
        "ours": rounds_of([1.0, 1.0, 1.0], [30, 25, 20], flops=1e11),
        "peer": rounds_of([1.0, 1.0, 1.0], [10, 10, 10]),
    }
    sides, named = ("ours", "peer"), ("datasets", "`load_dataset` and so on.")
    check = measure.check("texts that differ", 2.0, most=0)
    made = [
        measure.versus("fast", done, sides, named, least=2.0, reason="never shown"),
        measure.versus("faster", done, sides, named, least=3.0, reason="tokenising is 80 %"),
        measure.versus("wrong", done, sides, named, least=2.0, checks=[check]),
        measure.of_peak("steps", done["ours"], {"bf16": 2e11}, ""),
    ]
    text = document.markdown_of_script("corpus", publish(made))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:2] == "| "}
    assert re.search(r"≥ 2 +\| 2\.50 \(2\.00–3\.00\).*\| met +\|$", lines["fast"])
    assert re.search(r"≥ 3 .*25 / 10.*\| not met +\|$", lines["faster"])
    assert lines["wrong"].rstrip("| ").endswith("not met")
    share = lines["steps, share of the bf16 matrix-product rate"]
    assert re.search(r"≥ 0\.6 +\| 0\.50 .*not met", share)
    assert "tokenising is 80 %" in text
    assert "never shown" not in text
    assert "- wrong: texts that differ 2 (≤ 0)" in text
    assert text.count("`load_dataset` and so on.") == 1


def test_documents_keep_other_machines_and_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new run replaces its own machine's figures only; a script that fails is in the table."""
    run_all = load("run_all")
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    kept = publish([row(7.0, least=2.0)])
    elsewhere = {"machine": document.machine(2) | {"name": "another GPU"}, "scripts": {}}
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


def test_stored_figures_can_be_written_out() -> None:
    """docs/benchmarks.json still gives a table of every machine in it."""
    machines = storage.read_json(ROOT / "docs" / "benchmarks.json", "")
    text = document.markdown(machines)
    for run in machines.values():
        assert f"## {run['machine']['name']}" in text
        for result in run["scripts"].values():
            assert all(claim["claim"] in text for claim in result["rows"])


def test_matrix_product_rate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both formats have a rate, and a script's ceiling is the best of its rounds."""
    monkeypatch.setattr(peak, "SHAPES", ((64, 32, 48), (32, 32, 32)))
    figures = peak.products()(1).figures
    assert set(figures) == {"fp32", "bf16"}
    assert min(figures.values()) > 0
    rounds = [{"fp32": 3.0, "bf16": 9.0}, {"fp32": 4.0, "bf16": 8.0}]
    works = [measure.Work(1.0, figures=each) for each in rounds]
    assert peak.ceilings(works) == {"fp32": 4.0, "bf16": 9.0}


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 9, 30])
def test_visible_pairs_are_those_of_the_mask(length: int) -> None:
    """The formula counts what attention's own band mask lets through: edges, window, beyond."""
    import torch

    from small_modernbert.models.attention import band

    for reach in (1, 4, 8):
        wanted = int(band(length, reach, torch.device("cpu")).sum())
        assert peak.visible_pairs([length], reach) == wanted
    assert peak.visible_pairs([length, 3], None) == length**2 + 9


def test_useful_operations_by_hand(make_student: Callable[..., Any]) -> None:
    """One layer of 4 inputs, written out: what each product multiplies and adds, times two."""
    config = make_student(num_hidden_layers=2, hidden_size=16, intermediate_size=24).config
    # Wqkv 16 x 48, Wo 16 x 16, Wi 16 x 48 (value and gate), Wo 24 x 16, over 5 + 12 tokens.
    weights = 2 * (16 * 48 + 16 * 16 + 16 * 48 + 24 * 16) * 17
    # Layer 0 sees all, layer 1 four to each side: 5 tokens whole, 12 x 9 - 4 x 5 pairs.
    pairs = (25 + 144) + (25 + 12 * 9 - 20)
    # Scores and their product with the values: 2 x 16 each for a pair, over all the heads.
    assert peak.encoder_flops(config, [5, 12]) == 2 * weights + 4 * 16 * pairs
    head_and_decoder = 2 * 3 * (16 * 16 + 16 * config.vocab_size)
    assert peak.prediction_flops(config, 3) == head_and_decoder


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
        assert peak.encoder_flops(model.config, [7, 7]) == pytest.approx(
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
    known = set(" ".join(inputs.read_texts(source)).split())
    assert set(" ".join(texts).split()) <= known
    assert texts == inputs.make_texts(source, 300, seed=1, longest=64)
    assert texts != inputs.make_texts(source, 300, seed=2, longest=64)


def test_missing_assets_name_their_cure() -> None:
    """An input that is not there is said to be made by `make assets`."""
    with pytest.raises(UserError, match="run: make assets"):
        inputs.locate("assets/no/such.parquet")


def test_peer_batches_are_what_its_sampler_gives() -> None:
    """Grouped batches are of near-equal lengths, and cover short and long; others are random."""
    lengths = inputs.draw_lengths(4_000, seed=0, longest=512)
    draw = load("mlm_pretraining").draw_batches
    for grouped in (False, True):
        rows = draw(lengths, 32, 8, grouped, seed=0)
        assert len(set(rows.tolist())) == 8 * 32
        batches = lengths[rows.reshape(8, 32)]
        fill = batches.sum() / (32 * batches.max(axis=1)).sum()
        assert fill > 0.8 if grouped else fill < 0.4
        assert batches.mean() == pytest.approx(lengths.mean(), rel=0.25)


@pytest.fixture
def world(
    tmp_path: Path,
    source: Path,
    wordpiece_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Return a folder with texts and a small student, as the scripts lay it out."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    texts = inputs.make_texts(source, 48, seed=0, longest=40)
    inputs.write_texts(tmp_path / "texts.parquet", texts)
    small = {"num_hidden_layers": 2, "hidden_size": 32, "head_dim": 16}
    inputs.make_student(tmp_path / "student", wordpiece_folder, 0, "offline", **small)
    return tmp_path


def test_masked_contenders_train_on_real_tokens(world: Path) -> None:
    """Ours and the Trainer take their steps; each counts the real tokens of its own batches."""
    script = load("mlm_pretraining")
    common = {"folder": str(world), "longest": 40, "masking": 0.3, "seed": 0}
    ours = script.ours(**common, sequences=2, steps=2)(1)
    assert 80 < ours.amount <= 160  # two steps of two sequences of 40 tokens
    assert 0 < ours.seconds < 60 and ours.flops > 0
    peer = script.trainer(**common, batch=4, grouped=False, steps=2)(1)
    lengths = script.model_and_lengths(str(world), 40)[2]
    assert peer.amount == lengths[script.draw_batches(lengths, 4, 2, False, 1)].sum()
    assert peer.seconds > 0


def test_labelling_contenders_give_the_same_vectors(world: Path, teacher_folder: Path) -> None:
    """The vectors of ours and of the peer's map are compared, text by text, and agree."""
    script = load("teacher_labels")
    common = {"folder": str(world), "teacher": str(teacher_folder), "texts": 12, "warmup": 4}
    made = {
        "fp32": script.ours(**common, wanted="fp32"),
        "auto": script.ours(**common, wanted="bf16"),
        "map": script.mapped(**common),
        "encode": script.encoded(**common),
    }
    assert {work(1).amount for work in made.values()} == {12}
    for path in world.glob("ours-bf16-*.npy"):
        path.rename(str(path).replace("bf16", "auto"))
    equal, near = script.compare_vectors(world, [1])
    assert equal["value"] <= equal["most"] and near["value"] >= near["least"]
    assert near["value"] < 1 - 1e-7  # another precision than the peer's
    np.save(world / "ours-fp32-1.npy", np.load(world / "ours-fp32-1.npy")[::-1])
    equal, _ = script.compare_vectors(world, [1])
    assert equal["value"] > equal["most"]


def test_distillation_contenders_train_on_the_same_texts(world: Path) -> None:
    """Ours and the Trainer work on the same texts; ours counts those of the steps it counts."""
    script = load("distillation")
    script.write_labels(
        world / "labels", inputs.read_texts(world / "texts.parquet"), world / "student"
    )
    ours = script.ours(str(world), rows_per_batch=8)(1)
    peer = script.trainer(str(world), batch=8)(1)
    assert peer.amount == 48
    assert 0.5 * 48 < ours.amount < 48  # all steps but the first
    assert ours.flops > 0 and ours.seconds > 0 and peer.seconds > 0


def test_encoding_contenders_encode_the_same_texts(world: Path) -> None:
    """Packed and padded encoding have the same texts to encode."""
    script = load("encoding")
    given = {"model": str(world / "student"), "texts": str(world / "texts.parquet"), "size": 12}
    packed, padded = (make(**given)(1) for make in (script.packed, script.padded))
    assert packed.amount == padded.amount == 12
    assert packed.flops > 0


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
    sides = [
        measure.Contender(side.__name__, side, arguments) for side in (script.ours, script.peer)
    ]
    done = measure.run(sides, rounds=1, threads=1)
    assert {works[0].amount for works in done.values()} == {60}
    assert script.texts_of_one(tmp_path) == 0
    path = tmp_path / "peer-1.parquet"
    texts = inputs.read_texts(path)
    assert len(texts) > 60  # longer ones were cut
    inputs.write_texts(path, [*texts, "one more"])
    assert script.texts_of_one(tmp_path) == 1


def test_growth_is_judged_against_the_cheapest_size() -> None:
    """Cost per token is compared with the best smaller size, memory with the one before."""
    script = load("scaling")
    # 1 x is dear because of its start-up; from 4 x to 16 x the cost per token doubles.
    sizes = [(10.0, 10.0), (4.0, 40.0), (32.0, 160.0)]
    results = [rounds_of([cpu], [tokens], figures={"cpu": cpu}) for cpu, tokens in sizes]
    cost, memory = script.judge("create_distil_dataset", results)
    assert cost["wall"]["median"] == pytest.approx(2.0)
    assert cost["verdict"] == "not met"
    assert memory["wall"]["median"] == pytest.approx(8.0)
    flat = [rounds_of([1.0], [10.0 * size], figures={"cpu": size}) for size in (1, 4, 16)]
    assert [each["verdict"] for each in script.judge("mlm/pre_train", flat)] == ["met", "met"]


@pytest.mark.parametrize("name", [*SCRIPTS, "run_all", "gpu_check"])
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


def test_loaders_matrix_names_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each reader's answer stands in the table with its versions; one that differs ends in 1."""
    script = load("loaders")
    answers = [["/made/0", "transformers", True, "transformers: 16 texts: equal"]]
    monkeypatch.setattr(script, "make_folders", lambda place: {"/made/0": "ModernBERT, mean"})
    monkeypatch.setattr(script, "ask", lambda name, folders: ({"torch": "2.13.0"}, answers))
    monkeypatch.setattr(script, "OUTPUT", str(tmp_path / "LOADERS.md"))
    script.main()
    shown = capsys.readouterr().out
    assert shown.count("ModernBERT, mean") == 4 and "4 of 4 are equal" in shown
    answers.append(["/made/0", "sentence-transformers", False, "sentence-transformers: off"])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 1
    assert "4 of 8 are equal" in (tmp_path / "LOADERS.md").read_text(encoding="utf-8")
    monkeypatch.setattr(script, "ONLY", ["sentence-transformers 1"])
    with pytest.raises(UserError, match="no such environment"):
        script.main()


def test_loaders_students_are_of_unlike_kinds(
    wordpiece_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both poolings, a Dense layer, prompts and both architectures are read."""
    script = load("loaders")
    monkeypatch.setattr(inputs, "locate", lambda reference: wordpiece_folder)
    made = list(script.make_students().values())
    assert {student.pooling for student in made} == {"mean", "cls"}
    assert {student.body.config.model_type for student in made} == {"modernbert", "bert"}
    assert any(len(student.head) and student.prompts for student in made)
    assert all(student.max_tokens > 2 * 64 for student in made)


def test_without_a_gpu_there_is_nothing_to_check() -> None:
    """`make gpu-check` says that there is no GPU, and ends well."""
    command = ["-c", "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''; import runpy, sys;"]
    command[1] += "sys.argv = ['gpu_check.py']; sys.path.insert(0, 'bench');"
    command[1] += "runpy.run_path('bench/gpu_check.py', run_name='__main__')"
    finished = run_process(command).check()
    assert finished.output.startswith("no GPU here") and not finished.errors


def test_attention_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any device half precision is held against single precision, and what differs is said."""
    script = load("gpu_check")
    assert [row[-1] for row in script.check_attention()] == ["equal", "equal"]
    monkeypatch.setattr(script, "TOLERANCE", 0.0)
    assert [row[-1] for row in script.check_attention()] == ["NOT EQUAL", "NOT EQUAL"]


def test_gpu_check_times_every_stage(
    source: Path, wordpiece_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage has its rate and its share of the peak; what went wrong stands in the report."""
    script = load("gpu_check")
    kernels = [["attention", "FlashAttention", 0.5, "NOT EQUAL"]]
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    places = {inputs.TEXT: source, inputs.TEACHER: wordpiece_folder}
    monkeypatch.setattr(inputs, "locate", places.get)
    small = {"PRESET": "offline", "TOKENS": 32, "TEXTS": 40, "STEPS": 2}
    for name, value in (small | {"SEQUENCES": 2, "ROWS_PER_BATCH": 8}).items():
        monkeypatch.setattr(script, name, value)
    stages = script.run_stages(tmp_path)
    assert set(stages) == {"MLM pre-training", "labelling", "distillation", "encoding"}
    rates = {"fp32": 1e12, "bf16": 2e12}
    rows = [script.line(name, stage, rates) for name, stage in stages.items()]
    assert all(tokens > 60 and pace > 0 for _, tokens, pace, *_ in rows)
    text = script.markdown(kernels, rows, "finished after 1 s", rates, 1.0)
    assert "| distillation" in text and "NOT EQUAL" in text and "finished after 1 s" in text


def test_all_scripts_are_run() -> None:
    """`make bench` runs every script of bench/ that measures something."""
    measuring = {
        path.stem
        for path in (ROOT / "bench").glob("*.py")
        if "measure.publish(" in path.read_text(encoding="utf-8")
    }
    assert measuring == set(load("run_all").SCRIPTS) == set(SCRIPTS)
