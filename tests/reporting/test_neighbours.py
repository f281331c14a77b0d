"""What is near to what: held-out texts, or a user's own among them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from script_runner import load_script

from small_modernbert.models import encoders
from small_modernbert.models.vectors import normalise
from small_modernbert.reporting import neighbours, page
from small_modernbert.reporting.neighbours import OWN, Sample
from small_modernbert.runs.errors import UserError


def sample_of(texts: int, same: int, asked: int = 0) -> Sample:
    """Return texts of which the first `same` have the teacher's vectors in the student, too."""
    random = np.random.default_rng(0)
    teacher = normalise(random.normal(size=(texts, 8)).astype(np.float32))
    student = teacher.copy()
    student[same:] = normalise(random.normal(size=(texts - same, 8)).astype(np.float32))
    names = [f"text {number}" for number in range(texts)]
    return Sample(names, ["text"] * texts, teacher, student, asked)


def test_those_who_agree_and_those_who_differ_are_other_texts() -> None:
    """However few are asked for, no text stands on both sides, and none is its own neighbour."""
    _, agree, differ = neighbours.compare(sample_of(60, 40))
    assert len(agree) == len(differ) == neighbours.EXAMPLES
    assert min(each.agreement for each in agree) > max(each.agreement for each in differ)
    for asked, sides in ((3, (2, 1)), (1, (1, 0))):
        _, agree, differ = neighbours.compare(sample_of(60, 40, asked))
        assert (len(agree), len(differ)) == sides
        shown = {each.text for each in agree + differ}
        assert shown == {f"text {number}" for number in range(asked)}
        for each in agree:
            assert each.text not in [text for text, _ in each.teacher + each.student]


class Words:
    """A model that knows words alone: each has a direction of its own."""

    def encode(self, texts: list[str], description: str) -> np.ndarray:
        """Return the sum of each text's words."""
        del description
        return np.array([sum(self.direction(word) for word in text.split()) for text in texts])

    @staticmethod
    def direction(word: str) -> np.ndarray:
        """Return what the word alone decides."""
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
        return np.random.default_rng(seed).normal(size=256)


def test_own_texts_are_asked_for_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come first, are found by meaning, and one that is a held-out text stands once."""
    monkeypatch.setattr(encoders, "load_encoder", lambda folder, label: Words())
    held_out = [f"hill{number} lake{number}" for number in range(30)]
    read = Words().encode(held_out, "")
    sample = Sample(held_out, ["text"] * 30, normalise(read[:, :4]), normalise(read))
    own = ["hill7 storm", "hill9 lake9"]
    whole = neighbours.add_own(sample, own, Path("student"), Path("teacher"))
    assert whole.asked == 2
    assert len(whole.texts) == len(whole.teacher) == len(whole.student) == 31
    assert whole.roles[:3] == [OWN, OWN, "text"]
    agreement, agree, differ = neighbours.compare(whole)
    assert agreement == 1  # both are one model here
    nearest = {each.text: each.teacher[0][0] for each in agree + differ}
    assert nearest["hill7 storm"] == "hill7 lake7"
    told = page.describe_neighbours(agreement, agree, differ, whole.asked)
    assert told["text"].startswith("Your texts (2), among held-out ones of the run.")
    assert len(page.describe_neighbours(1, agree, [], 1)["groups"]) == 1, "an empty group is none"


def test_own_texts_are_read_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text a line; more than TEXTS are drawn from, and said; what is not there is refused."""
    script = load_script("report")
    script.OWN_TEXTS = str(tmp_path / "asked.txt")
    with pytest.raises(UserError, match="OWN_TEXTS: .*--own-texts asked.txt"):
        script.find_own()
    (tmp_path / "asked.txt").write_text("why is it so\nwho was there\nwhere\n", encoding="utf-8")
    assert script.read_own(script.find_own()) == ["why is it so", "who was there", "where"]
    script.TEXTS = 2
    assert len(script.read_own(script.find_own())) == 2
    assert "2 of your 3 texts" in capsys.readouterr().out
    with pytest.raises(UserError, match="no finished student"):
        script.compare([], tmp_path / "asked.txt")
