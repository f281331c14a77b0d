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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from model2vec import StaticModel
from model2vec.distill import distill_from_model, inference
from sentence_transformers import SentenceTransformer

from small_modernbert.runs import hub, report, storage
from small_modernbert.runs.errors import UserError

PROBES = ("A small model.", "Which river flows through Vienna?", "Rain fell on the hills. " * 9)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distilled:
    """A static model and where it comes from, as its card tells.

    Attributes:
        model: the model.
        teacher: the teacher's hub id, or the name of its folder.
        width: of the teacher's vectors.
        words_added: entries of the vocabulary that the teacher's tokenizer did not have.
        licence: of the teacher; None where it does not say.
        language: of the teacher; None where it does not say.
    """

    model: StaticModel
    teacher: str
    width: int
    words_added: int = 0
    licence: str | None = None
    language: str | list[str] | None = None


def distil(
    teacher: SentenceTransformer,
    name: str,
    *,
    vocabulary: Sequence[str] = (),
    pca_dims: int = 256,
    sif_coefficient: float = 1e-4,
    quantize_to: str = "float32",
    pooling: str = "mean",
    card: Path | None = None,
) -> Distilled:
    """Make the static model of a teacher.

    Args:
        teacher: its first module is asked; PCA takes the place of what comes after the pooling.
        name: of the teacher, for config and card.
        vocabulary: words (or several words each) beside the entries of the teacher's tokenizer;
            as they stand last, Zipf's law counts them among the rarest.
        pca_dims: width of the result; 0 keeps the teacher's, without PCA.
        sif_coefficient: a in a / (a + p), p from Zipf's law; 0 leaves the vectors unweighted.
        quantize_to: "float32", "float16" or "int8".
        pooling: "mean", "first", "last" or "pooler": how an entry's tokens become one vector.
        card: the teacher's README.md, if there is one.

    Raises:
        UserError: the teacher is no transformer, or the numbers do not fit it.
    """
    first = teacher[0]
    if not hasattr(first, "auto_model"):
        raise UserError(
            f"{name} has no transformer to ask (it is a {type(first).__name__}); name another "
            "teacher: --base-model-name"
        )
    width = first.auto_model.config.hidden_size
    if not 0 <= sif_coefficient < 1:
        raise UserError(f"SIF_COEFFICIENT: {sif_coefficient} is not from 0 to below 1; try 1e-4")
    if not 0 <= pca_dims <= width:
        raise UserError(
            f"PCA_DIMS: {pca_dims} is not from 0 to the teacher's width; use at most {width}"
        )
    if dropped := [type(part).__name__ for part in teacher if type(part).__name__ == "Dense"]:
        logger.info("%s: its %s layer plays no part, PCA does", name, dropped[0])
    with _our_bar_and_no_warnings():
        try:
            model = distill_from_model(
                model=first.auto_model,
                tokenizer=teacher.tokenizer,
                vocabulary=list(vocabulary),
                pca_dims=pca_dims or None,
                sif_coefficient=sif_coefficient or None,
                quantize_to=quantize_to,
                pooling=pooling,
            )
            model.max_length = None
        except ValueError as error:  # no pooler output, say
            raise UserError(f"{name} cannot be distilled: {error}; change --pooling") from error
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
    told = _read_card(card)
    return Distilled(
        model,
        name,
        width,
        words_added=_count_own(vocabulary, model, set(teacher.tokenizer.get_vocab())),
        licence=told.get("license"),
        language=told.get("language"),
    )


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
    levels = [one.level for one in loggers]
    inference.tqdm = bar
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        inference.tqdm = theirs
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _read_card(card: Path | None) -> dict:
    """Return the metadata at the top of a README.md; nothing if it has none that can be read."""
    if card is None or not card.is_file():
        return {}
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except ValueError:
        return {}


def read_vocabulary(path: Path) -> list[str]:
    """Read a file of one entry a line; blank lines and repetitions are dropped.

    Raises:
        UserError: it is no text, or empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); convert it") from None
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
        raise UserError(f"{folder}: the table came back changed; check the disk")
    if not (folder / "modules.json").exists():
        return
    ours = loaded.encode(list(PROBES)).astype(np.float32)
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    known = np.linalg.norm(ours, axis=1) > 0
    if not np.allclose(ours[known], theirs.encode(list(PROBES))[known], atol=5e-3):
        raise UserError(
            f"{folder}: model2vec and sentence-transformers read it differently; "
            "install the versions of requirements.txt"
        )


def make_card(distilled: Distilled) -> str:
    """Return the text of README.md: what the model is made of, and how to load it."""
    model = distilled.model
    dtype, sif = model.embedding_dtype, model.config["sif_coefficient"]
    head = ModelCardData(
        base_model=distilled.teacher,
        language=distilled.language,
        library_name="model2vec",
        license=distilled.licence,
        tags=["embeddings", "static-embeddings", "sentence-transformers"],
    ).to_yaml()
    reduced = model.config["apply_pca"] is not None
    rows = [
        ["teacher", distilled.teacher],
        ["dimensions", f"{model.dim} (PCA of {distilled.width})" if reduced else str(model.dim)],
        ["weights", f"Zipf's law, SIF coefficient {sif:g}" if sif else "none"],
        ["vocabulary", f"{len(model.tokens):,} entries, {distilled.words_added:,} added by hand"],
        ["pooling of an entry", str(model.config["pooling"])],
        ["stored as", f"{dtype}, {model.embedding.nbytes / 1e6:.1f} MB"],
        ["licence of the teacher", distilled.licence or "not known: ask before you publish"],
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
    parts = [
        f"---\n{head.strip()}\n---",
        f"# Static model of {distilled.teacher}",
        "Made by [Model2Vec](https://github.com/MinishLab/model2vec). " + notes,
        report.table(["what", "value"], rows),
        "```python\n" + "\n".join(loads) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def need_push_access(repository: str) -> str:
    """Return the hub's token: HF_TOKEN of the environment, or that of `hf auth login`.

    Raises:
        UserError: there is none, or the repository is not named as the hub wants it.
    """
    try:
        validate_repo_id(repository)
        named = "/" in repository
    except HFValidationError:
        named = False
    if not named:
        raise UserError(
            f"--push needs a repository, not {repository!r}: --model-repository-name owner/name"
        )
    token = get_token()
    if not token:
        raise UserError("--push needs a token of the hub: set HF_TOKEN, or run: hf auth login")
    return token


def push(folder: Path, repository: str, message: str) -> str:
    """Upload a folder as a new version of a model repository; create that if it is not there.

    Returns:
        The commit's address.

    Raises:
        UserError: there is no token, it may not write there, or the hub cannot be reached.
    """
    api = HfApi(token=need_push_access(repository))
    try:
        api.create_repo(repository, repo_type="model", exist_ok=True)
        made = api.upload_folder(
            repo_id=repository, repo_type="model", folder_path=folder, commit_message=message
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(
                f"the hub's token may not write to {repository} ({status}); run: hf auth login "
                "with a token that may"
            ) from None
        raise hub.explain(error, f"repository {repository}") from None
    except Exception as error:  # whatever the hub's many libraries raise, with the cure
        raise hub.explain(error, f"repository {repository}") from None
    return made.commit_url
