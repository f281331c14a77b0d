"""Peers on our labels, each as its own documentation writes it, for so many processor seconds.

Of sentence-transformers' examples model_distillation_layer_reduction.py (MSELoss, batches of 64,
1e-4 falling in a line, a tenth of warm-up) and model_distillation.py (EmbedDistillLoss, a small
BERT). model2vec: distill, and StaticModelForSimilarity, as its training guide has it. Labels are
256 wide, so the layers are taken out of the teacher *with* the PCA layer that made the labels.
"""

import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import exported
import inputs
import numpy as np

from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TRIAL_STEPS = 4  # that tell what a step takes; the first is not counted
WARMUP = 0.1


@dataclasses.dataclass(frozen=True)
class Work:
    """What a peer is given.

    Attributes:
        texts: of the labels.
        vectors: `(texts, 256)`, theirs.
        teacher: folder of the whole teacher, 384 wide.
        reduced: folder of the teacher with the PCA layer that made the labels.
        student: folder of the student that `make run` made.
        saved: label -> folder of other students of ours.
        twin: folder of the static model that its ModernBERT starts as.
        start: folder of the model to train, where one was made before.
        output: folder to write the model to, or a link to a model.
        budget: processor seconds of training.
        step_seconds: that an earlier row of the same shape took; 0 = try it.
        seed: of fresh weights and of the batches.
    """

    texts: list[str]
    vectors: np.ndarray
    teacher: Path
    reduced: Path
    student: Path
    saved: dict[str, Path]
    twin: Path
    start: Path | None
    output: Path
    budget: float
    step_seconds: float
    seed: int


def take(work: Work, model: str) -> dict[str, float]:
    """Train nothing: a model as it is."""
    work.output.symlink_to(
        {"teacher": work.teacher, "student": work.student, "twin": work.twin}[model]
    )
    return {}


def take_saved(work: Work, label: str) -> dict[str, float]:
    """Train nothing: another student of ours, by its label."""
    if label not in work.saved:
        raise UserError(f"SAVED names no {label!r}: --saved {label}=runs/.../distil_modernbert")
    work.output.symlink_to(work.saved[label])
    return {}


def take_published(work: Work) -> dict[str, float]:
    """Take paraphrase-MiniLM-L3-v2 as it is published, fp32, in onnxruntime."""
    work.output.symlink_to(
        exported.bring_published(work.output.with_name("published"), work.teacher)
    )
    return {}


def take_int8(work: Work) -> dict[str, float]:
    """Take the int8 ONNX file that export_model.py makes of our student."""
    flags = {"student": str(work.student), "openvino": False, "speed_texts": 0, "threads": 1}
    export = inputs.run_stage("export_model", "experiments", variant="int8", **flags)
    work.output.symlink_to(export / "final/onnx/model_quantized.onnx")
    return {}


def reduce_layers(
    work: Work, loss: str, rate: float = 1e-4, batch: int = 64, layers: tuple[int, ...] = (0, 2, 4)
) -> dict[str, float]:
    """Keep every second layer of the teacher."""
    import torch
    from sentence_transformers import SentenceTransformer

    def make() -> "SentenceTransformer":
        student = SentenceTransformer(str(work.reduced), device="cpu")
        bert = student.transformers_model
        bert.encoder.layer = torch.nn.ModuleList(bert.encoder.layer[place] for place in layers)
        bert.config.num_hidden_layers = len(layers)
        return student

    return _train(work, make, loss, rate, batch)


def train_fresh(work: Work) -> dict[str, float]:
    """Train a small BERT of random weights, as wide and as deep as our small ModernBERT."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(work.teacher)
    torch.manual_seed(work.seed)
    fresh = work.output.with_name("fresh")
    shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=1024, **shape)
    BertModel(config).save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)

    def make() -> "SentenceTransformer":
        bert = Transformer(str(fresh), max_seq_length=256)
        return SentenceTransformer(modules=[bert, Pooling(256, "mean")], device="cpu")

    return _train(work, make, "mse", 1e-4, 64)


def train_folder(work: Work) -> dict[str, float]:
    """Train the model that was made before, by MSELoss."""
    from sentence_transformers import SentenceTransformer

    return _train(work, lambda: SentenceTransformer(str(work.start), device="cpu"), "mse", 1e-4, 64)


def distil_static(work: Work) -> dict[str, float]:
    """Make a static model of the teacher's token vectors."""
    from model2vec.distill import distill

    begun = time.process_time()
    distill(str(work.teacher), pca_dims=256, device="cpu").save_pretrained(work.output)
    return {"start_seconds": time.process_time() - begun}


def fit_static(work: Work) -> dict[str, float]:
    """Fit a static model to the labels, for as many passes as the budget buys."""
    from model2vec.distill import distill
    from model2vec.train import StaticModelForSimilarity

    begun = time.process_time()
    static = distill(str(work.teacher), pca_dims=256, device="cpu")
    start_seconds = time.process_time() - begun

    def fit(passes: int) -> tuple[StaticModelForSimilarity, float]:
        # A copy: the trial's weights are not what the passes that count start from.
        model = StaticModelForSimilarity.from_static_model(model=copy.deepcopy(static), n_layers=0)
        begun = time.process_time()
        given = {"random_seed": work.seed, "device": "cpu", "max_epochs": passes}
        model.fit(work.texts, work.vectors.tolist(), **given)
        return model, time.process_time() - begun

    passes = max(1, round(work.budget / fit(1)[1]))
    model, seconds = fit(passes)
    model.to_static_model().save_pretrained(work.output)
    return {"start_seconds": start_seconds, "seconds": seconds}


def _train(
    work: Work, make: Callable[[], "SentenceTransformer"], loss: str, rate: float, batch: int
) -> dict[str, float]:
    """Try some steps, then train for as many as the budget buys, and save.

    Returns:
        seconds and steps of the training; step_seconds, tried or given.
    """
    step_seconds = work.step_seconds
    if not step_seconds:
        step_seconds = _steps(work, make(), loss, rate, batch, TRIAL_STEPS)[1]
    number = max(1, round(work.budget / step_seconds))
    student = make()
    seconds, _ = _steps(work, student, loss, rate, batch, number)
    student.save(str(work.output))
    return {"seconds": seconds, "steps": number, "step_seconds": seconds / number}


def _steps(
    work: Work, student: "SentenceTransformer", loss: str, rate: float, batch: int, number: int
) -> tuple[float, float]:
    """Make some steps; return their processor seconds, and those of a step but for the first."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MSELoss
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  the Trainer's
            ends.append(time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  the Trainer's
            ends.append(time.process_time())

    made = MSELoss(student) if loss == "mse" else EmbedDistillLoss(student, distance_metric=loss)
    rows = min(len(work.texts), number * batch)
    # The corpus is shuffled; its first texts are a sample, and the sampler shuffles them again.
    data = {"sentence": work.texts[:rows], "label": work.vectors[:rows].tolist()}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work.output.with_name("trainer")),
        max_steps=number,
        per_device_train_batch_size=batch,
        learning_rate=rate,
        warmup_steps=WARMUP,
        bf16=True,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=work.seed,
    )
    SentenceTransformerTrainer(
        student, arguments, train_dataset=Dataset.from_dict(data), loss=made, callbacks=[Clock()]
    ).train()
    return ends[-1] - ends[0], (ends[-1] - ends[1]) / max(1, len(ends) - 2)
