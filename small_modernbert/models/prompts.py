"""Prompts: what a model wants in front of a text, by the part that the text plays.

A model's folder may name a prompt for queries, one for documents, and a default for all the rest.
`SentenceTransformer.encode_query`, `encode_document` and `encode` put them in front; whoever
encodes by other means takes them from here, so that the vectors are the model's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Role = Literal["text", "query", "document"]
ROLES: tuple[Role, ...] = get_args(Role)
# As sentence-transformers looks for it: the first of these names that there is.
DOCUMENT_NAMES = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Prompts:
    """What stands in front of a text, "" for nothing.

    Attributes:
        text: of a text that is neither query nor document: the model's default prompt.
        query: of a query.
        document: of a document.
    """

    text: str = ""
    query: str = ""
    document: str = ""

    def of(self, role: Role) -> str:
        """Return the prompt of a role."""
        return getattr(self, role)

    def __bool__(self) -> bool:
        """Say whether any text gets a prompt."""
        return bool(self.text or self.query or self.document)


def choose_prompts(
    named: Mapping[str, str | None], default: str | None, query: str = "", document: str = ""
) -> Prompts:
    """Return the prompts as `encode`, `encode_query` and `encode_document` choose them.

    Args:
        named: a model's prompts by name.
        default: the name of the one that is for all texts; a query or a document without a prompt
            of its own gets none, not this one.
        query: used where the model names none for queries (E5, BGE, DenseOn: it is on their cards).
        document: likewise for documents.
    """
    own = next((named[name] for name in DOCUMENT_NAMES if name in named), "")
    return Prompts(
        text=(named.get(default) if default else "") or "",
        query=named.get("query") or query,
        document=own or document,
    )


def prompts_of(model: "SentenceTransformer", query: str = "", document: str = "") -> Prompts:
    """Return a loaded model's prompts; see `choose_prompts`."""
    return choose_prompts(model.prompts, model.default_prompt_name, query, document)


def prompt_tokens(model: "SentenceTransformer", prompt: str) -> int:
    """Return how many tokens of a prompted text are no part of what is pooled.

    0 unless the model's pooling says `include_prompt: false`, as INSTRUCTOR's and some of Nomic's
    and Jina's do; a closing special token of the prompt alone does not count.
    """
    pooled = all(getattr(module, "include_prompt", True) for module in model)
    if not prompt or pooled:
        return 0
    ids = model.tokenizer(prompt, return_attention_mask=False)["input_ids"]
    return len(ids) - (ids[-1] in model.tokenizer.all_special_ids)
