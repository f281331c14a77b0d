"""Whether texts are in the language of others, told by how common the others' common words are.

Words of two letters and more, by how many of the texts they stand in: so neither a subject's words
nor numbers count, nor the single letters that many languages have as words. Text is judged in
blocks of some fifty words, since a folder may hold several languages.

Measured against SQuAD, whose hundred commonest words are 43 % of its words (docs/LOG.md,
2026-11-26): of English prose and mail they are 27 to 40 %, and at most 10 of 100 blocks have less
than a quarter of SQuAD's share; of program code 15 to 22 %, and 9 to 41 blocks; of thirty other
languages at most 8 % (Danish), and 67 to 100 blocks.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from small_modernbert.data.keys import words_of

COMMON_WORDS = 100
BLOCK_WORDS = 50  # that a block has at least
OTHER_LANGUAGE = 0.25  # of the reference's own share; a block below it is in another language
MUCH = 0.25  # of the blocks; more of them are no accident


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How texts are like others in their common words.

    Attributes:
        ours: share of the reference's commonest words among the texts' words.
        theirs: likewise among the reference's.
        foreign: share of the texts' blocks that have too few of them.
        words: how many words the texts have.
        letters: which share of what stands between spaces has a word.
    """

    ours: float
    theirs: float
    foreign: float
    words: int
    letters: float


def compare(texts: Iterable[str], reference: Sequence[str]) -> Comparison:
    """Compare texts with others.

    Args:
        texts: in their order: short neighbours are judged together.
        reference: some hundred texts of a language at least.
    """
    documents = [_words(text) for text in reference]
    stands_in = Counter(word for words in documents for word in set(words))
    common = {word for word, _ in stands_in.most_common(COMMON_WORDS)}
    theirs = _share([word for words in documents for word in words], common)
    shares, sizes, pieces = [], [], 0
    for block, between in _blocks(texts):
        pieces += between
        shares.append(_share(block, common))
        sizes.append(len(block))
    total = sum(sizes)
    few = [share < OTHER_LANGUAGE * theirs for share in shares]
    return Comparison(
        ours=sum(share * size for share, size in zip(shares, sizes, strict=True)) / max(1, total),
        theirs=theirs,
        foreign=sum(few) / max(1, len(few)),
        words=total,
        letters=min(1.0, total / max(1, pieces)),
    )


def _blocks(texts: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """Yield the words of so many texts that they are enough, and what stands between spaces."""
    block: list[str] = []
    pieces = 0
    for text in texts:
        block += _words(text)
        pieces += len(text.split())
        if len(block) >= BLOCK_WORDS:
            yield block, pieces
            block, pieces = [], 0
    if block or pieces:
        yield block, pieces


def _words(text: str) -> list[str]:
    # A letter of a script without spaces is a word.
    return [
        word for word in words_of(text) if word.isalpha() and (len(word) > 1 or word > "\u2e7f")
    ]


def _share(words: Sequence[str], common: set[str]) -> float:
    return sum(word in common for word in words) / max(1, len(words))
