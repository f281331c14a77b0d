"""Spans of texts: more texts for a teacher to label, each at a fraction of a passage's price.

A corpus' passages are of few kinds and lengths, and a student meets queries and sentences. At equal
tokens, half of them spent on spans of further passages gave more than whole passages alone did
(docs/LOG.md, 2026-11-26, with what texts joined end to end and lists of words gave: less).
"""

import numpy as np
import regex

from small_modernbert.data.keys import text_key

SHORTEST, LONGEST = 6, 42  # words of a span: 8 to 55 tokens of English
# By Unicode's rules (UAX 29), by which an ideograph is a word, and a letter of Thai; but no word
# begins below the consonant that it is stacked under (Burmese, Khmer).
_WORD = regex.compile(r"(?w)\b(?=\w)(?<![\u1039\u17d2])")


def draw_span(text: str, share: float) -> str:
    """Return a span of whole words of a text, with this probability, or the text as it is.

    The text itself is the seed, so whoever draws, in whatever order, draws the same.

    Args:
        text: any; one of LONGEST words or fewer stays as it is.
        share: probability of a span, 0 to 1.
    """
    draw = np.random.default_rng(text_key(text))
    if draw.random() >= share:
        return text
    begins = [word.start() for word in _WORD.finditer(text)]
    if len(begins) <= LONGEST:
        return text
    words = int(draw.integers(SHORTEST, LONGEST + 1))
    first = int(draw.integers(len(begins) - words + 1))
    ends = [*begins, len(text)]
    return text[begins[first] : ends[first + words]].rstrip()
