"""What the full recipes ask of the hub, made: small data sets, models of true shape.

Ids, configs, splits, columns, types and cards are those of the hub's data sets that the scripts'
constants and tables name. The models have the published shapes, vocabularies, poolings and number
formats; their weights are random, so that no figure they give means anything.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from miniature import Language, make_bpe_tokenizer

from small_modernbert.data import bpe_tokenizer, hub_datasets

if TYPE_CHECKING:
    import torch

ROWS = 40  # of a split of pairs, triplets or scores
# Of a split of the corpus, nine texts to four rows: create_dataset.py sets 1,000 texts aside.
TEXT_ROWS = 130
QUESTIONS = 16  # of a retrieval set
DISTRACTORS = 14  # documents of a retrieval set that answer nothing
SENTENCES = 2  # of a document
NANO_SETS = ("NanoMSMARCO", "NanoHotpotQA", "NanoNQ", "NanoFiQA2018", "NanoSciFact", "NanoNFCorpus")
# FACTS of public code: the commits that it pins.
COMMITS = {
    "HuggingFaceFW/finewiki": "8bd13e72e6a002407649b3e898535f42ceb1aeb9",
    "sentence-transformers/msmarco-msmarco-MiniLM-L6-v3": (
        "0d54352548089199bde15ad7e06efe895dc80b56"
    ),
    "sentence-transformers/NanoBEIR-en": "beb106fbcfaa599c508c667041bf8c85fd78736b",
    "BeIR/hotpotqa": "a7e8bab212f5a89f9be1bc9b654aa6dfa317f32b",
    "BeIR/hotpotqa-qrels": "b15429e9244c8ec966985d7778427c3b1543b314",
    "Alibaba-NLP/gte-modernbert-base": "e7f32e3c00f91d699e8c43b53106206bcc72bb22",
}
MODERNBERT_ENTRIES = 50_280  # of its BPE; five special tokens and 83 unused ones follow
MODERNBERT_ROWS = 50_368  # of its embedding
BERT_ENTRIES = 30_522
XLM_ROBERTA_ENTRIES = 250_002

Column = tuple[pa.DataType, Callable[[], Any]]


def make_data(root: Path, rows: int = ROWS, text_rows: int = TEXT_ROWS, seed: int = 0) -> None:
    """Make every data set below root/datasets, of as many rows a split."""
    language = Language(seed)
    corpus = {source.id for source in hub_datasets.TEXT_SOURCES.values()}
    for id, configs in tables(language).items():
        write_dataset(root / "datasets" / id, configs, text_rows if id in corpus else rows)
    write_retrieval(root / "datasets", language)


def tables(language: Language) -> dict[str, dict[str, dict[str, dict[str, Column]]]]:
    """Return id -> config -> split -> column -> its type and how a cell is made."""

    def text() -> str:
        topic = language.random.choice(language.topics)
        return f"{language.sentence(topic)} {language.sentence(topic)}"

    def question() -> str:
        return language.question(language.passage())

    def sentence() -> str:
        return language.sentence(language.random.choice(language.topics))

    waiting: list[str] = []

    def ask() -> str:
        waiting.append(question())
        return waiting[-1]

    def premise() -> str:
        waiting.append(sentence())
        return waiting[-1]

    def answer() -> str:
        """Repeat the next anchor: so a random miner finds the positive, and rows are kept."""
        return f"{waiting.pop(0)} {sentence()}"

    string = pa.string()
    triplet = {"anchor": premise, "positive": answer, "negative": sentence}
    searched = {"query": ask, "positive": answer, "negative": sentence}
    asked = {"query": question, "positive": sentence, "negative": sentence}
    wiki = {"text": text, "id": lambda: f"enwiki/{number()}", "title": question, "url": sentence}
    graded = {"sentence1": sentence, "sentence2": sentence}

    def number() -> int:
        return language.random.randrange(10**6)

    def of(makers: dict[str, Callable[[], str]], **others: Column) -> dict[str, Column]:
        return {**{name: (string, make) for name, make in makers.items()}, **others}

    score = (pa.float64(), lambda: round(language.random.random(), 2))
    return {
        "sentence-transformers/msmarco-msmarco-MiniLM-L6-v3": {
            "triplet": {"train": of(asked)},
            "triplet-ids": {"train": of({"query": lambda: str(number())})},
        },
        "johnnyboycurtis/Philosophical-Triplets-Retrieval": {
            "default": {"train": of({**asked, "text_chunk": text})}
        },
        "sentence-transformers/npr": {"default": {"train": of({"title": question, "body": text})}},
        "HuggingFaceFW/finewiki": {
            "en": {"train": of(wiki, page_id=(pa.int64(), number), has_math=(pa.bool_(), bool))},
            "fr": {"train": of({"text": text})},
        },
        "sentence-transformers/all-nli": {
            "pair": {"train": of({"anchor": premise, "positive": answer})},
            "triplet": {split: of(triplet) for split in ("train", "dev", "test")},
        },
        "sentence-transformers/quora-duplicates": {"triplet": {"train": of(triplet)}},
        "sentence-transformers/natural-questions": {
            "pair": {"train": of({"query": ask, "answer": answer})}
        },
        "sentence-transformers/trivia-qa-triplet": {
            "triplet": {
                "train": of({"anchor": ask, "positive": answer, "negative": text}),
            }
        },
        "sentence-transformers/gooaq": {"pair": {"train": of({"question": ask, "answer": answer})}},
        "sentence-transformers/msmarco-msmarco-distilbert-base-v3": {
            "triplet": {"train": of(searched)}
        },
        "sentence-transformers/stsb": {
            "default": {split: of(graded, score=score) for split in ("train", "validation", "test")}
        },
    }


def write_dataset(
    folder: Path, configs: dict[str, dict[str, dict[str, Column]]], rows: int
) -> None:
    """Write a data set's Parquet files, one a split, and the card that names them."""
    for config, splits in configs.items():
        for split, columns in splits.items():
            table = pa.table(
                {
                    name: pa.array([make() for _ in range(rows)], type)
                    for name, (type, make) in columns.items()
                }
            )
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
    write_card(folder, {config: list(splits) for config, splits in configs.items()})


def write_card(folder: Path, configs: dict[str, Sequence[str]]) -> None:
    """Write README.md with the YAML from which datasets takes configs and splits."""
    lines = ["---", "license: other", "language:", "- en", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
        if len(configs) > 1 and config == next(iter(configs)):
            lines.append("  default: true")
    (folder / "README.md").write_text("\n".join([*lines, "---", "", "# Made", ""]), "utf-8")


def write_retrieval(root: Path, language: Language) -> None:
    """Write NanoBEIR-en, a split for each set, and BeIR's hotpotqa with its judgements."""
    for name in NANO_SETS:
        queries, documents, judgements = retrieval_rows(language)
        for config, columns in {
            "corpus": {"_id": documents[0], "text": documents[2]},
            "queries": {"_id": queries[0], "text": queries[1]},
            "qrels": {"query-id": judgements[0], "corpus-id": judgements[1]},
        }.items():
            path = root / "sentence-transformers/NanoBEIR-en" / config / f"{name}-0.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns), path)
    configs = {config: NANO_SETS for config in ("corpus", "queries", "qrels")}
    write_card(root / "sentence-transformers/NanoBEIR-en", configs)

    queries, documents, judgements = retrieval_rows(language)
    folder = root / "BeIR/hotpotqa"
    tables = {
        "corpus": {"_id": documents[0], "title": documents[1], "text": documents[2]},
        "queries": {"_id": queries[0], "title": [""] * len(queries[0]), "text": queries[1]},
    }
    for config, columns in tables.items():
        (folder / config).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / config / f"{config}-0.parquet")
    write_card(folder, {config: [config] for config in tables})
    folder = root / "BeIR/hotpotqa-qrels"
    folder.mkdir(parents=True, exist_ok=True)
    rows = pa.table(
        {
            "query-id": judgements[0],
            "corpus-id": pa.array([int(id) for id in judgements[1]]),
            "score": pa.array([1] * len(judgements[0])),
        }
    )
    for split in ("train", "validation", "test"):
        options = pyarrow.csv.WriteOptions(delimiter="\t", quoting_style="none")
        pyarrow.csv.write_csv(rows, folder / f"{split}.tsv", options)
    (folder / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n", encoding="utf-8")


def retrieval_rows(language: Language) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Return (ids, texts) of queries, (ids, titles, texts) of documents, (queries, documents)."""
    passages = [language.passage() for _ in range(QUESTIONS + DISTRACTORS)]
    ids = [str(1000 + number) for number in range(len(passages))]
    titles = [language.random.choice(passage.words) for passage in passages]
    texts = [". ".join(passage.text.split(". ")[:SENTENCES]) for passage in passages]
    documents = [ids, titles, texts]
    asked = [language.question(passage) for passage in passages[:QUESTIONS]]
    queries = [[f"q{number}" for number in range(QUESTIONS)], asked]
    return queries, documents, [queries[0], ids[:QUESTIONS]]


def make_models(root: Path, seed: int = 0) -> None:
    """Make every model below root/models: some gigabytes, in the published number formats."""
    import torch
    from transformers import ModernBertForMaskedLM, ModernBertModel

    torch.manual_seed(seed)
    language = Language(seed)
    texts = [language.passage().text for _ in range(200)]
    config = modernbert_config()
    folder = root / "models" / "answerdotai" / "ModernBERT-base"
    make_modernbert_tokenizer(folder, texts)
    ModernBertForMaskedLM(config).save_pretrained(folder)
    folder = root / "models" / "Alibaba-NLP" / "gte-modernbert-base"
    make_modernbert_tokenizer(folder, texts)
    model = ModernBertModel(config)
    loosen(model.layers, "Wo")
    model.half().save_pretrained(folder)
    write_modules(folder, 768, pooling="cls", max_tokens=8_192, normalised=False)
    make_bge_base(root / "models" / "BAAI" / "bge-base-en-v1.5", language)
    make_reranker(root / "models" / "BAAI" / "bge-reranker-base", language)


def modernbert_config() -> Any:  # noqa: ANN401  naming it would import transformers
    """Return the configuration of ModernBERT-base: 22 layers, 768 wide, 12 heads."""
    from transformers import ModernBertConfig

    return ModernBertConfig(
        vocab_size=MODERNBERT_ROWS,
        hidden_size=768,
        intermediate_size=1_152,
        num_hidden_layers=22,
        num_attention_heads=12,
        max_position_embeddings=8_192,
        local_attention=128,
        global_attn_every_n_layers=3,
        pad_token_id=50_283,
        bos_token_id=50_281,
        eos_token_id=50_282,
        cls_token_id=50_281,
        sep_token_id=50_282,
    )


def loosen(layers: "torch.nn.Module", name: str) -> None:
    """Let attention carry more of the words to [CLS]: else all texts have nearly one vector."""
    import torch

    with torch.no_grad():
        for path, parameter in layers.named_parameters():
            if f"attn.{name}" in path or f"attention.{name}" in path:
                parameter.mul_(6.0)


def make_modernbert_tokenizer(folder: Path, texts: Sequence[str]) -> None:
    """Save ModernBERT's tokenizer with all its entries; most of them stand for nothing here.

    They are named as unused ones are, which Model2Vec leaves out: 48,000 would take it minutes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_bpe_tokenizer(folder, texts, entries=2_000)
    path = folder / "tokenizer.json"
    made = json.loads(path.read_text(encoding="utf-8"))
    made["added_tokens"] = [
        token for token in made["added_tokens"] if token["content"].startswith("<|")
    ]
    vocabulary = made["model"]["vocab"]
    for number in range(max(vocabulary.values()) + 1, MODERNBERT_ENTRIES):
        vocabulary[f"[unused{number}]"] = number
    bpe_tokenizer.save_bpe_tokenizer(made, folder)
    made = json.loads(path.read_text(encoding="utf-8"))
    first = MODERNBERT_ENTRIES + len(bpe_tokenizer.SPECIAL_TOKENS)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    made["added_tokens"] += [
        {"id": id, "content": f"[unused{id - first}]", **flags}
        for id in range(first, MODERNBERT_ROWS)
    ]
    path.write_text(json.dumps(made), encoding="utf-8")


def make_bge_base(folder: Path, language: Language) -> None:
    """Save a BERT-base as bge-base-en-v1.5 is: [CLS], unit length, 512 tokens."""
    from miniature import make_wordpiece_tokenizer
    from transformers import BertConfig, BertModel

    filler = [f"entry{number}" for number in range(BERT_ENTRIES)]
    folder.mkdir(parents=True, exist_ok=True)
    make_wordpiece_tokenizer(folder, [*language.words, *filler], 512, entries=BERT_ENTRIES)
    model = BertModel(BertConfig(vocab_size=BERT_ENTRIES))
    loosen(model.encoder.layer, "output.dense")
    model.save_pretrained(folder)
    write_modules(folder, 768, pooling="cls", max_tokens=512, normalised=True)


def make_reranker(folder: Path, language: Language) -> None:
    """Save an XLM-RoBERTa-base with one output, as bge-reranker-base is."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        PreTrainedTokenizerFast,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
    )

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?"
    pieces = dict.fromkeys([*special, *(f"▁{word}" for word in language.words), *letters])
    filler = (f"▁entry{number}" for number in range(XLM_ROBERTA_ENTRIES))
    entries = [*pieces, *filler][: XLM_ROBERTA_ENTRIES - 1] + ["<mask>"]
    scores = [(entry, -1.0 - 1e-5 * place) for place, entry in enumerate(entries)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
    ).save_pretrained(folder)
    config = XLMRobertaConfig(
        vocab_size=XLM_ROBERTA_ENTRIES,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=1,
        layer_norm_eps=1e-5,
    )
    model = XLMRobertaForSequenceClassification(config)
    loosen(model.roberta.encoder.layer, "output.dense")
    model.classifier.out_proj.weight.data.mul_(3.0)
    model.save_pretrained(folder)


def write_modules(
    folder: Path, width: int, *, pooling: str, max_tokens: int, normalised: bool
) -> None:
    """Write what makes a folder one of sentence-transformers: modules, pooling, lengths."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    kinds += [("2_Normalize", "Normalize")] if normalised else []
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    for name, value in {
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
        },
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "similarity_fn_name": "cosine"},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2), encoding="utf-8")


def listing(root: Path) -> Iterator[str]:
    """Yield a line on each repository: its id and its megabytes."""
    for kind in ("models", "datasets"):
        for folder in sorted((root / kind).glob("*/*")):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            yield f"{kind} {folder.parent.name}/{folder.name}: {size / 1e6:,.1f} MB"
