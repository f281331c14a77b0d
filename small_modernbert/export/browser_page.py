"""A page beside an export that runs it in a browser, without a network: browser/index.html.

The page (export/browser/) reads the export's own files one folder up, so that nothing lies there
twice. It stands on two packages of the npm registry, onnxruntime-web and Hugging Face's tokenizers,
which are brought once by npm, pinned to their bytes, and kept in CACHE.

    python -m small_modernbert.export.browser_page    # brings these alone, for the tests
"""

import dataclasses
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from small_modernbert.runs import references, storage
from small_modernbert.runs.errors import UserError

SOURCE = Path(__file__).with_name("browser")
CACHE = "assets/browser_runtime"
FOLDER, RUNTIME = "browser", "runtime"  # below an export, and below that
SECONDS = 300  # that npm may take for a package
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry, pinned.

    Attributes:
        name: as npm spells it.
        version: exact.
        files: member of its archive -> sha256; nothing else is unpacked, and all names differ.
    """

    name: str
    version: str
    files: Mapping[str, str]

    @property
    def archive(self) -> str:
        """The name that `npm pack` gives its archive."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


ENGINE = NpmPackage(
    "onnxruntime-web",
    "1.30.0",
    {
        "package/dist/ort.wasm.bundle.min.mjs": (
            "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"
        ),
        "package/dist/ort-wasm-simd-threaded.wasm": (
            "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
        ),
    },
)
TOKENIZERS = NpmPackage(
    "@huggingface/tokenizers",
    "0.2.0",
    {
        "package/dist/tokenizers.min.mjs": (
            "258e46332101335ce8d95aed7745b19ac3b46d37f3e159a89cf894c2ea9b1d3a"
        ),
        "package/LICENSE": "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
    },
)
PACKAGES = (ENGINE, TOKENIZERS)


def is_whole(runtime: Path) -> bool:
    """Say whether a folder holds every file of the packages, byte for byte."""
    return all(not _missing(package, runtime) for package in PACKAGES)


def bring_runtime(runtime: Path) -> None:
    """Fill a folder with the files of the packages: from archives that lie there, or by npm.

    Raises:
        UserError: npm is missing or reaches nothing, or a file is not the pinned one.
    """
    for package in PACKAGES:
        if not _missing(package, runtime):
            continue
        runtime.mkdir(parents=True, exist_ok=True)
        given = runtime / package.archive
        if given.is_file():
            _unpack(package, given, runtime)
            continue
        with tempfile.TemporaryDirectory(dir=runtime) as folder:
            logger.info("bringing %s %s by npm", package.name, package.version)
            _pack(package, Path(folder), runtime)
            _unpack(package, Path(folder) / package.archive, runtime)


def write(export: Path, runtime: Path) -> None:
    """Write the page and its runtime below an export.

    Args:
        export: its folder, with onnx/, export.json, golden_vectors.json and the tokenizer.
        runtime: a folder that `bring_runtime` filled.
    """
    page = export / FOLDER
    (page / RUNTIME).mkdir(parents=True)
    for path in SOURCE.iterdir():
        shutil.copyfile(path, page / path.name)
    for package in PACKAGES:
        for member in package.files:
            name = Path(member).name
            shutil.copyfile(runtime / name, page / RUNTIME / name)


def _missing(package: NpmPackage, runtime: Path) -> list[str]:
    """Return the members that a folder lacks, or has in another form."""
    return [
        member
        for member, sha256 in package.files.items()
        if not (path := runtime / Path(member).name).is_file()
        or storage.sha256_file(path) != sha256
    ]


def _pack(package: NpmPackage, folder: Path, runtime: Path) -> None:
    what = f"{package.name}@{package.version}"
    cure = f"or put {package.archive} of another machine (npm pack {what}) into {runtime}"
    if shutil.which("npm") is None:
        raise UserError(f"the page needs {what}, and npm is not here: apt-get install npm, {cure}")
    command = ["npm", "pack", what, "--pack-destination", str(folder), "--fetch-retries", "1"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=folder)
        problem = "" if run.returncode == 0 else run.stderr
    except subprocess.TimeoutExpired:
        problem = f"no answer in {SECONDS} seconds"
    if problem or not (folder / package.archive).is_file():
        lines = [line.removeprefix("npm error ") for line in problem.splitlines() if line.strip()]
        reason = "; ".join(lines[:2]) or "it left no archive"
        raise UserError(f"npm does not bring {what} ({reason}); check the network, {cure}")


def _unpack(package: NpmPackage, archive: Path, runtime: Path) -> None:
    """Copy the pinned members out of an archive.

    Raises:
        UserError: it does not read, or a member is not there or not the pinned one.
    """
    for member, sha256 in package.files.items():
        target = runtime / Path(member).name
        try:
            with (
                tarfile.open(archive, "r:gz") as opened,
                storage.replacing(target) as beside,
                beside.open("wb") as stream,
            ):
                content = opened.extractfile(member)
                if content is None:
                    raise KeyError(member)
                shutil.copyfileobj(content, stream)
        except (tarfile.TarError, EOFError, KeyError) as error:
            raise UserError(f"{archive}: {member} does not read ({error}); remove it") from None
        if (actual := storage.sha256_file(target)) != sha256:
            target.unlink()
            raise UserError(
                f"{archive.name}: {member} has sha256 {actual}, not the pinned {sha256}; it was "
                "refused; remove the archive, and check the registry (npm config get registry)"
            )


if __name__ == "__main__":
    try:
        bring_runtime(references.ROOT / CACHE)
    except UserError as error:
        sys.exit(f"error: {error}")
