"""A static model of a teacher, by the model2vec library, and what its folders need to be usable.

The library does the work (github.com/MinishLab/model2vec, `distill_from_model`): every entry of
the vocabulary goes through the teacher between the special tokens, PCA shortens the vectors, and
smooth inverse frequency (Arora et al., ICLR 2017) weighs them by Zipf's law: an entry's place in
the vocabulary stands for its rank. Six things are mended here (model2vec 0.10.0):

- it loads pickles and whatever the hub has newest; here the teacher is loaded as everywhere else;
- its card always says MIT; a static model's licence is its teacher's;
- its config names the teacher by the path on this machine;
- it skips unknown tokens, sentence-transformers counts them: their row is zero here, so that both
  readers of one folder give one vector;
- of a long text it keeps so many characters, sentence-transformers so many tokens: here both keep
  all of it, since a static model has no longest text;
- sentence-transformers 6.2 cannot load an int8 table (an integer table cannot take gradients), so
  such a folder does not claim to be one of its own.
"""

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from model2vec import StaticModel
from model2vec.distill import distill_from_model, inference
from sentence_transformers import SentenceTransformer

from small_modernbert.models import model_card
from small_modernbert.models.origins import Origin
from small_modernbert.runs import report, storage
from small_modernbert.runs.disk_faults import OTHER_DISK
from small_modernbert.runs.errors import UserError

PROBES = ("A small model.", "Which river flows through Vienna?", "Rain fell on the hills. " * 9)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distilled:
    """A static model and where it comes from, as its card tells.

    Attributes:
        model: the model.
        teacher: what its teacher is, and says of its licence and language.
        width: of the teacher's vectors.
        words_added: entries of the vocabulary that the teacher's tokenizer did not have.
    """

    model: StaticModel
    teacher: Origin
    width: int
    words_added: int = 0


def distil(
    teacher: SentenceTransformer,
    origin: Origin,
    *,
    vocabulary: Sequence[str] = (),
    pca_dims: int = 256,
    sif_coefficient: float = 1e-4,
    quantize_to: str = "float32",
    pooling: str = "mean",
) -> Distilled:
    """Make the static model of a teacher.

    Args:
        teacher: its first module is asked; PCA takes the place of what comes after the pooling.
        origin: what it is, for config and card.
        vocabulary: words (or several words each) beside the entries of the teacher's tokenizer;
            as they stand last, Zipf's law counts them among the rarest.
        pca_dims: width of the result; 0, or what is not below the teacher's, keeps that.
        sif_coefficient: a in a / (a + p), p from Zipf's law; 0 leaves the vectors unweighted.
        quantize_to: "float32", "float16" or "int8".
        pooling: "mean", "first", "last" or "pooler": how an entry's tokens become one vector.

    Raises:
        UserError: the teacher is no transformer, or the numbers do not fit it.
    """
    name = origin.name
    width = _check(teacher, name, pca_dims, sif_coefficient)
    if pca_dims > width:
        logger.warning("PCA_DIMS: %s is %d wide, and so is its static model", name, width)
        pca_dims = 0
    try:
        with _our_bar_and_no_warnings():
            model = distill_from_model(
                model=teacher[0].auto_model,
                tokenizer=teacher.tokenizer,
                vocabulary=list(vocabulary),
                pca_dims=pca_dims or None,
                sif_coefficient=sif_coefficient or None,
                quantize_to=quantize_to,
                pooling=pooling,
            )
    except ValueError as error:  # no pooler output, say
        raise UserError(f"{name} cannot be distilled: {error}; change --pooling") from error
    model.max_length = None
    if pca_dims and model.dim != pca_dims:
        # The library only warns and keeps the teacher's width.
        raise UserError(
            f"PCA_DIMS: {pca_dims} needs more than {len(model.tokens):,} entries in the "
            "vocabulary; use fewer, or 0"
        )
    if model.unk_token_id is not None:
        model.embedding[model.unk_token_id] = 0
    model.config["tokenizer_name"] = name
    model.base_model_name = name
    added = _count_own(vocabulary, model, set(teacher.tokenizer.get_vocab()))
    return Distilled(model, origin, width, added)


def _check(teacher: SentenceTransformer, name: str, pca_dims: int, sif_coefficient: float) -> int:
    """Refuse a teacher or numbers that give no model; return the teacher's width."""
    first = teacher[0]
    if not hasattr(first, "auto_model"):
        raise UserError(
            f"{name} has no transformer to ask (it is a {type(first).__name__}); name another "
            "teacher: --base-model-name"
        )
    width = first.auto_model.config.hidden_size
    if not 0 <= sif_coefficient < 1:
        raise UserError(f"SIF_COEFFICIENT: {sif_coefficient} is not from 0 to below 1; try 1e-4")
    if pca_dims < 0:
        raise UserError(f"PCA_DIMS: {pca_dims} is below 0; use at most {width}, or 0 for all")
    if any(type(part).__name__ == "Dense" for part in teacher):
        logger.info("%s: its Dense layer plays no part, PCA does", name)
    if prompts := {role: prompt for role, prompt in teacher.prompts.items() if prompt}:
        logger.info("%s: its prompts play no part, an entry is read alone: %s", name, prompts)
    return width


def _count_own(words: Sequence[str], model: StaticModel, before: set[str]) -> int:
    """Count the words that are one entry now, and one that the teacher's tokenizer has not.

    A word that is added to a tokenizer of merges brings its pieces along; those are nobody's words.
    """
    encoded = model.tokenizer.encode_batch(list(words), add_special_tokens=False)
    rows = [each.tokens for each in encoded]
    return sum(len(tokens) == 1 and tokens[0] not in before for tokens in rows)


@contextmanager
def _our_bar_and_no_warnings() -> Iterator[None]:
    """Run the library with the bar of our house, and without a warning for every known word."""

    def bar(total: int, desc: str, unit: str) -> object:
        return report.progress(total=total, description=desc, unit=unit)

    theirs, loggers = inference.tqdm, [logging.getLogger(n) for n in ("model2vec", "skeletoken")]
    levels = [noisy.level for noisy in loggers]
    inference.tqdm = bar
    for noisy in loggers:
        noisy.setLevel(logging.ERROR)
    try:
        yield
    finally:
        inference.tqdm = theirs
        for noisy, level in zip(loggers, levels, strict=True):
            noisy.setLevel(level)


def read_vocabulary(path: Path) -> list[str]:
    """Read a file of one entry a line; blank lines and repetitions are dropped.

    Raises:
        UserError: it is no text, or empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        cure = f"convert it: iconv -f LATIN1 -t UTF-8 {shlex.quote(str(path))} > NEW"
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); {cure}") from None
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise UserError(f"{path} has no words in it; write one a line, or leave --vocabulary out")
    return words


def save(distilled: Distilled, folder: Path) -> None:
    """Write a static model in the form of model2vec, with its card.

    Unless it is int8, sentence-transformers loads the same folder.
    """
    distilled.model.save_pretrained(folder)
    if distilled.model.embedding_dtype == "int8":
        storage.remove(folder / "modules.json")
    storage.write_text(folder / "README.md", make_card(distilled))


def check_reload(folder: Path, distilled: Distilled) -> None:
    """Raise if a folder does not load as what was saved, in either library.

    Raises:
        UserError: the table came back changed, or the two libraries disagree.
    """
    loaded, wanted = StaticModel.from_pretrained(folder), distilled.model
    if not np.array_equal(loaded.embedding, wanted.embedding) or loaded.tokens != wanted.tokens:
        raise UserError(f"{folder}: the table came back changed; {OTHER_DISK}")
    if not (folder / "modules.json").exists():
        return
    ours = loaded.encode(list(PROBES)).astype(np.float32)
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    known = np.linalg.norm(ours, axis=1) > 0
    if not np.allclose(ours[known], theirs.encode(list(PROBES))[known], atol=5e-3):
        raise UserError(
            f"{folder}: model2vec and sentence-transformers read it differently; "
            "install the versions we pin: pip install -r requirements.txt"
        )


def make_card(distilled: Distilled) -> str:
    """Return the text of README.md: what the model is made of, and how to load it."""
    model, teacher = distilled.model, distilled.teacher
    dtype, sif = model.embedding_dtype, model.config["sif_coefficient"]
    title = f"Static model of {teacher.name}"
    script = {"script": "distil_model2vec"}
    head = model_card.front_matter(title, [teacher], [script], kind="static-embeddings")
    head.library_name = "model2vec"
    reduced = model.config["apply_pca"] is not None
    rows = [
        ["teacher", teacher.name],
        ["dimensions", f"{model.dim} (PCA of {distilled.width})" if reduced else str(model.dim)],
        ["weights", f"Zipf's law, SIF coefficient {sif:g}" if sif else "none"],
        ["vocabulary", f"{len(model.tokens):,} entries, {distilled.words_added:,} added by hand"],
        ["pooling of an entry", str(model.config["pooling"])],
        ["stored as", f"{dtype}, {model.embedding.nbytes / 1e6:.1f} MB"],
        ["licence of the teacher", teacher.licence or "not known: ask before you publish"],
    ]
    loads = [
        "from model2vec import StaticModel",
        'StaticModel.from_pretrained("this folder").encode(["a text"])',
    ]
    notes = "The mean of a text's token vectors, scaled to unit length; no transformer runs."
    if dtype == "int8":
        notes += " sentence-transformers cannot load an int8 table."
    else:
        loads += [
            "",
            "from sentence_transformers import SentenceTransformer",
            'SentenceTransformer("this folder").encode(["a text"])',
        ]
    if dtype == "float16":
        notes += " In sentence-transformers a text without any known token (an empty one) is NaN."
    made = "Made by [Model2Vec](https://github.com/MinishLab/model2vec). " + notes
    sections = [
        ("", made),
        ("How it was made", report.table(["what", "value"], rows)),
        ("Use", "```python\n" + "\n".join(loads) + "\n```"),
    ]
    return model_card.assemble(head, title, sections)
