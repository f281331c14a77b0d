"""Promises of layer_selection.py: a donor's own layers, whole, with all that goes with them."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import make_miniature_assets
from safetensors.torch import load_file
from script_runner import run
from sentence_transformers import SentenceTransformer
from transformers import BertModel, ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.initialisation import layer_selection
from small_modernbert.models import inference, students, teachers
from small_modernbert.models.projection import principal_directions
from small_modernbert.runs.errors import UserError

Make = Callable[..., ModernBertModel]


def donor_of(model: ModernBertModel, tokenizer: PreTrainedTokenizerFast) -> students.Student:
    """Return a ModernBERT as a donor."""
    return students.Student(model, tokenizer, 48, "cls")


@pytest.mark.parametrize(
    ("number", "depth", "spacing", "wanted"),
    [
        (6, 22, "uniform", [0, 4, 8, 12, 16, 20]),
        (6, 22, "matched", [0, 4, 8, 12, 16, 20]),
        (2, 4, "uniform", [0, 2]),
        (4, 8, "uniform", [0, 2, 4, 6]),
        (4, 8, "matched", [0, 2, 4, 6]),
        (3, 8, "uniform", [0, 3, 6]),
        (3, 8, "matched", [0, 2, 5]),
    ],
)
def test_spacing(
    make_student: Make, number: int, depth: int, spacing: str, wanted: list[int]
) -> None:
    """Layers are spaced evenly, or as near to that as the pattern of global attention allows."""
    model = make_student(num_hidden_layers=depth)
    chosen = layer_selection.choose(model, [], number, spacing)
    assert chosen == wanted
    changed = layer_selection.changed_attention(model, chosen)
    if spacing == "matched":
        assert not changed
    elif number == 3:
        assert changed == [
            "layer 1: full_attention in the donor (its layer 3), sliding_attention here",
            "layer 2: full_attention in the donor (its layer 6), sliding_attention here",
        ]


@pytest.mark.parametrize(
    ("depth", "wanted"), [(3, [0, 1, 2]), (6, [0, 4, 5]), (12, [0, 10, 11]), (22, [0, 20, 21])]
)
def test_layers_count_from_the_end_too(make_student: Make, depth: int, wanted: list[int]) -> None:
    """The first and the last two are so of a donor of any depth."""
    model = make_student(num_hidden_layers=depth)
    assert layer_selection.choose(model, [0, -2, -1], 6, "uniform") == wanted


@pytest.mark.parametrize(
    ("chosen", "number", "message"),
    [
        ([0, 9], 2, "LAYERS 0 9: the donor has layers 0 to 3"),
        ([2, 0], 2, "in rising order"),
        ([1, 1], 2, "each once"),
        ([0, -4, -1], 2, "LAYERS 0 -4 -1: .* each once"),
        ([0, -5], 2, "layers 0 to 3"),
        ([], 5, "--num-layers 4 at most"),
        ([], 0, "NUM_LAYERS is 0"),
    ],
)
def test_layers_that_there_are_not(
    make_student: Make, chosen: list[int], number: int, message: str
) -> None:
    """Layers that the donor lacks are refused with those that it has."""
    with pytest.raises(UserError, match=message):
        layer_selection.choose(make_student(), chosen, number, "uniform")


@pytest.mark.parametrize("masked_lm", [True, False])
def test_modernbert_layers_are_copied_whole(
    make_student: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, masked_lm: bool
) -> None:
    """Each tensor is the donor's, bit for bit; every tensor of the donor is accounted for."""
    model = make_student(num_hidden_layers=6, masked_lm=masked_lm)
    student, transfer = layer_selection.keep_layers(donor_of(model, tokenizer), [0, 2, 5])
    state, donor = student.transformer.state_dict(), model.state_dict()
    assert student.body.config.layer_types == [
        "full_attention",
        "sliding_attention",
        "sliding_attention",
    ]
    for name, tensor in state.items():
        kind, source = transfer[name]
        assert kind == "copied"
        assert torch.equal(tensor, donor[source])
    prefix = "model." if masked_lm else ""
    assert transfer[f"{prefix}layers.1.mlp.Wo.weight"][1] == f"{prefix}layers.2.mlp.Wo.weight"
    used = {source for kind, source in transfer.values() if kind == "copied"}
    left = {
        name.removeprefix(layer_selection.LEFT)
        for name, (kind, _) in transfer.items()
        if kind == "left"
    }
    assert used | left == set(donor) and not used & left
    student.save(tmp_path)
    student.check_reload(tmp_path)
    again = students.load_donor(tmp_path)
    assert type(again.transformer) is type(model)
    assert (again.pooling, again.max_tokens) == ("cls", 48)


def test_first_layer_without_its_norm(
    make_student: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A ModernBERT's first layer has no norm; that of the layer that becomes first is left."""
    _, transfer = layer_selection.keep_layers(donor_of(make_student(), tokenizer), [1, 3])
    assert transfer[f"{layer_selection.LEFT}layers.1.attn_norm.weight"] == (
        "left",
        "the first layer has no norm of its own",
    )
    assert transfer["layers.0.mlp.Wo.weight"] == ("copied", "layers.1.mlp.Wo.weight")


def test_bert_layers_compute_what_the_donors_do(teacher_folder: Path, texts: list[str]) -> None:
    """All layers give the donor's vectors; the first one alone gives its first hidden state."""
    donor = students.load_donor(teacher_folder)
    whole, _ = layer_selection.keep_layers(donor, [0, 1])
    np.testing.assert_array_equal(
        whole.encoder().encode_texts(texts, whole.backend),
        donor.encoder().encode_texts(texts, donor.backend),
    )
    first, transfer = layer_selection.keep_layers(students.load_donor(teacher_folder), [0])
    assert isinstance(first.transformer, BertModel)
    ids = torch.tensor([first.backend.encode(texts[0]).ids])
    model = BertModel.from_pretrained(teacher_folder).eval()
    with torch.no_grad():
        wanted = model(ids, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(first.transformer(ids).last_hidden_state, wanted)
    assert transfer[f"{layer_selection.LEFT}encoder.layer.1.output.dense.weight"][0] == "left"


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the miniature of assets/."""
    return make_miniature_assets(tmp_path_factory.mktemp("assets"))


def test_layers_of_a_reduced_teacher_are_distilled(assets: Path, tmp_path: Path) -> None:
    """From the teacher's layers through distillation to a BERT that loads everywhere.

    The reduced teacher is the donor: its PCA layer comes along, so labels and student are equally
    wide, and no blank student is needed.
    """
    teacher, runs = str(assets / "models" / "all-MiniLM-L6-v2"), tmp_path / "runs"
    recipe = ["--recipe", "mine"]
    folder = runs / "mine"
    corpus = str(assets / "text" / "train.parquet")
    for line in (
        f"mlm/create_dataset.py --sources offline --offline-text {corpus} --tokenizer {teacher}"
        " --max-tokens 64 --max-texts 200 --held-out-rows 40",
        f"create_distil_dataset.py --teacher {teacher} --dimension 20",
        "mlm/init_model_mlm.py --init layers --num-layers 1"
        " --donor create_distil_dataset/reduced_teacher",
        "mlm/init_model_mlm.py --variant narrow --init layers --layers 0"
        " --donor create_distil_dataset/reduced_teacher --ffn-units 20",
        "distil_modernbert.py --student mlm/init_model_mlm --max-steps 8 --precision fp32"
        " --evaluate-every 4 --validation-sets boolq-dev --learning-rate 1e-3 --freeze-embeddings"
        f" --retrieval-folder {assets / 'retrieval'}",
    ):
        run([*line.split(), *recipe], runs).check()
    start, final = (
        folder / stage / "final" for stage in ("mlm/init_model_mlm", "distil_modernbert")
    )
    carried = json.loads((start / "transfer.json").read_text())
    assert {kind for kind, _ in carried.values()} == {"copied", "left"}
    own = load_file(folder / "create_distil_dataset/final/reduced_teacher/model.safetensors")
    for name, tensor in load_file(start / "model.safetensors").items():
        assert torch.equal(tensor, own[carried[name][1]]), name
    kept = [
        name
        for name, tensor in load_file(final / "model.safetensors").items()
        if torch.equal(tensor, own[carried[name][1]]) and not name.startswith("pooler.")
    ]
    assert kept == ["embeddings.word_embeddings.weight"], "the frozen table, and nothing else"
    narrow = folder / "mlm/init_model_mlm@narrow" / "final"
    cut = json.loads((narrow / "transfer.json").read_text())
    kinds = Counter(kind for kind, _ in cut.values())
    assert kinds["cut"] == 4, "weights and biases of one layer's two matrices"
    assert students.load_student(narrow).transformer.config.intermediate_size == 20
    metrics = json.loads((folder / "distil_modernbert" / "run.json").read_text())["metrics"]
    assert metrics["after"]["held_out_cosine"] > metrics["before"]["held_out_cosine"]
    loaded = SentenceTransformer(str(final), device="cpu")
    assert loaded.get_embedding_dimension() == 20
    assert type(loaded[0].auto_model) is BertModel
    texts = ["Is it a good day?", "nothing"]
    student = students.load_student(final)
    np.testing.assert_allclose(
        student.encoder().encode_texts(texts, student.backend), loaded.encode(texts), atol=1e-5
    )
    trained = load_file(final / "3_Dense" / "model.safetensors")["linear.weight"]
    before = load_file(start / "3_Dense" / "model.safetensors")["linear.weight"]
    assert not torch.equal(trained, before)


def test_head_of_a_donor_comes_along(
    teacher_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    """The PCA layer of a reduced teacher stays on top of the layers that are kept."""
    teacher = teachers.load_teacher(teacher_folder)
    vectors = inference.encode_texts(teacher, texts, tokens_per_batch=512)
    projection = principal_directions(torch.from_numpy(vectors), 12)
    teachers.save_teacher(teachers.reduce_teacher(teacher, projection), tmp_path)
    student, _ = layer_selection.keep_layers(students.load_donor(tmp_path), [0])
    assert student.width == 12
    dense = next(module for module in student.head if hasattr(module, "linear"))
    torch.testing.assert_close(dense.linear.weight.detach(), projection.directions)
    shutil.rmtree(tmp_path)
    student.save(tmp_path)
    assert SentenceTransformer(str(tmp_path), device="cpu").encode("x").shape == (12,)
