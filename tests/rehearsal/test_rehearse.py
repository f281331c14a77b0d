"""Promise of the rehearsal: what the full data will take on disk is told from the made rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from rehearsal import rehearse

from small_modernbert.data import labels, triplets

WIDTH, TEXTS, TRIPLETS = 256, 500_000, 50_000


def record(stage: Path, **constants: int) -> None:
    """Write what a stage was asked for."""
    stage.mkdir(parents=True, exist_ok=True)
    (stage / "run.json").write_text(json.dumps({"settings": constants}), encoding="utf-8")


def test_the_disk_of_the_full_data_is_told(tmp_path: Path) -> None:
    """Half-precision labels of as many texts as the corpus may have; five texts a triplet."""
    record(tmp_path / "mlm" / "create_dataset", MAX_TEXTS=TEXTS)
    final = tmp_path / "create_distil_dataset" / "final"
    assert rehearse.gigabytes_in_full(final) is None
    path = labels.shard_path(final, "train", 0)
    labels.write_shard(path, ["a text of a made corpus"] * 8, np.ones((8, WIDTH)))
    wanted = TEXTS * (2 * WIDTH + rehearse.TEXT_BYTES) / 1e9
    assert rehearse.gigabytes_in_full(final) == pytest.approx(wanted, rel=0.05)

    record(tmp_path / "relabel_triplets", MAX_TRIPLETS=TRIPLETS)
    final = tmp_path / "relabel_triplets" / "final"
    row = {"anchor": "a question that is asked", "positive": "an answer to the question"}
    row |= {"negatives": ["another answer altogether"] * 3, "positive_score": 0.9}
    row |= {"negative_scores": [0.1] * 3, "source": "made"}
    triplets.write_shard(triplets.shard_path(final, "train", 0), [row] * 4, {})
    wanted = TRIPLETS * 5 * rehearse.TEXT_BYTES / 1e9
    assert rehearse.gigabytes_in_full(final) == pytest.approx(wanted, rel=0.05)
    record(tmp_path / "relabel_triplets", MAX_TRIPLETS=0)  # all of them
    assert rehearse.gigabytes_in_full(final) == pytest.approx(31.4 * wanted, rel=0.05)
