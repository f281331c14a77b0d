"""What a teacher reads of a text: its prompt in front, as many tokens as it takes, and no more.

A text that is longer than that is labelled by its beginning alone, which is counted here and said;
or it is cut where the teacher stops, so that whoever trains on the label reads the same words.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sentence_transformers import SentenceTransformer

from small_modernbert.models import inference
from small_modernbert.models.prompts import ROLES, Prompts, Role, prompt_tokens
from small_modernbert.models.teachers import token_ids
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)
# A CPU is fastest while a batch's activations stay in its cache, a GPU when it is full.
CPU_TOKENS, GPU_TOKENS = 2_048, 65_536
AGREEMENT = 0.999  # cosine to the model's own encode below which something of it is not honoured
TRIALS = ("A trial.", "WHICH River flows\nthrough Zürich?", "def f(x):\n    return x[0]  " * 9)


@dataclass(frozen=True)
class Reading:
    """Texts as a teacher reads them.

    Attributes:
        texts: as given; or cut to what is read.
        roles: of each.
        ids: token ids of each, prompt and special tokens included.
        cut: how many of the texts are longer than what is read.
    """

    texts: list[str]
    roles: list[Role]
    ids: list[list[int]]
    cut: int

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.ids))


class Reader:
    """Turns texts and their roles into a teacher's own vectors.

    Attributes:
        teacher: the model.
        prompts: by role.
        limits: role -> tokens of a text at most, prompt and special tokens included.
        cuts_texts: whether longer texts are cut, and not only read to the limit.
    """

    def __init__(
        self, teacher: SentenceTransformer, prompts: Prompts, *, max_tokens: int = 0
    ) -> None:
        """Prepare to read.

        Args:
            teacher: in evaluation mode.
            prompts: by role.
            max_tokens: texts are cut to so many tokens, or to what the teacher reads if that is
                less; 0 leaves them as they are.
        """
        self.teacher, self.prompts, self.cuts_texts = teacher, prompts, max_tokens > 0
        own = {role: _own_limit(teacher, role) for role in ROLES}
        self.limits = {role: min(limit, max_tokens or limit) for role, limit in own.items()}
        self._skipped = {role: prompt_tokens(teacher, prompts.of(role)) for role in ROLES}
        self.engine = inference.load_engine(teacher, "fp32")
        on_cpu = teacher.device.type == "cpu"
        self.tokens_per_batch = CPU_TOKENS if on_cpu else GPU_TOKENS

    def prepare(
        self, precision: str, probes: tuple[list[str], list[Role]], tokens_per_batch: int = 0
    ) -> dict[str, object]:
        """Choose how the teacher runs, and see that its vectors are its own.

        Args:
            precision: see `inference.load_engine`.
            probes: real texts and their roles, the same ones after a kill: so is the choice.
            tokens_per_batch: 0 for as many as suit the device.

        Returns:
            What was chosen, for run.json.
        """
        self.check()
        texts, roles = (part[: inference.PROBES] for part in probes)
        self.engine = inference.load_engine(self.teacher, precision, self.read(texts, roles).ids)
        self.tokens_per_batch = tokens_per_batch or self.tokens_per_batch
        if self.prompts:
            logger.info("prompts of %s", vars(self.prompts))
        return {"fidelity": self.engine.fidelity, "prompts": vars(self.prompts)}

    @property
    def dimension(self) -> int:
        """Width of the teacher's own vectors."""
        return self.teacher.get_embedding_dimension()

    def read(self, texts: Sequence[str], roles: Sequence[Role]) -> Reading:
        """Tokenise texts as the teacher's own encode functions do."""
        kept, ids, cut = list(texts), [[] for _ in texts], 0
        for role, rows in rows_by_role(roles).items():
            part = [kept[row] for row in rows]
            part_ids = self._tokenise(part, role)
            longer = self._longer(part, part_ids, role)
            cut += len(longer)
            if longer and self.cuts_texts:
                shorter = self._shorten([part[place] for place in longer], role)
                again = self._tokenise(shorter, role)
                for place, text, tokens in zip(longer, shorter, again, strict=True):
                    part[place], part_ids[place] = text, tokens
            for row, text, tokens in zip(rows, part, part_ids, strict=True):
                kept[row], ids[row] = text, tokens
        return Reading(kept, list(roles), ids, cut)

    def encode(
        self, reading: Reading, advance: Callable[[int], object] = lambda rows: None
    ) -> np.ndarray:
        """Return the teacher's own vectors, `(texts, dimension)` float32, not normalised."""
        vectors = np.empty((len(reading.texts), self.dimension), dtype=np.float32)
        for role, rows in rows_by_role(reading.roles).items():
            vectors[rows] = self.engine.encode(
                [reading.ids[row] for row in rows],
                tokens_per_batch=self.tokens_per_batch,
                prompt_tokens=self._skipped[role],
                advance=advance,
            )
        return vectors

    def check(self) -> None:
        """Refuse a teacher whose own encode does something that is not done here.

        A chat template around each text, say, or padding that is attended to.

        Raises:
            UserError: naming the function whose vectors are others.
        """
        own = {
            "text": self.teacher.encode,
            "query": self.teacher.encode_query,
            "document": self.teacher.encode_document,
        }
        for role in ROLES:
            reading = self.read(TRIALS, [role] * len(TRIALS))
            vectors = self.encode(reading)
            given = {} if role == "text" else {"prompt": self.prompts.of(role)}
            wanted = own[role](list(reading.texts), show_progress_bar=False, **given)
            lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted, axis=1)
            cosines = np.einsum("ij,ij->i", vectors, wanted) / np.maximum(lengths, 1e-12)
            if not cosines.min() >= AGREEMENT:
                raise UserError(
                    f"the teacher's {own[role].__name__} gives other vectors than its tokenizer, "
                    f"prompts and modules do (cosine {cosines.min():.4f}): it does something that "
                    "is not honoured here; take another one: --teacher"
                )

    def _tokenise(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        return token_ids(self.teacher, texts, self.prompts.of(role), self.limits[role])

    def _longer(self, texts: Sequence[str], ids: Sequence[list[int]], role: Role) -> list[int]:
        """Return the places of texts that have more tokens than are read."""
        limit, prompt = self.limits[role], self.prompts.of(role)
        full = [place for place, tokens in enumerate(ids) if len(tokens) >= limit]
        if not full:
            return []
        whole = self.teacher.tokenizer(
            [prompt + texts[place] for place in full],
            truncation=False,
            padding=False,
            verbose=False,
            return_attention_mask=False,
        )
        return [
            place
            for place, tokens in zip(full, whole["input_ids"], strict=True)
            if len(tokens) > limit
        ]

    def _shorten(self, texts: Sequence[str], role: Role) -> list[str]:
        """Cut texts behind the last token that is read.

        Raises:
            UserError: nothing of a text is read.
        """
        prompt, limit = self.prompts.of(role), self.limits[role]
        encoded = self.teacher.tokenizer(
            [prompt + text for text in texts],
            truncation=True,
            max_length=limit,
            padding=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        shorter = []
        masks = zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        for text, (offsets, special) in zip(texts, masks, strict=True):
            ends = [end for (_, end), no_word in zip(offsets, special, strict=True) if not no_word]
            shorter.append(text[: max(0, max(ends, default=0) - len(prompt))].rstrip())
            if not shorter[-1]:
                raise UserError(
                    f"{limit} tokens leave nothing of the text {text[:80]!r} beside special tokens "
                    "and prompt; raise --max-tokens"
                )
        return shorter


def rows_by_role(roles: Sequence[Role]) -> dict[Role, list[int]]:
    """Return the rows of each role, ascending.

    Raises:
        UserError: a role is unknown.
    """
    if unknown := set(roles).difference(ROLES):
        raise UserError(
            f"no such role of a text: {unknown.pop()!r}; give one of: {', '.join(ROLES)}"
        )
    rows = {role: [row for row, own in enumerate(roles) if own == role] for role in ROLES}
    return {role: numbers for role, numbers in rows.items() if numbers}


def _own_limit(teacher: SentenceTransformer, role: Role) -> int:
    """Return what a teacher reads of a text at most, in tokens."""
    # Late-interaction models bound queries and documents apart; None where a model does not.
    apart = getattr(teacher[0], f"{role}_length", None)
    return int(apart or teacher.max_seq_length or teacher.tokenizer.model_max_length)
