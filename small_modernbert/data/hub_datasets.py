"""The tables of sources: what users edit to train on other data."""

from small_modernbert.data.sources import PairSource, TextSource
from small_modernbert.runs.errors import UserError

# Pinned are the revisions that public code pins: msmarco and finewiki. The others, philosophy and
# npr here and every source of pairs, could not be looked up: their newest is taken, and the log and
# run.json name its commit.
TEXT_SOURCES = {
    source.name: source
    for source in (
        TextSource(
            name="msmarco",
            id="sentence-transformers/msmarco-msmarco-MiniLM-L6-v3",
            config="triplet",
            revision="0d54352548089199bde15ad7e06efe895dc80b56",
            texts=("query", "positive", "negative"),
            roles=("query", "document", "document"),
            licence="MS MARCO terms: non-commercial research",
        ),
        TextSource(
            name="philosophy",
            id="johnnyboycurtis/Philosophical-Triplets-Retrieval",
            texts=("query", "positive", "negative", "text_chunk"),
            roles=("query", "document", "document", "document"),
            licence="see the dataset's card; the entries are their authors'",
        ),
        TextSource(
            name="npr",
            id="sentence-transformers/npr",
            texts=("title", "body"),
            join="joined",
            roles=("document", "document"),
            licence="see the dataset's card; the articles are NPR's",
        ),
        TextSource(
            name="finewiki",
            id="HuggingFaceFW/finewiki",
            config="en",
            revision="8bd13e72e6a002407649b3e898535f42ceb1aeb9",
            texts=("text",),
            roles=("document",),
            licence="CC BY-SA 4.0",
        ),
        TextSource(
            name="offline",
            id="assets/text/train.parquet",
            texts=("text",),
            label="source",
            role="role",
            licence="boolq CC BY-SA 3.0, hellaswag MIT, socialiqa and winogrande CC BY, "
            "piqa AFL 3.0, others: see their cards",
        ),
    )
}

# Columns and licences are from memory: the hub was out of reach where this was written. A wrong
# column is refused by name; of licences, the dataset's card decides.
PAIR_SOURCES = {
    source.name: source
    for source in (
        PairSource(
            name="all-nli",
            id="sentence-transformers/all-nli",
            config="triplet",
            negatives=("negative",),
            anchor_role="text",  # a premise asks nothing
            licence="SNLI CC BY-SA 4.0, MultiNLI OANC and others",
        ),
        PairSource(
            name="quora-duplicates",
            id="sentence-transformers/quora-duplicates",
            config="triplet",
            negatives=("negative",),
            anchor_role="text",  # two questions that mean the same
            licence="Quora's terms: non-commercial",
        ),
        PairSource(
            name="natural-questions",
            id="sentence-transformers/natural-questions",
            anchor="query",
            positive="answer",
            licence="CC BY-SA 3.0",
        ),
        PairSource(
            name="trivia-qa",
            id="sentence-transformers/trivia-qa-triplet",
            config="triplet",
            negatives=("negative",),
            licence="see the dataset's card; the passages are Wikipedia's, CC BY-SA",
        ),
        PairSource(
            name="gooaq",
            id="sentence-transformers/gooaq",
            anchor="question",
            positive="answer",
            # Three million rows of one kind would drown the others.
            cap=250_000,
            licence="Apache-2.0; the answers are of web pages",
        ),
        PairSource(
            name="msmarco",
            id="sentence-transformers/msmarco-msmarco-distilbert-base-v3",
            config="triplet",
            anchor="query",
            negatives=("negative",),
            licence="MS MARCO terms: non-commercial research",
        ),
    )
}


def select_texts(names: list[str]) -> list[TextSource]:
    """Return the rows of TEXT_SOURCES that are named, in the order given.

    Raises:
        UserError: a name is unknown or given twice, or none is given.
    """
    unknown = [name for name in names if name not in TEXT_SOURCES]
    if unknown or not names or len(set(names)) < len(names):
        wrong = f"no such source: {', '.join(unknown)}" if unknown else "name each source once"
        raise UserError(f"{wrong}; --sources takes some of: {' '.join(TEXT_SOURCES)}")
    return [TEXT_SOURCES[name] for name in names]
