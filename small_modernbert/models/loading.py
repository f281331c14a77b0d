"""Model folders that others wrote: what is looked at before a library opens one.

The libraries run no code of a folder unless they are told to trust it, and they never are. What is
checked here is what they leave open: weights in a pickle, module types and paths that lead out of
the model, code named for a download, sizes that would fill the memory before the weights are found
to be none of that size, weights that are missing or not finite, tokens without an embedding.
"""

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from small_modernbert.runs import hub, storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
Model = TypeVar("Model")
CURE = "take the model from its source again, or point at another folder"
SAFE = (
    'if you trust its source, write it anew: python -c "from sentence_transformers import '
    "SentenceTransformer as S; S('{folder}').save('{folder}-safe')\""
)
FAST = (
    'write the fast tokenizer beside the slow one: python -c "from transformers import '
    "AutoTokenizer as T; T.from_pretrained('{folder}').save_pretrained('{folder}')\""
)
# Queries and documents by two models: either of them is a model.
ROUTERS = ("Router", "Asym")
ROUTE = (
    'take one of its routes: python -c "from sentence_transformers import SentenceTransformer as '
    "S; S(modules=[*S('{folder}')[0].sub_modules['document']]).save('{folder}-document')\""
)
# Sentence-transformers imports a module's type by its dotted path. Types that read further paths or
# types from their own files (Router, WordEmbeddings, ...) are not among these.
MODULES = frozenset(
    {"Transformer", "Pooling", "Normalize", "Dense", "StaticEmbedding", "Dropout", "LayerNorm"}
)
_MODULE_TYPE = re.compile(r"sentence_transformers(?:\.\w+)*\.(\w+)")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_LAYERS = re.compile(r"(num|n)_\w*layers?|n_layer|num_hidden_groups|inner_group_num")
_SIZES = re.compile(
    r"\w+_(size|dim|heads|experts)|num_labels|(num|n)_\w+|d_\w+|dim|hidden_dims?|(in|out)_features"
)
LEAST_SIZE = 4_096  # a size so small does no harm, whatever the tensors are
LARGEST_NUMBER = 1 << 24  # positions, ids: anything that is no size of a tensor
LARGEST_WEIGHT = 1e10  # beyond it a sum overflows; a flipped bit of an exponent gives 1e38


def load(
    what: str,
    reference: Path | str,
    open_model: Callable[[Path], Model],
    trial: Callable[[Model], Any],
    revision: str | None = None,
) -> Model:
    """Load a model: look at its folder, open it, have it encode one text.

    A model that cannot encode one text must not fail after an hour of others.

    Args:
        what: it is to us: "student", "teacher".
        reference: its folder, or a hub id, `id@revision` if pinned.
        open_model: from the folder to the model; checks the weights, see `check_weights`.
        trial: from the model to what it makes of one text, as an array.
        revision: of a hub id.

    Raises:
        UserError: it can't be had, or is not to be trusted; one line that names it.
    """
    with explained(what, reference):
        folder = fetch(reference, revision)
        check_folder(folder)
        model = open_model(folder)
        if not np.isfinite(np.asarray(trial(model))).all():
            raise UserError(f"{folder} gives NaN or infinity; {CURE}")
    return model


def open_sentence_transformer(folder: Path) -> "SentenceTransformer":
    """Open a folder with sentence-transformers: fp32, safetensors, no code, nothing fetched.

    Raises:
        UserError: the weights are not sound, or not those of the model.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder),
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True, "dtype": torch.float32},
    )
    check_weights(model, folder)
    _limit_length(model, folder)
    _truncate(model)
    return model.eval()


def _truncate(model: "SentenceTransformer") -> None:
    """Put a folder's `truncate_dim`, which `encode` alone obeys, among the modules.

    So whatever runs, follows or saves the modules gives the vectors that the folder means.
    """
    if not (width := model.truncate_dim):
        return
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    model.truncate_dim = None
    full = model.get_embedding_dimension()
    if width < full:
        cut = Dense(full, width, bias=False, activation_function=torch.nn.Identity())
        with torch.no_grad():
            cut.linear.weight.copy_(torch.eye(full)[:width])
        model.append(cut.to(model.device))


def compares_by(model: "SentenceTransformer") -> str:
    """Return the similarity by which a model's vectors are ranked: "cosine", "dot", ...

    For vectors of unit length all but "manhattan" rank as the cosine does.
    """
    said = str(model.similarity_fn_name)
    unit = type(list(model)[-1]).__name__ == "Normalize"
    return "cosine" if unit and said != "manhattan" else said


def _limit_length(model: "SentenceTransformer", folder: Path) -> None:
    """Cut texts at a model's positions, where its folder says that it reads more than it can."""
    transformer = getattr(model[0], "auto_model", None)
    limit = LARGEST_NUMBER if transformer is None else positions_of(transformer)
    said = model.max_seq_length
    if limit < LARGEST_NUMBER and (said is None or said > limit):
        if said is not None and said < LARGEST_NUMBER:  # a tokenizer's "no limit" is 10^30
            logger.warning(
                "%s says that it reads %s tokens, and has %s positions: longer texts are cut there",
                *(folder, f"{said:,}", f"{limit:,}"),
            )
        model.max_seq_length = limit


def positions_of(model: "PreTrainedModel") -> int:
    """Return the longest input of a model, tokens.

    MPNet and RoBERTa number positions from beyond the padding's.
    """
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    limit = getattr(model.config, "max_position_embeddings", LARGEST_NUMBER)
    return limit if padding is None else limit - padding - 1


def fetch(reference: Path | str, revision: str | None = None) -> Path:
    """Return the folder of a model: the one that is named, or the hub's, downloaded if it must be.

    Raises:
        UserError: it can't be had.
    """
    folder = Path(reference)
    if isinstance(reference, Path) or folder.is_dir():
        return folder
    name, own = hub.split_revision(reference)
    return hub.fetch_model(name, revision or own)


def check_folder(folder: Path) -> None:
    """Refuse a model folder that must not be loaded, or cannot be, before any of it is.

    Raises:
        UserError: with the file that is wrong; nothing of the folder was executed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; {CURE}")
    _check_pickles(folder)
    parts = [folder, *_check_modules(folder)]
    for part in dict.fromkeys(parts):
        files = sorted(part.glob("*.safetensors"))
        shapes = [tensor.shape for file in files for tensor in read_header(file).values()]
        _check_config(part / "config.json", shapes)
        for name in ("sentence_bert_config.json", "tokenizer_config.json"):
            _check_config(part / name, None)
        _check_tokens(part)


def check_weights(model: "nn.Module", folder: Path, fresh: tuple[str, ...] = ()) -> None:
    """Refuse a loaded model whose weights were not all in its folder, or are not sound.

    A library fills what is missing with random numbers and says so in its log alone. Tensors are
    told by their shapes, because libraries rename them; a pooler may be missing, nobody uses it.

    Args:
        model: as it was loaded.
        folder: from where; its subfolders count.
        fresh: beginnings of names that may be missing.

    Raises:
        UserError: with the folder and the tensor.
    """
    import torch

    stored: Counter[tuple[int, ...]] = Counter()
    for file in sorted(folder.rglob("*.safetensors")):
        tensors = read_header(file).values()
        stored.update(tensor.shape for tensor in tensors if tensor.is_weight)
    seen: set[int] = set()
    for name, tensor in model.named_parameters():
        low, high = torch.aminmax(tensor.detach()) if tensor.numel() else (0, 0)
        # NaN compares as false.
        if not (low > -LARGEST_WEIGHT and high < LARGEST_WEIGHT):
            raise UserError(
                f"{folder}: the weights {name} hold NaN, infinity or numbers beyond "
                f"{LARGEST_WEIGHT:g}; {CURE}"
            )
        if tensor.data_ptr() in seen or "pooler." in name or name.startswith(fresh):
            continue
        seen.add(tensor.data_ptr())
        shape = tuple(tensor.shape)
        if not stored[shape]:
            raise UserError(
                f"{folder}: no safetensors file holds the weights {name} {shape}; {CURE}"
            )
        stored[shape] -= 1


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What a safetensors file says of a tensor: its type ("F32", "I64", ...) and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_weight(self) -> bool:
        """Whether it holds what can be a weight: floats, or the bytes of a quantised table."""
        return self.dtype.startswith(("F", "BF")) or self.dtype in ("I8", "U8")


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name; their data stay unread.

    Raises:
        UserError: it has no header, or one that cannot be.
    """
    try:
        with safe_open(path, framework="np") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
            return {
                name: Tensor(str(part.get_dtype()), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); {CURE}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file ({error}); {CURE}") from None


def read_width(folder: Path) -> int:
    """Return the numbers in a model's vectors, from its configuration files alone.

    Raises:
        UserError: they do not say.
    """
    path = folder / "modules.json"
    entries = storage.read_json(path, CURE) if path.exists() else []
    said = folder / "config_sentence_transformers.json"
    usage = storage.read_json(said, CURE) if entries and said.exists() else {}
    try:
        cut = usage.get("truncate_dim") or LARGEST_NUMBER
        places = [(str(entry["type"]), folder / entry["path"]) for entry in entries]
        dense = [place for kind, place in places if kind.endswith(".Dense")]
        if dense:
            return min(cut, storage.read_json(dense[-1] / "config.json", CURE)["out_features"])
        transformer = places[0][1] if places else folder
        return min(cut, storage.read_json(transformer / "config.json", CURE)["hidden_size"])
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} does not say how wide its vectors are ({error}); {CURE}"
        ) from None


@contextmanager
def explained(what: str, reference: Path | str) -> Iterator[None]:
    """Turn whatever a library makes of a model's files into one line that names them.

    Raises:
        UserError: instead of any exception but our own and an interruption.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a hostile file can make a library raise anything
        raise load_error(what, reference, error) from error
    except BaseException as error:
        # The tokenizers' own panics are no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise load_error(what, reference, RuntimeError(str(error))) from None


def load_error(what: str, reference: Path | str, error: Exception) -> UserError:
    """Return the one-line error for a model or tokenizer that did not load."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(reference, Path) and reference.is_file():
        cure = "make it again: python export_model.py --overwrite"
    elif isinstance(reference, Path):
        cure = "is it a model folder? point at a stage's final/"
    else:
        cure = "check the id, or log in; for a run without a hub: make run"
    return UserError(f"cannot load the {what} {reference}: {reason[:500]}; {cure}")


def _check_pickles(folder: Path) -> None:
    for pattern in _PICKLES:
        for path in folder.rglob(pattern):
            if not any(path.parent.glob("*.safetensors")):
                cure = SAFE.format(folder=folder)
                raise UserError(f"{path} is a pickle; only safetensors files are loaded; {cure}")


def _check_modules(folder: Path) -> list[Path]:
    """Return the folders of a sentence-transformers model's modules; none if it is none."""
    path = folder / "modules.json"
    if not path.exists():
        return []
    modules = storage.read_json(path, CURE)
    if not isinstance(modules, list) or not modules:
        raise UserError(f"{path} lists no modules; {CURE}")
    parts = []
    for module in modules:
        module = module if isinstance(module, dict) else {}
        kind, place = module.get("type"), module.get("path")
        match = _MODULE_TYPE.fullmatch(kind) if isinstance(kind, str) else None
        if match is None or match[1] not in MODULES:
            route = ROUTE.format(folder=folder) if match and match[1] in ROUTERS else CURE
            raise UserError(
                f"{path}: {str(kind)[:80]!r} is not imported; of sentence-transformers' own "
                f"modules these are: {', '.join(sorted(MODULES))}; {route}"
            )
        if not isinstance(place, str) or "\0" in place or "\\" in place or not _inside(place):
            raise UserError(f"{path}: the module path {place!r} leads out of the folder; {CURE}")
        parts.append(folder / place)
    return parts


def _inside(place: str) -> bool:
    path = PurePosixPath(place)
    return not path.is_absolute() and ".." not in path.parts


def _check_config(path: Path, shapes: list[tuple[int, ...]] | None) -> None:
    """Refuse a configuration with sizes that its weights do not have, or with code to fetch.

    Args:
        path: a JSON file; it may not be there.
        shapes: of the tensors beside it; None for files that describe none.
    """
    if not path.is_file():
        return
    config = storage.read_json(path, CURE)
    if not isinstance(config, dict):
        raise UserError(f"{path} is no model configuration; {CURE}")
    largest = max((max(shape, default=0) for shape in shapes or ()), default=0)
    for key, value in _walk(config):
        if "attn_implementation" in key and "/" in str(value):
            raise UserError(f"{path}: {key} names code to fetch ({value!r}); {CURE}")
        if shapes is None or type(value) not in (int, float) or "theta" in key:
            continue
        bound = LARGEST_NUMBER
        if _LAYERS.fullmatch(key):
            bound = max(len(shapes), 1)
        elif _SIZES.fullmatch(key):
            bound = max(largest, LEAST_SIZE)
        if abs(value) > bound:
            raise UserError(
                f"{path}: {key} is {value:,}, and the weights have {len(shapes):,} tensors of at "
                f"most {largest:,} rows; {CURE}"
            )


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401  JSON
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend((str(name), entry) for name, entry in value.items())
        elif isinstance(value, list):
            waiting.extend((key, entry) for entry in value)
        else:
            yield key, value


def _check_tokens(folder: Path) -> None:
    """Refuse a tokenizer with entries that the model has no embedding for."""
    path, config_path = folder / "tokenizer.json", folder / "config.json"
    if not (path.is_file() and config_path.is_file()):
        return
    rows = storage.read_json(config_path, CURE).get("vocab_size")
    tokenizer = storage.read_json(path, CURE)
    try:
        model = tokenizer["model"]["vocab"]
        ids = list(model.values()) if isinstance(model, dict) else [len(model) - 1]
        ids += [token["id"] for token in tokenizer.get("added_tokens") or []]
        if type(rows) is int and ids and max(ids) >= rows:
            raise UserError(
                f"{path} has token {max(ids):,}, and the model {rows:,} embeddings; the two do not "
                f"belong together; {CURE}"
            )
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is no tokenizer ({type(error).__name__}: {error}); {CURE}"
        ) from None


def load_backend(folder: Path, max_tokens: int) -> Tokenizer:
    """Load a folder's tokenizer.json with truncation to `max_tokens` and no padding.

    Raises:
        UserError: there is no tokenizer.json, it cannot be read, or cannot encode a text.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{path} is not there; {FAST.format(folder=folder)}")
    with explained("tokenizer", path):
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        if max_tokens <= tokenizer.num_special_tokens_to_add(False):
            raise ValueError(f"{max_tokens} tokens leave no room beside the special ones")
        tokenizer.enable_truncation(max_tokens)
        tokenizer.encode("A trial.")
    return tokenizer
