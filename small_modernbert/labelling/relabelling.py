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

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from small_modernbert.data import triplets
from small_modernbert.data.keys import words_key, words_keys
from small_modernbert.data.pair_gathering import Gathered
from small_modernbert.data.pairs import Pair
from small_modernbert.data.sources import answer_role
from small_modernbert.evaluation.bm25 import WordIndex
from small_modernbert.labelling import judges, mining
from small_modernbert.labelling.judged_rows import Row, Rules, examples, mend, score_of, written
from small_modernbert.labelling.judges import Judge
from small_modernbert.labelling.mining import Neighbours, Pool, Vectors
from small_modernbert.models.encoders import Encoder
from small_modernbert.models.prompts import encode_by_role
from small_modernbert.runs import report

ROUNDS = 3  # of candidates that the judge may refuse
LOG_SECONDS = 300  # between two lines of the log on how far the judge is
logger = logging.getLogger(__name__)


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
        counts: dict[str, Counter[str]] = {row.pair.source: Counter() for row in rows}
        for row in rows:
            texts = (row.pair.anchor, row.pair.positive, *row.pair.negatives)
            row.own = self.gathered.answers(row.pair.anchor) | set(map(words_key, texts))
        self._judge_given(rows, counts)
        self._filter_and_mine([row for row in rows if row.goes_on], split)
        self._judge_mined([row for row in rows if row.goes_on], split, counts)
        for row in rows:
            if row.goes_on and not row.negatives:
                row.outcome = "no negative left"
            counts[row.pair.source][row.outcome] += 1
            hardest = zip(row.scores, row.negatives, strict=True)
            row.take(sorted(hardest, key=score_of, reverse=True))
        facts = {
            "counts": {source: dict(counter) for source, counter in counts.items()},
            "examples": examples(rows),
        }
        return [written(row) for row in rows if row.goes_on], facts

    def write_shards(
        self, folder: Path, rows: int, advance: Callable[[int], Any]
    ) -> dict[str, int]:
        """Write the missing shards of every split; return split -> how many it has.

        Args:
            folder: where the shards go.
            rows: to judge, of a shard.
            advance: called with numbers of rows done.
        """
        gathered, counts = self.gathered, {}
        left, judged, begun = sum(gathered.rows.values()), 0, time.monotonic()
        said = begun
        for split in triplets.SPLITS:
            counts[split] = 0
            for index, pairs in enumerate(gathered.slices(split, rows)):
                counts[split], left = index + 1, left - len(pairs)
                path = triplets.shard_path(folder, split, index)
                if not path.exists():
                    triplets.write_shard(path, *self.relabel(pairs, split), self.judge.scale)
                    judged += len(pairs)
                advance(len(pairs))
                now = time.monotonic()
                if judged and now - said >= LOG_SECONDS:
                    said, pace = now, judged / (now - begun)
                    logger.info(
                        "%s rows judged, %.0f rows/s, %s rows and about %s left",
                        *(f"{judged:,}", pace, f"{left:,}", report.minutes(left / pace)),
                    )
        return counts

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
            mend(row, others, self.rules, self.judge)

    def _filter_and_mine(self, rows: list[Row], split: str) -> None:
        if not rows:
            return
        roles = [row.pair.role for row in rows]
        encode = self.vectors.encode
        anchors = encode_by_role(encode, [row.pair.anchor for row in rows], roles)
        answering = [answer_role(role) for role in roles]
        positives = encode_by_role(encode, [row.positive for row in rows], answering)
        cosines = np.einsum("ij,ij->i", anchors, positives)
        own = [row.own for row in rows]
        depth = max(self.rules.top_k, self.rules.depth)
        near = mining.find_neighbours(anchors, own, self.pools["train"], depth)
        if self.rules.top_k:
            self._filter(rows, near, cosines)
        going = [
            number
            for number, row in enumerate(rows)
            if row.goes_on and len(row.negatives) < self.rules.negatives
        ]
        if going and split in self.lexical:
            anchors, own = anchors[going], [own[number] for number in going]
            chosen = [rows[number] for number in going]
            near = near.of(going) if split == "train" else None
            self._mine(chosen, anchors, own, near, cosines[going], split)

    def _filter(self, rows: list[Row], near: Neighbours, cosines: np.ndarray) -> None:
        """Say of rows whose positive is not among the first of the pool that they are."""
        for number, rank in enumerate(mining.ranks(near, cosines).tolist()):
            if rank > self.rules.top_k:
                best = int(near.allowed[number].argmax())
                text = self.pools["train"].texts[int(near.rows[number, best])]
                rows[number].outcome = "inconsistent"
                rows[number].refused = (text, float(near.scores[number, best]))

    def _mine(
        self,
        rows: list[Row],
        anchors: np.ndarray,
        own: list[set[int]],
        near: Neighbours | None,
        cosines: np.ndarray,
        split: str,
    ) -> None:
        """Give rows their candidates; `near` are their neighbours if they are known already."""
        pool, depth = self.pools[split], self.rules.depth
        if near is None:
            near = mining.find_neighbours(anchors, own, pool, depth)
        words = self.lexical[split].search([row.pair.anchor for row in rows], depth).rows
        lexical = mining.lexical_neighbours(words, anchors, own, pool)
        number = ROUNDS * self.rules.negatives
        chosen = mining.choose_negatives((near, lexical), cosines, self.rules.margin, number)
        for row, candidates in zip(rows, chosen, strict=True):
            row.candidates = candidates

    def _judge_mined(self, rows: list[Row], split: str, counts: dict[str, Counter[str]]) -> None:
        for _ in range(ROUNDS):
            tried: list[tuple[Row, list[str]]] = []
            for row in rows:
                room = self.rules.negatives - len(row.negatives)
                places, row.candidates = row.candidates[:room], row.candidates[room:]
                if places:
                    tried.append((row, [self.pools[split].texts[place] for place in places]))
            # A row that came without negatives has not been judged at all yet.
            unseen = [[row.positive] if row.score is None else [] for row, _ in tried]
            texts = [first + mined for first, (_, mined) in zip(unseen, tried, strict=True)]
            judged = self._score([row for row, _ in tried], texts)
            for (row, mined), scores in zip(tried, judged, strict=True):
                if row.score is None:
                    row.score = scores.pop(0)
                self._settle_mined(row, mined, scores, counts[row.pair.source])

    def _settle_mined(
        self, row: Row, mined: list[str], scores: list[float], counter: Counter[str]
    ) -> None:
        for text, score in zip(mined, scores, strict=True):
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
            (row.pair.anchor, text) for row, own in zip(rows, texts, strict=True) for text in own
        ]
        roles = [row.pair.role for row, own in zip(rows, texts, strict=True) for _ in own]
        scores = iter(self.judge.score(asked, roles).tolist())
        return [[next(scores) for _ in own] for own in texts]


def prepare(
    judge: Judge, miner: Encoder, gathered: Gathered, rules: Rules, scratch: Path, *, half: bool
) -> Relabeller:
    """Encode the pools, once, and index their words.

    Args:
        judge: scores.
        miner: a bi-encoder; may be the judge's own.
        gathered: the pairs.
        rules: the rules.
        scratch: where the pools' vectors are kept.
        half: half precision on a GPU.
    """
    vectors = mining.Vectors(miner, half=half)
    pools: dict[str, Pool] = {}
    for split in triplets.SPLITS:
        texts = gathered.pool(split)
        if texts:
            path = scratch / f"{split}_pool.npy"
            roles = gathered.pool_roles(split)
            encoded = vectors.encode_pool(texts, roles, path, f"encode {split} pool")
            pools[split] = Pool(texts, words_keys(texts), encoded, roles)
            vectors.add_pool(pools[split])
    if judge.encoder is miner:
        # One model: what it has encoded to mine with, it need not encode again to judge.
        judge = dataclasses.replace(judge, score=judges.cosine_scores(vectors.encode))
    return Relabeller(judge, vectors, gathered, pools, rules)
