"""Compare models on retrieval, sentence pairs, size and speed, beside teacher and yardsticks.

Reads:  models (earlier stages, folders or hub ids), retrieval sets and sentence pairs (a folder in
        NanoBEIR's or BEIR's layout, or the hub)
Writes: runs/<recipe>/benchmark_hotpotqa/final/ with results.json, results.md and results.png

    python benchmark_hotpotqa.py
    python benchmark_hotpotqa.py --models student=distil_modernbert random=distil_modernbert@random
    python benchmark_hotpotqa.py --retrieval NanoMSMARCO --sts --teacher "" --reduced-teacher ""
    python benchmark_hotpotqa.py --training-text create_distil_dataset
"""

from pathlib import Path
from typing import TYPE_CHECKING

from small_modernbert.runs import references, settings, stages
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from small_modernbert.data.evaluation_sets import SentencePairs
    from small_modernbert.data.retrieval_sets import RetrievalSet
    from small_modernbert.evaluation.benchmark import Benchmark

# Models: a stage of the recipe (distil_modernbert, distil_modernbert@random), a folder, a hub id
# (owner/name, owner/name@revision), or a form of an export (export_model/onnx/model_quantized.onnx,
# or its path). `label=reference` names the row; the first is "the student".
MODELS: list[str] = ["sts_fine_tuning", "distil_modernbert"]  # rows, as label=reference
TEACHER: str = (
    "Alibaba-NLP/gte-modernbert-base@e7f32e3c00f91d699e8c43b53106206bcc72bb22"  # "" for none
)
REDUCED_TEACHER: str = "create_distil_dataset/reduced_teacher"  # or a folder; "" for none
STATIC_TWIN: str = ""  # a static model of the same teacher (sentence-transformers or model2vec)
BM25: bool = True  # lexical search as a row, alone and together with student and teacher
BM25_WEIGHT: float = 0.5  # of its scores beside a model's, both scaled to 0-1
QUERY_PROMPT: str = ""  # for models whose folder names none (E5, BGE, DenseOn: "query: ")
DOCUMENT_PROMPT: str = ""  # likewise (E5: "passage: ", DenseOn: "document: ")

# Data
RETRIEVAL: list[str] = ["NanoMSMARCO", "NanoHotpotQA", "hotpotqa"]  # sets; quality is their mean
RETRIEVAL_FOLDER: str = ""  # in NanoBEIR's or BEIR's layout, looked into before the hub
STS: list[str] = ["sentence-transformers/stsb"]  # hub ids or Parquet files: score or label column
HOTPOTQA: str = (
    "BeIR/hotpotqa@a7e8bab212f5a89f9be1bc9b654aa6dfa317f32b"  # 5.2M documents, 7,405 test queries
)
HOTPOTQA_QRELS: str = (
    "BeIR/hotpotqa-qrels@b15429e9244c8ec966985d7778427c3b1543b314"  # which documents answer them
)
DISTRACTORS: int = 30_000  # beside all gold documents of hotpotqa; 0 for the full corpus (hours)
TRAINING_TEXT: str = ""  # what the student read (labels or a corpus): tells queries with a new word
JUDGED_SET: str = ""  # say in sentences whether the student is worth it there; "" = do not
MAX_QUERIES: int = 0  # the first of each set, over all its documents; 0 for all

# Speed
SPEED_DOCUMENTS: int = 64  # distinct documents that each model encodes four times
SPEED_QUERIES: int = 256  # and queries

# Run
RECIPE: str = "small_v2"  # runs/<recipe>/ is where it reads and writes
VARIANT: str = ""  # a folder of its own beside another run of this script
OVERWRITE: bool = False  # redo a finished run
VECTORS: str = ""  # folder in runs/ that keeps the vectors for other benchmarks; "" = not kept
SEED: int = 42  # draws distractors and the texts that speed is measured on


def main() -> None:
    """Encode each set once per distinct model, score it, write the table, the JSON and the plot."""
    models, inputs = find_inputs()
    with stages.Stage(globals(), inputs=inputs) as stage:
        if stage.finished:
            print((stage.final / "results.md").read_text(encoding="utf-8").partition("\n## ")[0])
            return
        from small_modernbert.evaluation import benchmark, benchmark_report, speed
        from small_modernbert.runs import storage

        sets, distractors = load_sets(inputs.get("retrieval"))
        pairs = load_pairs(inputs)
        made = benchmark.Benchmark(
            sets,
            pairs,
            stage.scratch / "vectors",
            speed.draw_sample(sets, SPEED_DOCUMENTS, SPEED_QUERIES, SEED),
            references.runs_folder() / VECTORS if VECTORS else None,
            tell_apart(sets, inputs.get("training text")),
        )
        remarks = add_rows(made, models)
        if distractors:
            storage.write_json(stage.building / "hotpotqa_distractors.json", distractors)
        sentences = judge(made)
        remarks += sentences
        benchmark_report.write(stage.building, made, remarks)
        stage.record.metrics = {row.label: row.quality for row in made.rows.values()}
        stage.finish(f"{len(made.rows)} rows on {', '.join(RETRIEVAL)}", benchmark_report.read)
        print("\n".join((benchmark_report.summary_table(made), *sentences)))


def find_inputs() -> tuple[dict[str, Path | str], dict[str, Path | str]]:
    """Resolve every reference before anything is loaded: models by label, and the stage's inputs.

    Raises:
        UserError: a stage has not finished, or a label or a file can't be used.
    """
    if not RETRIEVAL:
        raise UserError("RETRIEVAL is empty; name at least one set: --retrieval NanoMSMARCO")
    if JUDGED_SET and JUDGED_SET not in RETRIEVAL:
        raise UserError(f"JUDGED_SET: {JUDGED_SET!r} is none of RETRIEVAL; add it there")
    if repeated := next((name for name in RETRIEVAL if RETRIEVAL.count(name) > 1), None):
        raise UserError(f"RETRIEVAL: {repeated!r} stands twice; name each set once")
    if not 0 <= BM25_WEIGHT <= 1:
        raise UserError(f"BM25_WEIGHT is {BM25_WEIGHT}; from 0 to 1: --bm25-weight 0.5")
    models: dict[str, Path | str] = {}
    labels = [("teacher", TEACHER), ("reduced teacher", REDUCED_TEACHER)]
    for entry in MODELS:
        label, _, reference = entry.partition("=")
        labels.append((label, reference or label))
    for label, reference in (*labels, ("static twin", STATIC_TWIN)):
        if not reference:
            continue
        if label in models:
            raise UserError(f"MODELS: the label {label!r} stands twice; give one another: a=...")
        if (place := find_model(label, reference)) is not None:
            models[label] = place
    inputs = {f"model {label}": whole_model(place) for label, place in models.items()}
    inputs |= references.need_evaluation(RECIPE, RETRIEVAL_FOLDER)
    if TRAINING_TEXT:
        cure = "run: python create_distil_dataset.py"
        inputs["training text"] = references.need(TRAINING_TEXT, RECIPE, "TRAINING_TEXT", cure)
    for reference in STS:
        file = references.find_file(reference, "STS", references.ASSETS)
        inputs[f"pairs {reference}"] = file or reference
    return models, inputs


def whole_model(place: Path | str) -> Path | str:
    """Return what a model's digest is taken of; of a form its export, which has its tokenizer.

    Raises:
        UserError: a file is no form of an export.
    """
    from small_modernbert.models import encoders

    return encoders.export_of(place) if isinstance(place, Path) and place.is_file() else place


def find_model(label: str, reference: str) -> Path | str | None:
    """Return a model's folder, file or hub id; None for a reduced teacher that is not there.

    Raises:
        UserError: a stage has not finished, or there is no such folder or file.
    """
    from small_modernbert.models import onnx_encoder

    if Path(reference).suffix in onnx_encoder.ENGINES:
        cure = "name a file that its export has, or make it: python export_model.py --overwrite"
        return references.need_file(reference, RECIPE, label, cure)
    folder = references.locate(reference, RECIPE)
    if folder is None:
        return reference
    if label == "reduced teacher" and (folder / "reduced_teacher").is_dir():
        return folder / "reduced_teacher"  # a labelling stage keeps it below its final/
    if folder.is_dir():
        return folder
    if label != "reduced teacher":
        own = {"teacher": "--teacher", "static twin": "--static-twin"}
        flag = f"{own[label]} FOLDER" if label in own else f"--models {label}=FOLDER"
        raise UserError(f"{label}: {folder} is not there; name another one: {flag}")
    # Labels from elsewhere may have come without one.
    print(f"{label}: {folder} is not there, so it has no row")
    return None


def load_sets(folder: Path | str | None) -> "tuple[list[RetrievalSet], list[str]]":
    """Load the retrieval sets, and the ids of hotpotqa's distractors if they were drawn."""
    from small_modernbert.data import evaluation_sets

    sets, distractors = [], []
    for name in RETRIEVAL:
        local = isinstance(folder, Path) and evaluation_sets.has_retrieval_set(folder, name)
        if name == "hotpotqa" and not local:
            made, distractors = evaluation_sets.load_hotpotqa(
                HOTPOTQA, HOTPOTQA_QRELS, DISTRACTORS, SEED
            )
        elif name.startswith("Nano") and not local:
            made = evaluation_sets.load_nanobeir(name)
        elif isinstance(folder, Path):
            made = evaluation_sets.load_retrieval_set(folder, name)
        else:
            raise UserError(
                f"RETRIEVAL: {name!r} is neither hotpotqa nor a Nano set of the hub; if a folder "
                "holds it, say which: --retrieval-folder assets/retrieval"
            )
        sets.append(made.first_queries(MAX_QUERIES))
    return sets, distractors


def load_pairs(inputs: dict[str, Path | str]) -> "list[SentencePairs]":
    """Load the sets of sentence pairs."""
    from small_modernbert.data import evaluation_sets

    given = [(reference, inputs[f"pairs {reference}"]) for reference in STS]
    return [
        evaluation_sets.load_sentence_pairs(reference, path if isinstance(path, Path) else None)
        for reference, path in given
    ]


def tell_apart(
    sets: "list[RetrievalSet]", training_text: Path | str | None
) -> "dict[str, np.ndarray] | None":
    """Say of each set which queries have a word that no training text holds; None without texts."""
    from small_modernbert.evaluation import new_words

    if not isinstance(training_text, Path):
        return None
    return new_words.tell_apart(sets, new_words.open_texts(training_text))


def add_rows(made: "Benchmark", models: dict[str, Path | str]) -> list[str]:
    """Make a row a model, then what two of them, or one and lexical search, give together.

    Returns:
        What a reader must know of rows that are not there.
    """
    for label, reference in models.items():
        # A static model has no attention that could read a prompt.
        prompts = ("", "") if label == "static twin" else (QUERY_PROMPT, DOCUMENT_PROMPT)
        made.add_model(label, reference, *prompts)
    student = MODELS[0].partition("=")[0] if MODELS else ""
    documents = "reduced teacher" if "reduced teacher" in made.rows else "teacher"
    if student and documents in made.rows:
        made.add_asymmetric(student, documents)
    if not BM25:
        return []
    if reason := made.add_words():
        return [f"no row of BM25: {reason}"]
    for label in (student, "teacher"):
        if label in made.rows:
            made.add_mixed(label, BM25_WEIGHT)
    return []


def judge(made: "Benchmark") -> list[str]:
    """Return sentences on JUDGED_SET; a row `start` is the student before it was trained."""
    from small_modernbert.evaluation import verdict

    if not JUDGED_SET or not MODELS:
        return []
    return verdict.judge(made, JUDGED_SET, MODELS[0].partition("=")[0], before="start")


if __name__ == "__main__":
    settings.run(globals())
