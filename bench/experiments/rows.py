"""The experiments: a row a set of flags to the ordinary scripts, or a peer as its documentation is.

Every row trains for the same processor seconds on the same labels; what its start takes (the fit of
a table) is counted beside them, and masked-language modelling is counted among them.
"""

import dataclasses
from typing import Any

Flags = dict[str, Any]

# As recipes/offline.sh had them when most rows were made. No evaluations on the way, the last
# weights are kept.
DISTIL: Flags = {
    "objective": "cosine",
    "optimizer": "adamw",
    "rows_per_batch": 32,
    "decay": 0.5,
    "epochs": 1,
    "learning_rate": 1e-3,
    "held_out_rows": 100,
    "validation_sets": [],
    "select_by": "",
    "evaluate_every": 0,
    "checkpoint_every": 0,
}
# What it has had since 2026-11-26 (docs/LOG.md); its spans and its 52 texts a batch are not here,
# since these labels are of whole texts.
LONG: Flags = {"decay": 0.95}
NOW: Flags = LONG | {"freeze_embeddings": True}
REDUCED = "the reduced teacher"  # a donor that stands with the labels, wherever those are
LAYERS: Flags = {"init": "layers", "layers": [0, 4, 5], "ffn_units": 1280, "donor": REDUCED}
STATIC: Flags = {"init": "static", "map_epochs": 0}
MODERNBERT: Flags = {"learning_rate": 2e-3}


@dataclasses.dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
        name: unique; the record is found by it.
        question: the heading in the tables that it stands under.
        shape: rows of equal shapes take equally long a step; "" for what is not trained.
        start: flags of mlm/init_model_mlm; None for the blank student, or for a peer.
        distil: flags of distil_modernbert that differ from DISTIL.
        peer: a function of peers.py, with its arguments.
        language_share: of the budget that goes into masked-language modelling first.
        seed: of the start and of the batches.
        budget: times the processor seconds of the others.
        note: what a reader must know.
    """

    name: str
    question: str
    shape: str
    start: Flags | None = None
    distil: Flags = dataclasses.field(default_factory=dict)
    peer: tuple[str, Flags] | None = None
    language_share: float = 0.0
    seed: int = 42
    budget: float = 1.0
    note: str = ""


def ours(
    name: str,
    question: str,
    seed: int = 42,
    start: Flags | None = None,
    budget: float = 1.0,
    **distil: Any,  # noqa: ANN401  flags
) -> Row:
    """Make a row of the recipe's best student, with what differs."""
    flags = LAYERS | (start or {})
    batch = (DISTIL | distil)["rows_per_batch"]
    frozen = " frozen" if distil.get("freeze_embeddings") else ""
    shape = f"layers {len(flags['layers'])} {flags['ffn_units']} {batch}{frozen}"
    return Row(name, question, shape, flags, distil, seed=seed, budget=budget)


def modernbert(
    name: str,
    question: str,
    start: Flags | None,
    seed: int = 42,
    distil: Flags | None = None,
    **more: Any,  # noqa: ANN401  fields of a row
) -> Row:
    """Make a row of the small ModernBERT, with its start."""
    flags = MODERNBERT | (distil or {})
    return Row(name, question, "modernbert", start, flags, seed=seed, **more)


def reduction(name: str, peer: Flags, **more: Any) -> Row:  # noqa: ANN401  a row's fields
    """Make a row of sentence-transformers' layer reduction."""
    shape = f"trainer {peer.get('batch', 64)}"
    return Row(name, PEERS, shape, peer=("reduce_layers", peer), **more)


PEERS = "Ours and peers"
SEEDS = "Seeds"
DEPTH = "Layers and units"
HOW = "Objective, rate, batch"
CURVE = "What more time buys"
STARTS = "Starts of the small ModernBERT"
GUIDE: Flags = {"init": "guide", "transfer_layers": 0}
TWO: Flags = {"layers": [0, 5], "ffn_units": 1152}
FAST: Flags = {"layers": [0, 5], "ffn_units": 768}
FASTEST: Flags = {"layers": [0, 5], "ffn_units": 512}

ROWS = (
    Row("teacher", PEERS, "", peer=("take", {"model": "teacher"}), note="no training"),
    Row("our student after make run", PEERS, "", peer=("take", {"model": "student"}),
        note="of 2026-11-25, with a fitted layer on top: 844 steps, 632 processor seconds"),
    Row("our student after today's make run", PEERS, "", peer=("take_saved", {"label": "now"}),
        note="of 2026-11-26: 770 steps over 40,000 texts and spans of texts"),
    Row("our student after an afternoon", PEERS, "", peer=("take_saved", {"label": "afternoon"}),
        note="recipes/offline.sh --size afternoon: 1,981 steps over 103,000 texts and spans"),
    Row("our student, int8", PEERS, "", peer=("take_int8", {}),
        note="the same, as export_model.py quantises it; in onnxruntime"),
    Row("published three-layer MiniLM", PEERS, "", peer=("take_published", {}),
        note="paraphrase-MiniLM-L3-v2, fp32 in onnxruntime: made for paraphrases, from many more "
        "texts, and reads 128 tokens"),
    ours("ours: layers 0, 4, 5, 1,280 units", PEERS),
    ours("long decay, frozen table", PEERS, **NOW),
    ours("long decay, frozen table, layers 0, 5, 512 units", PEERS, start=FASTEST, **NOW),
    reduction("layer reduction, MSELoss", {"loss": "mse"}),
    reduction("layer reduction, EmbedDistillLoss", {"loss": "cosine"}),
    reduction("layer reduction, our rate and batch", {"loss": "mse", "rate": 1e-3, "batch": 32}),
    modernbert("static start", PEERS, STATIC),
    modernbert("static start, long decay", PEERS, STATIC, distil=LONG),
    Row("fresh BERT, MSELoss", PEERS, "trainer fresh", peer=("train_fresh", {})),
    Row("v2 in its words", PEERS, "trainer guide", GUIDE | {"transfer_layers": 1},
        peer=("train_folder", {}), note="GUIDE of the first layer, batches of 64 at random, 1e-4"),
    Row("our static twin", PEERS, "", peer=("take", {"model": "twin"}),
        note="static: the small ModernBERT without its layers; one pass over the labels"),
    Row("model2vec distil", PEERS, "", peer=("distil_static", {}), note="static"),
    Row("model2vec, fitted to the labels", PEERS, "", peer=("fit_static", {}), note="static"),
    ours("ours, seed 43", SEEDS, seed=43),
    ours("ours, seed 44", SEEDS, seed=44),
    modernbert("static start, seed 43", SEEDS, STATIC, seed=43),
    modernbert("static start, seed 44", SEEDS, STATIC, seed=44),
    *(ours(f"long decay, frozen table, seed {seed}", SEEDS, seed, **NOW) for seed in (43, 44)),
    *(ours(f"long decay, frozen table, layers 0, 5, 512 units, seed {seed}", SEEDS, seed, FASTEST,
           **NOW) for seed in (43, 44)),
    *(modernbert(f"static start, long decay, seed {seed}", SEEDS, STATIC, seed, LONG)
      for seed in (43, 44)),
    ours("layers 0, 5, 1,152 units", DEPTH, start=TWO),
    ours("layers 0, 5, 768 units", DEPTH, start=FAST),
    ours("layers 0, 5, 512 units", DEPTH, start=FASTEST),
    *(ours(f"layers 0, 5, 768 units, seed {seed}", SEEDS, seed, FAST) for seed in (43, 44)),
    ours("600 processor seconds", CURVE, budget=20 / 3),
    ours("600 processor seconds, long decay, frozen table", CURVE, budget=20 / 3, **NOW),
    ours("mse", HOW, objective="mse"),
    ours("kl", HOW, objective="kl"),
    ours("rate 2e-3", HOW, learning_rate=2e-3),
    ours("batches of 64", HOW, rows_per_batch=64),
    ours("rate 5e-4", HOW, learning_rate=5e-4),
    ours("layer 5 alone, all units", DEPTH, start={"layers": [5], "ffn_units": 0}),
    ours("all units", DEPTH, start={"ffn_units": 0}),
    modernbert("random", STARTS, None),
    modernbert("GUIDE, all layers", STARTS, GUIDE),
    modernbert("GUIDE, first layer", STARTS, GUIDE | {"transfer_layers": 1}),
    modernbert("GUIDE, all layers, norm scale", STARTS, GUIDE | {"norm_scale": True}),
    modernbert("GUIDE, all layers, norm scale, MLM half the budget", STARTS,
               GUIDE | {"norm_scale": True}, language_share=0.5),
    reduction("layer reduction, MSELoss, four times the budget", {"loss": "mse"}, budget=4.0),
    reduction("layer reduction, MSELoss, 600 processor seconds", {"loss": "mse"}, budget=20 / 3),
)  # fmt: skip
