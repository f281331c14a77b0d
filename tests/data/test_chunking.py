"""chunking.py: where a text is cut, and ids that are the tokenizer's own, whatever the text."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from small_modernbert.data import chunking
from small_modernbert.data.chunking import Chunker, WordMemo, split_sentences
from small_modernbert.runs.errors import UserError

WORDS = ["river", "stone", "light", "green", "paper", "window", "seven", "of", "the", "walks"]
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


def document(sentences: int, seed: int = 0) -> str:
    """Return sentences of 3 to 12 words."""
    chooser = random.Random(seed)
    return " ".join(
        " ".join(chooser.choices(WORDS, k=chooser.randint(3, 12))).capitalize() + "."
        for _ in range(sentences)
    )


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


def test_a_word_is_asked_for_once(wordpiece_folder: Path, texts: list[str]) -> None:
    """What was seen costs no call for its words."""
    memo = WordMemo(load(wordpiece_folder))
    memo.ids(texts * 20)
    asked: list[str] = []
    ask = memo._ask
    memo._ask = lambda wanted, special=False: asked.extend(wanted) or ask(wanted, special)
    memo.ids(texts)
    # One text in so many is compared with the tokenizer; no word is looked up again.
    assert len(asked) <= 1 + len(texts) / chunking.CHECK_EVERY


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
    memo.ids(["a b c"] * chunking.CHECK_FIRST)
    memo._memo["rotten"] = [1]
    group = ["rotten"] * chunking.CHECK_EVERY
    ways = len(memo._ways[True])
    memo.ids(group)
    assert len(memo._ways[True]) < ways


def test_the_memo_is_bounded(
    wordpiece_folder: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    """A full memo starts again, and the ids stay right."""
    monkeypatch.setattr(chunking, "LIMIT", 5)
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
    texts += ["a" * chunking.LONGEST, "b" * (chunking.LONGEST + 1), "b" * 500, f"{'é' * 40} a"]
    for _ in range(2):
        assert memo.ids(texts) == [tokenizer.encode(text).ids for text in texts]
        assert max(map(len, memo._memo)) == chunking.LONGEST


def test_sentences_are_the_text_again() -> None:
    """Boundaries are where sentences end; abbreviations and numbers are not."""
    text = 'Dr. Stone walks 3.5 miles. "Is it far?" he asks, e.g. today.\nYes! The end (it is).'
    sentences = list(split_sentences(text))
    assert "".join(sentences) == text
    assert [sentence.strip() for sentence in sentences] == [
        "Dr. Stone walks 3.5 miles.",
        '"Is it far?" he asks, e.g. today.',
        "Yes!",
        "The end (it is).",
    ]


@pytest.mark.parametrize("max_tokens", [16, 40, 128])
def test_chunks_fit_and_lose_nothing(either_tokenizer: Tokenizer, max_tokens: int) -> None:
    """No chunk exceeds the limit, special tokens included; joined, they have every word."""
    texts = [document(1), document(60, seed=1), "", document(400, seed=2), "river " * 500]
    pieces = Chunker(either_tokenizer, max_tokens).chunk(texts)
    assert len(pieces) == len(texts)
    for text, chunks in zip(texts, pieces, strict=True):
        assert " ".join(piece for piece, _ in chunks).split() == text.split()
        for piece, ids in chunks:
            assert ids == either_tokenizer.encode(piece).ids
            assert len(ids) <= max_tokens


def test_chunks_end_with_sentences_and_are_even(either_tokenizer: Tokenizer) -> None:
    """A long document is cut between sentences, and no piece is a scrap."""
    chunks = Chunker(either_tokenizer, 128).chunk([document(200)])[0]
    assert len(chunks) > 5
    assert all(piece[0].isupper() and piece.endswith(".") for piece, _ in chunks)
    assert min(len(ids) for _, ids in chunks) > 40


def test_counting_anew_cuts_alike(either_tokenizer: Tokenizer) -> None:
    """The memo of words changes no cut."""
    texts = [document(1), document(60, seed=1), document(400, seed=2), "river " * 500]
    anew = Chunker(either_tokenizer, 40, memo=False).chunk(texts)
    assert Chunker(either_tokenizer, 40).chunk(texts) == anew


def test_text_that_fits_is_unchanged(either_tokenizer: Tokenizer) -> None:
    """A text within the limit is its only piece, as it was."""
    text = document(2)
    assert [piece for piece, _ in Chunker(either_tokenizer, 512).chunk([text])[0]] == [text]


def test_a_line_of_megabytes_does_not_stall(either_tokenizer: Tokenizer) -> None:
    """A line of a megabyte without a full stop, and one without a space, are cut all the same."""
    spaced, solid = "river stone " * 80_000, "riverstone" * 5_000
    chunker = Chunker(either_tokenizer, 256)
    for text in (spaced, solid):
        chunks = chunker.chunk([text])[0]
        assert "".join("".join(piece.split()) for piece, _ in chunks) == "".join(text.split())
        assert max(len(ids) for _, ids in chunks) <= 256


def test_refuses_a_limit_without_room(either_tokenizer: Tokenizer) -> None:
    """A limit that leaves no room for text is the user's to mend."""
    with pytest.raises(UserError, match="--max-tokens"):
        Chunker(either_tokenizer, 5)


SENTENCES = {
    "Chinese": [
        "这座桥是谁在什么时候修建的？",
        "“雾很大！”",
        "渔民们都没有出船。",
        "他把旧自行车修好了……",
    ],
    "Japanese": ["今日は晴れ。", "「そうですか？」", "はい！"],
    "Hindi": ["राम बाजार जाता है। ", "क्या वह घर पर थी? ", "हाँ॥ ", "ठीक"],
    "Amharic": ["ፀሐይ ወጣች። ", "ልጅ መጣ። ", "ማን ነው፧ ", "ቤት"],
    "Arabic": ["كيف حالك؟ ", "بخير"],
    "Urdu": ["یہ کتاب ہے۔ ", "وہ گھر ہے۔"],
    "Burmese": ["မင်္ဂလာပါ။ ", "ကောင်းပါတယ်။"],
    "Armenian": ["Սա տուն է։ ", "Այո։"],
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_end_where_the_script_ends_them(language: str) -> None:
    """Each script has its own marks; a closing quote is its sentence's; no space is needed."""
    sentences = SENTENCES[language]
    assert list(split_sentences("".join(sentences))) == sentences


def test_chinese_is_cut_between_sentences(wordpiece_folder: Path) -> None:
    """Pieces of a text without spaces end with a sentence, and a letter keeps its marks."""
    text = "这座桥是谁在什么时候修建的？今天早上河边的雾很大，渔民们都没有出船。" * 30
    pieces = [piece for piece, _ in Chunker(load(wordpiece_folder), 64).chunk([text])[0]]
    assert len(pieces) > 5 and "".join(pieces) == text
    assert all(piece.endswith(("？", "。")) for piece in pieces)


@pytest.mark.parametrize(
    "character",
    ["के", "ក្រ", "กำ", "ｶﾞ", "\u1112\u1161\u11ab", "e\u0301\u0323", "🇩🇪", "👍🏽", "1️⃣", "👩‍🚀"],
)
def test_no_piece_begins_inside_a_character(bpe_folder: Path, character: str) -> None:
    """What a reader sees as one character stays one, in a text without a space."""
    text = character * 300
    pieces = [piece for piece, _ in Chunker(load(bpe_folder), 32).chunk([text])[0]]
    assert len(pieces) > 3 and "".join(pieces) == text
    assert all(piece == character * (len(piece) // len(character)) for piece in pieces)


def test_code_keeps_its_indentation_when_it_is_cut(wordpiece_folder: Path) -> None:
    """A piece begins with the white space of its first line."""
    text = "\n".join(f"    call_{number}(a, b)" for number in range(60))
    pieces = [piece for piece, _ in Chunker(load(wordpiece_folder), 64).chunk([text])[0]]
    assert len(pieces) > 3 and "\n".join(pieces) == text


@pytest.mark.parametrize("kind", ["wordpiece_folder", "bpe_folder"])
def test_the_unknown_token_is_known(kind: str, request: pytest.FixtureRequest) -> None:
    """A WordPiece does not know other scripts; bytes know everything."""
    chunker = Chunker(load(request.getfixturevalue(kind)), 64)
    ids = chunker.words.ids(["ፀሐይ ልጅ ጨረቃ ሰላም", "a b c"])
    assert [chunker.knows(tokens) for tokens in ids] == [kind == "bpe_folder", True]
