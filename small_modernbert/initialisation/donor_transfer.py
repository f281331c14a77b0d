"""A blank student filled from a donor: carved out of a larger one (GUIDE), or tiled with a smaller.

What `carving` and `tiling` make of tensors is put into the student here, and
every tensor of both models is accounted for.
"""

import logging
from collections.abc import Sequence
from typing import Literal

import torch

from small_modernbert.initialisation import carving, donors, folding, tiling, vocabulary
from small_modernbert.models.students import Student
from small_modernbert.runs.errors import UserError

Transfer = dict[str, tuple[str, str]]
LEFT = "donor: "  # what stands before the name of a tensor that the student does not have
logger = logging.getLogger(__name__)


def carve(
    student: Student,
    loaded: Student,
    name: str,
    selection: Literal["first", "uniform"],
    count: int,
    **options: bool,
) -> tuple[list[int], Transfer]:
    """Carve a student out of a larger donor of any family; see `carving.carve`.

    Args:
        student: blank, with its language-modelling head; its weights change.
        loaded: the donor.
        name: of the donor, for messages.
        selection: of the donor's layers, see `folding.choose_layers`.
        count: student layers to carve; 0 = all.
        options: `centred` and `norm_scale` of `carving.carve`.

    Returns:
        The donor's layers, and what became of every tensor.

    Raises:
        UserError: the donor is of no family that can be carved, or too small.
    """
    donor, model = donors.read_donor(loaded.transformer), student.transformer
    config = model.config
    rows = vocabulary.match(student.tokenizer, loaded.tokenizer, config.vocab_size)
    layers = folding.choose_layers(selection, config.num_hidden_layers, len(donor.blocks))
    layers = layers[: count or None]
    tell_layers(layers, [block.attention_type for block in donor.blocks], config.layer_types)
    for reason in donor.left_behind:
        logger.info("not transferred: %s", reason)
    try:
        carved = carving.carve(
            donor,
            model.state_dict(),
            heads=config.num_attention_heads,
            layer_types=config.layer_types,
            donor_layers=layers,
            token_rows=torch.from_numpy(rows),
            **options,
        )
    except ValueError as error:
        raise UserError(
            f"{name} is too small for this student ({error}); choose another donor, or build a "
            "narrower student: python build_and_save_small_modernbert.py --help"
        ) from error
    first = "model.layers.0.attn.Wo.weight"
    if carved.how[first][0] == "fresh":
        logger.info("not transferred: attention: %s", carved.how[first][1])
    model.load_state_dict(carved.tensors, strict=False)
    return layers, carved.how | _left(loaded, layers)


def tile(student: Student, loaded: Student, name: str) -> tuple[list[int], Transfer]:
    """Fill a student with a smaller ModernBERT; see `tiling.tile_model`.

    Args:
        student: blank, with its language-modelling head; its weights change.
        loaded: the donor.
        name: of the donor, for messages.

    Returns:
        The donor's layer for each of the student's, and what became of every tensor.

    Raises:
        UserError: the donor is no ModernBERT, larger somewhere, or has another vocabulary.
    """
    donor, model = loaded.transformer, student.transformer
    cure = "build a larger student: python build_and_save_small_modernbert.py --help"
    if donor.config.model_type != "modernbert":
        raise UserError(
            f"{name} is a {donor.config.model_type} model; only ModernBERT is tiled; carve from it "
            "instead: python mlm/init_model_mlm.py --init guide"
        )
    if student.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise UserError(f"{name} has another vocabulary than the student; {cure}")
    before = donor.state_dict()
    try:
        tensors, layers = tiling.tile_model(before, donor.config, model.config)
    except ValueError as error:
        raise UserError(f"{name} cannot be tiled to this student ({error}); {cure}") from None
    tell_layers(layers, donor.config.layer_types, model.config.layer_types)
    left = _left(loaded, layers)
    # An untied decoder must not overwrite the table that the student's decoder is.
    tensors = {key: tensor for key, tensor in tensors.items() if LEFT + key not in left}
    model.load_state_dict(tensors, strict=False)
    table = model.get_input_embeddings().weight.data_ptr()
    transfer: Transfer = {}
    for key, tensor in model.state_dict().items():
        known = key in tensors or tensor.data_ptr() == table
        same = key in before and torch.equal(tensor, before[key])
        kind = ("copied" if same else "tiled") if known else "fresh"
        transfer[key] = (kind, name if known else "the donor has none")
    return layers, transfer | left


def tell_layers(layers: Sequence[int], donor_types: Sequence[str], types: Sequence[str]) -> None:
    """Log which of the donor's layers feed the student's, and where their attention differs."""
    logger.info("donor layers %s feed student layers 0 to %d", layers, len(layers) - 1)
    for index, source in enumerate(layers):
        if donor_types[source] != types[index]:
            theirs, ours = donor_types[source], types[index]
            logger.info("layer %d: %s in the donor, %s here", index, theirs, ours)


def _left(loaded: Student, layers: Sequence[int]) -> Transfer:
    left = donors.left_tensors(loaded.transformer, layers)
    return {LEFT + name: ("left", why) for name, why in left.items()}
