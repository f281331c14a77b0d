r"""Export a trained student for other engines: ONNX, its int8 copy, OpenVINO, the portable folder.

Reads:  a student (a stage, or a sentence-transformers folder of ours); texts to check the forms
        with (Parquet files with a `text` column)
Writes: runs/<recipe>/export_model/final/: the sentence-transformers files, onnx/model.onnx,
        onnx/model_quantized.onnx, openvino/, export.json (shapes, digests, parity), README.md (the
        card) and golden_vectors.json, which tells whether a server reads the model rightly;
        browser/, a page that searches with the model, if asked for; on the hub only if --push says
        so and a token is there (HF_TOKEN, or hf auth login)

    python export_model.py --recipe offline
    python export_model.py --recipe offline --student sts_fine_tuning --variant sts --no-openvino
    python export_model.py --student path/to/folder --texts my_text.parquet --max-tokens 256
    python export_model.py --recipe offline --retrieval sciq --retrieval-folder assets/retrieval
    python export_model.py --recipe offline --push --model-repository-name owner/name
    python export_model.py --recipe offline --browser-page

Every form encodes texts from one token to the maximum, and is compared with the torch model. To
search on a CPU without torch: small_modernbert/models/onnx_encoder.py. In a browser, where
--browser-page wrote one, while any file server has the folder: the card has the line for that.
"""

import random
from pathlib import Path
from typing import TYPE_CHECKING

from small_modernbert.runs import references, settings, stages
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.export.parity import Parity
    from small_modernbert.models.students import Student

# Inputs
STUDENT: str = "distil_modernbert"  # a stage of this recipe, or a folder
TEXTS: str = ""  # Parquet file or folder; "" = the recipe's held-out texts, or a few of ours

# Forms
MAX_TOKENS: int = 0  # longer texts are cut; 0 = as many as the student takes
INT8: bool = True  # a quarter of the size; loses a little, as the table says
OPENVINO: bool = True  # its own form, where openvino is installed
BROWSER_PAGE: bool = False  # a page that runs it without a server; npm brings 33 MB once

# Check
TOLERANCE: float = 1e-4  # of a text's cosine to the torch model; fp32 forms beyond it are refused
INT8_TOLERANCE: float = 0.02  # likewise of the texts' mean cosine, for int8
PROBES: int = 48  # texts of rising length
CALIBRATION_TEXTS: int = 64  # others, that show int8 how large the activations are
SPEED_TEXTS: int = 128  # on which each form's texts a second are measured; 0 = not
THREADS: int = 0  # of the engines; 0 leaves the number to them

# Compact vectors
RETRIEVAL: list[str] = []  # sets on which shorter and coarser vectors are measured; none = not
RETRIEVAL_FOLDER: str = ""  # local sets in the NanoBEIR layout; empty = NanoBEIR from the hub
DIMENSIONS: list[int] = [256, 128, 64]  # to measure, if they are fewer than the model's

# Card
LICENCE: str = ""  # of the model, as the hub spells it; "" = where teacher and text agree, or other
LANGUAGE: list[str] = []  # of the model, such as en; none = as its teacher's card says

# Hub
MODEL_REPOSITORY_NAME: str = ""  # owner/name to push to
COMMIT_MSG: str = "feat: add a small embedding model"  # of that version
PUSH: bool = False  # upload the finished export
PUBLIC: bool = False  # everybody may see a repository that this creates

# Output
SEED: int = 42  # draws the texts
RECIPE: str = "small_v2"  # runs/<recipe>/export_model
VARIANT: str = ""  # a second run in the same recipe: ...@<variant>
OVERWRITE: bool = False  # redo a finished export


def main() -> None:
    """Export, and push what is finished if that was asked for."""
    folder = references.need(STUDENT, RECIPE, "student", "run: python distil_modernbert.py")
    files = find_texts()
    inputs = {"student": folder} | {f"texts {number}": path for number, path in enumerate(files)}
    inputs |= references.need_evaluation(RECIPE, RETRIEVAL_FOLDER)
    if BROWSER_PAGE:
        from small_modernbert.export import browser_page

        browser_page.bring_runtime(references.ROOT / browser_page.CACHE)
    if PUSH:
        from small_modernbert.export import publishing

        publishing.need_access(MODEL_REPOSITORY_NAME)
    with stages.Stage(globals(), inputs) as stage:
        if not stage.finished:
            export(stage, folder, files)
    if PUSH:
        print(publishing.push(stage.final, MODEL_REPOSITORY_NAME, COMMIT_MSG, public=PUBLIC))


def export(stage: stages.Stage, folder: Path, files: list[Path]) -> None:
    """Save the portable folder, write each form beside it, compare, and say what int8 loses."""
    from small_modernbert.export import (
        browser_page,
        export_card,
        golden_vectors,
        onnx_export,
        parity,
    )
    from small_modernbert.models import students
    from small_modernbert.models.loading import load_backend

    student = students.load_student(folder, max_tokens=MAX_TOKENS)
    if student.usage.prompts and not student.usage.include_prompt:
        raise UserError(
            f"{folder} leaves its prompts out of the pooling, and no graph does that; use it as it "
            "is with sentence-transformers, or train one without prompts: "
            "python distil_modernbert.py --no-train-with-prompts --variant plain"
        )
    final = stage.building
    student.save(final)
    calibration, texts = draw_texts(files)
    uncut = load_backend(final, 1 << 30)
    probes = parity.probes(texts, uncut, student.max_tokens, PROBES)
    forms = write_forms(student, final, calibration)
    parity.describe(final, student, {}, {})  # the readers of the forms go by it
    distances = measure(folder, final, forms, probes, student.max_tokens)
    speeds = time_forms(final, forms, texts[:SPEED_TEXTS])
    parity.describe(final, student, distances, speeds)
    golden_vectors.write(final, student, probes)
    if BROWSER_PAGE:
        browser_page.write(final, references.ROOT / browser_page.CACHE)
    table = parity.table(final, distances, speeds)
    print(table)
    given = {"licence": LICENCE, "language": LANGUAGE, "compact": measure_compact(final)}
    export_card.write(stage, student, folder, table, **given, browser=BROWSER_PAGE)
    stage.record.rows = {"probes": len(probes), "calibration": len(calibration)}
    stage.record.metrics = {form: vars(figures) for form, figures in distances.items()}
    lost = f", int8 loses {1 - distances[onnx_export.INT8].mean_cosine:.0e}" if INT8 else ""
    stage.finish(
        f"{len(forms)} forms; ONNX within {1 - distances[forms[0]].min_cosine:.0e} of torch"
        f"{lost} (cosine)",
        student.check_reload,
    )


def write_forms(student: "Student", final: Path, calibration: list[str]) -> list[str]:
    """Write the ONNX graph and the forms that are made of it; return the names of all."""
    from small_modernbert.export import int8, onnx_export

    forms = [onnx_export.GRAPH]
    graph = final / onnx_export.GRAPH
    onnx_export.export_onnx(student, graph)
    if INT8:
        pad = student.tokenizer.pad_token_id
        batches = onnx_export.token_batches(calibration, student.backend, pad)
        int8.quantise(graph, final / onnx_export.INT8, batches)
        forms.append(onnx_export.INT8)
    if OPENVINO and onnx_export.export_openvino(graph, final / onnx_export.OPENVINO):
        forms.append(onnx_export.OPENVINO)
    return forms


def measure_compact(final: Path) -> str:
    """Return the table of what shorter and coarser vectors lose; "" where no set is named."""
    if not RETRIEVAL:
        return ""
    from small_modernbert.data import evaluation_sets
    from small_modernbert.export import compact_vectors
    from small_modernbert.models import encoders

    folder = references.need(RETRIEVAL_FOLDER, RECIPE, "", "") if RETRIEVAL_FOLDER else None
    sets = evaluation_sets.load_named(RETRIEVAL, folder)
    table = compact_vectors.measure(encoders.load_encoder(final), sets, DIMENSIONS)
    print(table)
    return table


def find_texts() -> list[Path]:
    """Return the Parquet files to check with, sorted; none where ours will have to do.

    Raises:
        UserError: TEXTS names none.
    """
    if not TEXTS:
        try:
            held_out = references.locate("mlm/create_dataset/held_out", RECIPE)
        except UserError:
            return []
        return sorted(held_out.glob("*.parquet")) if held_out else []
    cure = "give a Parquet file with a text column, or a folder of them"
    if file := references.find_file(TEXTS, "TEXTS", cure):
        return [file]
    files = sorted(references.need(TEXTS, RECIPE, "TEXTS", cure).rglob("*.parquet"))
    if not files:
        raise UserError(f"TEXTS: no Parquet file below {TEXTS}; {cure}")
    return files


def draw_texts(files: list[Path]) -> tuple[list[str], list[str]]:
    """Return texts to calibrate with and texts to check with; the same few if there are few."""
    from small_modernbert.data import evaluation_sets
    from small_modernbert.export import parity

    texts = evaluation_sets.read_texts(files) if files else list(parity.SENTENCES)
    random.Random(SEED).shuffle(texts)
    if len(texts) < 2 * CALIBRATION_TEXTS:
        return texts[:CALIBRATION_TEXTS], texts
    return texts[:CALIBRATION_TEXTS], texts[CALIBRATION_TEXTS:]


def time_forms(final: Path, forms: list[str], texts: list[str]) -> dict[str, float]:
    """Return the texts a second of the torch model and of each form; empty without texts."""
    if not texts:
        return {}
    from small_modernbert.evaluation import speed
    from small_modernbert.export import onnx_export
    from small_modernbert.models import encoders
    from small_modernbert.models.onnx_encoder import OnnxEncoder

    readers = {onnx_export.TORCH: encoders.load_encoder(final).encode}
    readers |= {form: OnnxEncoder(final, form, THREADS).encode for form in forms}
    return {form: speed.texts_per_second(encode, texts) for form, encode in readers.items()}


def measure(
    student: Path, final: Path, forms: list[str], probes: list[str], max_tokens: int
) -> "dict[str, Parity]":
    """Compare every form with the student that was given, and refuse what is off.

    Raises:
        UserError: a form that should be exact is not, or int8 loses more than it may.
    """
    from small_modernbert.export import onnx_export
    from small_modernbert.export import parity as comparison
    from small_modernbert.models.onnx_encoder import OnnxEncoder

    wanted = comparison.torch_encoder(student, max_tokens)(probes)
    given = {onnx_export.TORCH: comparison.torch_encoder(final, max_tokens)(probes)}
    given |= {form: OnnxEncoder(final, form, THREADS).encode(probes) for form in forms}
    parity = {form: comparison.compare(wanted, vectors) for form, vectors in given.items()}
    quantised = parity.get(onnx_export.INT8)
    if quantised and quantised.mean_cosine < 1 - INT8_TOLERANCE:
        raise UserError(
            f"int8 has a mean cosine of {quantised.mean_cosine:.4f} to the torch model, off by "
            f"more than INT8_TOLERANCE {INT8_TOLERANCE:g}; leave it out: --no-int8, "
            "or calibrate with texts of the kind that it will read: --texts FILE"
        )
    for form, figures in parity.items():
        if form != onnx_export.INT8 and figures.min_cosine < 1 - TOLERANCE:
            raise UserError(
                f"{form} is off by {1 - figures.min_cosine:.1e} in cosine, more than TOLERANCE "
                f"{TOLERANCE:g}; install the versions of requirements.txt and export again"
            )
    return parity


if __name__ == "__main__":
    settings.run(globals())
