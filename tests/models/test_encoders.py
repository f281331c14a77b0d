"""Promises of small_modernbert.models.encoders: whose vectors, and which models are one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import Language, make_teacher

from small_modernbert.evaluation import metrics, search
from small_modernbert.models import encoders, inference, loading, projection, students, teachers
from small_modernbert.models.vectors import normalise
from small_modernbert.runs.errors import UserError

PROMPTS = {"query": "what is the ", "document": "this has a "}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of sentence-transformers, without prompts."""
    language = Language()
    return make_teacher(tmp_path_factory.mktemp("plain"), language.words, language.topics)


def change(folder: Path, name: str, **values: Any) -> None:  # noqa: ANN401  JSON
    """Change values of a JSON file, which may not be there yet."""
    path = folder / name
    stored = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(stored | values))


def with_prompts(plain: Path, folder: Path, **values: Any) -> Path:  # noqa: ANN401  JSON
    """Copy a model and give it prompts, or other values of config_sentence_transformers.json."""
    shutil.copytree(plain, folder)
    change(folder, "config_sentence_transformers.json", **values)
    return folder


CHANGES: dict[str, Callable[[Path], None]] = {
    "length": lambda folder: change(folder, "sentence_bert_config.json", max_seq_length=16),
    "prompt": lambda folder: change(
        folder, "config_sentence_transformers.json", prompts={"query": "q: "}
    ),
    "pooling": lambda folder: change(folder, "1_Pooling/config.json", include_prompt=False),
    "special tokens": lambda folder: change(folder, "special_tokens_map.json", mask_token="[X]"),
    "tokenizer": lambda folder: change(folder, "tokenizer_config.json", do_lower_case=False),
    "added tokens": lambda folder: change(folder, "added_tokens.json", new=999),
    "vocabulary": lambda folder: (folder / "vocab.txt").write_text("other\n"),
    "weights": lambda folder: (folder / "model.safetensors").write_bytes(b"other"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_encode_uses_makes_another_model(plain: Path, tmp_path: Path, name: str) -> None:
    """Two copies that encode unlike in any way never share a vector on disk."""
    copy = tmp_path / "copy"
    shutil.copytree(plain, copy)
    assert encoders.digest_model(copy) == encoders.digest_model(plain)
    CHANGES[name](copy)
    assert encoders.digest_model(copy) != encoders.digest_model(plain)


def test_what_encode_does_not_use_makes_none(plain: Path, tmp_path: Path) -> None:
    """A card, the record of a run, another export and mined pairs leave the model what it is."""
    copy = tmp_path / "copy"
    shutil.copytree(plain, copy)
    for name in ("README.md", "run.json", "onnx/model.json", "pairs/pairs.json", "plot.png"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("{}")
    assert encoders.digest_model(copy) == encoders.digest_model(plain)


@pytest.mark.parametrize(
    "values",
    [
        {"prompts": PROMPTS},
        {"prompts": PROMPTS | {"all": "they are "}, "default_prompt_name": "all"},
        {"prompts": {"passage": "this has a "}},  # E5's name for it
        {"prompts": {"s": "they are "}, "default_prompt_name": "s"},
    ],
)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_are_those_of_sentence_transformers(
    plain: Path, tmp_path: Path, values: dict[str, Any], include_prompt: bool
) -> None:
    """Queries, documents and other texts get the vectors of the model's own three functions."""
    from sentence_transformers import SentenceTransformer

    folder = with_prompts(plain, tmp_path / "model", **values)
    if not include_prompt:
        change(folder, "1_Pooling/config.json", include_prompt=False)
    language = Language(3)
    texts = [language.passage().text for _ in range(12)] + ["", "rain"]
    encoder = encoders.load_encoder(folder)
    model = SentenceTransformer(str(folder), device="cpu")
    for ours, theirs in (
        (encoder.encode_queries, model.encode_query),
        (encoder.encode_documents, model.encode_document),
        (encoder.encode, model.encode),
    ):
        np.testing.assert_allclose(ours(texts), normalise(theirs(texts)), atol=1e-4)


@pytest.mark.parametrize("in_folder", [True, False])
def test_figures_are_those_of_sentence_transformers(
    plain: Path, tmp_path: Path, in_folder: bool
) -> None:
    """A model with prompts, in its folder or given, scores what its own evaluator says."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import (
        InformationRetrievalEvaluator,
    )

    folder = with_prompts(plain, tmp_path / "model", **({"prompts": PROMPTS} if in_folder else {}))
    made = Language(5).retrieval_set("made")
    given = () if in_folder else (PROMPTS["query"], PROMPTS["document"])
    encoder = encoders.load_encoder(folder, "model", *given)
    hits = search.rank(
        made, encoder.encode_queries(made.queries), encoder.encode_documents(made.documents)
    )
    ours = metrics.ranking_metrics(hits.rows, made)
    evaluator = InformationRetrievalEvaluator(
        dict(zip(made.query_ids, made.queries, strict=True)),
        dict(zip(made.document_ids, made.documents, strict=True)),
        {query: set(answers) for query, answers in made.relevant.items()},
        accuracy_at_k=[10],
        query_prompt=None if in_folder else PROMPTS["query"],
        corpus_prompt=None if in_folder else PROMPTS["document"],
    )
    theirs = evaluator(SentenceTransformer(str(folder), device="cpu"))
    for name in ("ndcg@10", "map@100", "recall@10", "mrr@10"):
        assert ours[name] == pytest.approx(theirs[f"cosine_{name}"], abs=1e-4), name
    without = encoders.load_encoder(plain)
    assert not np.allclose(
        without.encode_queries(made.queries), encoder.encode_queries(made.queries), atol=1e-3
    )


def without_unit_length(plain: Path, folder: Path, similarity: str) -> Path:
    """Copy a model with vectors of any length, which it compares in a way of its own."""
    with_prompts(plain, folder, similarity_fn_name=similarity)
    path = folder / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))
    return folder


def test_a_model_that_compares_by_the_dot_product_is_ranked_so(plain: Path, tmp_path: Path) -> None:
    """Its vectors keep their length, and its figures are those of its own evaluator.

    multi-qa-mpnet-base-dot-v1 and msmarco-distilbert-base-tas-b are of this kind. The table is
    scaled so that the length counts: by the cosine the order is another one.
    """
    from safetensors.numpy import load_file, save_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import (
        InformationRetrievalEvaluator,
    )

    folder = without_unit_length(plain, tmp_path / "dot", "dot")
    tensors = load_file(folder / "model.safetensors")
    name = max(key for key in tensors if key.endswith("output.LayerNorm.weight"))
    tensors[name] = tensors[name] * np.linspace(0.1, 4, len(tensors[name]), dtype=np.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    made = Language(5).retrieval_set("made")
    encoder = encoders.load_encoder(folder)
    queries, documents = (
        encoder.encode_queries(made.queries),
        encoder.encode_documents(made.documents),
    )
    ours = metrics.ranking_metrics(search.rank(made, queries, documents).rows, made)
    model = SentenceTransformer(str(folder), device="cpu")
    theirs = InformationRetrievalEvaluator(
        dict(zip(made.query_ids, made.queries, strict=True)),
        dict(zip(made.document_ids, made.documents, strict=True)),
        {query: set(answers) for query, answers in made.relevant.items()},
    )(model)
    np.testing.assert_allclose(documents, model.encode(made.documents), atol=1e-4)
    for figure in ("ndcg@10", "map@100", "mrr@10"):
        assert ours[figure] == pytest.approx(theirs[f"dot_{figure}"], abs=1e-4), figure
    assert np.ptp(np.linalg.norm(documents, axis=1)) > 0.1
    by_cosine = search.rank(made, queries, normalise(documents)).rows
    assert (by_cosine != search.rank(made, queries, documents).rows).any()


def test_unit_vectors_need_no_other_comparison_and_distances_are_refused(
    plain: Path, tmp_path: Path
) -> None:
    """A "dot" before a Normalize is the cosine; "manhattan" is refused, with a working cure."""
    with_prompts(plain, tmp_path / "unit", similarity_fn_name="dot")
    assert encoders.load_encoder(tmp_path / "unit").similarity == "cosine"
    folder = without_unit_length(plain, tmp_path / "far", "manhattan")
    with pytest.raises(UserError, match='compares by manhattan.*"similarity_fn_name": "cosine"'):
        encoders.load_encoder(folder)
    change(folder, "config_sentence_transformers.json", similarity_fn_name="cosine")
    assert encoders.load_encoder(folder).similarity == "cosine"


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_folder_that_truncates_gives_short_vectors_everywhere(
    plain: Path, tmp_path: Path, similarity: str
) -> None:
    """`truncate_dim`, which `encode` alone obeys, holds for packed batches and labels too."""
    from sentence_transformers import SentenceTransformer

    said = {"truncate_dim": 12, "similarity_fn_name": similarity}
    folder = with_prompts(plain, tmp_path / "short", **said)
    texts = [Language(3).passage().text for _ in range(6)]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert loading.read_width(folder) == theirs.shape[1] == 12
    encoder = encoders.load_encoder(folder)
    wanted = theirs if similarity == "dot" else normalise(theirs)
    np.testing.assert_allclose(encoder.encode(texts), wanted, atol=1e-5)
    teacher = teachers.load_teacher(folder)
    np.testing.assert_allclose(
        inference.encode_texts(teacher, texts, tokens_per_batch=64), theirs, atol=1e-5
    )
    reduced = teachers.reduce_teacher(
        teacher, projection.principal_directions(torch.from_numpy(theirs), 4)
    )
    assert reduced.encode(texts).shape == (6, 4)
    with pytest.raises(UserError, match="truncate_dim is 12"):
        students.load_student(folder)
    whole = loading.read_width(plain)
    change(folder, "config_sentence_transformers.json", truncate_dim=9_999)
    assert loading.read_width(folder) == encoders.load_encoder(folder).encode(texts).shape[1]
    assert loading.read_width(folder) == whole
    (folder / "config_sentence_transformers.json").write_text("[]")
    with pytest.raises(UserError, match="how wide its vectors are"):
        loading.read_width(folder)


@pytest.mark.parametrize("said", [None, 4_096, 10**30])
def test_a_length_beyond_the_positions_is_cut_at_these(
    plain: Path, tmp_path: Path, said: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that says that it reads more than it has positions reads what it has."""
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    change(folder, "sentence_bert_config.json", max_seq_length=said)
    change(folder, "tokenizer_config.json", model_max_length=said or 10**30)
    positions = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    words = " ".join(Language(3).words[:9])
    long = " ".join([words] * positions)
    encoder = encoders.load_encoder(folder)
    assert encoder.model.max_seq_length == positions
    cut = " ".join(long.split()[: 2 * positions])
    np.testing.assert_allclose(*encoder.encode([long, cut]), atol=1e-6)
    assert ("longer texts are cut there" in caplog.text) == (said == 4_096)
