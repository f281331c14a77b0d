"""Promises of judges.py: one interface, scores from 0 to 1, safetensors only."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import Language, make_wordpiece_tokenizer
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from small_modernbert.labelling import judges
from small_modernbert.models import encoders
from small_modernbert.runs.errors import UserError


@pytest.fixture(scope="module")
def make_cross_encoder(
    language: Language, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a function that saves a tiny random cross-encoder as transformers does."""

    def make(labels: int = 1) -> Path:
        folder = tmp_path_factory.mktemp("cross-encoder")
        make_wordpiece_tokenizer(folder, language.words, max_length=48)
        config = BertConfig(
            vocab_size=len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines()),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=48,
            num_labels=labels,
            initializer_range=0.5,  # large weights, so that texts get different scores
        )
        torch.manual_seed(0)
        BertForSequenceClassification(config).eval().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def cross_encoder(make_cross_encoder: Callable[..., Path]) -> Path:
    """Return the folder of a tiny random cross-encoder."""
    return make_cross_encoder()


@pytest.fixture(scope="module")
def pairs(language: Language) -> list[tuple[str, str]]:
    """Return 30 questions with texts of all lengths, the longest of them truncated."""
    passages = [language.passage() for _ in range(15)]
    found = [(language.question(passage), passage.text) for passage in passages]
    return [*found, *((question, text.split(".")[0]) for question, text in found)]


def test_cross_encoder_gives_the_sigmoid_of_its_logit(
    cross_encoder: Path, pairs: list[tuple[str, str]]
) -> None:
    """Scores are those of each pair alone, in the order asked, whatever the batches."""
    judge = judges.load_judge(cross_encoder)
    assert (judge.scale, judge.encoder, judge.name) == ("sigmoid", None, cross_encoder.name)
    scores = judge.score(pairs)
    model = BertForSequenceClassification.from_pretrained(cross_encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    with torch.inference_mode():
        expected = [
            torch.sigmoid(
                model(
                    **tokenizer(*pair, truncation=True, max_length=48, return_tensors="pt")
                ).logits[0, 0]
            ).item()
            for pair in pairs
        ]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.dtype == np.float32 and scores.std() > 0.01
    np.testing.assert_allclose(judge.score(pairs[::-1]), scores[::-1], atol=1e-5)
    assert judge.score([]).shape == (0,)


def test_logits_are_given_where_they_are_asked_for(
    cross_encoder: Path, pairs: list[tuple[str, str]]
) -> None:
    """Raw scores and their sigmoids are the same judgement, named by kind; gaps are alike."""
    logit = judges.load_judge(cross_encoder, scale="logit")
    sigmoid = judges.load_judge(cross_encoder)
    assert (logit.scale, sigmoid.scale) == ("logit", "sigmoid")
    raw, scores = logit.score(pairs), sigmoid.score(pairs)
    np.testing.assert_allclose(1 / (1 + np.exp(-raw)), scores, atol=1e-6)
    assert logit.gap(raw[0], raw[1]) == pytest.approx(scores[0] - scores[1], abs=1e-6)
    assert sigmoid.gap(0.9, 0.25) == pytest.approx(0.65)


def test_bi_encoder_judges_with_its_prompts(
    teacher_folder: Path, pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Questions get the query prompt and texts the document prompt, the folder's or the given."""
    from sentence_transformers import SentenceTransformer

    bare = SentenceTransformer(str(teacher_folder), device="cpu")
    bare.prompts = {"query": "query: ", "document": "passage: "}
    bare.save(str(tmp_path / "prompted"), create_model_card=False)
    queries, texts = (list(side) for side in zip(*pairs, strict=True))
    cosines = (bare.encode_query(queries) * bare.encode_document(texts)).sum(axis=1)
    expected = np.clip(cosines, 0, 1)
    given = judges.load_judge(teacher_folder, query_prompt="query: ", document_prompt="passage: ")
    for judge in (given, judges.load_judge(tmp_path / "prompted")):
        np.testing.assert_allclose(judge.score(pairs), expected, atol=1e-4)
    plain = judges.load_judge(teacher_folder).score(pairs)
    assert np.abs(plain - expected).max() > 1e-3
    # Where both sides are alike, neither is a query: each pair gets what its own anchor is.
    roles = ["text" if row % 2 else "query" for row in range(len(pairs))]
    mixed = np.where(np.arange(len(pairs)) % 2, plain, expected)
    np.testing.assert_allclose(given.score(pairs, roles), mixed, atol=1e-4)


def test_cross_encoder_saved_by_sentence_transformers_is_known(
    cross_encoder: Path, pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    """A folder with modules.json is no bi-encoder if its configuration says otherwise."""
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(cross_encoder)).save(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "modules.json").exists()
    saved = judges.load_judge(tmp_path / "saved")
    assert saved.scale == "sigmoid"
    expected = judges.load_judge(cross_encoder).score(pairs)
    np.testing.assert_allclose(saved.score(pairs), expected, atol=1e-5)


def test_bi_encoder_gives_its_cosine(teacher_folder: Path, pairs: list[tuple[str, str]]) -> None:
    """A sentence-transformers folder judges by the cosine of its own vectors."""
    judge = judges.load_judge(teacher_folder)
    assert judge.scale == "cosine" and judge.encoder is not None
    questions, texts = (judge.encoder.encode(side) for side in zip(*pairs, strict=True))
    expected = np.clip((questions * texts).sum(axis=1), 0, 1)
    np.testing.assert_allclose(judge.score(pairs), expected, atol=1e-5)
    assert judge.score([]).shape == (0,)


def test_a_judge_that_compares_by_the_dot_product_is_refused(
    teacher_folder: Path, tmp_path: Path
) -> None:
    """Its scores have no scale that a positive and a negative could be held to."""
    folder = tmp_path / "dot"
    shutil.copytree(teacher_folder, folder)
    path = folder / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))
    said = json.dumps({"similarity_fn_name": "dot"})
    (folder / "config_sentence_transformers.json").write_text(said)
    with pytest.raises(UserError, match="the judge dot compares by the dot product.*--judge"):
        judges.load_judge(folder)


def test_cosine_stays_on_the_scale() -> None:
    """A negative cosine counts as 0, and rounding never passes 1."""
    vectors = {"a": [1.0, 0.0], "b": [-0.6, 0.8], "c": [1.0 + 1e-6, 0.0]}
    score = judges.cosine_scores(lambda texts, role: np.array([vectors[text] for text in texts]))
    assert score([("a", "b"), ("a", "c"), ("b", "b")]).tolist() == [0, 1, 1]


def test_several_scores_are_refused(make_cross_encoder: Callable[..., Path]) -> None:
    """A classifier of pairs (NLI, say) is no judge of relevance."""
    folder = make_cross_encoder(labels=3)
    with pytest.raises(UserError, match="gives 3 scores a pair; .*bge-reranker-base"):
        judges.load_judge(folder)


def test_only_safetensors_are_loaded(cross_encoder: Path, tmp_path: Path) -> None:
    """Pickled weights are never opened; broken ones are said to be broken, by name."""
    folder = tmp_path / "pickled"
    shutil.copytree(cross_encoder, folder)
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled holds no safetensors file"):
        judges.load_judge(folder)
    weights.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="judge pickled: .*pickled does not load: "):
        judges.load_judge(folder)


def test_cure_for_a_pickled_judge_cures(cross_encoder: Path, tmp_path: Path) -> None:
    """Whoever trusts the source and obeys the message has a judge that scores as the pickle did."""
    folder = tmp_path / "pickled"
    shutil.copytree(cross_encoder, folder)
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="if you trust its source") as refused:
        judges.load_judge(folder)
    (code,) = re.findall(r'python -c "(.*)"', str(refused.value))
    exec(code, {})  # noqa: S102  the command that the message gives
    pairs = [("how do tides work", "the moon pulls"), ("bread", "the moon pulls")]
    wanted = judges.load_judge(cross_encoder).score(pairs)
    np.testing.assert_allclose(judges.load_judge(Path(f"{folder}-safe")).score(pairs), wanted)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """Anything else is refused with its name."""
    with pytest.raises(UserError, match="holds no model"):
        judges.load_judge(tmp_path)


def test_hub_out_of_reach_names_make_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A judge of the hub, without the hub, ends in one line with the way out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="model owner/judge cannot be reached .*make run"):
        judges.load_judge("owner/judge", "0" * 40)


def test_batches_are_of_near_equal_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row comes once, the longest first, within the budget unless it is alone."""
    lengths = [5, 900, 40, 41, 5, 300, 39, 5, 0]
    monkeypatch.setattr(encoders, "CHARACTERS_PER_BATCH", 120)
    assert list(judges.cut_by_length(lengths)) == [[1], [5], [3, 2], [6, 0, 4], [7, 8]]
    assert list(judges.cut_by_length(lengths, 10)) == [[1], [5, 3, 2, 6], [0, 4, 7, 8]]


def test_cross_encoder_in_half_precision_works_in_single(
    cross_encoder: Path, pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Weights saved in half precision are widened: scores are those of the same numbers."""
    shutil.copytree(cross_encoder, tmp_path, dirs_exist_ok=True)
    model = BertForSequenceClassification.from_pretrained(cross_encoder, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    narrow = judges.load_judge(tmp_path).score(pairs)
    (tmp_path / "wide").mkdir()
    shutil.copytree(cross_encoder, tmp_path / "wide", dirs_exist_ok=True)
    model.float().save_pretrained(tmp_path / "wide")
    np.testing.assert_allclose(narrow, judges.load_judge(tmp_path / "wide").score(pairs), atol=1e-6)
