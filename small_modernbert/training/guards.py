"""What stops a run that has gone wrong: numbers that are not finite, loss spikes, collapse.

Each works on figures that the loop has anyway, and keeps what it must remember in the run's
`Progress`, so that an interrupted run decides as an uninterrupted one would.
"""

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from small_modernbert.runs.errors import UserError
from small_modernbert.training.checkpoints import list_checkpoints
from small_modernbert.training.schedule import SPIKE_STEPS, WINDOW, Progress

# Times the median of the last WINDOW, and above all of them, SPIKE_STEPS times in a row. Of losses
# in any order, the odds that the last 5 are the largest of 69 are 1 to 11 million; one bad batch is
# no spike, clipping holds it.
SPIKE_FACTOR = 2.0
COLLAPSED_COSINE = 0.99  # mean over pairs of different held-out texts
EARLY = 0.1  # share of a run in which a student may still be learning its teacher's mean vector
logger = logging.getLogger(__name__)


def check_finite(
    progress: Progress, losses: Sequence[float], norm: float, batches: Sequence[Any], folder: Path
) -> None:
    """Stop before a step whose loss or gradient is not finite; the weights are still clean.

    Args:
        progress: the step that is about to be made is number `progress.step + 1`.
        losses: of the step's batches.
        norm: of its gradient.
        batches: of the step.
        folder: of the checkpoints.

    Raises:
        UserError: naming step, batches, their rows, and the last checkpoint.
    """
    wrong = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
    if not wrong and math.isfinite(norm):
        return
    what = f"the loss is {losses[wrong[0]]}" if wrong else f"the gradient's norm is {norm}"
    where = "; ".join(
        f"batch {progress.position + place} ({_rows(batches[place])})"
        for place in wrong or range(len(batches))
    )
    raise UserError(
        f"step {progress.step + 1}: {what}, epoch {progress.epoch}, {where}. Look at those rows, "
        "or lower LEARNING_RATE, and redo with the same command and --overwrite. "
        + last_checkpoint(folder)
    )


def last_checkpoint(folder: Path) -> str:
    """Return a sentence that says where the last checkpoint is."""
    found = list_checkpoints(folder)
    return f"The last checkpoint is {found[-1]}" if found else "There is no checkpoint yet"


def is_spike(progress: Progress, loss: float) -> bool:
    """Note a step's loss; say whether the last `SPIKE_STEPS` together are a spike.

    A step is high when its loss is above all of the last `WINDOW` ordinary ones and far above their
    median. So batches of several sources, of which a rare one is hard, are no spike.
    """
    recent = progress.recent
    if (
        len(recent) == WINDOW
        and loss > max(recent)
        and loss > SPIKE_FACTOR * statistics.median(recent)
    ):
        progress.high = [*progress.high, loss]
    else:
        # The high ones that were no spike join the others: what is rare must raise the bar.
        progress.recent = [*recent, *progress.high, loss][-WINDOW:]
        progress.high = []
    return len(progress.high) == SPIKE_STEPS


def check_collapse(progress: Progress, figures: Mapping[str, float]) -> None:
    """Warn when the held-out embeddings are nearly one vector; stop at the second time in a row.

    A student that starts like that, as random ones may, and is on its way out is not stopped, nor
    is one in the first tenth of its run.

    Args:
        progress: `progress.latest` is the evaluation before this one.
        figures: of the evaluation after step `progress.step`; without `mean_cosine`, not watched.

    Raises:
        UserError: it is the second.
    """
    cosine = figures.get("mean_cosine")
    if cosine is None or not math.isfinite(cosine):
        return
    before = progress.latest.get("mean_cosine", cosine)
    if cosine <= COLLAPSED_COSINE or cosine < before:
        progress.collapsed = 0
        return
    progress.collapsed += progress.step >= EARLY * progress.planned
    what = (
        f"step {progress.step:,}: the embeddings have collapsed: different texts have a mean "
        f"cosine of {cosine:.4f}"
    )
    if progress.collapsed > 1:
        raise UserError(
            f"{what}, at the second evaluation in a row; lower LEARNING_RATE, or start from a "
            "better student, and redo with the same command and --overwrite"
        )
    then = "at the next evaluation that finds it so, the run stops"
    logger.warning("%s; %s", what, then if progress.collapsed else "it is early, the run goes on")


def check_complete(progress: Progress) -> None:
    """Refuse to call a run finished that has not made all of its steps.

    Raises:
        UserError: steps are missing.
    """
    if progress.step < progress.planned:
        raise UserError(
            f"the training stopped after {progress.step:,} of {progress.planned:,} steps and is "
            "not finished; the same command goes on"
        )


def _rows(batch: Any) -> str:  # noqa: ANN401  the task's own batch
    """Name the rows of a batch: an array of row numbers, or the last part of a tuple with one."""
    rows = np.asarray(batch[-1] if isinstance(batch, tuple) else batch).ravel()
    shown = ", ".join(str(row) for row in rows[:8])
    return f"rows {shown}{' ...' if len(rows) > 8 else ''}"
