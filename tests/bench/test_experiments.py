"""Promises of bench/experiments: rows that can be run, run once, and counted rightly in tables."""

import dataclasses
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from small_modernbert.runs import settings
from small_modernbert.runs.references import ROOT

sys.path.append(str(ROOT / "bench" / "experiments"))
# run first: it lets the others find bench/inputs.py.
run, exported, peers, quality, rows, tables = map(
    importlib.import_module, ("run", "exported", "peers", "quality", "rows", "tables")
)


def line(row: Any, ndcg: float, speed: float = 10.0) -> dict[str, Any]:  # noqa: ANN401  a Row
    """Make the record of a row that has the same figure on every set."""
    sets = dict.fromkeys((*tables.SELECTION, *tables.REPORTED), ndcg)
    return {
        "name": row.name, "flags": run.flags_of(row) | {"seconds": run.BUDGET}, "seed": row.seed,
        "retrieval": sets, "with_bm25": {"0.5": sets}, "mrpc": 0.5, "pace": speed / 10,
        "parameters": 2, "parameters_without_embeddings": 1,
    }  # fmt: skip


def test_every_row_names_constants_of_its_scripts() -> None:
    """No row asks a script for a constant, or a peer for an argument, that it does not have."""
    starts, trainings = (
        {constant.name.lower() for constant in settings.read_constants(ROOT / f"{script}.py")}
        for script in ("mlm/init_model_mlm", "distil_modernbert")
    )
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)
    for row in rows.ROWS:
        assert (row.start or {}).keys() <= starts
        assert rows.DISTIL.keys() | row.distil.keys() <= trainings
        if row.peer:
            function, arguments = row.peer
            inspect.signature(getattr(peers, function)).bind("work", **arguments)


def test_a_finished_row_is_run_again_only_with_other_flags(tmp_path: Path) -> None:
    """The last line of a name counts; another flag, or another budget, makes the row due again."""
    row = next(row for row in reversed(rows.ROWS) if not row.peer)
    path = tmp_path / "experiments.jsonl"
    path.write_text("".join(json.dumps(line(row, ndcg)) + "\n" for ndcg in (0.1, 0.2)))
    record = run.read_record(path)
    assert [stored["retrieval"]["squad"] for stored in record] == [0.2]
    assert run.is_done(row, record)
    assert not run.is_done(dataclasses.replace(row, distil={"rows_per_batch": 8}), record)
    record[0]["flags"]["seconds"] += 1
    assert not run.is_done(row, record)


def test_drawn_documents_keep_the_queries_that_they_answer_whole() -> None:
    """A query stays when every document that answers it is drawn; the draw is always the same."""
    from small_modernbert.data.retrieval_sets import RetrievalSet

    names = [f"d{number}" for number in range(20)]
    relevant = {f"q{i}": {names[i]: 1.0, names[i + 1]: 1.0} for i in range(0, 18, 2)}
    whole = RetrievalSet("made", list(relevant), list(relevant), names, names, relevant)
    some = quality.draw(whole, 12)
    assert len(some.documents) == 12 and some == quality.draw(whole, 12)
    kept = {query for query in relevant if set(relevant[query]) <= set(some.document_ids)}
    assert set(some.query_ids) == kept and 0 < len(kept) < len(relevant)


def test_tables_give_shares_of_the_teacher_and_the_spread_of_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares are of the teacher's mean; rows that differ by the seed alone are told together."""
    monkeypatch.setattr(tables, "_plot", lambda *_: None)  # seconds of matplotlib
    teacher = next(row for row in rows.ROWS if row.name == tables.TEACHER)
    student = next(row for row in rows.ROWS if row.name == tables.STUDENT)
    first = next(row for row in rows.ROWS if row.name.startswith("ours: "))
    again = next(row for row in rows.ROWS if row.name == "ours, seed 43")
    record = [line(teacher, 0.8), line(student, 0.6, 25.0), line(first, 0.4), line(again, 0.6)]
    tables.write(tmp_path, record, rows.ROWS)
    text = (tmp_path / "EXPERIMENTS.md").read_text(encoding="utf-8")
    [row_of_student] = [part for part in text.splitlines() if part.startswith(f"| {student.name}")]
    assert "**75.0 %**" in row_of_student and "2.50" in row_of_student
    assert "50.0 to 75.0 %" in text and "62.5 %" in text


def test_only_what_is_a_row_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that no row has is refused, before anything is run."""
    monkeypatch.setattr(run, "ONLY", ["no such row"])
    with pytest.raises(run.UserError, match="no such row"):
        run.main()


def test_rows_that_can_no_longer_be_run_keep_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the record holds beyond rows.py stands in a section of its own."""
    monkeypatch.setattr(tables, "_plot", lambda *_: None)
    teacher = next(row for row in rows.ROWS if row.name == tables.TEACHER)
    gone = dataclasses.replace(teacher, name="a recipe of old")
    tables.write(tmp_path, [line(teacher, 0.8), line(gone, 0.4)], rows.ROWS)
    earlier = (tmp_path / "EXPERIMENTS.md").read_text(encoding="utf-8").split("## Earlier rows")[1]
    assert "a recipe of old" in earlier and "**50.0 %**" in earlier


def test_a_graph_is_a_row_like_any_model(tmp_path: Path, teacher_folder: Path) -> None:
    """A graph of several outputs gives the vectors of one, cut as its description says."""
    import onnx
    import transformers
    from onnx import helper

    from small_modernbert.models import encoders

    # Each token's number, and their sum where the mask is 1: two outputs, the second is the row's.
    whole = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", "t"])
    inputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["n", "t"])
        for name in ("input_ids", "attention_mask")
    ]
    made = helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, ["n", 1])
    axis = helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Identity", ["input_ids"], ["ids"]),
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "axis"], ["whole_sum"]),
        helper.make_node("Cast", ["whole_sum"], ["sum"], to=onnx.TensorProto.FLOAT),
    ]
    graph = helper.make_graph(nodes, "made", inputs, [whole, made], [axis])
    opset = [helper.make_opsetid("", 17)]
    (tmp_path / "onnx").mkdir()
    path = tmp_path / "onnx/model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    (tmp_path / "tokenizer.json").write_bytes((teacher_folder / "tokenizer.json").read_bytes())
    exported.keep_output(path, 1)
    exported.describe(tmp_path, transformers.BertConfig(hidden_size=12), 4)
    said = json.loads((tmp_path / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps(said | {"dimensions": 1}))
    (tmp_path / "row").symlink_to(path)
    encoder = encoders.load_encoder((tmp_path / "row").resolve())
    short, long = encoder.encode_batch(["a", "a the and of in that is"], "")
    assert 0 < short[0] < long[0]
    # Cut at four tokens, and padded beside a longer text, nothing changes.
    assert encoder.encode_batch(["a the"], "") == encoder.encode_batch(["a the and of"], "")
    assert encoder.encode_batch(["a"], "") == short
    assert 0 < encoder.parameters_without_embeddings < encoder.parameters
