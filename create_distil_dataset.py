"""Label a corpus with a teacher's embeddings, reduced by PCA to the student's width.

Reads: a corpus (mlm/create_dataset.py), a teacher, and the student's width.
Writes: final/{train,held_out}/shard-*.parquet with `text` and `label` (fp16), final/labels.json,
    final/reduced_teacher (a sentence-transformers folder) and final/projection.safetensors.

    python create_distil_dataset.py
    python create_distil_dataset.py --recipe offline --teacher assets/models/all-MiniLM-L6-v2

Where the widths differ, the principal directions of the teacher's vectors become a Dense layer on
the teacher: labels, student and reduced teacher then share one space. Shard i depends on nothing
but its texts, the teacher and the projection, so a killed run goes on at the first missing shard.
While a slice is encoded, threads tokenise the next one and write the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from small_modernbert.runs import references, settings, stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from sentence_transformers import SentenceTransformer

    from small_modernbert.models.projection import Projection

# Inputs
CORPUS: str = "mlm/create_dataset"  # a stage of this recipe, or its folder
TEACHER: str = "Alibaba-NLP/gte-modernbert-base"  # a sentence-transformers folder or hub id
TEACHER_REVISION: str = ""  # 40 hex digits pin a hub teacher; empty warns
STUDENT: str = "build_and_save_small_modernbert"  # its hidden_size is the labels' width
DIMENSION: int = 0  # width of the labels; 0 = the student's

# Labelling
PCA_TEXTS: int = 20_000  # texts that the projection is fitted on, from the shuffled corpus; 0 = all
ROWS_PER_SHARD: int = 2_048  # what a kill can cost, and the window that is sorted by length
TOKENS_PER_BATCH: int = 0  # tokens per forward pass; 0 = as many as suit the device
PRECISION: Literal["auto", "fp32", "bf16"] = "auto"  # bf16 where it is fast and faithful

# A CPU is fastest while a batch's activations stay in its cache, a GPU when it is full.
CPU_TOKENS, GPU_TOKENS = 2_048, 65_536

# Output
RECIPE: str = "small_v2"  # runs/<recipe>/create_distil_dataset
VARIANT: str = ""  # a second run in the same recipe: runs/<recipe>/create_distil_dataset@<variant>
OVERWRITE: bool = False  # redo a finished stage


def main() -> None:
    """Encode the sample, fit and save the projection, then label every shard."""
    corpus = references.need(CORPUS, RECIPE, "corpus", "run: python mlm/create_dataset.py")
    teacher_place = references.locate(TEACHER, RECIPE) or TEACHER
    width = DIMENSION or student_width()
    inputs = {"corpus": corpus, "teacher": teacher_place, "width": f"{width} dimensions"}
    with stages.Stage(globals(), inputs) as stage:
        if stage.finished:
            return
        from small_modernbert.data import labels
        from small_modernbert.models import precision
        from small_modernbert.models.teachers import load_teacher, reduce_teacher, save_teacher
        from small_modernbert.runs import machine, report, storage

        machine.keep_freed()
        teacher = load_teacher(teacher_place, TEACHER_REVISION or None)
        dtype = precision.settle(stage, PRECISION, teacher.device)
        work = Labelling(stage, corpus, teacher, dtype)
        # Better now than after hours of labelling; the texts come on top.
        storage.check_space(stage.building, work.space(width))
        with report.progress(description="labelling", total=work.rows, unit="texts") as work.bar:
            projection = work.fit(width)
            reduced = teacher if projection is None else reduce_teacher(teacher, projection)
            save_teacher(reduced, stage.building / "reduced_teacher")
            shards = {split: work.label(split, projection) for split in work.splits}
        storage.remove(work.cache)
        storage.write_json(
            stage.building / labels.INDEX,
            {"dimension": width, "rows": work.splits, "shards": shards},
        )
        stage.record["rows"] = work.splits
        stage.record["metrics"] = {"explained": work.explained}
        stage.record["tokens_per_second"] = round(work.tokens / max(stage.seconds, 1e-9))
        stage.finish(
            f"{work.rows:,} labels of width {width}, {work.explained:.1%} of the teacher's second "
            f"moment kept, {stage.record['tokens_per_second']:,} tokens/s",
            verify=check_labels,
        )


def student_width() -> int:
    """Read hidden_size from the student's config.json, without loading the model."""
    from small_modernbert.runs import storage

    folder = references.need(
        STUDENT, RECIPE, "student", "run: python build_and_save_small_modernbert.py"
    )
    return storage.read_json(folder / "config.json", "build the student again")["hidden_size"]


def check_labels(folder: Path) -> None:
    """Read every shard back; a shard that does not read as it was written fails the stage."""
    from small_modernbert.data.labels import open_labels
    from small_modernbert.runs.errors import UserError

    found = open_labels(folder)
    for split, rows in found.rows.items():
        seen = sum(len(batch) for batch in found.batches(split, ["text", "label"]))
        if seen != rows:
            raise UserError(f"{folder}/{split}: {seen:,} rows came back out of {rows:,}")


class Labelling:
    """One corpus on its way through one teacher, slice by slice."""

    def __init__(
        self, stage: stages.Stage, corpus: Path, teacher: SentenceTransformer, precision: str
    ) -> None:
        from small_modernbert.data import corpora
        from small_modernbert.models import inference
        from small_modernbert.models.teachers import token_ids

        self.stage, self.corpus, self.teacher = stage, corpus, teacher
        self.cache = stage.building / "teacher_vectors"
        self.splits = {split: corpora.count_rows(corpus, split) for split in ("train", "held_out")}
        self.rows = sum(self.splits.values())
        self.tokens = stage.record.get("tokens", 0)
        self.explained = 1.0
        self.bar = None
        # The same texts on every resume, so the same decision.
        probes = token_ids(teacher, next(self.slices("train"), [])[: inference.PROBES])
        self.engine = inference.load_engine(teacher, precision, probes)
        stage.record["dtype"], stage.record["fidelity"] = (
            self.engine.precision,
            self.engine.fidelity,
        )
        on_cpu = teacher.device.type == "cpu"
        self.tokens_per_batch = TOKENS_PER_BATCH or (CPU_TOKENS if on_cpu else GPU_TOKENS)

    def space(self, width: int) -> int:
        """Return the bytes of the labels (fp16), and of the vectors that `fit` keeps (fp32)."""
        train, dimension = self.splits["train"], self.teacher.get_embedding_dimension()
        slices = -(-(PCA_TEXTS or train) // ROWS_PER_SHARD)
        kept = min(train, slices * ROWS_PER_SHARD) if width != dimension else 0
        return 2 * width * self.rows + 4 * dimension * kept

    def slices(self, split: str) -> Iterator[list[str]]:
        """Yield the split's texts in slices of ROWS_PER_SHARD."""
        from small_modernbert.data.corpora import read_texts

        waiting: list[str] = []
        for batch in read_texts(self.corpus, split):
            waiting.extend(batch.column(0).to_pylist())
            while len(waiting) >= ROWS_PER_SHARD:
                yield waiting[:ROWS_PER_SHARD]
                waiting = waiting[ROWS_PER_SHARD:]
        if waiting:
            yield waiting

    def cached(self, split: str, index: int) -> Path | None:
        """Return the file of a slice's own teacher vectors, if fitting has left one."""
        path = self.cache / f"{index:05d}.npy"
        return path if split == "train" and path.exists() else None

    def tokenised(
        self, split: str, made: Callable[[int], bool]
    ) -> Iterator[tuple[int, list[str], list[list[int]] | None]]:
        """Yield (number, texts, token ids) of each slice; no ids where `made` says it is there."""
        from small_modernbert.models.teachers import token_ids

        for index, texts in enumerate(self.slices(split)):
            yield index, texts, None if made(index) else token_ids(self.teacher, texts)

    def encode(self, ids: list[list[int]]) -> np.ndarray:
        """Return the teacher's own vectors of a slice."""
        return self.engine.encode(
            ids, tokens_per_batch=self.tokens_per_batch, advance=self.bar.update
        )

    def count(self, ids: list[list[int]]) -> None:
        """Count the tokens of a slice whose vectors are stored."""
        # Counted on disk, like the seconds, so that a resumed run reports the whole.
        self.tokens += sum(map(len, ids))
        self.stage.record["tokens"] = self.tokens
        self.stage.save_record()

    def fit(self, width: int) -> Projection | None:
        """Fit the projection on the first PCA_TEXTS texts; None where the widths agree.

        The sample's vectors are kept on disk, so that labelling does not encode them again.
        """
        from contextlib import closing
        from functools import partial
        from itertools import islice

        import numpy as np
        import torch
        from safetensors.torch import save_file

        from small_modernbert.labelling.overlap import Behind, ahead
        from small_modernbert.models.projection import directions_of_moment
        from small_modernbert.runs import storage
        from small_modernbert.runs.errors import UserError

        dimension = self.teacher.get_embedding_dimension()
        if width == dimension:
            stages.logger.info("the teacher is as wide as the student: no projection")
            return None
        if width > dimension:
            raise UserError(
                f"the student is {width} wide, its teacher {dimension}: choose a narrower student "
                "(--hidden-size of build_and_save_small_modernbert.py) or a wider teacher"
            )
        self.cache.mkdir(exist_ok=True)
        wanted = PCA_TEXTS or self.splits["train"]
        moment, mean, seen = np.zeros((dimension, dimension)), np.zeros(dimension), 0
        sample = islice(
            self.tokenised("train", lambda index: self.cached("train", index) is not None),
            -(-wanted // ROWS_PER_SHARD),
        )
        with Behind() as behind, closing(ahead(sample)) as coming:
            for index, texts, ids in coming:
                path = self.cache / f"{index:05d}.npy"
                if ids is None:
                    vectors = storage.read_array(path)
                    self.bar.update(len(texts))
                else:
                    vectors = self.encode(ids)
                    behind.do(partial(save_vectors, path, vectors), partial(self.count, ids))
                moment += vectors.T.astype(np.float64) @ vectors
                mean += vectors.sum(axis=0, dtype=np.float64)
                seen += len(vectors)
        projection = directions_of_moment(
            torch.from_numpy(moment / seen), torch.from_numpy(mean / seen), width
        )
        self.explained = float(projection.explained.sum())
        stages.logger.info(
            "projection %d -> %d fitted on %s texts keeps %.2f %% of the second moment",
            dimension, width, f"{seen:,}", 100 * self.explained,
        )  # fmt: skip
        save_file(
            {
                "directions": projection.directions.contiguous(),
                "mean": projection.mean,
                "explained": projection.explained,
            },
            self.stage.building / "projection.safetensors",
        )
        return projection

    def label(self, split: str, projection: Projection | None) -> int:
        """Write the missing shards of a split; return how many it has."""
        from contextlib import closing
        from functools import partial

        from small_modernbert.data import labels
        from small_modernbert.labelling.overlap import Behind, ahead
        from small_modernbert.models.projection import project
        from small_modernbert.models.teachers import normalise
        from small_modernbert.runs import storage

        def made(index: int) -> bool:
            path = labels.shard_path(self.stage.building, split, index)
            return self.cached(split, index) is not None or path.exists()

        def write(path: Path, texts: list[str], vectors: np.ndarray) -> None:
            reduced = normalise(vectors) if projection is None else project(vectors, projection)
            labels.write_shard(path, texts, reduced)

        count = 0
        with Behind() as behind, closing(ahead(self.tokenised(split, made))) as coming:
            for index, texts, ids in coming:
                count += 1
                path = labels.shard_path(self.stage.building, split, index)
                if ids is not None:
                    vectors = self.encode(ids)
                elif (cached := self.cached(split, index)) is not None:
                    vectors = storage.read_array(cached)
                else:
                    self.bar.update(len(texts))
                    continue
                behind.do(partial(write, path, texts, vectors), partial(self.count, ids or []))
        return count


def save_vectors(path: Path, vectors: np.ndarray) -> None:
    """Write a slice's vectors, atomically."""
    import numpy as np

    from small_modernbert.runs import storage

    beside = path.with_name("partial.npy")
    np.save(beside, vectors)
    storage.fsync_path(beside)
    beside.replace(path)


if __name__ == "__main__":
    settings.run(globals())
