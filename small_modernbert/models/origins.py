"""What a model is made of, as its card tells: models and data, and what each says of its licence.

Nothing is looked up and nothing guessed: a folder's or a fetched model's own card, the tables of
sources and run.json say it, or it is not known.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, try_to_load_from_cache

from small_modernbert.data import offline_assets
from small_modernbert.data.hub_datasets import PAIR_SOURCES, TEXT_SOURCES
from small_modernbert.runs import ancestry, hub

MODELS = ("teacher", "donor", "judge", "miner")  # inputs of stages that are models of others
# How the names of inputs begin that are text to train on, of whichever script.
DATA = ("source", "pairs", "PAIRS", "documents", "queries", "general")
UNKNOWN = "not stated"
# What the hub knows licences by; what else a table says is for a person to read.
_LICENCE = re.compile(r"(apache|mit|cc0|cc-by|bsd|afl|odc|odbl)(-[a-z0-9.-]+)?")


@dataclass(frozen=True)
class Origin:
    """A model or a data set that a model was made of.

    Attributes:
        role: "teacher", "donor", "judge", "miner" or "data".
        name: hub id, or the name of a folder or file.
        hub_id: where the hub has it; None where that is not known.
        licence: as its card or the table of sources says; "" where nothing does.
        language: as its card says.
        datasets: that a model says it was trained on.
    """

    role: str
    name: str
    hub_id: str | None = None
    licence: str = ""
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()


def collect(records: Iterable[Mapping[str, Any]]) -> list[Origin]:
    """Return what the stages of some records took from outside, each once, in their order."""
    every = (origin for record in records for origin in _of_record(record))
    return list(dict.fromkeys(every))


def labels(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names that corpora and pairs were counted under, if any row of them was kept."""
    names: dict[str, None] = {}
    for record in records:
        rows = record.get("rows", {})
        # Of a corpus they are the rows themselves; of pairs, what was read.
        counts = rows if record.get("script", "").startswith("mlm/create") else rows.get("read", {})
        for name, row in counts.items() if isinstance(counts, dict) else ():
            if isinstance(row, dict) and row.get("kept"):
                names[name] = None
    return list(names)


def licence_of(found: Sequence[Origin]) -> tuple[str, str]:
    """Return the licence in the hub's spelling, and the reason where that is "other"."""
    stated = {origin.licence for origin in found}
    if not found:
        return "other", "nothing that it was made of states a licence"
    if silent := [origin.name for origin in found if not origin.licence]:
        return "other", f"no licence is stated by {', '.join(dict.fromkeys(silent))}"
    spelt = {spelling(licence) for licence in stated}
    if len(spelt) == 1 and (only := spelt.pop()):
        return only, ""
    return "other", "what it was made of has several licences, or terms of its own"


def spelling(licence: str) -> str:
    """Return the hub's spelling of a licence; "" where there is none."""
    plain = re.sub(r"\s+", "-", licence.strip().lower().replace("cc by", "cc-by"))
    return plain if _LICENCE.fullmatch(plain) else ""


def read_metadata(path: Path | None) -> dict[str, Any]:
    """Return the metadata at the top of a README.md; nothing if it has none that can be read."""
    if path is None or not path.is_file():
        return {}
    try:
        return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, TypeError, OSError, yaml.YAMLError):  # somebody else's text
        return {}


def find_card(reference: Path | str) -> Path | None:
    """Return the README.md of a folder, or of a hub model as it was fetched; None if it has none.

    Args:
        reference: a folder, or owner/name[@revision].
    """
    if Path(reference).is_dir():
        path = Path(reference) / "README.md"
        return path if path.is_file() else None
    name, revision = hub.split_revision(str(reference))
    try:
        cached = try_to_load_from_cache(name, "README.md", revision=revision)
    except ValueError:  # no hub id: a folder that is no more
        return None
    return Path(cached) if isinstance(cached, str) else None


def model(role: str, reference: Path | str) -> Origin:
    """Return what a folder or a hub model says of itself."""
    told = read_metadata(find_card(reference))
    if Path(reference).is_absolute():
        folder = Path(reference)
        hub_id = offline_assets.published_as(folder)
        name = hub_id or (folder.parent if folder.name == "final" else folder).name
    else:
        name = hub_id = hub.split_revision(str(reference))[0]
    return Origin(
        role,
        name,
        hub_id,
        ", ".join(_words(told.get("license"))),
        _words(told.get("language")),
        _words(told.get("datasets")),
    )


def _of_record(record: Mapping[str, Any]) -> Iterator[Origin]:
    for name, entry in record["inputs"].items():
        path = entry["path"]
        if ancestry.stage_of(path) is not None:
            continue
        if name in MODELS:
            yield model(name, path)
        elif name.partition(" ")[0] in DATA:
            yield _data(path)


def _data(path: str) -> Origin:
    """Return what is known of a file, a hub data set, or one that a table of sources names."""
    if Path(path).is_absolute():
        ours = offline_assets.is_asset(Path(path))
        licence = TEXT_SOURCES["offline"].licence if ours else ""
        return Origin("data", Path(path).name, None, licence)
    for source in (*PAIR_SOURCES.values(), *TEXT_SOURCES.values()):
        if source.name == path or path.startswith(source.id):
            return Origin("data", source.id, source.id, source.licence)
    name = hub.split_revision(path)[0]
    return Origin("data", name, name)


def _words(value: object) -> tuple[str, ...]:
    """Return a card's value, which is one word or a list of them, as words."""
    values = value if isinstance(value, list) else [value]
    return tuple(str(each) for each in values if isinstance(each, str))
