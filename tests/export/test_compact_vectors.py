"""Promises of export/compact_vectors.py."""

import numpy as np

from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.export import compact_vectors
from small_modernbert.models.vectors import normalise


class MadeEncoder:
    """Queries near their documents, in 32 dimensions."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.documents = normalise(random.normal(size=(60, 32)))
        self.queries = normalise(self.documents + 0.1 * random.normal(size=(60, 32)))

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        """Return the queries' vectors."""
        return self.queries

    def encode_documents(self, texts: list[str]) -> np.ndarray:
        """Return the documents' vectors."""
        return self.documents


def test_bytes_keep_and_bits_lose() -> None:
    """A byte a number is near the whole vector; a bit keeps the signs alone, and is far smaller."""
    documents = MadeEncoder().documents
    read = compact_vectors.as_read(documents, "int8")
    steps = np.ptp(documents, axis=0) / 255
    assert (np.abs(read - documents) <= 1.01 * steps).all()
    np.testing.assert_array_equal(
        compact_vectors.as_read(documents, "binary"), np.where(documents > 0, 1, -1)
    )
    level = documents.copy()
    level[:, 3] = 0.25  # no range to divide by
    np.testing.assert_allclose(compact_vectors.as_read(level, "int8")[:, 3], 0.25, atol=0.01)


def test_table_has_every_form_at_every_dimension() -> None:
    """Size falls by dimension and by form; quality is measured at each, never invented."""
    names = [str(number) for number in range(60)]
    questions = RetrievalSet(
        "made", names, names, names, names, {name: {name: 1} for name in names}
    )
    lines = compact_vectors.measure(MadeEncoder(), [questions], [8, 99, 16]).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows] == ["32"] * 3 + ["16"] * 3 + ["8"] * 3
    assert [row[2] for row in rows] == ["128", "32", "4", "64", "16", "2", "32", "8", "1"]
    kept = [float(row[-1].split()[0]) for row in rows]
    assert kept[0] == 100 and kept[1] > 98 and kept[8] < kept[2] <= 100
