"""Promise of the rehearsal: whatever the scripts' tables ask of the hub, the made hub has."""

import ast
import re
from pathlib import Path

import pytest
from miniature import Language
from rehearsal import made_hub
from tokenizers import Tokenizer

from small_modernbert.data import evaluation_sets, hub_datasets
from small_modernbert.data.sources import Source
from small_modernbert.runs import hub
from small_modernbert.runs.references import ROOT

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
MODELS = {
    *("answerdotai/ModernBERT-base", "Alibaba-NLP/gte-modernbert-base"),
    *("BAAI/bge-base-en-v1.5", "BAAI/bge-reranker-base"),
}
SOURCES = [
    source
    for table in (hub_datasets.TEXT_SOURCES, hub_datasets.PAIR_SOURCES)
    for source in table.values()
    if not (ROOT / source.id).exists() and not source.id.startswith("assets/")
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: f"{source.name} {source.id}")
def test_every_source_is_made(source: Source) -> None:
    """Its id, config, split and columns; whatever public code pins is pinned to that commit."""
    configs = made_hub.tables(Language(0))[source.id]
    config = configs[source.config] if source.config else next(iter(configs.values()))
    assert set(source.all_columns) <= set(config[source.split])
    assert source.revision == made_hub.COMMITS.get(source.id)


def test_every_default_of_a_script_is_made() -> None:
    """Hub ids among the constants are made models or data sets, pinned where public code is."""
    made = {*made_hub.tables(Language(0)), *MODELS, "BeIR/hotpotqa", "BeIR/hotpotqa-qrels"}
    made.add(evaluation_sets.NANOBEIR)
    scripts = [*ROOT.glob("*.py"), *ROOT.glob("mlm/[!_]*.py")]
    asked: set[str] = set()
    for script in scripts:
        for node in ast.parse(script.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.AnnAssign) or node.value is None:
                continue
            for part in ast.walk(node.value):
                id, _, revision = str(getattr(part, "value", "")).partition("@")
                if HUB_ID.fullmatch(id):
                    asked.add(id)
                    assert revision == made_hub.COMMITS.get(id, ""), (id, revision)
    stages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in scripts}
    elsewhere = {*stages, "assets"}
    asked = {id for id in asked if not {id, id.split("/")[0]} & elsewhere}
    assert asked - made == set()
    assert len(asked & made) > 5


def test_every_nano_set_of_a_script_is_made() -> None:
    """Sets that a constant names are splits of the made NanoBEIR."""
    scripts = [*ROOT.glob("*.py"), *ROOT.glob("mlm/[!_]*.py"), *ROOT.glob("recipes/*.sh")]
    named = {
        name
        for script in scripts
        for name in re.findall(r"\bNano[A-Z]\w+", script.read_text(encoding="utf-8"))
    }
    assert named - {"NanoBEIR"} <= set(made_hub.NANO_SETS)


def test_made_rows_are_read_as_the_hub_serves_them(tmp_path: Path) -> None:
    """Cards name configs and splits, so that a folder is read like the hub's own data set."""
    made_hub.make_data(tmp_path, rows=5, text_rows=5)
    folder = str(tmp_path / "datasets" / "sentence-transformers" / "all-nli")
    (batch,) = hub.stream_rows(folder, "triplet", "dev", None, ["anchor", "negative"])
    assert {name: len(cells) for name, cells in batch.items()} == {"anchor": 5, "negative": 5}


def test_the_made_tokenizer_has_every_entry(tmp_path: Path) -> None:
    """As many entries as ModernBERT's embedding has rows, the special ones where its are."""
    texts = [Language(0).passage().text for _ in range(20)]
    made_hub.make_modernbert_tokenizer(tmp_path, texts)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == made_hub.MODERNBERT_ROWS
    ids = [tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]", "[MASK]")]
    assert ids == [50_281, 50_282, 50_283, 50_284]
    assert tokenizer.encode(texts[0]).ids[0] == 50_281
