"""Promise of docs/TROUBLESHOOTING.md: each error in it is provoked, and says what stands there."""

import errno
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_readme import FENCE, INLINE, check_script

from small_modernbert.data import retrieval_sets, sources
from small_modernbert.data.labels import Labels
from small_modernbert.models import encoders, loading
from small_modernbert.runs import dashboards, hub, places, references, settings
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT
from small_modernbert.runs.stages import Stage

PAGE = ROOT / "docs" / "TROUBLESHOOTING.md"
SECTION = re.compile(
    r"^### ([^\n]+)\n\n```\n(.+?)\n```\n\n(.+?)(?=^#|\Z)", re.MULTILINE | re.DOTALL
)


@dataclass
class World:
    """What a provocation needs.

    Attributes:
        place: an empty folder.
        patch: undone after the test.
        open_stage: opens a toy stage, with constants changed by name.
    """

    place: Path
    patch: pytest.MonkeyPatch
    open_stage: Callable[..., Stage]

    def finished(self) -> Stage:
        """Return a stage that has finished."""
        with self.open_stage() as stage:
            (stage.building / "file").write_text("made", encoding="utf-8")
            stage.finish("made")
        return stage


def sections() -> dict[str, tuple[str, str]]:
    """Return the page's sections: title -> message on one line, and the text below it."""
    page = PAGE.read_text(encoding="utf-8")
    return {title: (" ".join(text.split()), rest) for title, text, rest in SECTION.findall(page)}


def provoke_missing_column(world: World) -> None:
    """Read a table whose text is in a column of another name."""
    path = world.place / "mine.csv"
    path.write_text("body,source\nA text.,mine\n", encoding="utf-8")
    given = {"places": (path,), "texts": ("text",), "licence": "mine"}
    own = sources.TextSource(name="offline", id="mine.csv", **given)
    next(sources.read_source(own, seed=0))


def provoke_judgements(world: World) -> None:
    """Judge queries and documents that are not there."""
    table = {"_id": ["1"], "text": ["A text."]}
    qrels = {"query-id": ["q1"], "corpus-id": ["d1"], "score": [1]}
    retrieval_sets.assemble("mine", table, table, qrels, "here")


def provoke_pickle(world: World) -> None:
    """Load a folder with weights in a pickle alone."""
    (world.place / "pytorch_model.bin").write_bytes(b"")
    loading.check_folder(world.place)


def provoke_change(world: World) -> None:
    """Run a finished stage with another setting."""
    world.finished()
    world.open_stage(STEPS=5)


def provoke_lock(world: World) -> None:
    """Open a stage twice."""
    with world.open_stage():
        world.open_stage()


def provoke_full_disk(world: World) -> None:
    """Write to a disk without room."""
    with world.open_stage() as stage:
        raise OSError(errno.ENOSPC, "No space left on device", str(stage.building))


def provoke_edit(world: World) -> None:
    """Add a file to a result, then run its stage again."""
    (world.finished().final / "notes").write_text("mine", encoding="utf-8")
    world.open_stage()


def provoke_damage(world: World) -> None:
    """Go on from checkpoints that have lost their files."""
    from small_modernbert.training import checkpoints

    (world.place / "step-00000003").mkdir()
    checkpoints.resume(world.place, None, None)


def provoke_loss(world: World) -> None:
    """Lose a sixth step in a row."""
    from small_modernbert.training import guards
    from small_modernbert.training.schedule import Progress

    progress = Progress(planned=10, step=5, skipped=[1, 2, 3, 4, 5])
    guards.check_skipped(progress, "the loss is nan", [float("nan")], [[1, 2]], world.place)


def provoke_collapse(world: World) -> None:
    """Find the embeddings collapsed twice."""
    from small_modernbert.training import guards
    from small_modernbert.training.schedule import Progress

    progress = Progress(planned=10, step=5)
    for _ in range(2):
        guards.check_collapse(progress, {"mean_cosine": 0.999})


def provoke_selection(world: World) -> None:
    """Select by the figure of a set that is not watched."""
    from small_modernbert.training import loop

    task = SimpleNamespace(evaluate=lambda: {"held_out_cosine": 0.5})
    plan = loop.Plan(epochs=1, learning_rate=1e-3, select_by="boolq-dev_ndcg@10")
    stage: Any = SimpleNamespace()
    loop._Run(task, None, plan, stage, [1]).evaluate()


def provoke_dashboard(world: World) -> None:
    """Report to what is not installed."""
    world.patch.setattr(importlib.util, "find_spec", lambda name: None)
    dashboards.check(["tensorboard"])


def provoke_gate(world: World) -> None:
    """Meet what the datasets library says of a gated dataset."""
    raise hub.explain(ValueError("Dataset 'x/y' is a gated dataset on the Hub."), "dataset x/y")


def provoke_silence(world: World) -> None:
    """Ask for a model of the hub without a network."""
    world.patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(world.place))
    with pytest.warns(UserWarning, match="socket"):
        encoders.fetch("owner/name")


PROVOCATIONS: dict[str, Callable[[World], object]] = {
    "The stage before has not finished": lambda _: references.locate("mlm/pre_train", "empty"),
    "No model has been trained yet": lambda _: references.find_result("", "empty"),
    "The offline assets are not there": lambda _: references.find_file(
        "assets/pairs/none.parquet", "PAIRS", references.ASSETS
    ),
    "The hub is out of reach": provoke_silence,
    "The hub wants you to accept terms": provoke_gate,
    "A name that means nothing": lambda _: encoders.fetch("no/such/folder"),
    "A URL where a folder is wanted": lambda _: places.refuse_urls({"TEACHER": "https://hub/a/b"}),
    "A column is missing": provoke_missing_column,
    "Most rows are no use": lambda _: sources.check_lost("mine.csv", 10, {"no words": 9}, 0.5),
    "Judgements that answer nothing": provoke_judgements,
    "Weights in a pickle": provoke_pickle,
    "Labels of another width": lambda _: Labels.check_width(
        SimpleNamespace(folder="labels", dimension=256), 384
    ),
    "Settings or inputs have changed": provoke_change,
    "The folder is in use": provoke_lock,
    "The disk is full": provoke_full_disk,
    "A result was changed by hand": provoke_edit,
    "No checkpoint can be gone on from": provoke_damage,
    "The loss is not finite, or has spiked": provoke_loss,
    "The embeddings collapse": provoke_collapse,
    "A figure to select by that is not measured": provoke_selection,
    "A dashboard is not installed": provoke_dashboard,
}


def test_every_error_of_the_page_is_provoked() -> None:
    """Twenty-one of them, and none that is only told."""
    assert list(sections()) == list(PROVOCATIONS)
    assert len(PROVOCATIONS) == 21


@pytest.mark.parametrize("title", PROVOCATIONS)
def test_the_message_is_the_page_s(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_stage: Callable[..., Stage]
) -> None:
    """What the product says is what the page shows; a cause and a cure follow."""
    message, rest = sections()[title]
    with pytest.raises(UserError) as said:
        PROVOCATIONS[title](World(tmp_path, monkeypatch, open_stage))
    pattern = ".+".join(map(re.escape, message.split("…")))
    assert re.fullmatch(pattern, str(said.value)), str(said.value)
    assert re.match(r"Cause: .+ Cure: .+", " ".join(rest.split()))


def test_commands_of_the_guides_can_be_typed() -> None:
    """Scripts and flags in the two guides exist, and each flag is one of some script."""
    known = {
        f"--{constant.name.lower().replace('_', '-')}"
        for script in (*ROOT.glob("*.py"), *(ROOT / "mlm").glob("[!_]*.py"))
        for constant in settings.read_constants(script)
    }
    for guide in (PAGE, ROOT / "docs" / "CHOOSING.md"):
        for text in INLINE.findall(FENCE.sub("", guide.read_text(encoding="utf-8"))):
            words = text.split()
            if words[0] == "python":
                check_script(words[1:])
            assert all(word in known for word in words if word.startswith("--")), text
