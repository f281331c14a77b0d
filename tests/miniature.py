"""A miniature of assets/, made in process: the whole recipe runs on it in a test, with no network.

The texts are of a small invented language that a small model can learn: every topic has words of
its own, a passage mixes two topics, and a question uses words of its passage. The teacher is a tiny
BERT whose word vectors know the topics, so that it really is better than chance.
"""

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from small_modernbert.data import (
    asset_writing,
    bpe_tokenizer,
    corpus,
    further_texts,
    offline_assets,
    shards,
)
from small_modernbert.data.asset_writing import TrainingFiles
from small_modernbert.data.further_texts import Article
from small_modernbert.data.leaks import LeakFilter
from small_modernbert.data.offline_tasks import Document
from small_modernbert.data.pairs import Pair
from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.runs import storage

TEACHER = "all-MiniLM-L6-v2"
PASSAGES = 400
EXTRA_QUESTIONS = 250
SENTENCES = 450
ARTICLES = 300
RETRIEVAL_QUESTIONS = 60
RETRIEVAL_DOCUMENTS = 80
SENTENCE_PAIRS = 60
BPE_ENTRIES = 900
RESIDUAL_SCALE = 0.06  # of the teacher's matrices; larger, and its layers drown the words

# fmt: off
FUNCTION_WORDS = (
    "a", "an", "and", "are", "as", "at", "but", "by", "can", "do", "does", "for", "from", "has",
    "have", "in", "is", "it", "not", "of", "on", "or", "that", "the", "they", "this", "to",
    "was", "were", "what", "when", "where", "which", "who", "will", "with",
)
# fmt: on
SENTENCE_SHAPES = (
    "the _ _ of the _ is a _ _",
    "a _ can _ the _ in the _",
    "when the _ was _ they have _ and _",
    "_ and _ are not _ but _",
    "this _ has a _ for the _ of _",
    "the _ from _ will _ with a _ _ on it",
)
QUESTION_SHAPES = (
    "is the _ of the _ a _ _",
    "can a _ _ the _ in _",
    "does _ have a _ and _",
    "what _ is _ for the _ with _",
)
WORDPIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclasses.dataclass(frozen=True)
class Passage:
    """A passage and the content words that it is about."""

    text: str
    words: tuple[str, ...]


class Language:
    """An invented language: `topics` lists of content words beside English function words."""

    def __init__(self, seed: int = 0, topics: int = 40, words_per_topic: int = 15) -> None:
        self.random = random.Random(seed)
        syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
        words: dict[str, None] = {}
        while len(words) < topics * words_per_topic:
            word = "".join(self.random.choices(syllables, k=self.random.choice((2, 2, 3))))
            if word not in FUNCTION_WORDS:
                words[word] = None
        flat = list(words)
        self.topics = [
            flat[start : start + words_per_topic] for start in range(0, len(flat), words_per_topic)
        ]

    @property
    def words(self) -> list[str]:
        """Every word of the language, function words first."""
        return [*FUNCTION_WORDS, *(word for topic in self.topics for word in topic)]

    def fill(self, shape: str, words: Sequence[str]) -> str:
        """Put words, drawn without repeating while they last, into the blanks of a shape."""
        drawn = self.random.sample(list(words), len(words))
        while len(drawn) < shape.count("_"):
            drawn.append(self.random.choice(words))
        return " ".join(drawn.pop() if word == "_" else word for word in shape.split())

    def sentence(self, words: Sequence[str]) -> str:
        """Return a sentence about `words`, with a capital and a full stop."""
        return self.fill(self.random.choice(SENTENCE_SHAPES), words).capitalize() + "."

    def passage(self) -> Passage:
        """Return 4 to 8 sentences (about 30 to 80 words) about some words of two topics."""
        first, second = self.random.sample(self.topics, 2)
        main, side = self.random.sample(first, 7), self.random.sample(second, 4)
        sentences = []
        for number in range(self.random.randint(4, 8)):
            about = side if number % 4 == 3 else [*main, self.random.choice(side)]
            sentences.append(self.sentence(about))
        return Passage(" ".join(sentences), (*main, *side))

    def question(self, passage: Passage) -> str:
        """Return a question that uses words of the passage."""
        return self.fill(self.random.choice(QUESTION_SHAPES), passage.words)

    def retrieval_set(self, name: str) -> RetrievalSet:
        """Return questions with their passages, and passages that answer none."""
        passages = [self.passage() for _ in range(RETRIEVAL_DOCUMENTS)]
        asked = passages[:RETRIEVAL_QUESTIONS]
        made = asset_writing.make_retrieval_set(
            name, [(self.question(passage), passage.text) for passage in asked]
        )
        others = [passage.text for passage in passages[RETRIEVAL_QUESTIONS:]]
        return dataclasses.replace(
            made,
            document_ids=[f"d{number}" for number in range(RETRIEVAL_DOCUMENTS)],
            documents=[*made.documents, *others],
        )

    def sentence_pairs(self, count: int = SENTENCE_PAIRS) -> list[tuple[str, str, int]]:
        """Return sentence pairs: by turns about the same words (1) and only one topic (0)."""
        rows = []
        for number in range(count):
            topic = self.random.sample(self.random.choice(self.topics), 10)
            same = number % 2 == 0
            rows.append(
                (
                    self.sentence(topic[:5]),
                    self.sentence(topic[:5] if same else topic[5:]),
                    int(same),
                )
            )
        return rows

    def documents(self) -> Iterator[Document]:
        """Yield training documents: passages with questions, then single sentences."""
        passages = [self.passage() for _ in range(PASSAGES)]
        asked = [*passages, *self.random.choices(passages, k=EXTRA_QUESTIONS)]
        for passage in asked:
            question = self.question(passage)
            pair = Pair(question, passage.text, (), "boolq")
            yield Document(((passage.text, "boolq-passage"), (question, "boolq-question")), (pair,))
        for _ in range(SENTENCES):
            topic, other = self.random.sample(self.topics, 2)
            goal, solution = self.sentence(topic), self.sentence(topic)
            pair = Pair(goal, solution, (self.sentence(other),), "piqa")
            yield Document(((f"{goal} {solution}", "hellaswag-story"),), (pair,))


def make_wordpiece_tokenizer(
    folder: Path, words: Sequence[str], max_length: int = 128, entries: int | None = None
) -> Path:
    """Save a lower-casing BERT WordPiece tokenizer that knows `words` and can spell any other.

    No more than `entries` are kept. The files are those of a published BERT: tokenizer.json,
    tokenizer_config.json, vocab.txt and special_tokens_map.json.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*WORDPIECE_SPECIAL, *".,:;!?'\"()-", *letters, *(f"##{letter}" for letter in letters)]
    known = list(dict.fromkeys([*pieces, *words]))[:entries]
    vocabulary = {entry: place for place, entry in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(WORDPIECE_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, WORDPIECE_SPECIAL, strict=True))
    settings = {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}
    storage.write_text(folder / "tokenizer.json", tokenizer.to_str())
    storage.write_text(folder / "vocab.txt", "".join(f"{entry}\n" for entry in known))
    storage.write_json(folder / "special_tokens_map.json", special)
    storage.write_json(
        folder / "tokenizer_config.json", {**settings, "model_max_length": max_length, **special}
    )
    return folder


def make_teacher(
    folder: Path,
    words: Sequence[str],
    topics: Sequence[Sequence[str]] = (),
    *,
    seed: int = 0,
    hidden_size: int = 48,
    layers: int = 2,
    heads: int = 4,
    max_length: int = 128,
) -> Path:
    """Save a tiny BERT as a sentence-transformers folder: mean pooling, unit length.

    Words of one topic share half of their vector's variance, and the residual branches are small,
    so that texts of one topic get similar embeddings without any training.
    """
    import torch
    from transformers import BertConfig, BertModel

    make_wordpiece_tokenizer(folder, words, max_length)
    entries = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    places = {entry: place for place, entry in enumerate(entries)}
    generator = torch.Generator().manual_seed(seed)
    # Function words and the frame say little about a text: they live in dimensions of their own,
    # which every normalisation turns down. Their zero mean keeps them out of the others.
    quiet = hidden_size // 6
    table = torch.randn(len(entries), hidden_size, generator=generator)
    table[:, :quiet] = 0.0
    for topic in topics:
        shared = torch.randn(hidden_size - quiet, generator=generator)
        for word in topic:
            table[places[word], quiet:] = (table[places[word], quiet:] + shared) / 2**0.5
    for entry in (*WORDPIECE_SPECIAL, *FUNCTION_WORDS, "."):
        if entry in places:
            loud = torch.randn(quiet, generator=generator)
            table[places[entry]] = 0.0
            table[places[entry], :quiet] = loud - loud.mean()
    config = BertConfig(
        vocab_size=len(entries),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=max_length,
        pad_token_id=places["[PAD]"],
    )
    model = BertModel(config)
    weights = {}
    for name, weight in model.state_dict().items():
        weights[name] = torch.randn(weight.shape, generator=generator) * RESIDUAL_SCALE
        if weight.dim() == 1:
            weights[name] = torch.full_like(weight, float(name.endswith("LayerNorm.weight")))
        if name.endswith("LayerNorm.weight"):
            weights[name][:quiet] = 0.1
        if "position" in name or "token_type" in name:
            weights[name] *= 0.2  # what all texts share would make them all alike
    weights["embeddings.word_embeddings.weight"] = table
    model.load_state_dict(weights)
    model.eval().save_pretrained(folder)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, (path, kind) in enumerate(kinds)
    ]
    storage.write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": True}
    storage.write_json(folder / "1_Pooling" / "config.json", pooling)
    sentence_config = {"max_seq_length": max_length, "do_lower_case": False}
    storage.write_json(folder / "sentence_bert_config.json", sentence_config)
    return folder


def make_small_models(root: Path, words: Sequence[str]) -> None:
    """Save root/tokenizer, root/teacher and root/student, of a few kilobytes."""
    import torch
    from transformers import ModernBertModel

    from small_modernbert.models import students
    from small_modernbert.models.architecture import Shape, configure

    make_wordpiece_tokenizer(root / "tokenizer", words)
    tokenizer = students.load_tokenizer(root / "tokenizer")
    make_teacher(root / "teacher", words, hidden_size=12, heads=2, layers=1, max_length=32)
    shape = Shape(
        num_hidden_layers=2,
        hidden_size=16,
        intermediate_size=24,
        head_dim=8,
        max_position_embeddings=32,
        local_attention=8,
    )
    torch.manual_seed(0)
    model = ModernBertModel(configure(shape, tokenizer)).eval()
    students.Student(model, tokenizer, 32).save(root / "student")


def make_bpe_tokenizer(folder: Path, texts: Sequence[str], entries: int = BPE_ENTRIES) -> Path:
    """Save a byte-level BPE tokenizer in ModernBERT's style, trained on `texts`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bpe_tokenizer.save_bpe_tokenizer(json.loads(tokenizer.to_str()), folder)
    return folder


def further_articles(seed: int) -> list[Article]:
    """Return passages of the same language with titles and descriptions of their words."""
    language = Language()  # the words that the teacher knows
    language.random = random.Random(seed)
    articles = []
    for passage in (language.passage() for _ in range(ARTICLES)):
        words = language.random.sample(passage.words, 6)
        articles.append(Article(" ".join(words[:2]).title(), " ".join(words[2:]), passage.text))
    return articles


def hold_out_further(seed: int) -> further_texts.Held:
    """Return the selection sets of articles, and of questions about others."""
    language = Language()
    language.random = random.Random(seed + 2)
    passages = [language.passage() for _ in range(RETRIEVAL_QUESTIONS)]
    squad = [(language.question(passage), passage.text) for passage in passages]
    return further_texts.hold_out(squad, further_articles(seed + 3), [], seed)


def make_miniature_assets(folder: Path, seed: int = 0) -> Path:
    """Make the layout of get_offline_assets.py below `folder`, small; return `folder`."""
    language = Language(seed)
    make_teacher(folder / "models" / TEACHER, language.words, language.topics, seed=seed)
    leaks = LeakFilter()
    sizes: dict[str, dict[str, int]] = {}
    sets = [language.retrieval_set(name) for name in ("sciq", "boolq", "boolq-dev")]
    for made in sets:
        leaks.add(made.name, (*made.queries, *made.documents))
    pairs = language.sentence_pairs()
    asset_writing.write_sentence_pairs(folder / "sentence_pairs" / "mrpc.parquet", pairs)
    leaks.add("mrpc", (sentence for row in pairs for sentence in row[:2]))
    sizes["mrpc"] = {"pairs": len(pairs)}
    documents = list(language.documents())
    with TrainingFiles(folder, leaks) as files:
        for document in documents:
            for text, source in document.texts:
                files.texts.add(text, source)
            for pair in document.pairs:
                files.pairs.add(pair)
    held = hold_out_further(seed)
    for made in held.sets:
        leaks.add(made.name, (*made.queries, *made.documents))
    papers = [(each.lead, "qasper-paragraph", "document") for each in further_articles(seed + 1)]
    rows = {
        "text/train": files.texts.counts.to_json(),
        "pairs/train": files.pairs.counts.to_json(),
        **further_texts.write_further(folder, held.articles, papers, leaks),
    }
    for made in (*sets, *held.sets):
        asset_writing.write_retrieval_set(made, folder / "retrieval")
        sizes[made.name] = {"queries": len(made.queries), "documents": len(made.documents)}
    asset_writing.write_retrieval_card(folder / "retrieval")
    texts = [text for document in documents for text, _ in document.texts]
    make_bpe_tokenizer(folder / "tokenizers" / "modernbert-bpe", texts)
    parts = {
        TEACHER: {"files": offline_assets.describe_files(folder, [f"models/{TEACHER}"])},
        offline_assets.DATA_PART.name: {
            "files": offline_assets.describe_files(folder, offline_assets.DATA_FOLDERS),
            "rows": rows,
            "evaluation": sizes,
        },
    }
    storage.write_json(
        folder / offline_assets.MANIFEST, {"format": offline_assets.FORMAT, "parts": parts}
    )
    return folder


def make_corpus(
    folder: Path,
    splits: Mapping[str, Sequence[str]],
    **facts: Any,  # noqa: ANN401  JSON
) -> Path:
    """Write a corpus of these texts, one shard a split, and more facts; return `folder`."""
    for split, texts in splits.items():
        rows = [
            {"text": text, "source": "toy", "role": "text", "tokens": len(text.split())}
            for text in texts
        ]
        table = pa.Table.from_pylist(rows, schema=corpus.SCHEMA)
        shards.write_shard(shards.shard_path(folder, split, 0), table, corpus.SCHEMA)
    facts |= {"tokens": 3 * sum(map(len, splits.values())), "max_tokens": 128, "sources": {}}
    shards.write_index(folder, corpus.LAYOUT, dict.fromkeys(splits, 1), facts)
    return folder
