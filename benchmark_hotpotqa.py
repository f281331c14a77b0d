"""Compare models on retrieval, sentence pairs, size and speed, beside teacher and yardsticks.

Reads:  models (earlier stages, folders or hub ids), retrieval sets and sentence pairs (a folder in
        the NanoBEIR layout, or the hub)
Writes: runs/<recipe>/benchmark_hotpotqa/final/ with results.json, results.md and results.png

    python benchmark_hotpotqa.py
    python benchmark_hotpotqa.py --models student=distil_modernbert random=distil_modernbert@random
    python benchmark_hotpotqa.py --retrieval NanoMSMARCO --sts --teacher "" --reduced-teacher ""
"""

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from small_modernbert.runs import references, settings, stages
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.data.evaluation_sets import RetrievalSet, SentencePairs
    from small_modernbert.evaluation.benchmark import Row

# Models: a stage of the recipe (distil_modernbert, distil_modernbert@random), a folder, or a hub id
# (owner/name, owner/name@revision). `label=reference` names the row; the first is "the student".
MODELS: list[str] = ["sts_fine_tuning", "distil_modernbert"]  # rows, as label=reference
TEACHER: str = "Alibaba-NLP/gte-modernbert-base"  # quality is given as a share of its; "" for none
REDUCED_TEACHER: str = "create_distil_dataset/reduced_teacher"  # or a folder; "" for none
STATIC_TWIN: str = ""  # a static model of the same teacher (sentence-transformers or model2vec)
BM25: bool = True  # lexical search as a row

# Data
RETRIEVAL: list[str] = ["NanoMSMARCO", "NanoHotpotQA", "hotpotqa"]  # sets; quality is their mean
RETRIEVAL_FOLDER: str = ""  # NanoBEIR-style folder that is looked into before the hub
STS: list[str] = ["sentence-transformers/stsb"]  # hub ids or Parquet files: score or label column
HOTPOTQA: str = "BeIR/hotpotqa"  # 5.2M documents, 7,405 test queries
HOTPOTQA_QRELS: str = "BeIR/hotpotqa-qrels"  # which documents answer them
DISTRACTORS: int = 30_000  # beside all gold documents of hotpotqa; 0 for the full corpus (hours)
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

logger = logging.getLogger("small_modernbert.benchmark")


def main() -> None:
    """Encode each set once per distinct model, score it, write the table, the JSON and the plot."""
    models, inputs = find_inputs()
    with stages.Stage(globals(), inputs=inputs) as stage:
        if stage.finished:
            print((stage.final / "results.md").read_text(encoding="utf-8").partition("\n## ")[0])
            return
        from small_modernbert.evaluation import benchmark
        from small_modernbert.runs import storage

        sets, distractors = load_sets(inputs.get("retrieval"))
        pairs = load_pairs(inputs)
        rows = encode_and_score(models, sets, pairs, stage.folder / "vectors")
        if BM25:
            rows.append(score_bm25(sets))
        teacher = next((row for row in rows if row.label == "teacher"), None)
        machine = benchmark.machine()
        results = {
            "quality": "nDCG@10 averaged over the retrieval sets",
            "machine": machine,
            "sets": {one.name: one.counts for one in sets},
            "pairs": {one.name: len(one.gold) for one in pairs},
            "rows": [benchmark.record(row, teacher) for row in rows],
        }
        if distractors:
            path = stage.building / "hotpotqa_distractors.json"
            storage.write_json(path, distractors)
            results[path.stem] = {"number": len(distractors), "sha256": storage.sha256_file(path)}
        storage.write_json(stage.building / "results.json", results)
        report = benchmark.markdown(rows, teacher, sets, pairs, machine)
        storage.write_text(stage.building / "results.md", report)
        benchmark.plot(rows, stage.building / "results.png", machine)
        stage.record["metrics"] = {row.label: row.quality for row in rows}
        stage.finish(f"{len(rows)} rows on {', '.join(RETRIEVAL)}", benchmark.read_results)
        storage.remove(stage.folder / "vectors")
        print(benchmark.summary_table(rows, teacher))


def find_inputs() -> tuple[dict[str, Path | str], dict[str, Path | str]]:
    """Resolve every reference before anything is loaded: models by label, and the stage's inputs.

    Raises:
        UserError: a stage has not finished, or a label or a file can't be used.
    """
    models: dict[str, Path | str] = {}

    def add(label: str, reference: str) -> None:
        if label in models:
            raise UserError(f"MODELS: the label {label!r} stands twice; give one another: a=...")
        found = references.locate(reference, RECIPE)
        if label == "reduced teacher" and found is not None:
            # A labelling stage keeps it below its final/.
            below = found / "reduced_teacher"
            found = below if below.is_dir() else found
        if found is not None and not found.is_dir():
            if label != "reduced teacher":
                raise UserError(f"{label}: {found} is not there; correct {reference!r}")
            # Labels from elsewhere may have come without one.
            print(f"{label}: {found} is not there, so it has no row")
            return
        models[label] = found or reference

    if TEACHER:
        add("teacher", TEACHER)
    if REDUCED_TEACHER:
        add("reduced teacher", REDUCED_TEACHER)
    for entry in MODELS:
        label, _, reference = entry.partition("=")
        add(label, reference or label)
    if STATIC_TWIN:
        add("static twin", STATIC_TWIN)
    if not RETRIEVAL:
        raise UserError("RETRIEVAL is empty; name at least one set: --retrieval NanoMSMARCO")
    inputs = {f"model {label}": reference for label, reference in models.items()}
    cure = "run: python get_offline_assets.py"
    if RETRIEVAL_FOLDER:
        inputs["retrieval"] = references.need(RETRIEVAL_FOLDER, RECIPE, "RETRIEVAL_FOLDER", cure)
    for reference in STS:
        inputs[f"pairs {reference}"] = references.find_file(reference, "STS", cure) or reference
    return models, inputs


def load_sets(folder: Path | str | None) -> "tuple[list[RetrievalSet], list[str]]":
    """Load the retrieval sets, and the ids of hotpotqa's distractors if they were drawn."""
    from small_modernbert.data import evaluation_sets

    sets, distractors = [], []
    for name in RETRIEVAL:
        local = isinstance(folder, Path) and evaluation_sets.has_retrieval_set(folder, name)
        if name == "hotpotqa" and not local:
            one, distractors = evaluation_sets.load_hotpotqa(
                HOTPOTQA, HOTPOTQA_QRELS, DISTRACTORS, SEED
            )
        elif name.startswith("Nano") and not local:
            one = evaluation_sets.load_nanobeir(name)
        elif isinstance(folder, Path):
            one = evaluation_sets.load_retrieval_set(folder, name)
        else:
            raise UserError(
                f"RETRIEVAL: {name!r} is neither hotpotqa nor a Nano set of the hub; if a folder "
                "holds it, say which: --retrieval-folder assets/retrieval"
            )
        sets.append(one.first_queries(MAX_QUERIES))
    return sets, distractors


def load_pairs(inputs: dict[str, Path | str]) -> "list[SentencePairs]":
    """Load the sets of sentence pairs."""
    from small_modernbert.data import evaluation_sets

    found = [(reference, inputs[f"pairs {reference}"]) for reference in STS]
    return [
        evaluation_sets.load_sentence_pairs(reference, path if isinstance(path, Path) else None)
        for reference, path in found
    ]


def encode_and_score(
    models: dict[str, Path | str],
    sets: "list[RetrievalSet]",
    pairs: "list[SentencePairs]",
    folder: Path,
) -> "list[Row]":
    """Make one row a model, and one for student queries over reduced-teacher documents.

    Vectors and speeds are kept in `folder` by the digest of model and texts, so a killed benchmark
    goes on where it was, and a model under two labels is encoded once. VECTORS keeps the vectors,
    never the speeds, beyond this run.
    """
    from small_modernbert.evaluation import benchmark
    from small_modernbert.models import encoders
    from small_modernbert.runs import storage

    kept = references.runs_folder() / VECTORS if VECTORS else folder
    texts = benchmark.digest_texts(sets, pairs)
    sample = benchmark.speed_sample(sets, SPEED_DOCUMENTS, SPEED_QUERIES, SEED)
    stores: dict[str, benchmark.VectorStore] = {}
    rows: dict[str, benchmark.Row] = {}
    teacher = None
    for label, reference in models.items():
        digest = storage.digest_json([encoders.digest_model(reference), texts])[:16]
        store = stores[label] = benchmark.VectorStore(kept / digest)
        place = reference if isinstance(reference, Path) else encoders.fetch(reference)
        encoder = encoders.load_encoder(place, label)
        if label == "reduced teacher" and teacher is not None:
            # The same tokens through the same body: only its Dense layer is left to apply.
            if reduce := encoders.reduction_of(encoder, teacher):
                store.derive(stores["teacher"], reduce, sets, pairs)
            else:
                logger.info("the reduced teacher is not made of this teacher: encoded on its own")
        store.fill(encoder, sets, pairs)
        row = rows[label] = benchmark.describe(encoder, str(reference))
        row.documents_per_second, row.queries_per_second = benchmark.speeds(
            folder / digest / "speed.json", encoder, sample
        )
        benchmark.score(row, store, store, sets, pairs)
        logger.info("%s: %.4f", label, row.quality)
        teacher = encoder if label == "teacher" else None
        del encoder
        gc.collect()
    student = MODELS[0].partition("=")[0] if MODELS else ""
    documents = "reduced teacher" if "reduced teacher" in rows else "teacher"
    if student and documents in rows:
        pair = (rows[student], stores[student]), (rows[documents], stores[documents])
        if row := benchmark.asymmetric(*pair, sets):
            rows[row.label] = row
    return list(rows.values())


def score_bm25(sets: "list[RetrievalSet]") -> "Row":
    """Make the row of lexical search."""
    from small_modernbert.evaluation import benchmark, bm25, metrics

    row = benchmark.Row("BM25", "bm25s")
    row.retrieval = {one.name: metrics.ranking_metrics(bm25.rank(one), one) for one in sets}
    return row


if __name__ == "__main__":
    settings.run(globals())
