"""keys.py: when two texts are one."""

from small_modernbert.data.keys import words_key


def test_keys_fold_what_is_no_word() -> None:
    """Case, punctuation, white space and Unicode form do not make another text; words do."""
    assert words_key("Is it\u00a0so?") == words_key("is it so")
    assert words_key("caf\u00e9") == words_key("Cafe\u0301")
    assert words_key("is it so") != words_key("it is so")
    assert words_key("???") != words_key("!!!")
