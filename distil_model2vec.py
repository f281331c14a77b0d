"""Distil a teacher into a static model: its vocabulary through it, PCA, Zipf weights (Model2Vec).

Reads:  a teacher (MODERNBERT_BASE, MODERNBERT_LARGE, GTE_MODERNBERT_BASE, a stage, a folder or a
        hub id); with --vocabulary a text file of words, one a line
Writes: runs/<recipe>/distil_model2vec/final/, which model2vec and sentence-transformers both load;
        on the hub only if --push says so and a token is there (HF_TOKEN, or hf auth login)

    python distil_model2vec.py --base-model-name assets/models/all-MiniLM-L6-v2
    python distil_model2vec.py --base_model_name MODERNBERT_BASE --pca_dims 256
    python distil_model2vec.py --push --model-repository-name owner/name --commit-msg "feat: new"

No data and no training: a minute on a CPU. A finished model is not made again to be pushed.
"""

from pathlib import Path
from typing import Literal

from small_modernbert.runs import references, settings, stages
from small_modernbert.runs.errors import UserError

# Teacher
BASE_MODEL_NAME: str = "GTE_MODERNBERT_BASE"  # or another; owner/name@revision pins one of the hub
POOLING: Literal["mean", "first", "last", "pooler"] = "mean"  # how an entry's tokens become one

# Model
PCA_DIMS: int = 256  # width of the vectors; 0, or more than the teacher's: its own, without PCA
SIF_COEFFICIENT: float = 1e-4  # a in a / (a + p); smaller turns frequent words down more; 0 = not
VOCABULARY: str = ""  # file of words to know beside the teacher's tokens, one a line
QUANTIZE_TO: Literal["float32", "float16", "int8"] = "float32"  # int8 is read by model2vec only

# Hub
MODEL_REPOSITORY_NAME: str = ""  # owner/name to push to
COMMIT_MSG: str = "feat: add a static model distilled with Model2Vec"  # of that version
PUSH: bool = False  # upload the finished model
PUBLIC: bool = False  # everybody may see a repository that this creates

# Output
RECIPE: str = "model2vec"  # runs/<recipe>/distil_model2vec
VARIANT: str = ""  # a second run in the same recipe: ...@<variant>
OVERWRITE: bool = False  # redo a finished model

TEACHERS = {
    "MODERNBERT_BASE": "answerdotai/ModernBERT-base",
    "MODERNBERT_LARGE": "answerdotai/ModernBERT-large",
    "GTE_MODERNBERT_BASE": (
        "Alibaba-NLP/gte-modernbert-base@e7f32e3c00f91d699e8c43b53106206bcc72bb22"
    ),
}


def main() -> None:
    """Distil, save, reload, and push what is finished if that was asked for."""
    teacher = TEACHERS.get(BASE_MODEL_NAME, BASE_MODEL_NAME)
    place: Path | str = references.locate(teacher, RECIPE) or teacher
    inputs = {"teacher": place}
    if words := find_vocabulary():
        inputs["vocabulary"] = words
    if PUSH:
        from small_modernbert.export import publishing

        publishing.need_access(MODEL_REPOSITORY_NAME)
    with stages.Stage(globals(), inputs) as stage:
        if not stage.finished:
            build(stage, place, words)
    if PUSH:
        print(publishing.push(stage.final, MODEL_REPOSITORY_NAME, COMMIT_MSG, public=PUBLIC))


def find_vocabulary() -> Path | None:
    """Return the file of words, if one was given.

    Raises:
        UserError: it is not there.
    """
    if not VOCABULARY:
        return None
    file = references.find_file(VOCABULARY, "VOCABULARY", "check the path")
    if file is None:
        raise UserError(f"VOCABULARY: {VOCABULARY} is not there; write one word a line into it")
    return file


def build(stage: stages.Stage, teacher: Path | str, words: Path | None) -> None:
    """Load the teacher, distil it into the stage's folder, and finish the stage."""
    from small_modernbert.export import model2vec
    from small_modernbert.models import encoders, origins
    from small_modernbert.models.teachers import load_teacher

    given = model2vec.read_vocabulary(words) if words else []
    folder = teacher if isinstance(teacher, Path) else encoders.fetch(teacher)
    origin = origins.model("teacher", teacher)
    distilled = model2vec.distil(
        load_teacher(folder),
        origin,
        vocabulary=given,
        pca_dims=PCA_DIMS,
        sif_coefficient=SIF_COEFFICIENT,
        quantize_to=QUANTIZE_TO,
        pooling=POOLING,
    )
    model2vec.save(distilled, stage.building)
    model, added = distilled.model, distilled.words_added
    stage.record.rows = {"tokens": len(model.tokens), "words": len(given), "words_added": added}
    stage.record.metrics = {"dimensions": model.dim, "table_bytes": model.embedding.nbytes}
    stage.finish(
        f"{len(model.tokens):,} tokens x {model.dim} {model.embedding_dtype} of {origin.name}",
        lambda final: model2vec.check_reload(final, distilled),
    )


if __name__ == "__main__":
    settings.run(globals())
