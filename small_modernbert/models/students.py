"""Students: everything that a model's own `encode` uses, as one object, from folder to folder.

A student is a transformer (ModernBERT, BERT, MPNet, whatever transformers loads from safetensors),
its pooling, the modules after that, its tokenizer, its length and its prompts. A stage loads it,
trains `encoder(...).model`, and saves it; what it does not train goes through unchanged, and what
it cannot carry is refused by name.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Sequence
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from small_modernbert.models import model_card, module_files, precision
from small_modernbert.models.loading import (
    CURE,
    check_folder,
    check_weights,
    explained,
    fetch,
    load,
    positions_of,
    read_header,
)
from small_modernbert.models.module_files import Usage
from small_modernbert.models.packed_encoder import PackedEncoder, output_width
from small_modernbert.models.prompts import Prompts, choose_prompts
from small_modernbert.runs import hub
from small_modernbert.runs.disk_faults import OTHER_DISK
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage

# Parts of a checkpoint that a bare transformer does not have.
PREDICTION_HEADS = ("head.", "decoder.", "classifier.", "cls.", "lm_head.", "pooler.")


@dataclass
class Student:
    """A model that encodes texts, as it is trained and as it is saved.

    Attributes:
        transformer: the trained body, fp32; with its language-modelling head where that was asked
            for.
        tokenizer: of the body.
        max_tokens: longer texts are cut.
        pooling: "mean" or "cls".
        head: sentence-transformers modules after pooling, without a last Normalize.
        normalised: whether the folder's vectors are of unit length.
        usage: prompts, similarity and the like.
    """

    transformer: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    max_tokens: int
    pooling: str = "mean"
    head: nn.Sequential = field(default_factory=nn.Sequential)
    normalised: bool = True
    usage: Usage = field(default_factory=Usage)

    @property
    def body(self) -> PreTrainedModel:
        """The transformer without a language-modelling head."""
        with_head = isinstance(self.transformer, ModernBertForMaskedLM)
        return self.transformer.model if with_head else self.transformer

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return output_width(self.transformer, self.head)

    @property
    def positions(self) -> int:
        """The longest input that the transformer takes, tokens."""
        return positions_of(self.body)

    @property
    def prompts(self) -> Prompts:
        """What the folder puts before a query, a document and any other text."""
        return choose_prompts(self.usage.prompts, self.usage.default_prompt_name)

    @prompts.setter
    def prompts(self, prompts: Prompts) -> None:
        named = {name: prompt for name, prompt in vars(prompts).items() if prompt}
        default = "text" if prompts.text else None
        self.usage = replace(self.usage, prompts=named, default_prompt_name=default)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.device

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer, which cuts texts at `max_tokens` and pads nothing."""
        return self.cut_at(self.max_tokens)

    def cut_at(self, tokens: int) -> Tokenizer:
        """Return the tokenizer, which cuts texts at so many tokens and pads nothing.

        Raises:
            UserError: there is no room for a text beside the special tokens.
        """
        tokenizer = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        tokenizer.no_padding()
        if tokens <= tokenizer.num_special_tokens_to_add(False):
            raise UserError(
                f"{tokens} tokens leave no room beside the special ones; take more: --max-tokens 16"
            )
        tokenizer.enable_truncation(tokens)
        return tokenizer

    def extend_context(self, tokens: int, global_rope_theta: float = 0.0) -> None:
        """Let a ModernBERT take `tokens` tokens, and turn its global layers' heads more slowly.

        Context extension raises the base from 10,000 to 160,000 for 8,192 tokens (ModernBERT,
        arXiv 2412.13663, section 2.1.2 and 2.2.2). Weights stay as they are.

        Args:
            tokens: positions that it must take; fewer than it takes change nothing.
            global_rope_theta: base of the global layers; 0 = as it is.
        """
        config, body = self.transformer.config, self.body
        config.max_position_embeddings = max(config.max_position_embeddings, tokens)
        self.max_tokens = max(self.max_tokens, tokens)
        if global_rope_theta:
            config.rope_parameters["full_attention"]["rope_theta"] = float(global_rope_theta)
            # The angles are computed once, when the module is made.
            body.rotary_emb = type(body.rotary_emb)(config)

    def as_it_came(self, folder: Path) -> "Student":
        """Return the model of the folder that it was loaded from: its prompts, pooling and length.

        The weights are shared: whoever wants its figures measures them before they change.
        """
        parts = module_files.read_modules(folder)
        return replace(
            self,
            max_tokens=module_files.read_max_tokens(parts.transformer, self.positions),
            pooling=module_files.read_pooling(parts.pooling),
            usage=module_files.read_usage(folder, parts),
        )

    def to(self, device: torch.device) -> "Student":
        """Move the weights; return itself."""
        self.transformer.to(device)
        self.head.to(device)
        return self

    def encoder(self, dtype: str = "fp32") -> PackedEncoder:
        """Return the student as a function of token ids, to be trained or to encode."""
        return PackedEncoder(self.body, self.pooling, dtype, head=self.head)

    def training_encoder(self, stage: Stage, wanted: precision.Precision) -> PackedEncoder:
        """Move to the best device, settle a stage's precision there, and return the encoder."""
        self.to(precision.default_device())
        return self.encoder(precision.settle(stage, wanted, self.device))

    def save(self, folder: Path) -> None:
        """Write a sentence-transformers folder in the portable form; create it if needed."""
        module_files.write_transformer(folder, self.transformer, self.tokenizer, self.max_tokens)
        module_files.write_modules(
            folder,
            self.head,
            width=self.transformer.config.hidden_size,
            max_tokens=self.max_tokens,
            pooling=self.pooling,
            normalised=self.normalised,
            usage=self.usage,
        )

    def write_card(self, stage: Stage, added: model_card.Added | None = None) -> None:
        """Write README.md into what a stage has built, once its record has its figures."""
        model_card.write(stage, self, added)

    def check_reload(self, folder: Path) -> None:
        """Raise if the tensors in `folder` are not the student's, bit for bit.

        Raises:
            UserError: a tensor differs or is missing: the disk did not keep what was written.
        """
        _check_same(folder / "model.safetensors", self.transformer)
        for index, module in enumerate(self.head, start=2):
            if module.state_dict():
                path = folder / f"{index}_{type(module).__name__}" / "model.safetensors"
                _check_same(path, module)


def load_student(
    folder: Path, *, pooling: str = "student", max_tokens: int = 0, masked_lm: bool = False
) -> Student:
    """Load a student in fp32.

    A bare folder loaded with `masked_lm` gets a fresh head; a head in the folder is dropped when
    the bare model is asked for.

    Args:
        folder: of sentence-transformers, or of transformers (pooled by the mean).
        pooling: "mean" or "cls" in place of the folder's own; "student" keeps that.
        max_tokens: in place of the folder's own; 0 keeps that.
        masked_lm: with its masked-language-modelling head; ModernBERT only.

    Raises:
        UserError: it is made of what cannot be trained here, or is damaged: weights that are
            missing, not finite, of other shapes than its configuration, or of something else.
    """
    return load("student", folder, lambda place: _open(place, pooling, max_tokens, masked_lm), _try)


def _open(folder: Path, pooling: str, max_tokens: int, masked_lm: bool) -> Student:
    parts = module_files.read_modules(folder)
    usage = module_files.read_usage(folder, parts)
    tokenizer = _lower_casing(load_tokenizer(parts.transformer), usage.lower_case)
    needed = ("pad_token", "mask_token") if masked_lm else ("pad_token",)
    if missing := [name for name in needed if getattr(tokenizer, name) is None]:
        raise UserError(
            f"the tokenizer of {folder} has no {' and no '.join(missing)}: name one in its "
            "tokenizer_config.json (any entry of its vocabulary that no text holds)"
        )
    transformer = _load_transformer(parts.transformer, masked_lm)
    check_weights(parts.head, folder)
    student = Student(
        transformer,
        tokenizer,
        max_tokens,
        module_files.read_pooling(parts.pooling) if pooling == "student" else pooling,
        parts.head,
        parts.normalised,
        usage,
    )
    limit = student.positions
    if max_tokens > limit:
        raise UserError(
            f"MAX_TOKENS: the student takes {limit:,} tokens, not {max_tokens:,}: "
            f"--max-tokens {limit}"
        )
    student.max_tokens = max_tokens or module_files.read_max_tokens(parts.transformer, limit)
    return student


def load_donor(reference: Path | str, revision: str | None = None, **named: Any) -> Student:  # noqa: ANN401  of load_student
    """Load any model as the student that it would be; with its language-modelling head, if it can.

    Args:
        reference: folder or hub id.
        revision: of a hub id.
        named: for `load_student`.

    Raises:
        UserError: see `load_student`; or the hub cannot be reached.
    """
    with explained("donor", reference):
        folder = fetch(reference, revision)
        check_folder(folder)
        config = AutoConfig.from_pretrained(
            module_files.read_modules(folder).transformer, trust_remote_code=False
        )
    with_head = any("MaskedLM" in name for name in config.architectures or ())
    masked_lm = with_head and config.model_type == "modernbert"
    return load_student(folder, masked_lm=masked_lm, **named)


def load_tokenizer(reference: Path | str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer of a folder or hub id.

    Raises:
        UserError: there is none, or the hub cannot be reached.
    """
    with explained("tokenizer", reference), hub.cached_if_unreachable(reference, revision):
        tokenizer = AutoTokenizer.from_pretrained(
            str(reference), revision=revision, use_fast=True, trust_remote_code=False
        )
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError("it is no fast tokenizer")
        if not Path(reference).is_dir():
            hub.note_cached(str(reference), revision, "tokenizer_config.json")
        return tokenizer


def _load_transformer(folder: Path, masked_lm: bool) -> PreTrainedModel:
    kind = AutoModel
    if masked_lm:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = ModernBertForMaskedLM
        if config.model_type != "modernbert":
            raise UserError(
                f"{folder} holds a {config.model_type} model; masked-language modelling wants a "
                "ModernBERT student: python build_and_save_small_modernbert.py"
            )
    model = kind.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    # T5's configuration does not always say so; ModernBERT's language-modelling head is no decoder.
    if not masked_lm and getattr(model, "decoder", None) is not None:
        raise UserError(
            f"{folder} holds a {model.config.model_type} model, which has a decoder: it can be a "
            "teacher (--teacher), and no student or donor"
        )
    prefixes = ("model.", f"{model.base_model_prefix}.")
    stored, known = (
        {_without(name, prefixes) for name in names}
        for names in (_tensor_names(folder), model.state_dict())
    )
    strange = [name for name in stored - known if not name.startswith(PREDICTION_HEADS)]
    if strange := sorted(name for name in strange if not name.endswith("position_ids")):
        raise UserError(
            f"{folder}: {strange[0]!r} is no tensor of a {model.config.model_type} model; {CURE}"
        )
    # A language-modelling head is stored as a whole or not at all.
    with_head = any(name.startswith(PREDICTION_HEADS) for name in stored)
    check_weights(model, folder, () if with_head else PREDICTION_HEADS)
    if getattr(model, "pooler", None) is not None:
        # Nobody reads it: carried if it came, and else no random numbers in its place.
        model.pooler.requires_grad_(False)
        if not any(name.startswith("pooler.") for name in stored):
            model.pooler = None
    return model


def _tensor_names(folder: Path) -> list[str]:
    return [name for file in sorted(folder.glob("*.safetensors")) for name in read_header(file)]


def _without(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def _lower_casing(tokenizer: PreTrainedTokenizerFast, wanted: bool) -> PreTrainedTokenizerFast:
    """Make a tokenizer lower-case its texts, as sentence-transformers does when it is told to."""
    backend = tokenizer.backend_tokenizer
    if wanted and (backend.normalizer is None or backend.normalizer.normalize_str("A") == "A"):
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = Sequence([Lowercase(), *own])
    return tokenizer


@torch.inference_mode()
def _try(student: Student) -> torch.Tensor:
    ids = torch.tensor([student.backend.encode("A trial.").ids or [0]])
    hidden = student.body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return student.head({"sentence_embedding": hidden.mean(dim=1)})["sentence_embedding"]


def _check_same(path: Path, model: nn.Module) -> None:
    stored, state = load_file(path), model.state_dict()
    # A tied tensor is stored once, under one of its names.
    kept = {tensor.data_ptr() for name, tensor in state.items() if name in stored}
    for name, tensor in state.items():
        if tensor.data_ptr() not in kept:
            raise UserError(f"{path}: {name} is missing; {OTHER_DISK}")
        if name in stored and not torch.equal(stored[name], tensor.cpu()):
            raise UserError(f"{path}: {name} came back changed; {OTHER_DISK}")
    if not stored.keys() <= state.keys():
        raise UserError(f"{path} holds tensors that the model does not have; {OTHER_DISK}")
