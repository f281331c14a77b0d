"""Places by URL: whatever fsspec reads (s3://, gs://, hf://, https://, memory://) as a path.

universal_pathlib gives a URL the methods of `pathlib.Path`, so what reads a file or lists a folder
need not know where it lies. This module says which constants take a URL, and tells what goes wrong.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from small_modernbert.runs import redaction, storage
from small_modernbert.runs.errors import UserError

# Constants that take a URL, of whichever script; all others want what is on disk, or a hub id.
TAKERS = ("OFFLINE_TEXT", "CORPUS", "LABELS", "OUTPUT_URL")
# Where the last bytes of a file, or its last change, show in what a file system says of it.
MARKS = ("ETag", "etag", "blob_id", "md5Hash", "checksum", "LastModified", "mtime", "created")
STORAGE = "pip install -r requirements-storage.txt"
_SHARD = re.compile(r"/shard-\d+\.parquet$")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S")


def is_url(reference: str) -> bool:
    """Say whether a reference is a URL."""
    return _URL.match(reference) is not None


def reopen(recorded: str) -> Path:
    """Return the place that a run.json names."""
    if not is_url(recorded):
        return Path(recorded)
    from upath import UPath

    return UPath(recorded)


def is_remote(place: Path) -> bool:
    """Say whether a place is elsewhere than on this machine's disks."""
    return not isinstance(place, Path)


def refuse_urls(namespace: Mapping[str, Any]) -> None:
    """Refuse a URL in a constant that takes none, and one that holds a secret.

    Before it is looked for on the disk or the hub, and before it is written down.

    Raises:
        UserError: with the flag.
    """
    for name, value in namespace.items():
        for reference in value if isinstance(value, list) else [value]:
            if not (name.isupper() and isinstance(reference, str) and is_url(reference)):
                continue
            flag, shown = _flag(name), redaction.redact(reference)
            if name not in TAKERS:
                raise UserError(
                    f"--{flag} {shown}: only {', '.join(f'--{_flag(taker)}' for taker in TAKERS)} "
                    "take a URL; fetch it (aws s3 sync, gcloud storage cp -r, hf download), then "
                    f"give --{flag} its folder; a model of the hub is owner/name"
                )
            if shown != reference:
                raise UserError(
                    f"--{flag} {shown}: a URL stands in run.json, and this one holds a secret; "
                    "give that by the environment (AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, hf "
                    f"auth login), or fetch what it names and give --{flag} its folder"
                )


def _flag(constant: str) -> str:
    return constant.lower().replace("_", "-")


def find(url: str, what: str, cure: str) -> list[Path]:
    """Return the files or the folder of a URL, which may hold wildcards: s3://texts/2026/*.parquet.

    Args:
        url: to look at.
        what: the constant that names it.
        cure: ends the message where nothing is there.

    Raises:
        UserError: nothing is there, it may not be read, or nothing that is installed reads it.
    """
    place = open_url(url, what)
    with explained(f"{what}: {url}"):
        if is_remote(place) and any(sign in url for sign in "*["):
            names = sorted(place.fs.glob(place.path))
            if names:
                return [reopen(place.fs.unstrip_protocol(name)) for name in names]
        if place.exists():
            return [place]
    raise UserError(f"{what}: {url} is not there; {cure}")


def open_url(url: str, what: str) -> Path:
    """Return the place that a URL names, whether or not anything is there.

    Raises:
        UserError: it is none, or nothing that is installed reads it.
    """
    import fsspec
    from upath import UPath

    protocol = url.partition("://")[0].lower()
    if not is_url(url):
        raise UserError(f"{what}: {url} is no URL; give one with a scheme: s3://bucket/{url}")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise UserError(
            f"{what}: {url} needs what is not installed ({error}); run: {STORAGE}"
        ) from None
    except ValueError:
        raise UserError(
            f"{what}: {url}: there is no {protocol}://; give s3://, gs://, hf:// or https://"
        ) from None
    with explained(f"{what}: {url}"):
        place = UPath(url)
    return Path(place.path) if protocol in ("file", "local") else place


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Tell in one line what a file system elsewhere has to complain of.

    Raises:
        UserError: in place of whatever its libraries raise.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # botocore's, aiohttp's, google's: each has kinds of its own
        reason = " ".join(redaction.redact(str(error)).split())[:300] or type(error).__name__
        raise UserError(
            f"{where} cannot be read ({reason}); check the name, the network and your credentials "
            "(AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, hf auth login), then run it again"
        ) from error


def list_sizes(folder: Path) -> dict[str, int]:
    """Return path below a folder -> bytes of every file, elsewhere by as few requests as can be."""
    if not is_remote(folder):
        files = storage.list_files(folder)
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    with explained(str(folder)):
        root = folder.path.rstrip("/") + "/"
        details = folder.fs.find(folder.path, detail=True)
    return {name.removeprefix(root): entry["size"] for name, entry in details.items()}


@contextlib.contextmanager
def at_hand(path: Path) -> Iterator[Path]:
    """Give a file of this machine with the content of `path`; what was fetched goes afterwards."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="small-modernbert-") as folder:
        copy = Path(folder) / path.name
        with explained(str(path)):
            path.fs.get_file(path.path, str(copy))
        try:
            yield copy
        except UserError as error:
            raise UserError(str(error).replace(str(copy), str(path))) from error


def fingerprint(place: Path) -> str:
    """Return what changes when a place elsewhere does, without reading its bytes.

    Of a folder of shards of ours it is that of its index, which has the sha256 of each; of other
    files their sizes and what the file system knows them by: an ETag, or the time of a change.

    Raises:
        UserError: it cannot be read.
    """
    with explained(str(place)):
        listed = place.fs.find(place.path, detail=True)
        beside = [name for name in sorted(listed) if Path(name).parent == Path(place.path)]
        # Without shards a .json may be data, of any size.
        for name in beside if any(map(_SHARD.search, listed)) else []:
            if name.endswith(".json") and b'"shards"' in (text := place.fs.cat_file(name)):
                return storage.digest_json({Path(name).name: text.decode()})
        facts = {}
        for name, entry in listed.items():
            marks = [str(entry[mark]) for mark in MARKS if entry.get(mark)][:1]
            facts[name.removeprefix(place.path)] = [entry["size"], *marks]
    return storage.digest_json(facts)
