"""What a run has before it and behind it: the plan, its learning rates and step sizes, progress."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from small_modernbert.runs.errors import UserError

DecayShape = Literal["sqrt", "linear"]
# Fields of the plan that a script need not have a constant for: their defaults are every script's.
OPTIONAL = frozenset({"accumulate_warmup", "decay_shape", "clip", "lower_is_better"})


@dataclass(frozen=True)
class Plan:
    """How long, how fast, how often; `loop.prepare` reads it from a script's constants.

    Attributes:
        epochs: passes over the data.
        max_steps: stop the plan here; 0 = all the epochs. The schedule is laid over this length.
        accumulate: batches per optimizer step.
        accumulate_warmup: share of all batches over which that grows from 1; 0 = from the start.
        learning_rate: the plateau's.
        warmup: share of the steps over which the rate rises linearly from 0.
        decay: share of the steps at the end over which it falls to 0.
        decay_shape: falls as 1 - sqrt, or linearly.
        clip: bound on the gradient's norm; 0 = none.
        evaluate_every: steps between evaluations; 0 = only before and after.
        checkpoint_every: steps between checkpoints; 0 = only after the last.
        select_by: name of the evaluation figure that the kept model maximises; "" keeps the last.
        lower_is_better: turns `select_by` around.
    """

    epochs: int
    learning_rate: float
    max_steps: int = 0
    accumulate: int = 1
    accumulate_warmup: float = 0.0
    warmup: float = 0.05
    decay: float = 0.2
    decay_shape: DecayShape = "sqrt"
    clip: float = 1.0
    evaluate_every: int = 0
    checkpoint_every: int = 200
    select_by: str = ""
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        """Refuse what no run can be made of.

        Raises:
            UserError: naming the constant.
        """
        least = {"epochs": 1, "accumulate": 1, "max_steps": 0, "checkpoint_every": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(
                    f"{name.upper()} is {getattr(self, name)}; it must be at least {bound}"
                )
        if self.learning_rate <= 0 or min(self.warmup, self.decay) < 0:
            raise UserError("LEARNING_RATE must be positive, WARMUP and DECAY not negative")
        if not 0 <= self.accumulate_warmup <= 1:
            raise UserError("ACCUMULATE_WARMUP is a share of the run: between 0 and 1")
        if self.warmup + self.decay > 1:
            raise UserError(
                f"WARMUP {self.warmup:g} and DECAY {self.decay:g} are shares of one run; "
                "together they must not exceed 1"
            )


@dataclass
class Progress:
    """Where a run stands; stored with each checkpoint.

    Attributes:
        step: steps done, those included whose gradient was not used.
        evaluated: step of the last evaluation; -1 before the first.
        planned: steps of the whole run.
        epoch: the one that the next batch is of.
        position: batches of that epoch already used.
        tokens: trained on.
        seconds: spent in steps.
        loss: moving average.
        best: the selecting figure of the best evaluation; None before the first.
        best_step: its step.
        before: figures before the first step.
        latest: figures of the last evaluation.
        recent: losses of the last ordinary steps; what a spike is measured by.
        high: losses of the last steps in a row, if they were far above those.
        skipped: steps, from 1, whose gradient was not used; see `guards.why_skip`.
        collapsed: evaluations in a row, up to the last, that found the embeddings collapsed.
    """

    step: int = 0
    evaluated: int = -1
    planned: int = 0
    epoch: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    best: float | None = None
    best_step: int = 0
    before: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    collapsed: int = 0


def warmup_stable_decay(
    step: int, total: int, warmup: float, decay: float, shape: DecayShape = "sqrt"
) -> float:
    """Return the learning rate's factor at a step, 0 <= step < total.

    Linear warm-up, a plateau, then 1 - sqrt(share of the decay done) (ModernBERT, arXiv
    2412.13663, section 2.2.2; Haegele et al., arXiv 2405.18392), or 1 - that share: with a decay
    of all that the warm-up leaves, the linear schedule that trainers have as their default.
    """
    warm, cool = math.ceil(warmup * total), math.ceil(decay * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    if step < total - cool:
        return 1.0
    done = (step - (total - cool) + 1) / (cool + 1)
    return 1.0 - (done if shape == "linear" else math.sqrt(done))


def step_sizes(batches: Sequence[int], accumulate: int, warmup: float) -> list[int]:
    """Return how many batches each optimizer step takes, epoch after epoch.

    Batch-size warm-up by accumulation (ModernBERT, arXiv 2412.13663, section 2.2.2): over the
    first `warmup` share of all batches a step grows linearly from one batch to `accumulate`. A
    step does not reach over the end of an epoch.

    Args:
        batches: number of batches in each epoch.
        accumulate: batches of a full step.
        warmup: share of all batches; 0 = full steps from the start.
    """
    sizes, done, rising = [], 0, warmup * sum(batches)
    for count in batches:
        left = count
        while left:
            share = min(done / rising, 1.0) if rising else 1.0
            size = min(1 + int(share * (accumulate - 1)), left)
            sizes.append(size)
            done, left = done + size, left - size
    return sizes
