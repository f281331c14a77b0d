"""Promises towards a hub: what it answers is read, and each of its refusals is one line.

The answers are real ones, over HTTP on the loopback address, through the hub's own libraries.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rehearsal.local_hub import LocalHub, Repository
from rehearsal.made_hub import write_card
from script_runner import run_process

PINNED = "a" * 40
ROWS = 300
# The libraries, and we, wait for seconds before a request is made again.
RETRIES = "import time; time.sleep = lambda seconds: None"
STREAM = "[len(batch['query']) for batch in hub.stream_rows('o/data', {}, 'query'.split())]"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """Serve a model and a data set of two configs."""
    model = tmp_path / "hub" / "models" / "o" / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "config.json").write_text("{}", encoding="utf-8")
    (model / "1_Pooling" / "config.json").write_text("{}", encoding="utf-8")
    (model / "model.safetensors").write_bytes(bytes(200_000))
    (model / "pytorch_model.bin").write_bytes(b"never fetched")
    data = tmp_path / "hub" / "datasets" / "o" / "data"
    for config in ("triplet", "other"):
        (data / config).mkdir(parents=True)
        rows = {"query": [f"{config} {row}" for row in range(ROWS)], "positive": ["p"] * ROWS}
        pq.write_table(pa.table(rows), data / config / "train-0.parquet")
    write_card(data, {"triplet": ["train"], "other": ["train"]})
    with LocalHub(tmp_path / "hub", {"o/model": PINNED}) as served:
        yield served


@pytest.fixture
def ask(hub: LocalHub, tmp_path: Path) -> Callable[[str], str]:
    """Return a function that evaluates an expression over `hub` in a process of its own."""

    def evaluate(expression: str, endpoint: str = hub.endpoint) -> str:
        code = f"""
import logging
from small_modernbert.runs import errors, hub, machine
machine.prepare()
logging.disable()
{RETRIES}
try:
    print({expression})
except errors.UserError as error:
    print("error:", error)
"""
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        return run_process(["-c", code], environment=environment).check().output.strip()

    return evaluate


def repository(hub: LocalHub, kind: str) -> Repository:
    """Return the only repository of a kind."""
    return next(one for (of, _), one in hub.repositories.items() if of == kind)


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_model_and_rows_arrive(hub: LocalHub, ask: Callable[[str], str]) -> None:
    """A model's folder, without pickles; the rows of the config that is asked for, by column."""
    names = ask("sorted(path.name for path in hub.fetch_model('o/model', None).rglob('*.*'))")
    assert eval(names) == ["config.json", "config.json", "model.safetensors"]
    rows = ask("[next(hub.stream_rows('o/data', 'other', 'train', None, ['query']))]")
    (batch,) = eval(rows)
    assert batch == {"query": [f"other {row}" for row in range(ROWS)]}
    assert not any("pytorch_model.bin" in request for request in hub.requests)


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_files_of_a_repository_are_read_by_url(ask: Callable[[str], str]) -> None:
    """hf:// names the files of a data set, with wildcards; each is known by the hub's own mark."""
    module = "__import__('small_modernbert.{}', fromlist=['module'])".format
    places, rows, lineage = map(module, ("runs.places", "data.file_rows", "runs.lineage"))
    cell = f"next({rows}.read_rows(path, {{'query': 'text'}}, ''))['query'][0]"
    found = f"{places}.find('hf://datasets/o/data/*/*.parquet', 'X', '')"
    files = eval(ask(f"[(str(path), {cell}, {lineage}.digest_input(path)) for path in {found}]"))
    url = "hf://datasets/o/data/{}/train-0.parquet".format
    assert [file[:2] for file in files] == [
        (url(name), f"{name} 0") for name in ("other", "triplet")
    ]
    assert files[0][2] != files[1][2]


def change(hub: LocalHub, kind: str, fault: str, value: object) -> None:
    """Let something go wrong with a repository."""
    setattr(repository(hub, kind).faults, fault, value)


MODEL = "hub.fetch_model('o/model', None)"
DATA = STREAM.format("'triplet', 'train', None")
MODULE = "__import__('small_modernbert.data.evaluation_sets', fromlist=['data'])"
LOAD = f"{MODULE}.load_hub_split('o/data', 'triplet', 'train', None).num_rows"


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize(
    ("fault", "expression", "said"),
    [
        # terms to accept first
        (("models", "gated", True), MODEL, "model o/model is gated: accept its terms"),
        (("datasets", "gated", True), DATA, "dataset o/data (config triplet) is gated: accept"),
        # nothing of that name: the hub answers 401, as for a private one
        (None, "hub.fetch_model('o/none', None)", "model o/none is not there, or is private;"),
        (None, DATA.replace("o/data", "o/none"), "dataset o/none (config triplet) is not there"),
        # a revision that was, or never was
        (None, MODEL.replace("None", repr("b" * 40)), "model o/model is not there (404"),
        (None, STREAM.format(f"'triplet', 'train', {'b' * 40!r}"), "check the id and the revision"),
        # cut in the middle of a file, again and again; or the hub is not up to anything
        (("models", "drops", -1), MODEL, "cannot be reached (peer closed connection"),
        (("models", "busy", 1_000), MODEL, "503 Service Unavailable"),
        (("datasets", "drops", -1), DATA, "cannot be reached (peer closed connection"),
        # a config and a split that are not there
        (None, STREAM.format("'pair', 'train', None"), "(config pair): no such config"),
        (None, STREAM.format("'triplet', 'dev', None"), "has no split 'dev'"),
    ],
)
def test_refusals_are_one_line(
    hub: LocalHub,
    ask: Callable[[str], str],
    fault: tuple[str, str, object] | None,
    expression: str,
    said: str,
) -> None:
    """Gated, missing, moved, out of order, another config or split: what is wrong, and the cure."""
    if fault is not None:
        change(hub, *fault)
    output = ask(expression)
    assert output.startswith("error: ")
    assert said in output
    assert "\n" not in output


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_dropped_connection_is_taken_up_again(hub: LocalHub, ask: Callable[[str], str]) -> None:
    """Cut in the middle of a file, once: the rest is asked for, and every row and byte arrives."""
    change(hub, "datasets", "drops", 1)
    assert eval(ask(DATA)) == [ROWS]
    change(hub, "models", "drops", 1)
    size = ask(f"({MODEL} / 'model.safetensors').stat().st_size")
    assert int(size) == 200_000


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_half_a_model_is_not_taken_for_a_whole_one(
    hub: LocalHub, ask: Callable[[str], str]
) -> None:
    """With the hub out of reach, a cached tokenizer alone is no model, and the line says so."""
    ask("hub.fetch_file('o/model', None, 'config.json')")
    nobody = "http://127.0.0.1:9"
    output = ask(MODEL, nobody)
    assert output.startswith("error: model o/model cannot be reached")
    assert "make run" in output
    ask(MODEL)
    assert json.loads(json.dumps(ask(MODEL, nobody))).endswith(PINNED)


NOTED = "(hub.revisions.clear(), {call}, dict(hub.revisions))[2]"


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_what_was_read_of_a_moving_revision_is_noted(
    hub: LocalHub, ask: Callable[[str], str]
) -> None:
    """Without a pin the newest is read, and its commit is there for run.json; with one, nothing."""
    config = "hub.fetch_file('o/model', None, 'config.json')"
    calls = {MODEL: "models", config: "models", DATA: "datasets", LOAD: "datasets"}
    pinned = MODEL.replace("None", repr(PINNED))
    expression = ", ".join(NOTED.format(call=call) for call in (*calls, pinned))
    *noted, of_pinned = eval(ask(f"({expression})").splitlines()[-1])
    for kind, told in zip(calls.values(), noted, strict=True):
        served = repository(hub, kind)
        assert told == {served.id: f"main at {served.commits[-1]}"}
    assert of_pinned == {}


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_evaluation_data_out_of_reach_is_told_at_once_or_cached(
    hub: LocalHub, ask: Callable[[str], str]
) -> None:
    """No half minute of tries that fail: one line, or what was loaded before."""
    nobody = "http://127.0.0.1:9"
    output = ask(LOAD, nobody)
    assert output.startswith("error: dataset o/data cannot be reached")
    assert "Retrying" not in output
    assert int(ask(LOAD)) == ROWS
    assert int(ask(LOAD, nobody).splitlines()[-1]) == ROWS
