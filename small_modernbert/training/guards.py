"""What keeps a run from going wrong: numbers that are not finite, loss spikes, collapse.

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
from small_modernbert.training.schedule import Progress

WINDOW = 64  # ordinary steps that a loss is compared with
SPIKE_FACTOR = 2.0  # times their median is high
# High steps in a row that are a spike. Of losses in any order, the odds that the last 3 are the
# largest of 67 are 1 to 48,000; one bad batch is no spike, clipping holds it.
SPIKE_STEPS = 3
MOST_SKIPPED = 5  # steps in a row whose gradient may be left unused before the run is stopped
COLLAPSED_COSINE = 0.99  # mean over pairs of different held-out texts
EARLY = 0.1  # share of a run in which a student may still be learning its teacher's mean vector
logger = logging.getLogger(__name__)


def why_skip(progress: Progress, losses: Sequence[float], norm: float) -> str:
    """Note a step's loss; say why its gradient must not be used, or "" if it may.

    It is not used if it is not finite, or if the loss has been high for `SPIKE_STEPS` in a row: the
    weights stand still until the losses are ordinary again. So a stretch of bad batches is passed
    over (PaLM, arXiv 2204.02311, section 5.1, goes back and leaves them out; here nothing has to be
    undone, since the gradients of the first of them were clipped), and a run that has diverged goes
    no further.

    Args:
        progress: the step that is about to be made is number `progress.step + 1`.
        losses: shares of the step's batches in its loss.
        norm: of its gradient.
    """
    wrong = [loss for loss in losses if not math.isfinite(loss)]
    if wrong:
        return f"the loss is {wrong[0]}"
    if not math.isfinite(norm):
        return f"the gradient's norm is {norm}"
    loss = sum(losses)
    if is_spike(progress, loss):
        median = statistics.median(progress.recent)
        return f"the loss has spiked: {loss:.4g}, after a median of {median:.4g}"
    return ""


def is_spike(progress: Progress, loss: float) -> bool:
    """Note a step's loss; say whether it ends `SPIKE_STEPS` or more high ones in a row.

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
        if len(progress.high) < SPIKE_STEPS:
            recent = [*recent, *progress.high]
        progress.recent = [*recent, loss][-WINDOW:]
        progress.high = []
    return len(progress.high) >= SPIKE_STEPS


def check_skipped(
    progress: Progress, reason: str, losses: Sequence[float], batches: Sequence[Any], folder: Path
) -> None:
    """Warn of a step whose gradient is not used; stop the run at one too many in a row.

    Args:
        progress: the step is number `progress.step + 1`, and not yet in `progress.skipped`.
        reason: from `why_skip`.
        losses: of the step's batches.
        batches: of the step.
        folder: of the checkpoints.

    Raises:
        UserError: naming step, reason, batches, their rows, and the last checkpoint.
    """
    step = progress.step + 1
    wrong = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
    where = "; ".join(
        f"batch {progress.position + place} ({_rows(batches[place])})"
        for place in wrong or range(len(batches))
    )
    what = f"step {step:,}: {reason}, epoch {progress.epoch}, {where}"
    before = set(range(step - MOST_SKIPPED, step))
    if not before <= set(progress.skipped):
        logger.warning("%s; its gradient is not used", what)
        return
    raise UserError(
        f"{what}, and {MOST_SKIPPED} steps before it were skipped. Look at those rows, or lower "
        "LEARNING_RATE, and redo with the same command and --overwrite. " + last_checkpoint(folder)
    )


def last_checkpoint(folder: Path) -> str:
    """Return a sentence that says where the last checkpoint is."""
    stored = list_checkpoints(folder)
    return f"The last checkpoint is {stored[-1]}" if stored else "There is no checkpoint yet"


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
            "not finished; run the same command again, which goes on"
        )


def _rows(batch: Any) -> str:  # noqa: ANN401  the task's own batch
    """Name the rows of a batch: an array of row numbers, or the last part of a tuple with one."""
    rows = np.asarray(batch[-1] if isinstance(batch, tuple) else batch).ravel()
    shown = ", ".join(str(row) for row in rows[:8])
    return f"rows {shown}{' ...' if len(rows) > 8 else ''}"
