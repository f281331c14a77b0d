"""What a judge makes of pairs: exchanged ones mended, wrong negatives out, hard ones found.

`Relabeller.relabel` takes a slice of pairs through five steps and says of each what became of it:

1. The judge scores the positive and the negatives that came with it; `mend` acts on what is wrong.
2. The consistency filter: the miner must rank the positive among the first k of a pool.
3. Rows with room for more get candidates from the miner and from BM25, below a relative margin.
4. The judge scores these too. A mined text that is not below the positive is taken for another
   right answer and the next candidate is tried; it never replaces the positive.
5. A row without any negative left goes.

Mending comes before the filter: a positive that was exchanged with its negative would not pass it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from small_modernbert.data.keys import words_key
from small_modernbert.data.pair_gathering import Gathered
from small_modernbert.data.pairs import Pair
from small_modernbert.evaluation.search import WordIndex
from small_modernbert.labelling import mining
from small_modernbert.labelling.judgements import WRITTEN
from small_modernbert.labelling.judges import Judge
from small_modernbert.labelling.mining import Pool, Vectors

ROUNDS = 3  # of candidates that the judge may refuse
EXAMPLES = 2  # an outcome, a source and a shard
EXAMPLE_CHARACTERS = 240


@dataclass(frozen=True)
class Rules:
    """How rows are judged.

    Attributes:
        negatives: a row ends up with at most.
        margin: see `mining.choose_negatives`.
        on_wrong: what becomes of a row whose negative beats its positive by `gap` or more.
        gap: on the judge's scale.
        top_k: the consistency filter's; 0 switches it off.
        depth: candidates an anchor that the miner and BM25 give each.
    """

    negatives: int
    margin: float
    on_wrong: Literal["swap", "drop"]
    gap: float
    top_k: int
    depth: int


@dataclass
class Row:
    """A pair on its way.

    Attributes:
        pair: as it came.
        positive: as it stands.
        score: of the positive; None until the judge has seen it.
        negatives: as they stand.
        scores: of the negatives.
        outcome: one of `judgements.OUTCOMES`.
        own: keys of texts that can be neither mined nor rivals.
        candidates: rows of the pool still to be tried.
        refused: the text that decided the outcome and its score, see `judgements.REFUSED`.
    """

    pair: Pair
    positive: str
    score: float | None = None
    negatives: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    outcome: str = "kept"
    own: set[int] = field(default_factory=set)
    candidates: list[int] = field(default_factory=list)
    refused: tuple[str, float] | None = None


def mend(row: Row, scores: Sequence[float], rules: Rules) -> None:
    """Settle a row whose own negatives are judged.

    A negative that beats the positive by `gap` or more says that the labels are wrong: the row is
    dropped, or the best such negative becomes the positive and the positive a negative; other
    negatives that were not below the old positive are then ambiguous, and go. A negative that is
    merely not below the positive is taken for another right answer: it goes, the row stays. Of
    more negatives than are wanted, the hardest stay.

    Args:
        row: with the score of its positive.
        scores: of `row.pair.negatives`.
        rules: the rules.
    """
    judged = sorted(zip(scores, row.pair.negatives, strict=True), key=lambda one: -one[0])
    right = [(score, text) for score, text in judged if score < row.score]
    best, text = judged[0]
    if best - row.score >= rules.gap and best > row.score:
        if rules.on_wrong == "drop":
            row.outcome, row.refused = "dropped", (text, best)
            return
        row.refused = (row.positive, row.score)
        right.insert(0, (row.score, row.positive))
        row.outcome, row.positive, row.score = "swapped", text, best
    right = right[: rules.negatives]
    row.negatives, row.scores = [text for _, text in right], [score for score, _ in right]


class Relabeller:
    """Takes slices of pairs through the steps. A slice's result depends on nothing but itself."""

    def __init__(
        self,
        judge: Judge,
        vectors: Vectors,
        gathered: Gathered,
        pools: dict[str, Pool],
        rules: Rules,
    ) -> None:
        """Index the pools.

        Args:
            judge: scores.
            vectors: the miner, which knows the pools' vectors.
            gathered: says what answers what.
            pools: split -> what its rows may be given; the training pool is also the filter's.
            rules: the rules.
        """
        self.judge, self.vectors, self.gathered, self.rules = judge, vectors, gathered, rules
        self.pools = pools
        self.lexical = {
            split: WordIndex(pool.texts) for split, pool in pools.items() if len(pool.texts)
        }

    def relabel(
        self, pairs: Sequence[Pair], split: str
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Judge, filter and mend a slice.

        Args:
            pairs: the slice.
            split: that it is of.

        Returns:
            Rows for `triplets.write_shard`, and facts: counts by source, and examples.
        """
        self.vectors.forget()
        rows = [Row(pair, pair.positive) for pair in pairs]
        counts: dict[str, Counter[str]] = {}
        for row in rows:
            texts = (row.pair.anchor, row.pair.positive, *row.pair.negatives)
            row.own = self.gathered.answers(row.pair.anchor) | set(map(words_key, texts))
            counts.setdefault(row.pair.source, Counter())
        self._judge_given(rows, counts)
        self._filter_and_mine([row for row in rows if row.outcome in WRITTEN], split)
        self._judge_mined([row for row in rows if row.outcome in WRITTEN], split, counts)
        for row in rows:
            if row.outcome in WRITTEN and not row.negatives:
                row.outcome = "no negative left"
            counts[row.pair.source][row.outcome] += 1
            hardest = sorted(zip(row.scores, row.negatives, strict=True), key=lambda one: -one[0])
            row.scores, row.negatives = [one[0] for one in hardest], [one[1] for one in hardest]
        written = [_written(row) for row in rows if row.outcome in WRITTEN]
        facts = {
            "counts": {source: dict(counter) for source, counter in counts.items()},
            "examples": _examples(rows),
        }
        return written, facts

    def _judge_given(self, rows: Iterable[Row], counts: dict[str, Counter[str]]) -> None:
        rows = [row for row in rows if row.pair.negatives]
        texts = [(row.pair.positive, *row.pair.negatives) for row in rows]
        scores = self._score(rows, texts)
        for row, (positive, *others) in zip(rows, scores, strict=True):
            row.score = positive
            counter = counts[row.pair.source]
            counter["with negatives"] += 1
            counter["given wrong"] += sum(score >= positive for score in others)
            counter["judge agreed"] += max(others) < positive
            mend(row, others, self.rules)

    def _filter_and_mine(self, rows: list[Row], split: str) -> None:
        if not rows:
            return
        anchors = self.vectors.encode([row.pair.anchor for row in rows])
        positives = self.vectors.encode([row.positive for row in rows])
        cosines = np.einsum("ij,ij->i", anchors, positives)
        rivals, pool = self.pools["train"], self.pools[split]
        own = [row.own for row in rows]
        depth = max(self.rules.top_k, self.rules.depth)
        near = mining.find_neighbours(anchors, own, rivals, depth)
        if self.rules.top_k:
            ranks = mining.ranks(near, cosines)
            for number, (row, rank) in enumerate(zip(rows, ranks.tolist(), strict=True)):
                if rank > self.rules.top_k:
                    row.outcome = "inconsistent"
                    best = int(near.allowed[number].argmax())
                    found = rivals.texts[int(near.rows[number, best])]
                    row.refused = (found, float(near.scores[number, best]))
        going = [
            number
            for number, row in enumerate(rows)
            if row.outcome in WRITTEN and len(row.negatives) < self.rules.negatives
        ]
        if not going or split not in self.lexical:
            return
        anchors, cosines, own = anchors[going], cosines[going], [own[i] for i in going]
        if pool is rivals:
            near = mining.Neighbours(near.rows[going], near.scores[going], near.allowed[going])
        else:
            near = mining.find_neighbours(anchors, own, pool, self.rules.depth)
        queries = [rows[number].pair.anchor for number in going]
        words = self.lexical[split].search(queries, self.rules.depth).rows
        lexical = mining.lexical_neighbours(words, anchors, own, pool)
        chosen = mining.choose_negatives(
            (near, lexical), cosines, self.rules.margin, ROUNDS * self.rules.negatives
        )
        for number, candidates in zip(going, chosen, strict=True):
            rows[number].candidates = candidates

    def _judge_mined(self, rows: list[Row], split: str, counts: dict[str, Counter[str]]) -> None:
        texts = self.pools[split].texts
        for _ in range(ROUNDS):
            asked: list[Row] = []
            tried: list[list[str]] = []
            for row in rows:
                room = self.rules.negatives - len(row.negatives)
                found, row.candidates = row.candidates[:room], row.candidates[room:]
                if found:
                    asked.append(row)
                    tried.append([texts[place] for place in found])
            unseen = [[row.positive] if row.score is None else [] for row in asked]
            judged = self._score(
                asked, [first + some for first, some in zip(unseen, tried, strict=True)]
            )
            for row, some, scores in zip(asked, tried, judged, strict=True):
                if row.score is None:
                    row.score = scores.pop(0)
                counter = counts[row.pair.source]
                for text, score in zip(some, scores, strict=True):
                    if score < row.score:
                        row.negatives.append(text)
                        row.scores.append(score)
                        counter["mined"] += 1
                    else:
                        row.refused = row.refused or (text, score)
                        counter["mined wrong"] += 1

    def _score(self, rows: Sequence[Row], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score several texts for each row's anchor, all in one call of the judge."""
        asked = [
            (row.pair.anchor, text) for row, some in zip(rows, texts, strict=True) for text in some
        ]
        scores = iter(self.judge.score(asked).tolist())
        return [[next(scores) for _ in some] for some in texts]


def _written(row: Row) -> dict[str, Any]:
    return {
        "anchor": row.pair.anchor,
        "positive": row.positive,
        "negatives": row.negatives,
        "positive_score": row.score,
        "negative_scores": row.scores,
        "source": row.pair.source,
    }


def _examples(rows: Iterable[Row]) -> list[dict[str, Any]]:
    seen: Counter[tuple[str, str]] = Counter()
    examples = []
    for row in rows:
        kind = (row.outcome, row.pair.source)
        seen[kind] += 1
        if seen[kind] > EXAMPLES:
            continue
        examples.append(
            {
                "outcome": row.outcome,
                "source": row.pair.source,
                "anchor": _short(row.pair.anchor),
                "positive": _short(row.positive),
                "score": row.score,
                "negatives": [
                    [_short(text), score]
                    for text, score in zip(row.negatives[:2], row.scores, strict=False)
                ],
                "refused": row.refused and [_short(row.refused[0]), row.refused[1]],
            }
        )
    return examples


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= EXAMPLE_CHARACTERS else f"{flat[: EXAMPLE_CHARACTERS - 1]}…"
