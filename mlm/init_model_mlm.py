r"""Start a student from something better than noise: a donor's layers, carved out of one, static.

Reads: a donor (layers, guide, tile), or a reduced teacher and its labels (static); for layers with
    fewer units the texts of the labels; a blank student, but for layers.
Writes: final/, a student folder, with transfer.json (every tensor: copied, projected, fresh or
    left, and why); for a static start also final/static_twin, the same without layers (model2vec).

    python mlm/init_model_mlm.py
    python mlm/init_model_mlm.py --recipe offline --donor assets/models/all-MiniLM-L6-v2
    python mlm/init_model_mlm.py --recipe offline --variant static --init static
    python mlm/init_model_mlm.py --recipe offline --variant layers --init layers --num-layers 3 \
        --donor create_distil_dataset/reduced_teacher --ffn-units 1280

layers: some of the donor's layers, whole, with all else that it has, at its own width (of a reduced
    teacher the PCA layer, too); with FFN_UNITS without the feed-forward units that say least.
guide: GUIDE (arXiv 2510.06502): PCA of the donor's embedding table, folded through its layers.
static: the teacher's vector of each vocabulary entry, fitted to the labels, as the embedding.
tile: a smaller ModernBERT, the donor, repeated (ModernBERT paper, section 2.2.2).
random: the blank student with a language-modelling head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from small_modernbert.runs import references, settings, stages

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from small_modernbert.data.token_store import TokenStore
    from small_modernbert.initialisation.donor_transfer import Transfer
    from small_modernbert.models.students import Student

# Inputs
STUDENT: str = "build_and_save_small_modernbert"  # blank: a stage, or a folder; layers wants none
INIT: Literal["layers", "guide", "static", "tile", "random"] = (
    "guide"  # what the student starts from
)

# layers, guide and tile
DONOR: str = "answerdotai/ModernBERT-base"  # ModernBERT, BERT or MPNet: stage, folder, hub id
DONOR_REVISION: str = ""  # 40 hex digits pin a hub donor

# layers
LAYERS: list[int] = []  # the donor's, in rising order, -1 the last; none = NUM_LAYERS of them
NUM_LAYERS: int = 6  # 6 of ModernBERT-base's 22: 0, 4, 8, 12, 16, 20
LAYER_SPACING: Literal["uniform", "matched"] = (
    "uniform"  # even; or the nearest that attends, globally or locally, as its place here wants
)
FFN_UNITS: float = 0  # feed-forward units of each layer that stay; below 1 a share; 0 = all

# guide
LAYER_SELECTION: Literal["first", "uniform"] = "first"  # guide: layers that feed the student's
TRANSFER_LAYERS: int = 1  # guide: student layers to carve: 1 is its own choice; 0 = all
CENTRED: bool = False  # guide: the table's mean is taken off before its PCA
NORM_SCALE: bool = False  # guide: gains make up for the narrower norms' smaller output

# static
TEACHER: str = "create_distil_dataset/reduced_teacher"  # its vectors must be as wide as the student
LABELS: str = "create_distil_dataset"  # the table is fitted to these, and counts their tokens
MAP_EPOCHS: int = 3  # passes of one linear map of the table over the labels; 0 = none
MAP_LEARNING_RATE: float = 1e-3  # of that map, falling to 0
FIT_EPOCHS: int = 1  # passes of the single rows after it; more memorise the texts (docs/LOG.md)
FIT_LEARNING_RATE: float = 3e-3  # of the rows, falling to 0
RESIDUAL_SCALE: float = 0.0  # on what the layers write; 0 = exactly the static model
MAX_TOKENS: int = 0  # of the texts that the table is fitted to; 0 = as many as the student takes

# Output
SEED: int = 42  # of the fresh tensors
RECIPE: str = "small_v2"  # runs/<recipe>/mlm/init_model_mlm
VARIANT: str = ""  # a second run in the same recipe: ...@<variant>
OVERWRITE: bool = False  # redo a finished stage

UNIT_TEXTS = 160  # labelled texts that units are judged on
# What they read and write with: BERT and its like, ModernBERT.
UNIT_TENSORS = (".intermediate.dense.", ".output.dense.", ".mlp.Wi.", ".mlp.Wo.")


def main() -> None:
    """Make the student as asked, save it, and list what became of every tensor."""
    inputs = find_inputs()
    with stages.Stage(globals(), inputs) as stage:
        if stage.finished:
            return
        import torch

        torch.manual_seed(SEED)
        start = {
            "layers": start_from_layers,
            "guide": start_guided,
            "static": start_from_table,
            "tile": start_tiled,
            "random": start_random,
        }[INIT]
        student, transfer = start(stage, inputs)
        student.save(stage.building)
        student.check_reload(stage.building)
        student.write_card(stage)
        report_transfer(stage, transfer)


def find_inputs() -> dict[str, Path | str]:
    """Resolve every reference before anything is loaded."""
    inputs: dict[str, Path | str] = {}
    if INIT != "layers":
        cure = "run: python build_and_save_small_modernbert.py"
        inputs["student"] = references.need(STUDENT, RECIPE, "student", cure)
    if INIT in ("layers", "guide", "tile"):
        inputs["donor"] = references.locate(DONOR, RECIPE) or DONOR
    cure = "run: python create_distil_dataset.py"
    if INIT == "static" or (INIT == "layers" and FFN_UNITS):
        inputs["labels"] = references.need(LABELS, RECIPE, "labels", cure)
    if INIT == "static":
        inputs["teacher"] = references.need(TEACHER, RECIPE, "reduced teacher", cure)
    return inputs


def start_random(stage: stages.Stage, inputs: dict[str, Path | str]) -> tuple[Student, Transfer]:
    """Add a fresh language-modelling head to the blank student."""
    from small_modernbert.models import students

    student = students.load_student(inputs["student"], masked_lm=True)
    return student, {name: ("fresh", "random start") for name in student.transformer.state_dict()}


def start_from_layers(
    stage: stages.Stage, inputs: dict[str, Path | str]
) -> tuple[Student, Transfer]:
    """Keep some of the donor's layers, and all else that it has."""
    from small_modernbert.initialisation import layer_selection
    from small_modernbert.models import students

    donor = students.load_donor(inputs["donor"], DONOR_REVISION or None, max_tokens=MAX_TOKENS)
    chosen = layer_selection.choose(donor.transformer, LAYERS, NUM_LAYERS, LAYER_SPACING)
    stages.logger.info(
        "a student of %d layers, %d wide: layers %s of the donor's %d",
        len(chosen), donor.width, chosen, donor.transformer.config.num_hidden_layers,
    )  # fmt: skip
    for line in layer_selection.changed_attention(donor.transformer, chosen):
        stages.logger.info("%s; --layer-spacing matched takes others", line)
    stage.record.facts["donor_layers"] = chosen
    student, transfer = layer_selection.keep_layers(donor, chosen)
    if FFN_UNITS:
        take_units_out(stage, inputs["labels"], student, transfer)
    return student, transfer


def take_units_out(
    stage: stages.Stage, label_folder: Path, student: Student, transfer: Transfer
) -> None:
    """Take units out of the student's layers, judged on texts of the labels, and note it."""
    from small_modernbert.data import labels, token_store
    from small_modernbert.initialisation import ffn_units

    texts = labels.open_labels(label_folder).texts
    tokens = token_store.store_splits(stage, "labels", texts, student.backend)["train"]
    # The corpus is shuffled: its first texts are a sample.
    sequences = [tokens[row] for row in range(min(UNIT_TEXTS, len(tokens)))]
    units = ffn_units.count(student.transformer, FFN_UNITS)
    share = ffn_units.keep_units(student.transformer, sequences, units)
    stages.logger.info("%d units a layer keep %.1f %% of their say", units, 100 * share)
    for name, (how, source) in transfer.items():
        touched = any(part in name for part in UNIT_TENSORS) and ".attention." not in name
        if how == "copied" and touched:
            transfer[name] = ("cut", f"{source}, {units} of its units")


def start_guided(stage: stages.Stage, inputs: dict[str, Path | str]) -> tuple[Student, Transfer]:
    """Carve the student out of the donor."""
    from small_modernbert.initialisation import donor_transfer

    student, donor = load_both(inputs)
    layers, transfer = donor_transfer.carve(
        student,
        donor,
        str(inputs["donor"]),
        LAYER_SELECTION,
        TRANSFER_LAYERS,
        centred=CENTRED,
        norm_scale=NORM_SCALE,
    )
    stage.record.facts["donor_layers"] = layers
    return student, transfer


def start_tiled(stage: stages.Stage, inputs: dict[str, Path | str]) -> tuple[Student, Transfer]:
    """Fill the student with a smaller donor."""
    from small_modernbert.initialisation import donor_transfer

    student, donor = load_both(inputs)
    layers, transfer = donor_transfer.tile(student, donor, str(inputs["donor"]))
    stage.record.facts["donor_layers"] = layers
    return student, transfer


def load_both(inputs: dict[str, Path | str]) -> tuple[Student, Student]:
    """Load the blank student, with a language-modelling head, and the donor."""
    from small_modernbert.models import students

    donor = students.load_donor(inputs["donor"], DONOR_REVISION or None, pooling="mean")
    return students.load_student(inputs["student"], masked_lm=True), donor


def start_from_table(
    stage: stages.Stage, inputs: dict[str, Path | str]
) -> tuple[Student, Transfer]:
    """Make the teacher's table, fit it to the labels, and start the student from it."""
    import numpy as np

    from small_modernbert.data import labels, token_store
    from small_modernbert.initialisation import static_table, vocabulary
    from small_modernbert.models import students
    from small_modernbert.models.teachers import load_teacher

    student = students.load_student(inputs["student"], max_tokens=MAX_TOKENS)
    tokenizer = student.tokenizer
    label_shards = labels.open_labels(inputs["labels"])
    label_shards.check_width(student.width)
    tokens = token_store.store_splits(stage, "labels", label_shards.texts, student.backend)["train"]
    with stage.shared("labels", "vectors") as cache:
        vectors = label_shards.vectors("train", cache / "train.f16")
    table = vocabulary.teacher_table(load_teacher(inputs["teacher"]), tokenizer)
    special = np.asarray(sorted(tokenizer.all_special_ids))
    content = static_table.scale_to_fit(fit_table(table, special, tokens, vectors))
    static_table.start_static(student.transformer, content, RESIDUAL_SCALE)
    vocabulary.save_static(stage.building / "static_twin", content, tokenizer)
    how: dict[str, tuple[str, str]] = {
        name: ("fresh", f"residual branches x {RESIDUAL_SCALE:g}")
        for name in student.transformer.state_dict()
    }
    how["embeddings.tok_embeddings.weight"] = (
        "projected",
        f"{len(table):,} vocabulary entries through the teacher; a map fitted in {MAP_EPOCHS} "
        f"passes over the labels, rows in {FIT_EPOCHS}",
    )
    return student, how


def fit_table(
    table: np.ndarray, special: np.ndarray, tokens: TokenStore, vectors: np.ndarray
) -> np.ndarray:
    """Weight the table by how rare its tokens are in the labels' texts, and fit it to the labels.

    Args:
        table: `(vocabulary, width)`, the teacher's vector of each entry.
        special: ids of special tokens.
        tokens: of the training texts.
        vectors: `(texts, width)`, their labels.
    """
    import numpy as np

    from small_modernbert.initialisation import static_table
    from small_modernbert.runs import report

    counts = np.bincount(tokens.ids, minlength=len(table))[: len(table)]
    weights = static_table.zipf_weights(counts)
    steps = static_table.fit_steps(len(tokens), MAP_EPOCHS + FIT_EPOCHS)
    with report.progress(description="fitting the table", total=steps, unit="steps") as bar:
        common = {"special": special, "seed": SEED, "advance": bar.update}
        table = static_table.fit_map(
            table, weights, tokens, vectors,
            epochs=MAP_EPOCHS, learning_rate=MAP_LEARNING_RATE, **common,
        )  # fmt: skip
        return static_table.fit_table(
            table, tokens, vectors, epochs=FIT_EPOCHS, learning_rate=FIT_LEARNING_RATE, **common
        )


def report_transfer(stage: stages.Stage, how: Transfer) -> None:
    """Write transfer.json, log one line per kind, and finish the stage."""
    from collections import Counter

    from small_modernbert.runs import report, storage

    storage.write_json(stage.building / "transfer.json", how)
    print(report.table(("tensor", "how", "from"), [(name, *entry) for name, entry in how.items()]))
    counts = Counter(kind for kind, _ in how.values())
    stage.record.metrics = {"tensors": counts}
    stage.finish(f"{INIT}: " + ", ".join(f"{n} tensors {kind}" for kind, n in counts.items()))


if __name__ == "__main__":
    settings.run(globals())
