"""Promises of distil_model2vec.py, model2vec.py and recipes/model2vec.sh."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from miniature import Language, make_bpe_tokenizer, make_teacher
from model2vec import StaticModel
from script_runner import Finished, load_script, record_recipe, run
from sentence_transformers import SentenceTransformer
from transformers import ModernBertModel

from small_modernbert.export import model2vec, publishing
from small_modernbert.export.model2vec import Distilled
from small_modernbert.models import encoders, module_files, origins, students, vectors
from small_modernbert.models.architecture import Shape, configure
from small_modernbert.models.origins import Origin
from small_modernbert.models.teachers import load_teacher
from small_modernbert.runs import settings, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT

TOKEN = "hf_ThisIsTheSecretOfTheTests"
README = "---\nlicense: apache-2.0\nlanguage: en\n---\n\n# A teacher\n"


@pytest.fixture(scope="module")
def teacher_with_card(tmp_path_factory: pytest.TempPathFactory, language: Language) -> Path:
    """Return the folder of the tiny teacher, with a card that names its licence."""
    folder = tmp_path_factory.mktemp("carded") / "tiny-teacher"
    make_teacher(folder, language.words, language.topics, max_length=64)
    storage.write_text(folder / "README.md", README)
    return folder


@pytest.fixture
def distil(teacher_with_card: Path) -> Callable[..., Distilled]:
    """Return a function that distils the tiny teacher, with settings changed by name."""

    def make(**changed: Any) -> Distilled:  # noqa: ANN401  whatever distil takes
        origin = origins.model("teacher", teacher_with_card)
        return model2vec.distil(
            load_teacher(teacher_with_card), origin, **{"pca_dims": 16} | changed
        )

    return make


def of_the_teacher(folder: Path, tokens: Sequence[str]) -> np.ndarray:
    """Return the mean of the teacher's hidden states over [CLS] token [SEP], token by token."""
    teacher = load_teacher(folder)
    vocabulary = teacher.tokenizer.get_vocab()
    rows = []
    for token in tokens:
        ids = torch.tensor([[vocabulary["[CLS]"], vocabulary[token], vocabulary["[SEP]"]]])
        with torch.inference_mode():
            hidden = teacher[0].auto_model(input_ids=ids).last_hidden_state
        rows.append(hidden[0].mean(dim=0).numpy())
    return np.stack(rows)


def test_rows_are_the_teachers_vectors(
    distil: Callable[..., Distilled], teacher_with_card: Path, language: Language
) -> None:
    """Unweighted and not reduced, an entry's row is what the teacher makes of that entry alone."""
    made = distil(pca_dims=0, sif_coefficient=0).model
    words = language.words[:20]
    rows = made.embedding[[made.tokens.index(word) for word in words]]
    assert made.dim == 48
    np.testing.assert_allclose(rows, of_the_teacher(teacher_with_card, words), atol=1e-5)


def test_pca_keeps_the_most_variance(distil: Callable[..., Distilled]) -> None:
    """Reduced rows are the scores of scikit-learn's PCA, up to the sign of each column."""
    from sklearn.decomposition import PCA

    whole = distil(pca_dims=0, sif_coefficient=0).model
    reduced = distil(sif_coefficient=0).model
    known = [row for row in range(len(whole.tokens)) if row != whole.unk_token_id]
    pca = PCA(16, svd_solver="full").fit(whole.embedding)
    # The row of the unknown token was there when PCA was fitted, and is zero now.
    wanted, found = np.cov(pca.transform(whole.embedding).T), np.cov(reduced.embedding[known].T)
    np.testing.assert_allclose(np.diag(found), np.diag(wanted), rtol=0.05)
    assert abs(found - np.diag(np.diag(found))).max() < 0.05 * found.max()


def test_zipf_weights_turn_frequent_tokens_down(distil: Callable[..., Distilled]) -> None:
    """An entry is weighted by a / (a + p), p being Zipf's law of its place in the vocabulary."""
    plain, weighted = distil(sif_coefficient=0).model, distil(sif_coefficient=1e-3).model
    places = [row for row in range(len(plain.tokens)) if row != plain.unk_token_id]
    lengths = [np.linalg.norm(one.embedding[places], axis=1) for one in (weighted, plain)]
    share = 1 / (np.array(places) + 2)
    share /= (1 / np.arange(2, len(plain.tokens) + 2)).sum()
    np.testing.assert_allclose(lengths[0] / lengths[1], 1e-3 / (1e-3 + share), rtol=1e-4)


def test_texts_of_one_topic_are_near(distil: Callable[..., Distilled], language: Language) -> None:
    """The static model searches: a text is nearer to its own topic's than to another's."""
    texts = [[" ".join(topic[:5]), " ".join(topic[5:])] for topic in language.topics]
    vectors = distil().model.encode([text for pair in texts for text in pair])
    cosines = vectors[::2] @ vectors[1::2].T
    assert (cosines.argmax(axis=1) == np.arange(len(texts))).mean() > 0.8


def test_both_libraries_read_one_folder(
    distil: Callable[..., Distilled], texts: list[str], tmp_path: Path
) -> None:
    """Unknown words, long texts and nothing at all: one vector, whichever library loads it."""
    made = distil()
    model2vec.save(made, tmp_path)
    model2vec.check_reload(tmp_path, made)
    asked = [*texts, "\u2603 unknown \u2603", texts[0] * 40, ""]
    ours = StaticModel.from_pretrained(tmp_path).encode(asked)
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode(asked)
    benchmarked = encoders.load_encoder(tmp_path).encode(asked)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(ours, benchmarked, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours[:-1], axis=1), 1, atol=1e-5)
    assert not list(tmp_path.rglob("*.bin"))
    assert not list(tmp_path.rglob("*.pkl"))


def test_check_reload_catches_a_changed_table(
    distil: Callable[..., Distilled], tmp_path: Path
) -> None:
    """A table that came back changed is refused."""
    made = distil()
    model2vec.save(made, tmp_path)
    made.model.embedding[3, 3] += 1
    with pytest.raises(UserError, match="check the disk"):
        model2vec.check_reload(tmp_path, made)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_smaller_tables(
    distil: Callable[..., Distilled], texts: list[str], tmp_path: Path, dtype: str
) -> None:
    """A smaller table encodes nearly alike; only what can read it is told that it can."""
    made = distil(quantize_to=dtype)
    model2vec.save(made, tmp_path)
    model2vec.check_reload(tmp_path, made)
    loaded = StaticModel.from_pretrained(tmp_path)
    assert loaded.embedding_dtype == dtype
    wanted, found = distil().model.encode(texts), vectors.normalise(loaded.encode(texts))
    assert (wanted * found).sum(axis=1).min() > 0.995
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert dtype in card
    assert ("SentenceTransformer(" in card) == (dtype != "int8")
    assert (tmp_path / "modules.json").exists() == (dtype != "int8")
    # the benchmark's reader takes either
    assert encoders.load_encoder(tmp_path).encode(texts).shape == (len(texts), 16)


def test_added_words_are_entries(
    distil: Callable[..., Distilled], language: Language, tmp_path: Path
) -> None:
    """A word of the user's has a row of its own, made of its pieces by the teacher."""
    first, second = language.words[50:52]
    file = tmp_path / "words.txt"
    storage.write_text(file, f"xylophone\n\n{first}\nxylophone\n{first} {second}\n")
    words = model2vec.read_vocabulary(file)
    assert words == ["xylophone", first, f"{first} {second}"]
    made = distil(vocabulary=words)
    assert made.words_added == 2  # one was known
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert model2vec.read_vocabulary(file) == words  # a BOM is no part of the first word
    ids = made.model.tokenize(["xylophone", f"{first} {second}", f"{second} {first}"])
    assert [len(row) for row in ids] == [1, 1, 2]
    assert np.linalg.norm(made.model.embedding[ids[0][0]]) > 0
    assert "2 added by hand" in model2vec.make_card(made)


def test_modernbert_with_bpe_and_padded_table(
    make_student: Callable[..., Any], texts: list[str], tmp_path: Path
) -> None:
    """A ModernBERT teacher works: byte-level tokens, a table padded beyond them, no pooling."""
    make_bpe_tokenizer(tmp_path / "tokenizer", texts, entries=400)
    tokenizer = students.load_tokenizer(tmp_path / "tokenizer")

    shape = Shape(
        **{"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48},
        head_dim=8,
        max_position_embeddings=64,
        local_attention=8,
    )
    torch.manual_seed(0)
    model = ModernBertModel(configure(shape, tokenizer)).eval()
    assert model.config.vocab_size > len(tokenizer)
    module_files.write_transformer(tmp_path / "teacher", model, tokenizer, 64)
    origin = origins.model("teacher", tmp_path / "teacher")
    made = model2vec.distil(load_teacher(tmp_path / "teacher"), origin, pca_dims=8)
    assert made.model.dim == 8
    assert made.teacher.licence == ""
    assert "ask before you publish" in model2vec.make_card(made)
    model2vec.save(made, tmp_path / "static")
    model2vec.check_reload(tmp_path / "static", made)
    vectors = made.model.encode(texts)
    assert np.isfinite(vectors).all()
    assert np.linalg.matrix_rank(vectors) == 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pca_dims": -1}, "at most 48"),
        ({"sif_coefficient": 1.0}, "SIF_COEFFICIENT: 1.0"),
        ({"sif_coefficient": -1e-4}, "SIF_COEFFICIENT"),
    ],
)
def test_numbers_that_do_not_fit(
    distil: Callable[..., Distilled], changed: dict[str, float], message: str
) -> None:
    """A setting that no teacher can have is named with what it can."""
    with pytest.raises(UserError, match=message):
        distil(**changed)


def test_a_narrow_teacher_keeps_its_width(distil: Callable[..., Distilled]) -> None:
    """There are no more dimensions than it has; its card says that none went."""
    assert distil(pca_dims=49).model.dim == 48


def test_static_teacher_is_refused(distil: Callable[..., Distilled], tmp_path: Path) -> None:
    """A teacher without a transformer has nothing to say about a token."""
    model2vec.save(distil(), tmp_path)
    with pytest.raises(UserError, match="no transformer"):
        model2vec.distil(load_teacher(tmp_path), origins.model("teacher", tmp_path))


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "no words"), (b"\xff\xfe", "UTF-8")])
def test_unusable_vocabulary(tmp_path: Path, content: bytes, message: str) -> None:
    """A file without words, or without text, is named."""
    file = tmp_path / "words.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        model2vec.read_vocabulary(file)


def test_converting_a_vocabulary_as_told_succeeds(tmp_path: Path) -> None:
    """The command that a message gives for a file of another encoding makes one that is read."""
    file = tmp_path / "my words.txt"
    file.write_bytes("café\n".encode("latin1"))
    with pytest.raises(UserError, match="iconv") as refused:
        model2vec.read_vocabulary(file)
    command = str(refused.value).partition("convert it: ")[2]
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert model2vec.read_vocabulary(tmp_path / "NEW") == ["café"]


def run_script(*flags: str) -> None:
    """Run the script in this process."""
    settings.run(load_script("distil_model2vec").__dict__, list(flags))


def test_script_with_underscore_flags(
    teacher_with_card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flags may be spelt with underscores; the folder loads, its card tells, a rerun keeps."""
    flags = ["--base_model_name", str(teacher_with_card), "--pca_dims", "12"]
    hub = ["--model_repository_name", "owner/name", "--commit_msg", "feat: a 'new' one"]

    def go(*more: str) -> Finished:
        return run(["distil_model2vec.py", *flags, *more, "--recipe", "made"], tmp_path).check()

    go(*hub)
    folder = tmp_path / "made" / "distil_model2vec"
    final = folder / "final"
    assert StaticModel.from_pretrained(final).dim == 12
    assert SentenceTransformer(str(final)).encode(["a"]).shape == (1, 12)
    card = (final / "README.md").read_text(encoding="utf-8")
    for told in (
        "tiny-teacher",
        "12 (PCA of 48)",
        "SIF coefficient 0.0001",
        "apache-2.0",
        "entries",
    ):
        assert told in card
    for file in ("README.md", "config.json"):
        assert str(tmp_path.parent) not in (final / file).read_text(encoding="utf-8")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["metrics"]["dimensions"] == 12
    assert record["rows"]["tokens"] == len(StaticModel.from_pretrained(final).tokens)
    before = storage.digest_folder(final)
    # where it might be pushed to is no property of the model
    assert "kept as it is" in go("--model-repository-name", "another/name").output
    assert storage.digest_folder(final) == before
    refused = run(["distil_model2vec.py", *flags, "--pca-dims", "8", "--recipe", "made"], tmp_path)
    assert "PCA_DIMS: 12 -> 8" in refused.errors
    again = run(["distil_model2vec.py", *flags, "--recipe", "made", "--variant", "two"], tmp_path)
    again.check()
    assert storage.digest_folder(tmp_path / "made" / "distil_model2vec@two" / "final") == before


@pytest.mark.parametrize("name", ["MODERNBERT_BASE", "GTE_MODERNBERT_BASE", "owner/none@abc"])
def test_out_of_reach(tmp_path: Path, name: str) -> None:
    """A teacher of the hub that cannot be had is one line with a way out."""
    flags = ["--base_model_name", name, "--recipe", "empty"]
    ended = run(["distil_model2vec.py", *flags], tmp_path)
    assert ended.exit_code == 1
    assert ended.errors.count("\n") == 1
    assert "make run" in ended.errors


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide a token that this machine may have."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model-repository-name", "owner/name"], "hf auth login"),
        ([], "--model-repository-name owner/name"),
        (["--model-repository-name", "nobody"], "--model-repository-name owner/name"),
        (["--model-repository-name", "a/b/c"], "--model-repository-name owner/name"),
    ],
)
@pytest.mark.usefixtures("no_login")
def test_push_is_refused_before_any_work(
    teacher_with_card: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    """Without a token, or a repository, --push ends at once with the cure."""
    with pytest.raises(SystemExit) as stop:
        run_script("--base-model-name", str(teacher_with_card), "--push", *flags)
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("no_login")
def test_push_uploads_what_is_finished(
    teacher_with_card: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--push with a token uploads final/ with the message, and never shows or writes the token."""
    pushed: list[tuple[str, str, list[str], str]] = []

    def upload(self: HfApi, **given: Any) -> Any:  # noqa: ANN401  the hub's
        names = sorted(path.name for path in Path(given["folder_path"]).iterdir())
        pushed.append((given["repo_id"], given["commit_message"], names, self.token))

        class Commit:
            commit_url = "https://hub/owner/name/commit/1"

        return Commit()

    created: list[tuple[str, bool]] = []

    def create(self: HfApi, name: str, *, private: bool, **_: object) -> None:
        created.append((name, private))

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    flags = ["--base-model-name", str(teacher_with_card), "--pca-dims", "8"]
    run_script(*flags)
    assert not pushed  # a token alone uploads nothing
    made = storage.digest_folder(tmp_path / "runs" / "model2vec" / "distil_model2vec" / "final")
    for message in ("feat: one", "feat: two"):
        run_script(
            *flags, "--push", "--model_repository_name", "owner/name", "--commit_msg", message
        )
    files = ["README.md", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]
    assert pushed == [
        ("owner/name", message, files, TOKEN) for message in ("feat: one", "feat: two")
    ]
    assert created == [("owner/name", True)] * 2
    final = tmp_path / "runs" / "model2vec" / "distil_model2vec" / "final"
    assert storage.digest_folder(final) == made
    shown = capsys.readouterr()
    assert "https://hub/owner/name/commit/1" in shown.out
    assert TOKEN not in shown.out + shown.err
    for path in storage.list_files(tmp_path / "runs"):
        assert TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.usefixtures("no_login")
@pytest.mark.parametrize(
    ("status", "message"), [(403, "may not write to owner/name"), (500, "repository owner/name")]
)
def test_hub_that_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, message: str
) -> None:
    """What the hub refuses is one line without the token."""

    class Response:
        status_code = status
        headers: dict[str, str] = {}
        request = None

    def refuse(self: HfApi, *_: object, **__: object) -> None:
        error = HfHubHTTPError.__new__(HfHubHTTPError)
        Exception.__init__(error, f"{status} from the hub")
        error.response = Response()
        raise error

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match=message) as refused:
        publishing.push(tmp_path, "owner/name", "feat: x")
    assert TOKEN not in str(refused.value)


@pytest.mark.usefixtures("no_login")
def test_hub_out_of_reach_at_the_push(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With no network the push says so; the model stays where it is."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match="repository owner/name"):
        publishing.push(tmp_path, "owner/name", "feat: x")


def test_recipe_compares_static_model_and_student(tmp_path: Path) -> None:
    """Distil, then benchmark; the offline student stands beside it only where it is there."""
    distilled, compared = record_recipe("model2vec", tmp_path / "a")
    assert distilled[0] == "distil_model2vec.py"
    assert compared[0] == "benchmark_hotpotqa.py"
    script = load_script("benchmark_hotpotqa")
    settings.override(script.__dict__, compared[1:])
    assert script.MODELS == ["static=distil_model2vec"]
    assert script.BM25 and script.TEACHER.endswith("all-MiniLM-L6-v2")
    assert script.REDUCED_TEACHER == ""
    assert script.RETRIEVAL == ["sciq", "boolq"]
    distiller = load_script("distil_model2vec")
    settings.override(distiller.__dict__, distilled[1:])
    assert distiller.BASE_MODEL_NAME == script.TEACHER
    assert distiller.RECIPE == script.RECIPE == "model2vec"

    student = tmp_path / "b" / "runs" / "offline" / "distil_modernbert" / "final"
    student.mkdir(parents=True)
    _, compared = record_recipe("model2vec", tmp_path / "b", "--overwrite")
    settings.override(script.__dict__, compared[1:])
    assert script.MODELS[1:] == [f"student={student}"]
    assert script.OVERWRITE


def test_recipe_sizes_and_flags(tmp_path: Path) -> None:
    """The smaller size has the same stages in a folder of its own; a typo exits with 2."""
    full, small = (
        record_recipe("model2vec", tmp_path / "a"),
        record_recipe("model2vec", tmp_path / "b", "--size", "small"),
    )
    assert [command[0] for command in small] == [command[0] for command in full]
    recipes = {command[command.index("--recipe") + 1] for command in [*full, *small]}
    assert recipes == {"model2vec", "model2vec_small"}
    moved = record_recipe("model2vec", tmp_path / "c", "--assets", "elsewhere")
    assert "elsewhere/models/all-MiniLM-L6-v2" in moved[0]
    command = ["bash", str(ROOT / "recipes" / "model2vec.sh"), "--size", "huge"]
    assert subprocess.run(command, capture_output=True).returncode == 2


def test_make_target_passes_the_arguments_on() -> None:
    """`make run-main ARGS=...` is distil_model2vec.py with those flags, quotes and all."""
    arguments = "--base_model_name MODERNBERT_BASE --commit_msg 'feat: a new one'"
    command = ["make", "--dry-run", "--silent", "run-main", f"ARGS={arguments}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"distil_model2vec.py {arguments}" in shown


def test_pieces_of_own_words_do_not_count(
    tmp_path: Path, language: Language, texts: list[str]
) -> None:
    """Words that a tokenizer of merges takes in with their pieces count once each."""
    tokenizer = students.load_tokenizer(make_bpe_tokenizer(tmp_path / "bpe", texts, entries=400))
    shape = Shape(num_hidden_layers=1, hidden_size=32, intermediate_size=48, head_dim=8)
    torch.manual_seed(0)
    model = ModernBertModel(configure(shape, tokenizer)).eval()
    module_files.write_transformer(tmp_path / "teacher", model, tokenizer, 64)
    words = ["xylophone", "two words", language.words[0]]
    teacher, origin = load_teacher(tmp_path / "teacher"), Origin("teacher", "bpe")
    made = model2vec.distil(teacher, origin, vocabulary=words, pca_dims=8)
    assert len(made.model.tokens) > 400 + len(words)
    assert made.words_added == 2  # the last one is the teacher's own
