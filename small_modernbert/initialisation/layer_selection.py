"""Layer selection: a shallower student out of a donor's own layers, copied whole.

Layers 0, 4, 8, ... of the donor with its embeddings, norms, modules after pooling, prompts and
tokenizer, at its own width and of its own architecture. Nothing is projected, so what the donor
knows of texts that no label covers stays (the training guide's uniform layer selection; DistilBERT,
arXiv 1910.01108, section 3, takes one layer out of two).
"""

import copy
import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from small_modernbert.initialisation.donor_transfer import LEFT, Transfer
from small_modernbert.initialisation.folding import choose_layers
from small_modernbert.models.architecture import layer_types
from small_modernbert.models.students import Student
from small_modernbert.runs.errors import UserError


def choose(
    model: PreTrainedModel,
    layers: Sequence[int],
    number: int,
    spacing: Literal["uniform", "matched"],
) -> list[int]:
    """Return the donor's layers that a student keeps, increasing.

    Args:
        model: the donor's transformer.
        layers: as somebody wants them, negative ones from the last; none = `number` of them.
        number: of layers.
        spacing: "uniform" spaces them evenly; "matched" takes for each place the nearest layer that
            attends (globally, locally) as the student's pattern does there.

    Raises:
        UserError: the donor has no such layers.
    """
    depth = model.config.num_hidden_layers
    if layers:
        counted = [layer + depth if layer < 0 else layer for layer in layers]
        wrong = [layer for layer in counted if not 0 <= layer < depth]
        if wrong or sorted(set(counted)) != counted:
            raise UserError(
                f"LAYERS {' '.join(map(str, layers))}: the donor has layers 0 to {depth - 1}; give "
                "some of them in rising order, each once"
            )
        return counted
    if not 0 < number <= depth:
        raise UserError(
            f"NUM_LAYERS is {number}, and the donor has {depth}; layers are only taken away: "
            f"--num-layers {depth} at most"
        )
    chosen = choose_layers("uniform", number, depth)
    types = getattr(model.config, "layer_types", None)
    if spacing == "uniform" or not types:
        return chosen
    return _matched(chosen, pattern(model, number), types)


def pattern(model: PreTrainedModel, number: int) -> list[str]:
    """Return the attention of each of `number` layers by the donor's rule; [] if all attend alike.

    ModernBERT attends globally in layer 0 and every third after it.
    """
    types = getattr(model.config, "layer_types", None)
    if not types:
        return []
    later = [index for index, kind in enumerate(types) if index and kind == "full_attention"]
    return layer_types(number, later[0] if later else len(types) + number)


def _matched(targets: Sequence[int], wanted: Sequence[str], types: Sequence[str]) -> list[int]:
    """Return rising layers of the wanted types, in sum the nearest to their targets."""
    # best[layer]: the cheapest choice so far that ends at that layer.
    best: dict[int, tuple[int, list[int]]] = {-1: (0, [])}
    for target, kind in zip(targets, wanted, strict=True):
        best = {
            layer: min(
                (cost + abs(layer - target), [*chosen, layer])
                for last, (cost, chosen) in best.items()
                if last < layer
            )
            for layer, own in enumerate(types)
            if own == kind and min(best) < layer
        }
        if not best:
            raise UserError(
                "the donor's layers cannot follow the student's pattern of global and local "
                "attention at this depth; choose fewer, or --layer-spacing uniform"
            )
    return min(best.values())[1]


def keep_layers(student: Student, layers: Sequence[int]) -> tuple[Student, Transfer]:
    """Return a student of some of the donor's layers, and what became of every tensor.

    Args:
        student: the donor as a student.
        layers: from `choose`.

    Returns:
        The student, with everything else of the donor's; for each of its tensors ("copied", the
        donor's name), and for each of the donor's that it lacks ("left", why) under `LEFT`.

    Raises:
        UserError: the donor's layers are not one after the other in one list.
    """
    donor = student.transformer
    stack = _find_stack(donor)
    config = copy.deepcopy(donor.config)
    config.num_hidden_layers = len(layers)
    if types := pattern(donor, len(layers)):
        config.layer_types = types
    model = type(donor)(config).eval()
    if getattr(model, "pooler", None) is not None and getattr(donor, "pooler", None) is None:
        model.pooler = None
    state = donor.state_dict()
    place = re.compile(re.escape(stack) + r"\.(\d+)\.")
    sources = {
        name: place.sub(lambda match: f"{stack}.{layers[int(match[1])]}.", name)
        for name in model.state_dict()
    }
    model.load_state_dict({name: state[source] for name, source in sources.items()})
    transfer: Transfer = {name: ("copied", source) for name, source in sources.items()}
    for name in [name for name in state if name not in sources.values()]:
        match = place.match(name)
        chosen = match is not None and int(match[1]) in layers
        why = "the first layer has no norm of its own" if chosen else "of a layer that is not kept"
        transfer[LEFT + name] = ("left", why)
    return dataclasses.replace(student, transformer=model), transfer


def changed_attention(model: PreTrainedModel, layers: Sequence[int]) -> list[str]:
    """Return a line for each kept layer that attends otherwise than it did in the donor.

    Args:
        model: the donor's transformer.
        layers: those that are kept.
    """
    types = getattr(model.config, "layer_types", None) or []
    return [
        f"layer {index}: {types[source]} in the donor (its layer {source}), {kind} here"
        for index, (source, kind) in enumerate(
            zip(layers, pattern(model, len(layers)), strict=False)
        )
        if types[source] != kind
    ]


def _find_stack(model: PreTrainedModel) -> str:
    depth = model.config.num_hidden_layers
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(stacks) != 1:
        raise UserError(
            f"the layers of a {model.config.model_type} model are not found; name another --donor, "
            "of ModernBERT, BERT, MPNet and their like"
        )
    return stacks[0]
