"""Promises of README.md: every command, flag, path, module and make target in it exists."""

import re
import shlex
from pathlib import Path

import pytest

from small_modernbert.runs import settings
from small_modernbert.runs.references import ROOT, SCRIPTS, split_stage

README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FILE_ENDINGS = {".py", ".sh", ".md", ".txt", ".toml", ".json", ".parquet", ".jsonl"}
# Below these stand outputs: made by a run, so not in a checkout.
MADE = ("runs/", "assets/")
# Files that stages write into their folders, and what a reader brings along.
FILES_OF_A_STAGE = {
    *("run.json", "metrics.jsonl", "log.txt", "manifest.json", "documents.md", "report.html")
}
YOUR_OWN = {"my_text.parquet"}


def readme() -> str:
    """Return README.md."""
    return README.read_text(encoding="utf-8")


def blocks(*languages: str) -> list[str]:
    """Return the fenced blocks of these languages ("" is a block without one)."""
    return [body for language, body in FENCE.findall(readme()) if language in languages]


def inline() -> list[str]:
    """Return everything between single backticks, outside fenced blocks."""
    return INLINE.findall(FENCE.sub("", readme()))


def commands() -> list[list[str]]:
    """Return the words of every shell command, in blocks and between backticks."""
    lines = []
    for body in blocks("sh", "bash", "shell"):
        lines += body.replace("\\\n", " ").splitlines()
    lines += [text for text in inline() if re.match(r"(make|python|bash|pip) ", text)]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


def scripts() -> list[str]:
    """Return every script of ours, relative to the repository."""
    paths = [*ROOT.glob("*.py"), *(ROOT / "mlm").glob("[!_]*.py"), *ROOT.glob("recipes/*.sh")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def test_commands_are_found() -> None:
    """The tests below have something to look at: the two commands that the README opens with."""
    assert ["make", "run"] in [words[:2] for words in commands()]
    assert ["make", "test"] in [words[:2] for words in commands()]
    assert len(commands()) > 8


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_can_be_typed(words: list[str]) -> None:
    """Targets are in the Makefile, scripts exist, their flags are constants, inputs are there."""
    program, *rest = words
    assert program in {"make", "python", "python3", "bash", "pip", "git", "cd", "hf", "source"}
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in (word for word in rest if "=" not in word):
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    if program == "bash":
        check_recipe(rest)
    if program == "pip":
        for word, following in zip(rest, rest[1:], strict=False):
            assert word != "-r" or (ROOT / following).is_file()
    if program == "python":
        check_script(rest)


def check_recipe(words: list[str]) -> None:
    """Check that a recipe exists and knows the flags that are its own."""
    recipe = ROOT / words[0]
    assert recipe.is_file()
    read = recipe.read_text(encoding="utf-8")
    for flag in (word for word in words[1:] if word.startswith("--")):
        pattern = rf"^ *(--[a-z-]+ \| )*{flag}( \| --[a-z-]+)*\)"  # a label of its `case`
        assert flag == "--overwrite" or re.search(pattern, read, re.MULTILINE), flag


def check_script(words: list[str]) -> None:
    """Check a script, its flags, and that a stage it reads is one that a script makes."""
    if words[0] == "-m":
        words = [words[1].replace(".", "/") + ".py", *words[2:]]
    script = ROOT / words[0]
    assert script.is_file(), words[0]
    flags = {
        f"--{prefix}{constant.name.lower().replace('_', '-')}": constant
        for constant in settings.read_constants(script)
        for prefix in ("", "no-")
        if not prefix or constant.type is bool
    }
    flag = ""
    for word in words[1:]:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            assert flag in flags or flag == "--help", flag
        elif "://" not in word and ("/" in word or Path(word).suffix in FILE_ENDINGS):
            check_path(word)


def check_path(text: str) -> None:
    """Check that a path exists, or is an output that a script of ours makes."""
    plain = re.sub(r"<[^>]*>", "x", text).rstrip("/")
    known = YOUR_OWN | FILES_OF_A_STAGE | {made.rstrip("/") for made in MADE}
    if plain in known or (not text.startswith(MADE) and (ROOT / plain).exists()):
        return
    if plain.startswith("assets/"):
        check_asset(plain)
    elif plain.startswith("runs/"):
        _, _, rest = plain.removeprefix("runs/").partition("/")
        assert not rest or rest == "x" or split_stage(rest), f"{text}: no script makes that"
    else:
        assert split_stage(plain), f"{text} does not exist"


def check_asset(path: str) -> None:
    """Check a path below assets/ against what get_offline_assets.py lays out."""
    from small_modernbert.data import asset_writing, offline_assets, offline_data

    made = {"models", "assets/manifest.json", *offline_assets.DATA_FOLDERS}
    modules = (asset_writing, offline_assets, offline_data)
    source = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in modules)
    folder, _, rest = path.removeprefix("assets/").partition("/")
    assert folder == "manifest.json" or folder in {name.partition("/")[0] for name in made}, path
    for name in filter(None, rest.split("/")):
        assert name in source or name.partition(".")[0] in source, path


def test_the_package_is_installed_before_the_first_script_of_the_hub() -> None:
    """From a bare clone: pins, then the package itself, then the recipe; nothing is missing."""
    section = readme()[readme().index("### With a hub and a GPU") :]
    first = FENCE.search(section)
    assert first is not None
    lines = [line.partition("#")[0].strip() for line in first[2].splitlines()]
    assert lines[0] == "python3 -m venv .venv && source .venv/bin/activate"
    pins = lines.index("pip install -r requirements.txt")
    package = lines.index("pip install --no-deps -e .")
    assert pins < package < lines.index("bash recipes/small_v2.sh")


def test_links_and_paths_exist() -> None:
    """Every relative link, and everything in backticks that is spelt like a path, is there."""
    targets = re.findall(r"\]\(([^)#]+)", FENCE.sub("", readme()))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    for target in local:
        assert (ROOT / target).exists(), target
    for text in inline():
        if " " in text or text.startswith(("-", "~", "/")):
            continue
        spelt_as_file = Path(text).suffix in FILE_ENDINGS
        spelt_as_folder = text.endswith("/") or text.startswith(MADE)
        if spelt_as_file or spelt_as_folder:
            check_path(text)


def test_flags_and_stages_in_backticks_exist() -> None:
    """`--flags` are constants of some script, `stage@variant` names a script that is there."""
    known = {
        constant.name
        for script in scripts()
        if script.endswith(".py")
        for constant in settings.read_constants(ROOT / script)
    }
    for text in inline():
        if flag := re.match(r"--([a-z0-9-]+)", text):
            name = flag[1].upper().replace("-", "_")
            assert name in known or name in {"HELP", "SIZE", "ASSETS"}, text
        if "@" in text:
            assert split_stage(text.rstrip("/")), text


def test_every_script_is_named() -> None:
    """No script and no recipe is left out."""
    for script in scripts():
        assert script in readme(), script
    assert {f"{stage}.py" for stage in SCRIPTS} <= set(scripts())


def test_every_module_is_in_the_file_tree() -> None:
    """The file tree has a line on every room and module of the package, and on nothing else."""
    tree = next(body for body in blocks("") if "small_modernbert/" in body)
    block = tree[tree.index("small_modernbert/") :]
    block = block[: block.index("\ntests/")]
    named: set[str] = set()
    room = ""
    for line in block.splitlines()[1:]:
        name, _, said = line.strip().partition(" ")
        assert said.strip(), f"{name}: what is it?"
        room = name.rstrip("/") if name.endswith("/") else room
        named.add(room if name.endswith("/") else f"{room}/{name}")
    package = ROOT / "small_modernbert"
    modules = {
        path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("[!_]*.py")
    }
    rooms = {path.parent.relative_to(package).as_posix() for path in package.glob("*/*.py")}
    assert named == modules | rooms


def test_top_of_the_file_tree_exists() -> None:
    """Every file and folder at the left edge of the file tree is there."""
    tree = next(body for body in blocks("") if "small_modernbert/" in body)
    tops = [line.split("   ")[0] for line in tree.splitlines() if line[:1].strip()]
    assert len(tops) >= 5
    for top in tops:
        for name in top.split(" … "):
            assert (ROOT / name.strip()).exists(), name


def test_python_snippets_compile() -> None:
    """Python blocks are Python, and import what there is."""
    for body in blocks("python"):
        compile(body, "README.md", "exec")
        for path in re.findall(r"\"(runs/[^\"]+)\"", body):
            check_path(path)


def test_results_are_filled_in() -> None:
    """The results are figures of a run, not a place kept free for them."""
    assert not re.search(r"^(RESULTS|TODO|TBD)\b", readme(), re.MULTILINE)
