"""What the contenders share: texts of realistic lengths, students, counters for the peers."""

import dataclasses
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import Clock

from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerCallback

# Log-normal lengths of web text: with a spread of 0.9 the mean is 90 and the 99th percentile 487.
MEDIAN_TOKENS = 60
SPREAD = 0.9
TOKENS_PER_WORD = 1.3  # WordPiece on this text, punctuation included
SPECIAL_TOKENS = 2
# The Trainer's grouping sampler sorts inside windows of this many batches (trainer_pt_utils).
WINDOW_BATCHES = 50
TEXT = "assets/text/train.parquet"
TEACHER = "assets/models/all-MiniLM-L6-v2"
CURE = "run: make assets"


def locate(reference: str) -> Path:
    """Return an input of the repository.

    Raises:
        UserError: it is not there.
    """
    from small_modernbert.runs import references

    path = references.ROOT / reference
    if not path.exists():
        raise UserError(f"{path} is not there; {CURE}")
    return path


def draw_lengths(rows: int, seed: int, longest: int, median: float = MEDIAN_TOKENS) -> np.ndarray:
    """Return `(rows,)` seeded log-normal numbers of tokens, special tokens included."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), SPREAD, rows)
    return np.clip(np.rint(drawn), SPECIAL_TOKENS + 1, longest).astype(np.int64)


def make_texts(
    source: Path, rows: int, *, seed: int, longest: int = 512, median: float = MEDIAN_TOKENS
) -> list[str]:
    """Return real text, joined and cut to log-normal lengths.

    Args:
        source: a Parquet file with the column `text`.
        rows: texts wanted.
        seed: of the lengths, and of the order in which the source's texts are joined.
        longest: tokens of a text at most, about.
        median: tokens of the median text.
    """
    import pyarrow.parquet as pq

    lengths = draw_lengths(rows, seed, longest, median)
    words_of = np.maximum(1, np.rint((lengths - SPECIAL_TOKENS) / TOKENS_PER_WORD)).astype(int)
    found = pq.read_table(source, columns=["text"])["text"].to_pylist()
    order = np.random.default_rng(seed).permutation(len(found))
    words: list[str] = []
    place = 0
    while len(words) < words_of.sum():
        words.extend(found[order[place % len(order)]].split())
        place += 1
    ends = np.cumsum(words_of)
    return [" ".join(words[end - count : end]) for end, count in zip(ends, words_of, strict=True)]


def write_texts(path: Path, texts: list[str]) -> None:
    """Write texts where every contender reads them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)


def read_texts(path: Path) -> list[str]:
    """Read what `write_texts` wrote."""
    import pyarrow.parquet as pq

    return pq.read_table(path)["text"].to_pylist()


def make_student(folder: Path, preset: str, tokenizer_folder: Path, seed: int) -> None:
    """Write a student of random weights as a sentence-transformers folder."""
    import torch
    from transformers import ModernBertModel

    from small_modernbert.models import architecture, students

    tokenizer = students.load_tokenizer(tokenizer_folder)
    config = architecture.configure(architecture.choose(preset), tokenizer)
    torch.manual_seed(seed)
    students.Student(ModernBertModel(config), tokenizer, config.max_position_embeddings).save(
        folder
    )


def trainer_batches(
    lengths: np.ndarray, batch: int, grouped: bool, steps: int, seed: int
) -> Callable[[int], list[list[int]]]:
    """Return a round's batches, as a function of its number, in the Trainer's own order.

    Grouped batches are of very different lengths: each round draws one from each of `steps` equal
    stretches of a window of the sampler, so that it holds long and short ones as an epoch does.
    """
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    def warm_up(found: list[list[int]]) -> list[list[int]]:
        # One small step: a full one of a padded batch can take a minute.
        return [found[len(found) // 2][: max(1, batch // 4)]]

    generator = torch.Generator().manual_seed(seed)
    if not grouped:
        order = torch.randperm(len(lengths), generator=generator).tolist()

        def random_batches(number: int) -> list[list[int]]:
            numbers = range(number * steps, (number + 1) * steps)
            found = [order[one * batch : (one + 1) * batch] for one in numbers]
            return found if number else warm_up(found)

        return random_batches
    order = get_length_grouped_indices(lengths.tolist(), batch, generator=generator)
    window = [
        order[begin : begin + batch]
        for begin in range(0, min(WINDOW_BATCHES * batch, len(order) - batch + 1), batch)
    ]
    stretch = max(1, len(window) // steps)
    random = np.random.default_rng(seed)
    drawn = [begin + random.permutation(stretch) for begin in range(0, steps * stretch, stretch)]

    def grouped_batches(number: int) -> list[list[int]]:
        found = [window[one[number % stretch] % len(window)] for one in drawn]
        return found if number else warm_up(found)

    return grouped_batches


@dataclasses.dataclass
class TokenCount:
    """Tokens that entered a model: real ones, and all of them with the padding."""

    real: int = 0
    processed: int = 0


def count_tokens(model: "nn.Module") -> TokenCount:
    """Count what enters a transformers model, or a sentence-transformers module, from now on."""
    count = TokenCount()

    def look(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:  # noqa: ANN401
        # transformers is called with named tensors, sentence-transformers with a dict of them.
        features = named if "input_ids" in named else given[0]
        ids, mask = features["input_ids"], features.get("attention_mask")
        count.processed += ids.numel()
        count.real += ids.numel() if mask is None else int(mask.sum())

    model.register_forward_pre_hook(look, with_kwargs=True)
    return count


def clock_callback(clock: Clock) -> "TrainerCallback":
    """Return a callback that lets the clock run for a Trainer's steps only, not for its set-up."""
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            clock.start()

        def on_train_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            clock.stop()

    return Timed()


class TimedSteps:
    """Stands in for a stage: the clock stops at the last step of `loop.train`.

    It starts at the first one, unless what came before is to be counted too.

    Our evaluations and checkpoints are no part of a step's cost; the peers are told to make none.
    """

    def __init__(self, folder: Path, clock: Clock, steps: int, started: bool) -> None:
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        self.record = types.SimpleNamespace()
        self._clock, self._steps, self._started = clock, steps, started
        storage.remove(folder)
        folder.mkdir(parents=True)

    def write_metrics(self, *, step: int, **values: Any) -> None:  # noqa: ANN401  as a stage's
        """Write a step's line as a stage does; step 0 is the evaluation before the first."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}, default=float) + "\n")
        if step == 0 and not self._started:
            self._clock.start()
        if step == self._steps:
            self._clock.stop()


@dataclasses.dataclass
class Portion:
    """Some batches of a task, as a task of its own: one round's steps."""

    task: Any
    batches: list[Any]

    @property
    def model(self) -> "nn.Module":
        """The task's own."""
        return self.task.model

    def epoch(self, epoch: int) -> list[Any]:
        """Return the round's batches."""
        return self.batches

    def weight(self, batch: Any) -> float:  # noqa: ANN401  the task's own batch
        """Return the task's weight."""
        return self.task.weight(batch)

    def loss(self, batch: Any) -> Any:  # noqa: ANN401  the task's own batch
        """Return the task's loss."""
        return self.task.loss(batch)

    def evaluate(self) -> dict[str, float]:
        """Measure nothing."""
        return {}


def train_round(
    task: Any,  # noqa: ANN401  a training.Task
    batches: list[Any],
    optimizer: Any,  # noqa: ANN401  a torch.optim.Optimizer
    learning_rate: float,
    clock: Clock,
    folder: Path,
    *,
    started: bool = False,
) -> None:
    """Train on a round's batches with the loop of the stages.

    Args:
        task: whose batches they are.
        batches: one a step.
        optimizer: from `loop.make_optimizer`.
        learning_rate: of the plateau.
        clock: counts the steps alone; or all since its start, if it was `started` before.
        folder: to use and to remove.
        started: see `clock`.
    """
    from small_modernbert.training import loop

    portion = Portion(task, batches)
    plan = loop.Plan(epochs=1, learning_rate=learning_rate, checkpoint_every=0)
    stage = TimedSteps(folder, clock, len(batches), started)
    loop.train(portion, optimizer, plan, stage)
    storage.remove(folder)
