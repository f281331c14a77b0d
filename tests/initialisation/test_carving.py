"""Promises of carving, folding and donors: what a student is carved from, tensor by tensor."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from small_modernbert.initialisation import carving, donors, folding
from small_modernbert.models import module_files, projection, students
from small_modernbert.runs.errors import UserError

Make = Callable[..., ModernBertModel]
TABLE = "model.embeddings.tok_embeddings.weight"


def carve(
    donor: PreTrainedModel,
    student: PreTrainedModel,
    layers: list[int] | None = None,
    token_rows: torch.Tensor | None = None,
    **options: bool,
) -> carving.Carved:
    """Carve `student` (with its head) out of `donor` and load what came out."""
    config = student.config
    read = donors.read_donor(donor)
    if layers is None:
        layers = folding.choose_layers("uniform", config.num_hidden_layers, len(read.blocks))
    if token_rows is None:
        token_rows = torch.arange(config.vocab_size)
    carved = carving.carve(
        read,
        student.state_dict(),
        heads=config.num_attention_heads,
        layer_types=config.layer_types,
        donor_layers=layers,
        token_rows=token_rows,
        **options,
    )
    student.load_state_dict(carved.tensors, strict=False)
    return carved


def test_equal_shape_gives_the_donor_back(make_student: Make) -> None:
    """At equal width and depth the donor's hidden states and MLM logits come back to 1e-5."""
    donor, student = make_student(masked_lm=True), make_student(masked_lm=True, seed=9)
    carved = carve(donor, student)
    ids = torch.randint(5, 180, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = donor.model(ids).last_hidden_state
        found = student.model(ids).last_hidden_state
        torch.testing.assert_close(found, hidden, atol=1e-5, rtol=0)
        logits = donor(ids).logits
        torch.testing.assert_close(student(ids).logits, logits, atol=1e-5, rtol=0)
    assert float(logits.std()) > 0.1
    assert {kind for kind, _ in carved.how.values()} == {"copied"}


def test_equal_width_is_the_identity() -> None:
    """At equal width the projection is the identity, whatever the vectors."""
    found = projection.principal_directions(torch.randn(100, 8), 8)
    assert torch.equal(found.directions, torch.eye(8))
    assert float(found.explained.sum()) == pytest.approx(1, abs=1e-5)


def test_projection_keeps_the_most() -> None:
    """The directions are orthonormal and span the top of the uncentred singular vectors."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(300, 20, generator=generator) * torch.linspace(3, 0.3, 20) + 0.5
    found = projection.principal_directions(vectors, 6)
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(6), atol=1e-5)
    _, sizes, right = np.linalg.svd(vectors.double().numpy(), full_matrices=False)
    top = right[:6]
    np.testing.assert_allclose(
        found.directions.T @ found.directions, top.T @ top, atol=1e-5
    )  # the same subspace
    np.testing.assert_allclose(found.explained, sizes[:6] ** 2 / (sizes**2).sum(), atol=1e-5)
    np.testing.assert_allclose(found.mean, vectors.mean(dim=0), atol=1e-5)


def test_projection_refuses_what_it_cannot() -> None:
    """More directions than dimensions, or NaN, are refused."""
    with pytest.raises(ValueError, match="9 directions out of 8"):
        projection.principal_directions(torch.randn(20, 8), 9)
    with pytest.raises(ValueError, match="NaN"):
        projection.principal_directions(torch.full((20, 8), torch.nan), 3)


def test_subspace_loses_nothing(make_student: Make) -> None:
    """A donor whose table lies in a subspace of the student's width keeps all inner products."""
    donor, student = make_student(hidden_size=48), make_student(hidden_size=24, masked_lm=True)
    generator = torch.Generator().manual_seed(0)
    rows = donor.config.vocab_size
    low = torch.randn(rows, 24, generator=generator) @ torch.randn(24, 48, generator=generator)
    table = low / low.norm(dim=1).mean()
    donor.embeddings.tok_embeddings.weight.data.copy_(table)
    carve(donor, student)
    mine = student.state_dict()[TABLE]
    torch.testing.assert_close(mine @ mine.T, table @ table.T, atol=1e-4, rtol=0)


def project_gain(gain: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Write out the diagonal of P diag(g) P^T."""
    return torch.stack([sum(row[j] * gain[j] * row[j] for j in range(len(gain))) for row in p])


def test_narrower_student_equals_the_formulas(make_student: Make) -> None:
    """Every folded matrix of a narrower student is its formula, head by head, unit by unit.

    48 wide with 4 heads of 12 and 40 units into 24 wide with 3 heads of 8 and 16 units.
    """
    donor = make_student(
        hidden_size=48, head_dim=12, intermediate_size=40, num_hidden_layers=4, masked_lm=True
    )
    student = make_student(
        hidden_size=24, head_dim=8, intermediate_size=16, num_hidden_layers=2, masked_lm=True,
        seed=3,
    )  # fmt: skip
    with torch.no_grad():
        donor.decoder.bias.normal_()
    carved = carve(donor, student, layers=[0, 3])
    theirs, mine = donor.state_dict(), student.state_dict()
    p = projection.principal_directions(theirs[TABLE], 24).directions
    torch.testing.assert_close(p @ p.T, torch.eye(24), atol=1e-5, rtol=0)

    def check(name: str, wanted: torch.Tensor) -> None:
        torch.testing.assert_close(mine[name], wanted, atol=1e-5, rtol=1e-5)
        assert carved.how[name][0] == "projected"

    check(TABLE, torch.einsum("vd,kd->vk", theirs[TABLE], p))
    for norm in ("model.embeddings.norm.weight", "model.final_norm.weight", "head.norm.weight"):
        check(norm, project_gain(theirs[norm], p))
    check("head.dense.weight", torch.einsum("ka,ab,lb->kl", p, theirs["head.dense.weight"], p))
    heads = [0, 1, 2]  # evenly(3, 4): floor(i * 4 / 3)
    # 4 of 6 rotary pairs, floor(i * 6 / 4), and their other halves six places on.
    inside = [0, 1, 3, 4, 6, 7, 9, 10]
    units = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37]  # floor(i * 40 / 16)
    grow = (12 / 8) ** 0.25
    for layer, source in enumerate([0, 3]):
        its, ours = f"model.layers.{source}.", f"model.layers.{layer}."
        read = theirs.get(its + "attn_norm.weight", torch.ones(48))
        qkv = theirs[its + "attn.Wqkv.weight"].reshape(3, 4, 12, 48)
        wanted = torch.zeros(3, 3, 8, 24)
        for part in range(3):
            for place, head in enumerate(heads):
                for spot, row in enumerate(inside):
                    factor = 1.0 if part == 2 else grow
                    wanted[part, place, spot] = factor * p @ (read * qkv[part, head, row])
        check(ours + "attn.Wqkv.weight", wanted.reshape(72, 24))
        out = theirs[its + "attn.Wo.weight"].reshape(48, 4, 12)
        columns = [p @ out[:, head, row] for head in heads for row in inside]
        check(ours + "attn.Wo.weight", torch.stack(columns, dim=1))
        gain = theirs[its + "mlp_norm.weight"]
        both = theirs[its + "mlp.Wi.weight"]
        value = torch.stack([p @ (gain * both[unit]) for unit in units])
        gate = torch.stack([p @ (gain * both[40 + unit]) for unit in units])
        check(ours + "mlp.Wi.weight", torch.cat([value, gate]))
        written = theirs[its + "mlp.Wo.weight"]
        check(ours + "mlp.Wo.weight", torch.stack([p @ written[:, unit] for unit in units], dim=1))
        check(ours + "mlp_norm.weight", torch.ones(24))
    assert torch.equal(mine["decoder.bias"], theirs["decoder.bias"])
    assert student.decoder.weight is student.model.embeddings.tok_embeddings.weight


def test_value_and_gate_rows_stay_together() -> None:
    """A unit that is picked brings its value row, its gate row and its output column."""
    unit = torch.arange(10.0)
    block = folding.DonorBlock(
        query=torch.zeros(1, 2, 4),
        key=torch.zeros(1, 2, 4),
        value=torch.zeros(1, 2, 4),
        attention_out=torch.zeros(4, 1, 2),
        units_in=unit[:, None].expand(10, 4),
        units_gate=unit[:, None].expand(10, 4) + 100,
        units_out=unit.expand(4, 10) + 200,
        attention_gain=None,
        units_gain=torch.ones(4),
    )
    value, gate, out = folding.fold_units(block, torch.eye(4), 4)
    assert value[:, 0].tolist() == [0, 2, 5, 7]
    assert (gate - value).unique().tolist() == [100]
    assert (out.T - value).unique().tolist() == [200]


@pytest.mark.parametrize(
    ("selection", "count", "total", "layers"),
    [
        ("uniform", 6, 22, [0, 4, 8, 12, 16, 20]),
        ("uniform", 12, 22, [0, 2, 4, 6, 8, 10, 11, 13, 15, 17, 19, 21]),
        ("uniform", 6, 6, [0, 1, 2, 3, 4, 5]),
        ("uniform", 1, 22, [0]),
        ("uniform", 3, 12, [0, 4, 8]),
        ("first", 6, 22, [0, 1, 2, 3, 4, 5]),
        ("first", 4, 2, [0, 0, 1, 1]),  # deeper than the donor
        ("uniform", 12, 6, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        ("uniform", 3, 2, [0, 0, 1]),
    ],
)
def test_choose_layers(selection: str, count: int, total: int, layers: list[int]) -> None:
    """Each way of choosing gives the layers that its description promises."""
    assert folding.choose_layers(selection, count, total) == layers


def test_narrower_heads_keep_their_frequencies() -> None:
    """The rotary pairs picked from a wider head turn exactly as the student's own pairs do."""

    def turns(head_dim: int) -> list[float]:
        return [1e4 ** (-2 * pair / head_dim) for pair in range(head_dim // 2)]

    for head_dim, donor_head_dim in ((32, 64), (16, 64), (8, 8)):
        picked = folding.rotary_pairs(head_dim, donor_head_dim)
        first, second = picked[: head_dim // 2], picked[head_dim // 2 :]
        assert [turns(donor_head_dim)[place] for place in first] == pytest.approx(turns(head_dim))
        assert second == [place + donor_head_dim // 2 for place in first]
    with pytest.raises(ValueError, match="cannot pick"):
        folding.rotary_pairs(16, 8)


def test_wider_heads_than_the_donors_stay_fresh(make_student: Make) -> None:
    """A student with wider heads keeps its own attention, is told so, and gets all the rest."""
    donor = make_student(head_dim=8)
    student = make_student(masked_lm=True, seed=9, head_dim=16)
    before = student.state_dict()["model.layers.1.attn.Wqkv.weight"].clone()
    carved = carve(donor, student)
    for part in ("Wqkv", "Wo"):
        how = carved.how[f"model.layers.1.attn.{part}.weight"]
        assert how == ("fresh", "heads of 16, and donor layer 1 has heads of 8")
    assert torch.equal(student.state_dict()["model.layers.1.attn.Wqkv.weight"], before)
    assert carved.how["model.layers.1.mlp.Wo.weight"][0] == "copied"


def test_narrower_heads_keep_the_size_of_scores() -> None:
    """Where all dimensions agree, half as wide heads give scores as high under their own scale."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(8, 64, 96, generator=generator)
    nothing = torch.zeros(96, 4)
    block = folding.DonorBlock(
        query=query,
        key=query,
        value=query,
        attention_out=torch.zeros(96, 8, 64),
        units_in=nothing.T,
        units_gate=None,
        units_out=nothing,
        attention_gain=None,
        units_gain=torch.ones(96),
    )
    qkv, _ = folding.fold_attention(block, torch.eye(96), heads=8, head_dim=32)
    mine = qkv.reshape(3, 8, 32, 96)
    stream = torch.randn(50, 96, generator=generator)

    def size(query: torch.Tensor, key: torch.Tensor) -> float:
        one, two = (torch.einsum("td,hkd->htk", stream, weight) for weight in (query, key))
        return float((one * two).sum(dim=2).mean() / math.sqrt(query.shape[1]))

    assert size(mine[0], mine[1]) == pytest.approx(size(query, query), rel=0.02)
    assert torch.equal(mine[2], query[:, folding.rotary_pairs(32, 64)])  # values keep theirs


SHAPE = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}


def make_bert(vocabulary: int) -> BertModel:
    """Make a BERT of 3 layers, 48 wide."""
    return BertModel(BertConfig(vocab_size=vocabulary, **SHAPE))


def make_mpnet(vocabulary: int) -> MPNetModel:
    """Make an MPNet of 3 layers, 48 wide."""
    return MPNetModel(MPNetConfig(vocab_size=vocabulary, **SHAPE))


@pytest.mark.parametrize(
    ("make", "peculiar"), [(make_bert, "token type"), (make_mpnet, "relative")]
)
def test_older_donors(
    make_student: Make, make: Callable[[int], PreTrainedModel], peculiar: str
) -> None:
    """BERT and MPNet donors fit; what ModernBERT has no place for is named, gates stay fresh."""
    student = make_student(hidden_size=24, intermediate_size=32, masked_lm=True)
    fresh = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    torch.manual_seed(0)
    donor = make(student.config.vocab_size)
    with torch.no_grad():
        for parameter in donor.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    carved = carve(donor, student)  # raises where a shape does not fit
    told = " ".join(donors.read_donor(donor).left_behind)
    for word in ("position", "biases", "norms' places", peculiar):
        assert word in told
    p = projection.principal_directions(donor.get_input_embeddings().weight.detach(), 24).directions
    gate = "model.layers.1.mlp.Wi.weight"
    assert torch.equal(student.state_dict()[gate][32:], fresh[gate][32:])
    assert "gate half fresh" in carved.how[gate][1]
    # Layer 1 of 4 comes from layer 0 of 3; layer 2 from layer 1, whose input was normed by layer 0.
    before = donor.encoder.layer[0].output.LayerNorm.weight
    attention = donor.encoder.layer[1].attention
    query = (attention.self.query if make is make_bert else attention.attn.q).weight
    # 3 of 4 heads, 8 of 12 dimensions, as in the test of the formulas.
    rows = [12 * head + row for head in (0, 1, 2) for row in (0, 1, 3, 4, 6, 7, 9, 10)]
    wanted = (12 / 8) ** 0.25 * torch.einsum("rd,d,kd->rk", query[rows], before, p)
    found = student.state_dict()["model.layers.2.attn.Wqkv.weight"][:24]
    torch.testing.assert_close(found, wanted.detach(), atol=1e-5, rtol=1e-5)
    assert carved.how["head.dense.weight"][0] == "fresh"


@pytest.mark.parametrize("layers", [[0, 1, 2, 3], [0], []])
def test_every_tensor_is_listed_once(make_student: Make, layers: list[int]) -> None:
    """Each student tensor is copied, projected or fresh with a reason; fresh ones are untouched."""
    donor = make_student(hidden_size=48, masked_lm=True)
    student = make_student(hidden_size=32, masked_lm=True, seed=1)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    carved = carve(donor, student, layers)
    assert carved.how.keys() == before.keys()
    for name, (kind, reason) in carved.how.items():
        assert kind in ("copied", "projected", "fresh")
        assert reason
        assert (kind != "fresh") == (name in carved.tensors), name
        changed = not torch.equal(student.state_dict()[name], before[name])
        assert changed == (kind != "fresh"), name
    for layer in range(4):
        kinds = {kind for name, (kind, _) in carved.how.items() if f"layers.{layer}." in name}
        assert kinds == ({"projected"} if layer in layers else {"fresh"})


def test_unknown_tokens_stay_fresh(make_student: Make) -> None:
    """Rows of tokens that the donor lacks keep their fresh values, and their number is told."""
    donor, student = make_student(), make_student(masked_lm=True, seed=1)
    before = student.state_dict()[TABLE].clone()
    rows = torch.arange(student.config.vocab_size)
    rows[[7, 50]] = -1
    rows[8] = 9
    carved = carve(donor, student, token_rows=rows)
    after, theirs = student.state_dict()[TABLE], donor.embeddings.tok_embeddings.weight
    assert torch.equal(after[[7, 50]], before[[7, 50]])
    assert torch.equal(after[8], theirs[9])
    assert torch.equal(after[10], theirs[10])
    assert "2 rows fresh" in carved.how[TABLE][1]


def test_other_attention_type_is_told(make_student: Make) -> None:
    """A layer that attends locally here and globally in the donor says so."""
    carved = carve(make_student(), make_student(masked_lm=True), layers=[0, 3])
    told = carved.how["model.layers.1.attn.Wqkv.weight"][1]
    assert "full_attention there, sliding_attention here" in told


def test_wider_student_is_refused(make_student: Make) -> None:
    """A student wider than its donor cannot be carved."""
    with pytest.raises(ValueError, match="directions out of 24"):
        carve(make_student(hidden_size=24), make_student(masked_lm=True))


def test_donor_from_a_folder(
    tmp_path: Path, make_student: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A folder with a language-modelling head is read with it, a bare one without."""
    module_files.write_transformer(tmp_path / "head", make_student(masked_lm=True), tokenizer, 64)
    module_files.write_transformer(tmp_path / "bare", make_student(), tokenizer, 64)
    with_head = donors.read_donor(students.load_donor(tmp_path / "head").transformer)
    bare = donors.read_donor(students.load_donor(tmp_path / "bare").transformer)
    assert with_head.head_dense is not None
    assert with_head.decoder_bias is not None
    assert bare.head_dense is None
    assert bare.left_behind == ["MLM head: the donor has none"]
    assert [block.attention_type for block in bare.blocks] == make_student().config.layer_types


def test_unusable_donor_is_a_user_error(tmp_path: Path) -> None:
    """An unknown family, and a folder without a model, are refused in one line."""
    other = DistilBertModel(DistilBertConfig(vocab_size=50, dim=8, n_layers=1, n_heads=1))
    with pytest.raises(UserError, match="distilbert .*modernbert, bert, mpnet"):
        donors.read_donor(other)
    with pytest.raises(UserError, match=str(tmp_path)):
        students.load_donor(tmp_path)


@pytest.mark.parametrize(
    ("changes", "name", "why"),
    [
        ({"tie_word_embeddings": False}, "decoder.weight", "untied"),
        ({"attention_bias": True}, "model.layers.0.attn.Wqkv.bias", "no biases"),
        ({"mlp_bias": True}, "model.layers.1.mlp.Wi.bias", "no biases"),
        ({"norm_bias": True}, "model.final_norm.bias", "no biases"),
    ],
)
def test_what_no_student_has_is_listed_as_left(
    make_student: Make, changes: dict[str, bool], name: str, why: str
) -> None:
    """An untied decoder and biases have their lines; so has every layer that feeds nothing."""
    model = make_student(masked_lm=True)
    assert set(donors.left_tensors(model, [0, 1, 2, 3])) == set()
    donor = type(model)(type(model.config)(**{**model.config.to_dict(), **changes}))
    left = donors.left_tensors(donor, [0, 1])
    assert why in left[name]
    assert left["model.layers.3.mlp.Wo.weight"] == "of a layer that nothing is made of"
    assert "decoder.bias" not in left and "model.layers.0.mlp.Wo.weight" not in left


def test_what_a_bert_leaves(teacher_folder: Path) -> None:
    """Positions, token types, pooler and biases of a BERT are left, its matrices are not."""
    left = donors.left_tensors(students.load_donor(teacher_folder).transformer, [0])
    assert "RoPE" in left["embeddings.position_embeddings.weight"]
    assert {"embeddings.token_type_embeddings.weight", "pooler.dense.weight"} <= left.keys()
    assert "encoder.layer.0.attention.self.query.bias" in left
    assert "encoder.layer.0.attention.self.query.weight" not in left
    assert "encoder.layer.1.attention.self.query.weight" in left


def test_centred_table(make_student: Make) -> None:
    """The mean is taken off before the PCA: the student's rows have none, and P is another."""
    donor, student = make_student(hidden_size=48), make_student(hidden_size=24, masked_lm=True)
    donor.embeddings.tok_embeddings.weight.data.add_(2.0)
    carve(donor, student, centred=True)
    table = student.state_dict()[TABLE]
    torch.testing.assert_close(table.mean(dim=0), torch.zeros(24), atol=1e-4, rtol=0)
    carve(donor, student)
    assert float(student.state_dict()[TABLE].mean(dim=0).norm()) > 1


def test_norm_scale_gives_the_donors_size(make_student: Make) -> None:
    """With it, what the student's norm gives is as large as what the donor's gave, projected."""
    donor, student = make_student(hidden_size=64), make_student(hidden_size=24, masked_lm=True)
    table = donor.embeddings.tok_embeddings.weight.data
    p = projection.principal_directions(table, 24)
    wanted = torch.nn.functional.layer_norm(table, (64,)) @ p.directions.T
    plain = torch.nn.functional.layer_norm(table @ p.directions.T, (24,))
    carve(donor, student, norm_scale=True)
    scale = student.state_dict()["model.layers.1.mlp_norm.weight"]
    torch.testing.assert_close(scale, torch.full((24,), folding.stream_scale(64, p)))
    sizes = [float(part.square().mean().sqrt()) for part in (plain, plain * scale, wanted)]
    assert sizes[0] < 0.9 * sizes[2]
    assert sizes[1] == pytest.approx(sizes[2], rel=0.05)
