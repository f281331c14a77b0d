"""References: how a constant names an input, and the folder, file or hub id that it means.

`script[@variant][/part]` is a stage of the recipe, anything else a folder, a file or a hub id; some
constants also take a URL (see `places`).
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from small_modernbert.runs import places, storage
from small_modernbert.runs.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ASSETS = "run: python get_offline_assets.py"  # the cure where a file of assets/ is missing
# Of what people keep text, pairs and graded pairs in.
DATA_ENDINGS = frozenset(
    {".parquet", ".pq", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md", ".gz"}
)

RESULTS = ("sts_fine_tuning", "post_train_distilled_model", "distil_modernbert")  # the last first
SCRIPTS = (
    "get_offline_assets",
    "prepare_documents",
    "build_and_save_small_modernbert",
    "train_small_modernbert",
    "mlm/create_dataset",
    "mlm/init_model_mlm",
    "mlm/pre_train",
    "create_distil_dataset",
    "distil_modernbert",
    "relabel_triplets",
    "post_train_distilled_model",
    "sts_fine_tuning",
    "benchmark_hotpotqa",
    "benchmark_mteb",
    "distil_model2vec",
    "export_model",
)


def runs_folder() -> Path:
    """Return where runs/ is: the environment's RUNS, or runs/ in the repository, never the cwd."""
    return Path(os.environ.get("RUNS") or ROOT / "runs").expanduser().resolve()


def recipe_folder(recipe: str) -> Path:
    """Return the folder of a recipe's stages.

    Raises:
        UserError: its name leads out of runs/, or is none.
    """
    if not recipe.strip() or Path(recipe).is_absolute() or ".." in Path(recipe).parts:
        raise UserError(
            f"RECIPE: {recipe!r} is no name of a folder in {runs_folder()}: --recipe small_v2"
        )
    return runs_folder() / recipe


def split_stage(reference: str) -> tuple[str, str, str] | None:
    """Split `script[@variant][/part]` into its three words; None if no script of ours is named.

    A part is something inside the stage's final/, as in `create_distil_dataset/reduced_teacher`.
    """
    for script in sorted(SCRIPTS, key=len, reverse=True):
        rest = reference.removeprefix(script)
        if rest != reference and (not rest or rest[0] in "@/"):
            variant, _, part = rest.partition("/")
            return script, variant.removeprefix("@"), part
    return None


def find(reference: str) -> Path | None:
    """Return the file or folder of this name, below the repository or the working directory."""
    if not reference:
        return None
    named = Path(reference)
    with contextlib.suppress(RuntimeError):  # ~somebody who is nobody here
        named = named.expanduser()
    for base in (ROOT, Path.cwd()):
        path = base / named
        if path.exists():
            return path.resolve()
    return None


def locate(reference: str, recipe: str) -> Path | None:
    """Return the folder that a reference means: a stage of this recipe, or a folder of this name.

    None stands for a hub id, or for nothing where the reference is empty.

    Raises:
        UserError: it names a stage that has not finished (the message has the command to run), or
            a file.
    """
    stage = split_stage(reference)
    if stage is not None:
        script, variant, part = stage
        folder = recipe_folder(recipe) / (script + (f"@{variant}" if variant else ""))
        final = folder / "final"
        storage.recover(final)
        if not final.is_dir():
            flags = f" --recipe {recipe}" + (f" --variant {variant}" if variant else "")
            raise UserError(f"{final} is not there; run: python {script}.py{flags}")
        return final / part if part else final
    path = find(reference)
    if path is not None and not path.is_dir():
        raise UserError(
            f"{path} is a file, where a folder, a stage or a hub id is wanted; name its folder, "
            f"{path.parent}"
        )
    return path


def need(reference: str, recipe: str, what: str, cure: str) -> Path:
    """Like `locate`, for inputs that can only be a folder, or one by its URL.

    Raises:
        UserError: there is no such folder; the message names `what` it should be and the `cure`.
    """
    if places.is_url(reference):
        return places.find(reference, what, cure)[0]
    folder = locate(reference, recipe)
    if folder is None:
        raise UserError(f"{what}: {reference!r} is not there; {cure}")
    return folder


def need_file(reference: str, recipe: str, what: str, cure: str) -> Path:
    """Return the file that a path names, or a part of a stage: `export_model/onnx/model.onnx`.

    Raises:
        UserError: it is not there; the message names `what` it should be and the `cure`.
    """
    path = locate(reference, recipe) if split_stage(reference) else find(reference)
    if path is None or not path.is_file():
        raise UserError(f"{what}: {path or reference} is not there; {cure}")
    return path


def need_first(references: Sequence[str], recipe: str, what: str, cure: str) -> Path:
    """Like `need`, of the first reference that is there: a track may come to a script in two ways.

    Raises:
        UserError: none is; the message has the command for each.
    """
    reasons = []
    for reference in references:
        try:
            return need(reference, recipe, what, cure)
        except UserError as reason:
            reasons.append(str(reason))
    raise UserError("; or ".join(reasons) or f"{what}: nothing is named; {cure}")


def need_evaluation(
    recipe: str, retrieval_folder: str, sentence_pairs: str = "", what: str = "STS"
) -> dict[str, Path | str]:
    """Return what a stage is watched by, as its inputs: "retrieval" and "sentence pairs".

    Args:
        recipe: whose stages may be meant.
        retrieval_folder: RETRIEVAL_FOLDER; "" takes the sets from the hub, and is no input.
        sentence_pairs: a file or a hub id; "" for none.
        what: the constant that names these.

    Raises:
        UserError: a folder or a file is not there.
    """
    inputs: dict[str, Path | str] = {}
    if sentence_pairs:
        inputs["sentence pairs"] = find_file(sentence_pairs, what, ASSETS) or sentence_pairs
    if retrieval_folder:
        inputs["retrieval"] = need(retrieval_folder, recipe, "RETRIEVAL_FOLDER", ASSETS)
    return inputs


def find_result(reference: str, recipe: str) -> Path | str:
    """Return a model's folder or hub id; an empty reference means what a recipe ends in.

    Raises:
        UserError: nothing has been trained yet.
    """
    if reference:
        return locate(reference, recipe) or reference
    for script in RESULTS:
        try:
            folder = locate(script, recipe)
        except UserError:
            continue
        if folder is not None:
            return folder
    raise UserError(f"the recipe {recipe!r} has no trained model yet; run: make run")


def find_passages(reference: str, recipe: str) -> Path:
    """Return the file or folder that holds passages.

    Raises:
        UserError: it is not there.
    """
    place = find_file(reference, "PASSAGES", ASSETS)
    return place or need(reference, recipe, "PASSAGES", ASSETS)


def find_file(reference: str, what: str, cure: str) -> Path | None:
    """Return the file that a reference names; None for a folder, a stage or a hub id.

    Raises:
        UserError: nothing of this name is there, and no hub id is spelt like it.
    """
    path = find(reference)
    if path is None and is_path(reference):
        raise UserError(f"{what}: {reference} is not there; {cure}")
    return path if path is not None and path.is_file() else None


def is_path(reference: str) -> bool:
    """Say whether a reference can only be a file or folder: a hub id is owner/name, or a name."""
    if not reference or split_stage(reference):
        return False
    if Path(reference).suffix.lower() in DATA_ENDINGS:
        return True
    return reference.startswith(("/", "~", ".")) or reference.rstrip("/").count("/") > 1
