"""ModernBERT's kind of tokenizer out of a byte-level BPE: five special tokens after its entries."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from small_modernbert.runs import storage

SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
MODEL_MAX_LENGTH = 8_192


def save_bpe_tokenizer(tokenizer: dict[str, Any], folder: Path) -> None:
    """Save a byte-level BPE as ModernBERT's tokenizer: five special tokens after its entries.

    Args:
        tokenizer: a parsed tokenizer.json without ModernBERT's special tokens.
        folder: where to save it; AutoTokenizer loads it from there.
    """
    taken = [*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]
    first = max(taken) + 1
    ids = {token: first + place for place, token in enumerate(SPECIAL_TOKENS)}
    added = [
        {
            "id": ids[token],
            "content": token,
            "single_word": False,
            "lstrip": token == "[MASK]",  # the mask takes the blank before it, as a word would
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    ]
    tokenizer = {**tokenizer, "truncation": None, "padding": None}
    tokenizer["added_tokens"] = [*tokenizer["added_tokens"], *added]
    tokenizer["post_processor"] = _template(ids)
    names = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    special = dict(zip(names, SPECIAL_TOKENS, strict=True))
    storage.write_text(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False))
    storage.write_json(folder / "special_tokens_map.json", special)
    storage.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MODEL_MAX_LENGTH,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **special,
        },
    )


def _template(ids: Mapping[str, int]) -> dict[str, Any]:
    def token(name: str, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": segment}}

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [token("[CLS]", 0), text("A", 0), token("[SEP]", 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), token("[SEP]", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")
        },
    }
