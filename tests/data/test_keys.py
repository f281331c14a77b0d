"""keys.py: when two texts are one."""

import pytest

from small_modernbert.data.keys import words_key, words_of
from small_modernbert.data.leaks import LeakFilter
from small_modernbert.data.pairs import PairCounts, clean_pair


def test_keys_fold_what_is_no_word() -> None:
    """Case, punctuation, white space and Unicode form do not make another text; words do."""
    assert words_key("Is it\u00a0so?") == words_key("is it so")
    assert words_key("caf\u00e9") == words_key("Cafe\u0301")
    assert words_key("is it so") != words_key("it is so")
    assert words_key("???") != words_key("!!!")


SAME = [
    ("He said: so!", "he said so"),
    ("“It is” – so", '"it is" - so'),
    ("(it is) so", "it is so"),
    ("a well-known man…", "A well known man"),
    ("snake_case", "snake case"),
    ("He went ... away.", "he went away"),
    ("ＡＢＣ ﬁle", "abc file"),
    ("\u22125 °C", "-5 °C"),
    ("love \u2764\ufe0f", "love \u2764"),  # one heart, drawn in two ways
    ("Windows\xae", "windows"),
    ("今日は、晴れ。", "今日は晴れ"),
    ("# A title", "a title"),
]


@pytest.mark.parametrize(("text", "other"), SAME)
def test_what_punctuation_changes_is_one_text(text: str, other: str) -> None:
    """A copy with other punctuation is a copy."""
    assert words_key(text) == words_key(other)


OTHERS = [
    ("What is C++ used for?", "What is C used for?"),
    ("What is C# used for?", "What is C used for?"),
    ("It is -5 degrees", "It is 5 degrees"),
    ("I love this phone 😀", "I love this phone 😡"),
    ("if x > 0 then stop", "if x < 0 then stop"),
    ("print()", "print"),
    ("f(x)", "f x"),
    ("arr[0]", "arr"),
    ("arr[i]", "arr i"),
    ("a != b", "a = b"),
    ("!done", "done"),
    ("cd ..", "cd ."),
    ("HEAD..main", "HEAD main"),
    ("..", "."),
    ("5 %", "5"),
    ("$5", "5"),
    ("R&D", "R D"),
    ("3/4", "3 4"),
    ("2*3", "2 3"),
    ("@home", "home"),
    ("नदी के पास", "नद की पास"),
    ("राम बाजार जाता है", "राम बाजार जाती है"),
    ("यह कल की बात है", "यह काल के बात हो"),
    ("ไม่", "ไม"),  # a tone mark
    ("كَتَبَ", "كُتُب"),  # he wrote, books
]


@pytest.mark.parametrize(("text", "other"), OTHERS)
def test_what_says_something_else_is_another_text(text: str, other: str) -> None:
    """Signs, symbols and combining marks count: for a row's negatives and for the leak filter."""
    assert words_key(text) != words_key(other)
    counts = PairCounts()
    pair = clean_pair("an anchor", f"{text} here", [f"{other} here"], "toy", counts)
    assert pair is not None and len(pair.negatives) == 1
    leaks = LeakFilter()
    leaks.add("held", [f"{text} here"])
    assert leaks.find(f"{text} here") is not None
    assert leaks.find(f"{other} here") is None


def test_copies_with_other_punctuation_still_leak() -> None:
    """A passage leaks by 13 words in a row, whatever stands between them, in any script."""
    passage = "The (old) mill-house, which burnt in 1850, was rebuilt: by its owner; in red brick!"
    leaks = LeakFilter()
    leaks.add("english", [passage])
    copy = "So the old mill house + which burnt in 1850 was rebuilt * by its owner in red brick"
    found = leaks.find(copy)
    assert found is not None and found.evaluation_set == "english"
    sentence = "这座桥是谁在什么时候修建的？今天早上河边的雾很大。"
    leaks.add("chinese", [sentence])
    found = leaks.find("他说：这座桥是谁，在什么时候修建的，我不知道。")
    assert found is not None and found.evaluation_set == "chinese"
    assert leaks.find("图书馆在周末开放，但是需要提前预约座位。") is None


def test_words_keep_their_marks() -> None:
    """A vowel sign ends no word; letters of a script without spaces are words of their own."""
    assert words_of("राम बाजार जाता है") == ["राम", "बाजार", "जाता", "है"]
    assert words_of("東京 is 大きい") == ["東", "京", "is", "大", "き", "い"]
    assert words_of("Straße E\u0301COLE") == ["strasse", "école"]
