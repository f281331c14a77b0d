"""Rows on their way through relabelling: what they carry, and how wrong labels are mended."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from small_modernbert.data.pairs import Pair
from small_modernbert.labelling.judgements import WRITTEN
from small_modernbert.labelling.judges import Judge

EXAMPLES = 2  # an outcome, a source and a shard
EXAMPLE_CHARACTERS = 240


@dataclass(frozen=True)
class Rules:
    """How rows are judged.

    Attributes:
        negatives: a row ends up with at most.
        margin: see `mining.choose_negatives`.
        on_wrong: what becomes of a row whose negative beats its positive by `gap` or more.
        gap: from 0 to 1, see `Judge.gap`.
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

    @property
    def goes_on(self) -> bool:
        """Whether it will be written, as far as is known."""
        return self.outcome in WRITTEN

    def take(self, scored: Sequence[tuple[float, str]]) -> None:
        """Make these the row's negatives, with their scores."""
        self.scores = [score for score, _ in scored]
        self.negatives = [text for _, text in scored]


def mend(row: Row, scores: Sequence[float], rules: Rules, judge: Judge) -> None:
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
        judge: who scored.
    """
    judged = sorted(zip(scores, row.pair.negatives, strict=True), key=score_of, reverse=True)
    right = [(score, text) for score, text in judged if score < row.score]
    best, text = judged[0]
    if best > row.score and judge.gap(best, row.score) >= rules.gap:
        if rules.on_wrong == "drop":
            row.outcome, row.refused = "dropped", (text, best)
            return
        row.refused = (row.positive, row.score)
        right.insert(0, (row.score, row.positive))
        row.outcome, row.positive, row.score = "swapped", text, best
    row.take(right[: rules.negatives])


def score_of(scored: tuple[float, str]) -> float:
    """Return what (score, text) is sorted by."""
    return scored[0]


def written(row: Row) -> dict[str, Any]:
    """Return a row as `triplets.write_shard` takes it."""
    return {
        "anchor": row.pair.anchor,
        "positive": row.positive,
        "negatives": row.negatives,
        "positive_score": row.score,
        "negative_scores": row.scores,
        "source": row.pair.source,
        "role": row.pair.role,
    }


def examples(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the first rows of every outcome and source, shortened, for a person to read."""
    seen: Counter[tuple[str, str]] = Counter()
    chosen = []
    for row in rows:
        kind = (row.outcome, row.pair.source)
        seen[kind] += 1
        if seen[kind] > EXAMPLES:
            continue
        chosen.append(
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
    return chosen


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= EXAMPLE_CHARACTERS else f"{flat[: EXAMPLE_CHARACTERS - 1]}…"
