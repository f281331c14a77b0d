"""Promises of word_memo.py: the tokenizer's own ids, whatever the tokenizer and the text."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from small_modernbert.data import word_memo
from small_modernbert.data.word_memo import WordMemo

ODD = [
    "",
    " ",
    "x",
    "don't -- stop!? [SEP] (a_b) 3.14 e.g. A1b2",
    "two  spaces\n\na line\n",
    "Café naïve Straße über-groß ½ №5 ©2020 “quoted” …",
    "漢字かな交じり文 text 中",
    "emoji 🙂🙂 and \u200bzero\u00a0width e\u0301",
]


def load(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.mark.parametrize("kind", ["wordpiece_folder", "bpe_folder"])
@pytest.mark.parametrize("special", [True, False])
def test_ids_are_the_tokenizers_own(
    kind: str, special: bool, texts: list[str], request: pytest.FixtureRequest
) -> None:
    """WordPiece and byte-level BPE: equal ids and counts, for words known and new."""
    tokenizer = load(request.getfixturevalue(kind))
    memo = WordMemo(load(request.getfixturevalue(kind)))
    for group in (texts, ODD, texts[::-1], [f"{text} {text}" for text in texts]):
        right = [tokenizer.encode(text, add_special_tokens=special).ids for text in group]
        assert memo.ids(group, special) == right
        assert memo.counts(group, special) == list(map(len, right))


def test_a_word_is_asked_for_once(wordpiece_folder: Path, texts: list[str]) -> None:
    """What was seen costs no call for its words."""
    memo = WordMemo(load(wordpiece_folder))
    memo.ids(texts * 20)
    asked: list[str] = []
    ask = memo._ask
    memo._ask = lambda wanted, special=False: asked.extend(wanted) or ask(wanted, special)
    memo.ids(texts)
    # One text in so many is compared with the tokenizer; no word is looked up again.
    assert len(asked) <= 1 + len(texts) / word_memo.CHECK_EVERY


def test_a_tokenizer_that_looks_across_words_is_found_out(wordpiece_folder: Path) -> None:
    """Without a pre-tokenizer that cuts at spaces every text is asked for, and comes out right."""
    tokenizer = load(wordpiece_folder)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("e", "isolated")
    memo = WordMemo(tokenizer)
    group = ["the tide comes", "there we are", "one two three four"]
    assert memo.ids(group) == [tokenizer.encode(text).ids for text in group]
    assert memo._ways[True] == []


def test_a_late_difference_changes_the_way(bpe_folder: Path, texts: list[str]) -> None:
    """A text that comes out otherwise after the first ones is noticed by the running check."""
    tokenizer = load(bpe_folder)
    memo = WordMemo(tokenizer)
    memo.ids(["a b c"] * word_memo.CHECK_FIRST)
    memo._memo["rotten"] = [1]
    group = ["rotten"] * word_memo.CHECK_EVERY
    ways = len(memo._ways[True])
    memo.ids(group)
    assert len(memo._ways[True]) < ways


def test_the_memo_is_bounded(
    wordpiece_folder: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    """A full memo starts again, and the ids stay right."""
    monkeypatch.setattr(word_memo, "LIMIT", 5)
    tokenizer = load(wordpiece_folder)
    memo = WordMemo(load(wordpiece_folder))
    for text in texts:
        assert memo.ids([text]) == [tokenizer.encode(text).ids]
        assert len(memo._memo) <= 5 + len(text)


@pytest.mark.parametrize("kind", ["wordpiece_folder", "bpe_folder"])
def test_what_is_longer_than_a_word_is_not_kept(kind: str, request: pytest.FixtureRequest) -> None:
    """Sentences of a script without spaces do not fill the memo; their ids are right each time."""
    tokenizer = load(request.getfixturevalue(kind))
    memo = WordMemo(load(request.getfixturevalue(kind)))
    texts = ["漢字かな交じり文。" * number for number in range(1, 12)]
    texts += ["a" * word_memo.LONGEST, "b" * (word_memo.LONGEST + 1), "b" * 500, f"{'é' * 40} a"]
    for _ in range(2):
        assert memo.ids(texts) == [tokenizer.encode(text).ids for text in texts]
        assert max(map(len, memo._memo)) == word_memo.LONGEST
