"""The card of a model (README.md): what it is made of, how, how good it is, how it is used.

Every stage that ends in a model writes one, from its own record and those of the stages behind it.
What is not known is left out. Nothing of the clock or the machine stands in it, so that equal runs
make equal folders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData

from small_modernbert.models import card_examples, origins
from small_modernbert.models.architecture import count_weights
from small_modernbert.models.origins import Origin
from small_modernbert.runs import ancestry, report, storage

if TYPE_CHECKING:
    from small_modernbert.models.students import Student
    from small_modernbert.runs.stages import Stage

# Constants that a reader of a card wants to know, in this order.
TOLD = (
    *("PRESET", "INIT", "LAYERS", "FFN_UNITS", "OBJECTIVE", "FREEZE_EMBEDDINGS", "MASKING"),
    *("SEQUENCE_TOKENS", "GLOBAL_ROPE_THETA", "DIMENSIONS", "MARGINS", "EPOCHS", "MAX_STEPS"),
    *("ROWS_PER_BATCH", "TOKENS_PER_BATCH", "ACCUMULATE", "LEARNING_RATE", "OPTIMIZER"),
    *("MAX_TEXTS", "MAX_TOKENS", "CLEANING", "SPAN_SHARE", "MINE_PAIRS", "PCA_TEXTS", "SEED"),
)
# What a figure of a training is called by the hub: ending -> task, its name, metric.
RESULTS = {
    "_ndcg@10": ("information-retrieval", "Information Retrieval", "cosine_ndcg@10"),
    "_average_precision": ("binary-classification", "Binary Classification", "cosine_ap"),
    "_spearman": ("semantic-similarity", "Semantic Similarity", "spearman_cosine"),
    "_pearson": ("semantic-similarity", "Semantic Similarity", "pearson_cosine"),
}
# Means over sets, and figures of held-out rows, are no result on a data set.
NO_SETS = ("retrieval", "teacher_agreement", "judge", "sts")
NEVER_TRAINED = ("build_and_save_small_modernbert", "mlm/init_model_mlm", "mlm/pre_train")


@dataclass(frozen=True)
class Added:
    """What only somebody who publishes a model can say.

    Attributes:
        title: in place of recipe/stage.
        licence: as the hub spells it; "" = as told by what the model is made of.
        language: of the model; none = the teacher's.
        results: of a benchmark of this very model.
        sections: headings with their text, after the examples.
    """

    title: str = ""
    licence: str = ""
    language: Sequence[str] = ()
    results: Sequence[EvalResult] = ()
    sections: Sequence[tuple[str, str]] = ()


def write(stage: "Stage", student: "Student", added: Added | None = None) -> None:
    """Write the card of what a stage has built; its record has its figures by now."""
    text = make(stage.record.to_json(), stage.folder_of_recipe.name, student, added)
    storage.write_text(stage.building / "README.md", text)


def make(
    record: Mapping[str, Any], recipe: str, student: "Student", added: Added | None = None
) -> str:
    """Return the text of a card.

    Args:
        record: of the stage that made the model, as run.json has it.
        recipe: its name.
        student: the model.
        added: what its publisher says.
    """
    added = added or Added()
    behind = ancestry.trace(record["inputs"])
    records = [*(ancestor.record for ancestor in behind), record]
    found = origins.collect(records)
    title = added.title or f"{recipe}/{record['script']}"
    results = [*results_of(record), *added.results]
    head = front_matter(
        title, found, records, kind=student.body.config.model_type, results=results, added=added
    )
    sections = [
        ("", _description(student, record)),
        ("How it was made", _lineage(behind, record)),
        ("Prompts", _prompts(student, record)),
        *_uses(student, record),
        *added.sections,
        ("Query here, documents there", _asymmetric(record)),
        ("Measured in training", _measured(record)),
        ("Limits", _limits(student, records, found)),
        ("Licence", _licence(found, added)),
    ]
    return assemble(head, title, sections)


def assemble(head: ModelCardData, title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a card: its YAML, a title, and those sections that have a text."""
    parts = [f"---\n{head.to_yaml().strip()}\n---", f"# {title}"]
    for heading, text in sections:
        if text:
            parts += [f"## {heading}", text] if heading else [text]
    return "\n\n".join(parts) + "\n"


def front_matter(
    title: str,
    found: Sequence[Origin],
    records: Sequence[Mapping[str, Any]],
    *,
    kind: str,
    results: Sequence[EvalResult] = (),
    added: Added | None = None,
) -> ModelCardData:
    """Return a card's YAML.

    Args:
        title: the model's name among results.
        found: what it was made of.
        records: of the stages that made it, its own last.
        kind: of model, a tag.
        results: measured ones.
        added: what its publisher says.
    """
    added = added or Added()
    licence, reason = origins.licence_of(found)
    licence = added.licence or licence
    models = [origin for origin in found if origin.role in ("donor", "teacher")]
    teachers = [origin for origin in found if origin.role == "teacher"]
    taught = [name for origin in models for name in origin.datasets]
    data = [origin.hub_id for origin in found if origin.role == "data" and origin.hub_id]
    languages = added.language or [word for teacher in teachers for word in teacher.language]
    script = str(records[-1]["script"]).partition("@")[0]
    masked = script == "mlm/pre_train"
    trained = script not in NEVER_TRAINED
    tags = ["sentence-transformers", "feature-extraction", "sentence-similarity", kind]
    tags += ["distillation"] if teachers and trained else []
    own = [*data, *origins.labels(records)]
    return ModelCardData(
        model_name=title,
        license=licence,
        license_name="see-the-section-licence" if licence == "other" and reason else None,
        language=_listed(languages),
        library_name="transformers" if masked else "sentence-transformers",
        pipeline_tag="fill-mask" if masked else "sentence-similarity" if trained else None,
        tags=tags,
        base_model=_listed([origin.hub_id for origin in models if origin.hub_id]),
        datasets=_listed(data),
        # What mteb asks for: the teacher's training sets have gone into its student, too.
        training_datasets=_listed([*own, *taught], always=True),
        eval_results=list(results) or None,
    )


def results_of(record: Mapping[str, Any]) -> list[EvalResult]:
    """Return what a training measured on sets that have a name: those that it was watched by."""
    after = record.get("metrics", {}).get("after", {})
    return [
        evaluation(name.removesuffix(ending), ending, value)
        for name, value in after.items()
        for ending in RESULTS
        if name.endswith(ending) and name.removesuffix(ending) not in NO_SETS
    ]


def evaluation(name: str, ending: str, value: float) -> EvalResult:
    """Return one figure as a card has it.

    Args:
        name: of the evaluation set.
        ending: a key of RESULTS.
        value: from 0 to 1.
    """
    task, task_name, metric = RESULTS[ending]
    return EvalResult(
        task_type=task,
        task_name=task_name,
        dataset_type=name,
        dataset_name=name,
        metric_type=metric,
        metric_name=metric.replace("_", " "),
        metric_value=round(float(value), 4),
    )


def _description(student: "Student", record: Mapping[str, Any]) -> str:
    config = student.body.config
    total, outside = count_weights(student.body, student.head)
    heads = ", ".join(type(module).__name__ for module in student.head)
    after = f", then {heads}" if heads else ""
    unit = ", then scaled to unit length" if student.normalised else ""
    text = (
        f"A {config.model_type} of {config.num_hidden_layers} layers, {config.hidden_size} wide: "
        f"{total:,} parameters, {outside:,} of them not embeddings. It reads texts of up to "
        f"{student.max_tokens:,} tokens and gives vectors of {student.width} numbers: "
        f"{student.pooling} pooling{after}{unit}."
    )
    if str(record["script"]).partition("@")[0] in NEVER_TRAINED:
        text += " It has not been trained to embed texts: it is where a training starts."
    if reason := record.get("facts", {}).get("reason"):
        text += f" This stage kept the model that came in: {reason}."
    return text


def _lineage(behind: Sequence[ancestry.Ancestor], record: Mapping[str, Any]) -> str:
    rows = [
        (
            ancestor.name + (" (made again since)" if ancestor.changed else ""),
            *_row(ancestor.record),
        )
        for ancestor in behind
    ]
    rows.append((record["script"], *_row(record)))
    return report.table(["stage", "from outside", "rows", "steps", "tokens", "settings"], rows)


def _row(record: Mapping[str, Any]) -> list[Any]:
    taken = origins.collect([record])
    settings, rows = record["settings"], record.get("rows", {})
    number = rows.get("train")
    if number is None and all(isinstance(row, dict) for row in rows.values()):
        number = sum(row.get("kept", 0) for row in rows.values()) or None
    told = [
        f"{name} {settings[name]}" for name in TOLD if settings.get(name) not in (None, "", 0, [])
    ]
    from_outside = ", ".join(f"{origin.role} {origin.name}" for origin in taken)
    counts = (record.get(name) for name in ("steps", "tokens"))
    return [from_outside or None, number, *counts, ", ".join(told)]


def _prompts(student: "Student", record: Mapping[str, Any]) -> str:
    named = {role: text for role, text in vars(student.prompts).items() if text}
    told = [f"- {role}: `{prompt!r}`" for role, prompt in named.items()]
    trained = record.get("facts", {}).get("prompts_trained_with")
    if trained is None:
        said = "" if not named else "Put in front of a text by `encode_query` and the like:"
    elif trained:
        said = "It was trained behind these prompts, and should be used behind them:"
    else:
        said = "It was trained without prompts, and takes texts as they are."
    return "\n\n".join(part for part in (said, "\n".join(told)) if part)


def _uses(student: "Student", record: Mapping[str, Any]) -> list[tuple[str, str]]:
    if str(record["script"]).partition("@")[0] == "mlm/pre_train":
        return []
    return [
        ("With sentence-transformers", card_examples.with_sentence_transformers(student)),
        ("With transformers alone", card_examples.with_transformers(student)),
    ]


def _asymmetric(record: Mapping[str, Any]) -> str:
    """Say that student and teacher share a space, where the last training made them share it."""
    made = [ancestor.record for ancestor in ancestry.trace(record["inputs"])] + [record]
    # A stage that kept the model that came in has a reason, and moved no vector.
    trained = [
        each for each in made if each.get("steps") and not each.get("facts", {}).get("reason")
    ]
    if not trained or not str(trained[-1]["script"]).startswith("distil_modernbert"):
        return ""
    if trained[-1]["settings"].get("OBJECTIVE") not in ("mse", "cosine"):
        return ""
    return (
        "Its vectors were fitted to its teacher's, reduced: documents may be encoded once by the "
        "reduced teacher (`create_distil_dataset/final/reduced_teacher` of its recipe), and "
        "queries by this model."
    )


def _measured(record: Mapping[str, Any]) -> str:
    metrics = record.get("metrics", {})
    before, after = metrics.get("before") or {}, metrics.get("after") or {}
    if not after:
        return ""
    rows = [(name, before.get(name), value) for name, value in after.items()]
    text = report.table(["figure", "before", "after"], rows)
    settings = record["settings"]
    chosen = settings.get("SELECT_BY")
    if chosen:
        text += f"\n\nThe kept weights are those of step {metrics.get('best_step')}, the best by "
        text += f"{chosen}; a figure that was selected by is flattered by it."
    if settings.get("VALIDATION_SETS"):
        text += f" Validation sets: {', '.join(settings['VALIDATION_SETS'])}."
    return text


def _limits(
    student: "Student", records: Sequence[Mapping[str, Any]], found: Sequence[Origin]
) -> str:
    lines = [f"- Of a longer text than {student.max_tokens:,} tokens the rest is not read."]
    for record in records:
        facts = record.get("facts", {})
        if number := facts.get("lengths", {}).get("teacher_tokens"):
            lines.append(f"- Its teacher read at most {number:,} tokens of a text.")
            break
    for origin in found:
        if origin.role == "teacher" and origin.language:
            lines.append(f"- Its teacher's card names as language: {', '.join(origin.language)}.")
    lines += [line for record in records if (line := _kept_apart(record))]
    return "\n".join(lines)


def _kept_apart(record: Mapping[str, Any]) -> str:
    """Say what a corpus was kept apart from; "" for any other stage."""
    sets = record.get("facts", {}).get("kept_apart_from")
    if sets is None:
        return ""
    if not sets:
        return "- The corpus went through no leak filter of its stage."
    left_out = sum(row.get("stands in an evaluation set", 0) for row in record["rows"].values())
    return f"- Texts of {', '.join(sets)} were kept out of the corpus: {left_out:,} were left out."


def _licence(found: Sequence[Origin], added: Added) -> str:
    licence, reason = origins.licence_of(found)
    names: dict[tuple[str, str], list[str]] = {}
    for origin in found:
        names.setdefault((origin.role, origin.licence or origins.UNKNOWN), []).append(origin.name)
    told = [f"- {role} {', '.join(same)}: {stated}" for (role, stated), same in names.items()]
    if added.licence:
        told.insert(0, f"{added.licence}, as its publisher says.\n")
    elif licence == "other":
        told.insert(0, f"Other: {reason}.\n")
    return "\n".join(told)


def _listed(words: Sequence[str | None], always: bool = False) -> list[str] | str | None:
    """Return words once each; one alone as a word, none as nothing."""
    once = list(dict.fromkeys(word for word in words if word))
    if not once:
        return None
    return once if always or len(once) > 1 else once[0]
