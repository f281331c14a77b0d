"""Be one rank of a training script, and note the texts of each batch; wait in each, if asked to.

    NOTES=folder torchrun --nproc-per-node 2 bench/watched_rank.py distil_modernbert.py --recipe x
    WAITS=0.2,0.4 torchrun --nproc-per-node 2 bench/watched_rank.py distil_modernbert.py --recipe x

NOTES gets a file a rank, a line a batch; the numbers of WAITS are seconds, one a rank. The script
itself knows of neither.
"""

import functools
import hashlib
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from small_modernbert.runs import processes
from small_modernbert.runs.references import ROOT


def digest(batch: Any) -> str:  # noqa: ANN401  a task's own batch
    """Return what tells a batch from others: the numbers of its texts, and its epoch if it says."""
    parts = batch if isinstance(batch, tuple) else (batch,)
    whole = b" ".join(np.asarray(part, dtype=np.int64).tobytes() for part in parts)
    return hashlib.sha256(whole).hexdigest()[:16]


def watch(task: type) -> None:
    """Let a kind of task note its batches, and wait in them."""
    loss: Callable[..., Any] = task.loss
    notes, waits = os.environ.get("NOTES"), os.environ.get("WAITS")
    seconds = float(waits.split(",")[processes.rank()]) if waits else 0.0

    @functools.wraps(loss)
    def watched(self: Any, batch: Any) -> Any:  # noqa: ANN401  the task's own
        if notes:
            with open(Path(notes) / f"rank-{processes.rank()}.txt", "a", encoding="utf-8") as file:
                file.write(digest(batch) + "\n")
        time.sleep(seconds)
        return loss(self, batch)

    task.loss = watched


def main() -> None:
    """Watch what a script may train, then be the script."""
    from small_modernbert.training import distillation, masked_lm

    watch(distillation.DistillationTask)
    watch(masked_lm.MaskedTask)
    script = ROOT / sys.argv[1]
    sys.argv = [str(script), *sys.argv[2:]]
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
