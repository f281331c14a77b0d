"""Whether some of a teacher's own layers can become its student, from its files alone.

What a recipe would find out after it has labelled a corpus is found out before: nothing is loaded.
"""

import logging
from pathlib import Path

from small_modernbert.models import loading
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

# Models whose layers stand in one list, with units that can be taken out of them.
FAMILIES = ("bert", "mpnet", "roberta", "xlm-roberta", "modernbert")
# Prompts that cards of E5, BGE and their like ask for, and their folders seldom name.
PROMPTS = ("query: ", "passage: ", "Represent this sentence for searching relevant passages: ")
logger = logging.getLogger(__name__)


def check_teacher(folder: Path, layers: int) -> int:
    """Refuse a teacher of whose layers no student can be made; warn where it may want prompts.

    Args:
        folder: the teacher's.
        layers: that a student takes.

    Returns:
        How many tokens of a text it reads.

    Raises:
        UserError: with what is in the way.
    """
    from small_modernbert.models import module_files

    with loading.explained("teacher", folder):
        loading.check_folder(folder)
        parts = module_files.read_modules(folder)
        module_files.read_pooling(parts.pooling)
        usage = module_files.read_usage(folder, parts)
        config = storage.read_json(parts.transformer / "config.json", loading.CURE)
        positions = config.get("max_position_embeddings", loading.LARGEST_NUMBER)
        max_tokens = module_files.read_max_tokens(parts.transformer, positions)
    family, depth = config.get("model_type"), config.get("num_hidden_layers", 0)
    if family not in FAMILIES:
        raise UserError(
            f"{folder} is a {family} model, and a student takes layers of one of these: "
            f"{', '.join(FAMILIES)}; name such a teacher"
        )
    if depth < layers:
        raise UserError(
            f"{folder} has {depth} layers, and a student takes {layers} of them; name a teacher "
            f"that has {layers} at least, or use it as it is: it is small"
        )
    if not any(usage.prompts.values()) and (wanted := _on_card(folder)):
        logger.warning(
            "%s names no prompts, and its card speaks of %s; if queries or documents should begin "
            "so, say it: --query-prompt, --document-prompt",
            *(folder, " and ".join(map(repr, wanted))),
        )
    return max_tokens


def _on_card(folder: Path) -> list[str]:
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return [prompt for prompt in PROMPTS if prompt in text]
