"""Fixtures of the data's tests."""

from pathlib import Path

import pytest
from miniature import make_bpe_tokenizer, make_wordpiece_tokenizer
from tokenizers import Tokenizer


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def either_tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    """Return a tokenizer of either family, of the module's `WORDS`."""
    folder, words = tmp_path_factory.mktemp("tokenizer"), request.module.WORDS
    if request.param == "wordpiece":
        make_wordpiece_tokenizer(folder, words)
    else:
        make_bpe_tokenizer(folder, [" ".join(words)] * 50)
    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
