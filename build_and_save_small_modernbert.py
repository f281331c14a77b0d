r"""Build a blank ModernBERT student: its shape from a preset, its vocabulary from a tokenizer.

Reads: a tokenizer (folder or hub id).
Writes: final/, a sentence-transformers folder with randomly initialised weights, and
    final/parameters.md, the table of its parameters.

    python build_and_save_small_modernbert.py --preset small-v2
    python build_and_save_small_modernbert.py --recipe offline --preset offline \
        --tokenizer assets/models/all-MiniLM-L6-v2

Weights start Megatron-style (ModernBERT paper, appendix A.2): normal with deviation 0.02, cut at
two deviations, and divided by sqrt(2 x layers) where a matrix writes to the residual stream.
"""

from typing import TYPE_CHECKING, Literal

from small_modernbert.runs import references, settings, stages

if TYPE_CHECKING:
    from small_modernbert.models.architecture import Shape

# Shape: a 0 keeps the preset's value
PRESET: Literal[  # where the shape starts; architecture.py has them with their sources
    "small-v1", "small-v1-384", "small-v2", "small-v2-8k", "small-v2-wide", "offline"
] = "small-v2"
NUM_LAYERS: int = 0  # depth
HIDDEN_SIZE: int = 0  # width of the residual stream and of the embedding
INTERMEDIATE_SIZE: int = 0  # GeGLU units; with a hidden size of your own, 0 derives 1.5 times it
HEAD_DIM: int = 0  # heads = hidden size // head dim
MAX_TOKENS: int = 0  # longest input, tokens
GLOBAL_EVERY: int = 0  # each so-many-th layer attends globally, the others locally
LOCAL_ATTENTION: int = 0  # whole window of the local layers, tokens
GLOBAL_ROPE_THETA: float = 0.0  # rotary base of the global layers
LOCAL_ROPE_THETA: float = 0.0  # rotary base of the local layers

# Vocabulary
TOKENIZER: str = "answerdotai/ModernBERT-base"  # folder or hub id; WordPiece or ModernBERT's BPE
TOKENIZER_REVISION: str = ""  # 40 hex digits pin a hub tokenizer

# Output
POOLING: Literal["mean", "cls"] = "mean"  # how token vectors become one
SEED: int = 42  # of the random weights
RECIPE: str = "small_v2"  # runs/<recipe>/build_and_save_small_modernbert
VARIANT: str = ""  # a second run in the same recipe: ...@<variant>
OVERWRITE: bool = False  # redo a finished stage


def main() -> None:
    """Derive the configuration, draw the weights, save, and print the parameter table."""
    place = references.locate(TOKENIZER, RECIPE) or TOKENIZER
    with stages.Stage(globals(), {"tokenizer": place}) as stage:
        if stage.finished:
            return
        import torch
        from transformers import ModernBertModel

        from small_modernbert.models import architecture, students
        from small_modernbert.runs import report, storage

        tokenizer = students.load_tokenizer(place, TOKENIZER_REVISION or None)
        config = architecture.configure(choose_shape(), tokenizer)
        stages.logger.info("shape: %s", architecture.describe(config))
        torch.manual_seed(SEED)
        student = students.Student(
            ModernBertModel(config), tokenizer, config.max_position_embeddings, POOLING
        )
        rows = architecture.parameter_rows(student.transformer)
        table = report.table(("part", "parameters"), rows)
        print(table)
        student.save(stage.building)
        storage.write_text(
            stage.building / "parameters.md", f"{architecture.describe(config)}\n\n{table}\n"
        )
        stage.record.metrics = {"parameters": dict(rows)}
        student.write_card(stage)
        total = rows[-1][1]
        share = architecture.embedding_parameters(rows) / total
        stage.finish(
            f"a blank student of {total:,} parameters, {share:.0%} of them embedding",
            verify=student.check_reload,
        )


def choose_shape() -> "Shape":
    """Return the preset, with what the constants put in place of its values."""
    from small_modernbert.models import architecture

    return architecture.choose(
        PRESET,
        num_hidden_layers=NUM_LAYERS,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_TOKENS,
        global_every=GLOBAL_EVERY,
        local_attention=LOCAL_ATTENTION,
        global_rope_theta=GLOBAL_ROPE_THETA,
        local_rope_theta=LOCAL_ROPE_THETA,
    )


if __name__ == "__main__":
    settings.run(globals())
