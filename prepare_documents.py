"""Turn a folder of documents into texts to train on, passages to search, and sets to measure on.

Reads:  DOCUMENTS (files of many kinds, see small_modernbert/data/documents.py), QUERIES where the
        user has some, TEACHER, and a share of general text, so that the rest is not forgotten
Writes: runs/<recipe>/prepare_documents/final/: text/own.parquet and text/general.parquet to train
        on; retrieval/ with the sets `mine` and `mine-validation`, of documents that never train;
        passages/ with every passage; documents.md: what became of every file, with examples

    python prepare_documents.py --documents ~/notes
    python prepare_documents.py --documents ~/notes --queries ~/asked.csv
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from small_modernbert.runs import lineage, references, report, settings, stages, storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.data.documents import Document
    from small_modernbert.data.own_sets import Parts, UserQuery
    from small_modernbert.data.passages import Passage
    from small_modernbert.data.retrieval_sets import RetrievalSet

# Inputs
DOCUMENTS: str = ""  # a folder, or one file with a document a row
QUERIES: str = ""  # a file with a column `query`, and `document` (a file's name) where one answers
TEACHER: str = "assets/models/all-MiniLM-L6-v2"  # its tokens are counted: stage, folder, hub id
GENERAL_TEXT: list[str] = ["assets/text/wiki.parquet", "assets/text/papers.parquet"]  # mixed in
GENERAL_SETS: list[str] = ["squad"]  # copied beside the own sets: what else is the model good for?
GENERAL_FOLDER: str = "assets/retrieval"  # where those are

# Documents
MAX_DOCUMENTS: int = 20_000  # beyond it a seeded sample; 0 for all, held in memory
MAX_TOKENS: int = 224  # of a passage, special ones included; headings come on top when it trains

# Texts
OWN_TEXTS: int = 14_000  # passages and queries to train on; beyond it a seeded choice
GENERAL_TEXTS: int = 6_000  # of other text

# Evaluation
HELD_OUT_SHARE: float = 0.2  # of the documents, or a hundred: half to select on, half to report
MAX_QUERIES: int = 400  # of each set
MAX_PASSAGES: int = 1_000  # of each set, to its last document: what an evaluation takes time for

# Output
RECIPE: str = "mine"  # folder below runs/
VARIANT: str = ""  # a folder of its own for a run with other settings
OVERWRITE: bool = False  # redo a finished run
SEED: int = 42  # of every choice

EXAMPLES, SHOWN_CHARACTERS = 3, 160  # of each kind, and of a text, in documents.md
STUDENT_LAYERS = 3  # of the teacher's: the recipe's, refused here before anything is labelled
HEADING_TOKENS = 32  # beside a passage, of what the teacher reads
COMPARED_PASSAGES = 2_000  # with a general set, to tell a language
SET_PARTS = ("corpus", "queries", "qrels")  # folders of NanoBEIR's layout
logger = logging.getLogger("small_modernbert.prepare_documents")


def main() -> None:
    """Read and cut the documents, keep some apart, make queries, write it all down."""
    from small_modernbert.data import documents

    inputs = find_inputs()
    inputs["teacher"], max_tokens = find_teacher()
    counts, folder = Counter[str](), inputs["documents"]
    files = documents.list_files(folder, MAX_DOCUMENTS, SEED, counts)
    with stages.Stage(globals(), inputs | {"documents": lineage.Chosen(folder, files)}) as stage:
        if stage.finished:
            return
        from small_modernbert.data import own_sets, passages

        kept = own_sets.by_sections(read_sample(folder, files, counts))
        queries = read_queries(inputs.get("queries"), kept, counts)
        cut = cut_documents(kept, inputs["teacher"], max_tokens)
        pieces = Counter(piece.document for piece in cut)
        parts = own_sets.divide(kept, queries, pieces, HELD_OUT_SHARE, MAX_PASSAGES, SEED)
        held_out = {*parts.validation, *parts.reported}
        training = [piece for piece in cut if piece.document not in held_out]
        learned = [query for query in queries if query.document not in held_out]
        rows, made = own_sets.training_texts(training, learned, OWN_TEXTS, SEED)
        general = read_general(inputs)

        storage.remove(stage.building)
        write_texts(stage.building / "text" / "own.parquet", rows)
        write_texts(stage.building / "text" / "general.parquet", general)
        indexed = ((piece.titled, piece.document, "document") for piece in cut)
        write_texts(stage.building / "passages" / "passages.parquet", indexed)
        common = passages.common_headings(cut)
        sets = write_sets(stage.building / "retrieval", cut, common, queries, parts)
        copy_general_sets(stage.building / "retrieval", inputs)
        compare_languages(cut, stage.building / "retrieval")
        counts |= {"documents": len(kept), "documents to train on": len(parts.training)}
        counts |= {"documents held out": len(held_out), "passages": len(cut)}
        counts |= {f"own texts: {kind}": number for kind, number in made.items()}
        counts["general texts"] = len(general)
        write_report(stage.building, counts, rows, sets)
        stage.record.rows = dict(counts)
        stage.record.facts = {"queries": {name: kind for name, (_, kind) in sets.items()}}
        stage.finish(
            f"{len(kept):,} documents → {len(cut):,} passages, {len(rows):,} own texts",
            verify=check,
        )


def find_inputs() -> dict[str, Path]:
    """Resolve every place before anything is read.

    Raises:
        UserError: one is not there, or a number makes no sense.
    """
    if not DOCUMENTS:
        raise UserError("DOCUMENTS is empty; name a folder: --documents ~/notes")
    if not 0 < HELD_OUT_SHARE < 1:
        raise UserError(f"HELD_OUT_SHARE is {HELD_OUT_SHARE}; between 0 and 1: 0.2, say")
    least = {"OWN_TEXTS": 2, "MAX_QUERIES": 1, "MAX_PASSAGES": 1}
    least |= {"GENERAL_TEXTS": 0, "MAX_DOCUMENTS": 0}
    for name, number in least.items():
        if globals()[name] < number:
            raise UserError(f"{name} is {globals()[name]}; give {number} at least")
    inputs = {}
    for name, place in (("documents", DOCUMENTS), ("queries", QUERIES)):
        if place and (path := references.find(place)) is None:
            raise UserError(f"{name.upper()}: {place} is not there; correct --{name}")
        if place:
            inputs[name] = path
    for number, text in enumerate(GENERAL_TEXT if GENERAL_TEXTS else [], 1):
        path = references.find_file(text, "GENERAL_TEXT", references.ASSETS)
        if path is None:
            raise UserError(
                f"GENERAL_TEXT: {text} is not there; {references.ASSETS}, or --general-texts 0"
            )
        inputs[f"general text {number}"] = path
    if GENERAL_SETS:
        inputs["general sets"] = references.need(
            GENERAL_FOLDER, RECIPE, "GENERAL_FOLDER", references.ASSETS
        )
    for name in GENERAL_SETS:
        for kind in SET_PARTS:
            file = inputs["general sets"] / kind / f"{name}.parquet"
            if not file.is_file():
                raise UserError(f"GENERAL_SETS: {file} is not there; {references.ASSETS}")
    return inputs


def find_teacher() -> tuple[Path, int]:
    """Return the teacher's folder, fetched if TEACHER is a hub id, and a passage's most tokens.

    Raises:
        UserError: it is not there, or no student can be made of some of its layers.
    """
    from small_modernbert.models import copying, loading

    references.find_file(TEACHER, "TEACHER", references.ASSETS)
    folder = references.locate(TEACHER, RECIPE)
    folder = loading.fetch(TEACHER) if folder is None else folder
    read = copying.check_teacher(folder, STUDENT_LAYERS)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"TEACHER: {folder} has no tokenizer.json; {loading.FAST.format(folder=folder)}"
        )
    if read < 2 * HEADING_TOKENS:
        raise UserError(f"TEACHER: {folder} reads {read} tokens of a text; name one that reads 128")
    if read < MAX_TOKENS + HEADING_TOKENS:
        logger.warning(
            "the teacher reads %d tokens of a text, so passages have %d at most, not %d",
            *(read, read - HEADING_TOKENS, MAX_TOKENS),
        )
    return folder, min(read - HEADING_TOKENS, MAX_TOKENS)


def read_sample(folder: Path, files: Sequence[Path], counts: Counter[str]) -> "list[Document]":
    """Read the documents, beyond MAX_DOCUMENTS a seeded sample of them; in order of their names.

    Raises:
        UserError: there is none.
    """
    import random

    from small_modernbert.data import documents

    kept: list[Document] = []
    rng, seen = random.Random(SEED), 0
    for file in report.progress(files, description="reading documents"):
        for document in documents.read_documents(file, folder, counts):
            seen += 1
            if not MAX_DOCUMENTS or len(kept) < MAX_DOCUMENTS:
                kept.append(document)
            elif (place := rng.randrange(seen)) < MAX_DOCUMENTS:
                kept[place] = document  # Vitter's reservoir: each document has the same chance
    if not kept:
        raise UserError(
            f"{folder}: none of {len(files):,} files holds text; name others: --documents"
        )
    if counts["files beyond the sample"] or seen > len(kept):
        logger.warning(
            "there are %s documents: a sample of %s is taken, by the seed (--max-documents)",
            *(f"{number:,}" for number in (counts["files beyond the sample"] + seen, len(kept))),
        )
    counts["files"] += len(files)
    counts["documents beyond the sample"] += seen - len(kept)
    for reason in [reason for reason, number in counts.items() if not number]:
        del counts[reason]
    return sorted(kept, key=lambda document: document.name)


def read_queries(
    file: Path | None, documents: "list[Document]", counts: Counter[str]
) -> "list[UserQuery]":
    """Read the user's queries; none where there is no file."""
    from small_modernbert.data import own_sets

    if file is None:
        return []
    return own_sets.read_queries(file, [document.name for document in documents], counts)


def cut_documents(documents: "list[Document]", teacher: Path, max_tokens: int) -> "list[Passage]":
    """Cut all documents to passages of so many of the teacher's tokens."""
    from tokenizers import Tokenizer

    from small_modernbert.data import passages
    from small_modernbert.data.chunking import Chunker

    chunker = Chunker(Tokenizer.from_file(str(teacher / "tokenizer.json")), max_tokens)
    return [
        piece
        for document in report.progress(documents, description="cutting to passages")
        for piece in passages.cut_document(document, chunker)
    ]


def read_general(inputs: dict[str, Path]) -> list[tuple[str, str, str]]:
    """Return a seeded choice of the general texts, an equal share of each file."""
    import random

    from small_modernbert.data import file_rows

    files = [path for name, path in inputs.items() if name.startswith("general text")]
    rows: list[tuple[str, str, str]] = []
    for number, path in enumerate(files):
        share = (GENERAL_TEXTS - len(rows)) // (len(files) - number)
        cells = []
        for batch in file_rows.read_rows(
            path, {"text": "any"}, references.ASSETS, optional=("role",)
        ):
            roles = batch.get("role") or ["text"] * len(batch["text"])
            cells += zip(batch["text"], roles, strict=True)
        chosen = random.Random(SEED).sample(cells, min(share, len(cells)))
        rows += [(text, path.stem, role) for text, role in chosen]
    return rows


def write_texts(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write rows of text, source and role."""
    from small_modernbert.data.asset_writing import RowWriter

    with RowWriter(path, ("text", "source", "role")) as writer:
        for row in rows:
            writer.append(*row)


def write_sets(
    folder: Path,
    cut: "list[Passage]",
    common: set[str],
    queries: "list[UserQuery]",
    parts: "Parts",
) -> "dict[str, tuple[RetrievalSet, str]]":
    """Make and write the sets of the held-out documents.

    Raises:
        UserError: one would have no query.
    """
    from small_modernbert.data import own_sets
    from small_modernbert.data.asset_writing import write_retrieval_set

    sets = {}
    for name, names in (
        (own_sets.REPORTED, set(parts.reported)),
        (own_sets.VALIDATION, set(parts.validation)),
    ):
        pieces = [piece for piece in cut if piece.document in names]
        made, kind = own_sets.make_set(name, pieces, common, queries, MAX_QUERIES, SEED)
        if made is None:
            raise UserError(
                f"no query can be made for the {len(names):,} documents of the set {name}: they "
                "have no headings, and no sentence with text after it; give --queries, or more "
                "documents"
            )
        write_retrieval_set(made, folder)
        sets[name] = made, kind
        if len(made.queries) < own_sets.ENOUGH_QUERIES:
            logger.warning(
                "%s: %d queries over %d passages are too few for a figure that says much; bring "
                "more documents, queries of your own (--queries), or hold more of them out "
                "(--held-out-share)",
                *(name, len(made.queries), len(made.documents)),
            )
    return sets


def copy_general_sets(folder: Path, inputs: dict[str, Path]) -> None:
    """Copy GENERAL_SETS beside the own ones: a script reads all its sets from one folder."""
    for name in GENERAL_SETS:
        for kind in SET_PARTS:
            part = Path(kind) / f"{name}.parquet"
            shutil.copyfile(inputs["general sets"] / part, folder / part)


def compare_languages(cut: "list[Passage]", folder: Path) -> None:
    """Warn where documents are in another language than the first of GENERAL_SETS, or no prose."""
    import random

    from small_modernbert.data import evaluation_sets, languages

    if not GENERAL_SETS:
        return
    general = evaluation_sets.load_retrieval_set(folder, GENERAL_SETS[0])
    places = random.Random(SEED).sample(range(len(cut)), min(COMPARED_PASSAGES, len(cut)))
    words = languages.compare((cut[place].text for place in sorted(places)), general.documents)
    if words.letters < languages.MUCH:
        logger.warning(
            "%.0f of 100 words of your documents are numbers or signs, and a model of language can "
            "do little with them: leave tables out, or search them by other means",
            100 * (1 - words.letters),
        )
    elif words.foreign > languages.MUCH:
        logger.warning(
            "the hundred commonest words of %s are %.0f %% of its text and %.0f %% of yours, and "
            "hardly any stand in %.0f %% of yours: that is in another language, which the teacher "
            "must read (my_domain.sh --teacher), or it is code and no prose",
            *(general.name, 100 * words.theirs, 100 * words.ours, 100 * words.foreign),
        )


def write_report(
    folder: Path,
    counts: Counter[str],
    rows: list[tuple[str, str, str]],
    sets: "dict[str, tuple[RetrievalSet, str]]",
) -> None:
    """Write documents.md, and log its first table."""
    table = report.table(["what", "how many"], [[what, number] for what, number in counts.items()])
    for line in table.splitlines():
        logger.info("%s", line)
    parts = ["# Documents", table, "## Texts to train on"]
    for kind in dict.fromkeys(source for _, source, _ in rows):
        texts = [text for text, source, _ in rows if source == kind][:EXAMPLES]
        parts.append(
            "\n".join(
                [f"{kind}:", "", *(f"- {report.shorten(text, SHOWN_CHARACTERS)}" for text in texts)]
            )
        )
    for name, (made, kind) in sets.items():
        parts.append(f"## {name}: {kind}")
        parts.append(f"{len(made.queries):,} queries over {len(made.documents):,} passages.")
        text_of = dict(zip(made.document_ids, made.documents, strict=True))
        for query, text in list(zip(made.query_ids, made.queries, strict=True))[:EXAMPLES]:
            sides = (text, text_of[next(iter(made.relevant[query]))])
            parts.append(
                f"- {' → '.join(report.shorten(side, SHOWN_CHARACTERS) for side in sides)}"
            )
    storage.write_text(folder / "documents.md", "\n\n".join(parts) + "\n")


def check(folder: Path) -> None:
    """Read everything back as later stages do.

    Raises:
        UserError: something does not read.
    """
    from small_modernbert.data import evaluation_sets, file_rows, own_sets

    for file in file_rows.find_files(folder / "text", folder / "passages", cure="redo it"):
        file_rows.count_rows(file.path, "redo it")
    for name in (own_sets.REPORTED, own_sets.VALIDATION, *GENERAL_SETS):
        evaluation_sets.load_retrieval_set(folder / "retrieval", name)


if __name__ == "__main__":
    settings.run(globals())
