"""What the fork server of `script_runner` has at hand for every script: imports, and one table.

None of it starts a thread by being imported. All of it is frozen: a child then neither looks for
garbage among a million objects of libraries nor copies their pages.
"""

import gc
import importlib

from transformers import conversion_mapping

MODULES = (
    "torch._dynamo",  # transformers asks it questions inside functions
    "torch.nn.attention.varlen",
    "optimi",
    "transformers.models.bert.modeling_bert",
    "sentence_transformers.models",
    "datasets",
    "model2vec",
    "bm25s",
    "rensa",
    "tyro",
    "matplotlib.pyplot",
    "scipy.stats",
    "sklearn.decomposition",
    *(
        f"small_modernbert.{name}"
        for name in (
            "data.corpus_building",
            "data.corpus_selection",
            "data.evaluation_sets",
            "data.hub_datasets",
            "data.training_examples",
            "evaluation.benchmark",
            "evaluation.benchmark_report",
            "evaluation.validation",
            "initialisation.carving",
            "initialisation.layer_selection",
            "initialisation.static_table",
            "labelling.lengths",
            "labelling.relabelling",
            "models.students",
            "training.contrastive",
            "training.distillation",
            "training.loop",
            "training.masked_lm",
        )
    ),
)

for name in MODULES:
    importlib.import_module(name)
conversion_mapping.get_checkpoint_conversion_mapping("bert")  # loading a model asks for it
gc.freeze()
