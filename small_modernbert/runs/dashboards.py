"""A run's figures shown elsewhere too: in TensorBoard, trackio, Weights & Biases (wandb).

metrics.jsonl stays the record; what is written here are copies of its numbers. A dashboard that
fails in the middle of a run is let go with a warning: no training ends for it. A run that goes on
after a kill goes on in the same place. What a step has already shown there may be shown again by
trackio and wandb, with the same numbers; TensorBoard drops what is made anew.
"""

import importlib.util
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

FOLDER = "dashboards"  # in a stage's folder: TensorBoard's events, wandb's files, the run's id
CURES = {
    "tensorboard": "pip install -r requirements-dashboards.txt",
    "trackio": "pip install trackio==0.43.0",
    "wandb": "pip install wandb==0.31.0",
}
NO_FIGURES = frozenset({"step", "batches"})  # of a line of metrics.jsonl
logger = logging.getLogger(__name__)


class Dashboard(Protocol):
    """A place that shows figures against steps."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add points to the curves of these names."""

    def close(self) -> None:
        """Write out what is left."""


def check(names: Sequence[str]) -> None:
    """Refuse what can't be reported to, before anything is loaded.

    Raises:
        UserError: a name is not one of CURES, or its package is not installed.
    """
    for name in names:
        if name not in CURES:
            raise UserError(
                f"REPORT_TO: {name!r} is none of {', '.join(CURES)}: --report-to tensorboard"
            )
        if importlib.util.find_spec(name) is None:
            raise UserError(f"REPORT_TO: {name} is not installed; run: {CURES[name]}")


class Dashboards:
    """All the dashboards of one run; with none of them, `log` does nothing."""

    def __init__(
        self,
        names: Sequence[str],
        stage_folder: Path,
        project: str,
        run: str,
        settings: Mapping[str, Any],
    ) -> None:
        """Open them.

        Args:
            names: keys of CURES.
            stage_folder: of the run.
            project: what trackio and wandb group runs by.
            run: its name there; an id is added that a resumed run keeps and a redone one does not.
            settings: of the run, without secrets.

        Raises:
            UserError: one does not open: no key for wandb, say.
        """
        self._open: dict[str, Dashboard] = {}
        if not names:
            return
        folder = stage_folder / FOLDER
        folder.mkdir(exist_ok=True)
        named = {"project": project, "run": run, "id": _run_id(folder), "settings": settings}
        makers = {"tensorboard": _TensorBoard, "trackio": _Trackio, "wandb": _Wandb}
        for name in names:
            try:
                self._open[name] = makers[name](folder, **named)
            except Exception as error:  # whatever their libraries raise
                self.close()
                raise UserError(
                    f"REPORT_TO: {name} does not start: {_first_line(error)}"
                ) from error
            logger.info("figures are also shown in %s: %s", name, self._open[name])

    def log(self, values: Mapping[str, Any]) -> None:
        """Show the numbers of one line of metrics.jsonl, those of a step or of an evaluation."""
        kind = "train" if "batches" in values else "validation"
        figures = {
            f"{kind}/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and name not in NO_FIGURES
        }
        for name, dashboard in [*self._open.items()]:
            try:
                dashboard.log(figures, values["step"])
            except Exception as error:  # whatever their libraries raise
                logger.warning(
                    "%s fails (%s): no more figures go there; metrics.jsonl has them all",
                    *(name, _first_line(error)),
                )
                del self._open[name]

    def close(self) -> None:
        """Close what is still open."""
        for name, dashboard in self._open.items():
            try:
                dashboard.close()
            except Exception as error:  # whatever their libraries raise
                logger.warning("%s does not close: %s", name, _first_line(error))
        self._open = {}


class _TensorBoard:
    """Event files in the folder: tensorboard --logdir runs."""

    def __init__(self, folder: Path, **_: Any) -> None:  # noqa: ANN401  what the others need
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._make, self._writer = folder, SummaryWriter, None

    def __str__(self) -> str:
        return f"tensorboard --logdir {self._folder.parent}"

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            # A resumed run begins behind its checkpoint: points from there on are dropped. Only an
            # evaluation may have missed the checkpoint of its own step.
            redone = step + any(name.startswith("validation/") for name in figures)
            self._writer = self._make(str(self._folder), purge_step=redone)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a kill must not leave a gap before the checkpoint

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Service:
    """What trackio and wandb have in common: a run that takes figures until it is finished."""

    _name: str
    _run: Any

    def __str__(self) -> str:
        return self._name

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio(_Service):
    """A local data base, or the Space that TRACKIO_SPACE_ID names."""

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        run: str,
        id: str,
        settings: Mapping[str, Any],
    ) -> None:
        import trackio

        self._name = f"{project}, {run}-{id}"
        self._run = trackio.init(
            project, f"{run}-{id}", config=dict(settings), resume="allow", private=True, embed=False
        )


class _Wandb(_Service):
    """Weights & Biases: its site, or files below the folder where WANDB_MODE is offline."""

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        run: str,
        id: str,
        settings: Mapping[str, Any],
    ) -> None:
        import wandb

        # Neither what is printed nor the command line as it was typed: both may hold secrets.
        quiet = wandb.Settings(console="off", x_disable_meta=True, save_code=False)
        self._name = f"{project}, {run}-{id}"
        self._run = wandb.init(
            project=project,
            name=f"{run}-{id}",
            id=id,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings=quiet,
        )


def _run_id(folder: Path) -> str:
    """Return the id that stands in the folder; a new one where none does."""
    path = folder / "run_id"
    if not path.exists():
        storage.write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
