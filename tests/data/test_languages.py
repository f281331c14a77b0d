"""Languages are told by common words: other ones, mixed folders, tables; English of any kind is."""

import random

import pytest

from small_modernbert.data import languages

ENGLISH = (
    "the {} {} was built for the {} and it is one of the oldest {} in {} {}, with {} {} beside it",
    "most of the {} {} can be seen from the {} {}, which was closed to all {} {} {} since then",
    "they had to leave the {} {} after {} {} {} was sold, and some {} {} came back in {} {}",
)
OTHERS = {
    "German": "der {} steht an der {} und war also lange in Betrieb, wie die {} und das {} daneben",
    "Dutch": "de {} is een van de oudste bruggen aan het water en werd laat gesloten, net als {}",
    "Danish": "den {} er for alle, og det er en af de bedste {} i byen, som man kan se fra {}",
    "Hungarian": "a {} a város szélén áll, és a {} is a régi időkből maradt meg a lakóknak",
    "Irish": "tá an {} taobh leis an {} agus bhí an ceann seo ann riamh, a deir muintir na háite",
    "French": "le {} se trouve en face de la {} et on y va à pied, car il est fermé le soir",
    "Chinese": "这座{}建于十九世纪，是城里最古老的建筑之一，每天都有很多人来参观{}，晚上也开放。",
    "Russian": "этот {} стоит у реки, и {} тоже, но в город они попадают только по дороге",
}
PROSE = {
    "code": "def open_{0}(path): return {0}_of(path, {1})  # the {2} is in a file of its own",
    "mail": "Hi {}, I have moved the {} to {} (see {} on the list), so it can be read. Thanks",
    "names": "{} {} and {} {} of {} were with {} {} at the {} {} of the {}",
}


def texts(shape: str, number: int = 60) -> list[str]:
    """Return texts of a shape, each with other words in it."""
    drawn = random.Random(shape)
    return [
        shape.format(*("".join(drawn.choices("bdfgklmnprstvz", k=6)) for _ in range(12)))
        for _ in range(number)
    ]


@pytest.fixture(scope="module")
def reference() -> list[str]:
    """Return English texts."""
    return [text for shape in ENGLISH for text in texts(shape)]


@pytest.mark.parametrize("shape", OTHERS.values(), ids=OTHERS)
def test_another_language_is_told(shape: str, reference: list[str]) -> None:
    """Also where it has words that are spelt as English ones: an, in, is, was, for, at, of."""
    assert languages.compare(texts(shape), reference).foreign > 0.9


@pytest.mark.parametrize("shape", PROSE.values(), ids=PROSE)
def test_english_with_much_else_is_english(shape: str, reference: list[str]) -> None:
    """Code with its comments, mail, and lines full of names."""
    assert languages.compare(texts(shape), reference).foreign <= languages.MUCH


@pytest.mark.parametrize("mixed", ["sorted", "alternating"])
def test_half_a_folder_is_told(mixed: str, reference: list[str]) -> None:
    """However its documents lie: a mean over all of it would be that of code."""
    long = [" ".join(texts(OTHERS["German"], 4)) for _ in range(20)]
    ours = [" ".join(texts(ENGLISH[1], 4)) for _ in range(20)]
    folder = long + ours if mixed == "sorted" else [t for pair in zip(long, ours) for t in pair]  # noqa: B905
    assert languages.compare(folder, reference).foreign == pytest.approx(0.5, abs=0.05)


def test_a_table_of_numbers_is_no_language(reference: list[str]) -> None:
    """It has no words to tell one by, and that is what is said of it."""
    compared = languages.compare(["0.1,0.2,0.3 17 2,026 x"] * 50, reference)
    assert (compared.words, compared.letters) == (0, 0)
    assert languages.compare(reference, reference).letters > 0.9
