"""Promises of bench/scale.py: equal is told from unequal, and unequal ends with 1.

Ranks and kills are real in `make scale`; what they promise is kept by tests/training/
test_data_parallel.py and tests/faults. Here its comparisons are tried on runs made by hand.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from small_modernbert.runs import storage
from small_modernbert.runs.references import ROOT

sys.path.append(str(ROOT / "bench"))
scale, trials, watched = map(importlib.import_module, ("scale", "rank_trials", "watched_rank"))
SCRIPT = "mlm/pre_train"


def made(folder: Path, ranks: int, notes: list[list[str]], weight: float = 1.0) -> Any:  # noqa: ANN401  a Trial
    """Return a trial as its processes would have left it: steps of three batches and of one."""
    trial = trials.Trial(trials.Place(folder, 0), f"by-{ranks}-{weight}", SCRIPT, ranks=ranks)
    (trial.runs / "notes").mkdir(parents=True)
    for rank, lines in enumerate(notes):
        (trial.runs / f"notes/rank-{rank}.txt").write_text("\n".join(lines))
    trial.final.mkdir(parents=True)
    save_file({"w": torch.tensor([weight, 2.0])}, trial.final / "model.safetensors")
    steps = [{"step": 1, "batches": 3, "seconds": 2.0}, {"step": 1, "held_out_loss": 1.0}]
    steps += [{"step": 2, "batches": 1, "seconds": 4.0}]
    text = "".join(f"{json.dumps(line)}\n" for line in steps)
    (trial.stage / "metrics.jsonl").write_text(text + '{"step": 3, "batches"')
    return trial


def test_batches_of_all_ranks_are_put_in_the_order_of_the_run(tmp_path: Path) -> None:
    """Each step's batches are dealt out from rank 0 on; a half-written line is no step."""
    single = made(tmp_path, 1, [["a", "b", "c", "d"]])
    double = made(tmp_path, 2, [["a", "c", "d"], ["b"]])
    other = made(tmp_path, 3, [["a", "d"], ["c"], ["b"]])
    assert single.batches() == double.batches() == ["a", "b", "c", "d"]
    assert other.batches() == ["a", "c", "b", "d"]
    assert double.has_made(2)() and not double.has_made(3)()


@pytest.mark.parametrize(
    ("weight", "notes", "held"),
    [
        (1.0 + 5e-7, [["a", "c", "d"], ["b"]], True),
        (1.0 + 5e-6, [["a", "c", "d"], ["b"]], False),
        (1.0, [["a", "b", "d"], ["c"]], False),
    ],
)
def test_other_batches_or_weights_are_seen(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weight: float,
    notes: list[list[str]],
    held: bool,
) -> None:
    """Weights further apart than 1e-6, or the same texts in other batches, are not held."""
    one, two = made(tmp_path, 1, [["a", "b", "c", "d"]]), made(tmp_path, 2, notes, weight)
    place = trials.Place(tmp_path, 0)
    place.student.mkdir()
    save_file({"w": torch.zeros(2)}, place.student / "model.safetensors")
    monkeypatch.setattr(scale, "RANKS", [1, 2])
    monkeypatch.setattr(scale, "TRAINED", {SCRIPT: "MLM"})
    monkeypatch.setattr(trials.Trial, "run", lambda self: one if self.ranks == 1 else two)
    (check,) = scale.equal_on_ranks(place)
    assert check.held is held
    assert check.what == "MLM, 2 ranks and 1" and "moved them up to 2.0e+00" in check.figure


@pytest.mark.parametrize("held", [True, False])
def test_what_is_not_held_ends_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], held: bool
) -> None:
    """All is tried, told and written, and then the exit code says whether all was equal.

    What is slow on a busy machine is told, too, and fails nothing.
    """

    def stub(name: str, answer: bool | None) -> Any:  # noqa: ANN401  a function of the script
        def look(place: Any) -> Iterator[Any]:  # noqa: ANN401  a Place
            yield scale.Check(name, "looked at", answer)
            yield scale.Check(f"{name}, seconds", "slow", False, timed=True)

        return look

    monkeypatch.setenv("RUNS", str(tmp_path))
    monkeypatch.setattr(scale.Place, "prepare", lambda self: None)
    answers = {"equal_on_ranks": held, "killed_rank": True, "killed_labelling": None}
    for name, answer in (answers | {"equal_on_workers": True, "labels_by_workers": True}).items():
        monkeypatch.setattr(scale, name, stub(name, answer))
    monkeypatch.setattr(scale, "QUICK", True)
    if held:
        scale.main()
    else:
        with pytest.raises(SystemExit) as ended:
            scale.main()
        assert ended.value.code == 1
    said = capsys.readouterr().out
    assert (
        "equal_on_ranks: looked at · NOT HELD" in said
    ) is not held and "killed_labelling: looked at · told" in said
    stored = storage.read_json(tmp_path / "bench/scale.json", "")
    kept = [check["held"] for check in stored["checks"] if not check["timed"]]
    assert kept == [held, True, None, True, True]


def test_a_batch_is_told_by_its_texts() -> None:
    """The same texts in the same pass give the same note, whoever has them."""
    rows = torch.arange(3).numpy()
    assert watched.digest(rows) == watched.digest(rows.copy())
    assert len({watched.digest(each) for each in (rows, rows[::-1], (0, rows), (1, rows))}) == 4
