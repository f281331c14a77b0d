"""Promises of redaction.py: secrets are hidden, and nothing else is."""

import pytest

from small_modernbert.runs import redaction

HUB = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("--hub-token", True),
        ("HUGGING_FACE_HUB_TOKEN", True),
        ("WANDB_API_KEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("password", True),
        ("MAX_TOKENS", False),
        ("--tokens-per-batch", False),
        ("TOKENIZER", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("KEY", False),
    ],
)
def test_secret_names(name: str, secret: bool) -> None:
    """What holds a secret is known by its name."""
    assert redaction.is_secret(name) is secret


def test_text_loses_secrets_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's values, the hub's tokens and passwords in addresses go; the rest stays."""
    monkeypatch.setenv("MY_TOKEN", "correct-horse")
    monkeypatch.setenv("OTHER_TOKEN", "1")  # a switch, not a secret
    assert redaction.redact(f"401 for {HUB}.") == "401 for ***."
    assert redaction.redact("said correct-horse 1 time") == "said *** 1 time"
    shown = redaction.redact("https://me:pass@host/x?a=1 at 10:30")
    assert shown == "https://me:***@host/x?a=1 at 10:30"
    shown = redaction.redact("s3://b/x?X-Amz-Signature=ab%2F1&n=2 and https://h/f?sig=cd#e")
    assert shown == "s3://b/x?X-Amz-Signature=***&n=2 and https://h/f?sig=***#e"
    plain = "hf_hub_offline, hf_models; step 12: loss 0.5 in runs/offline@x"
    assert redaction.redact(plain) == plain


def test_command_loses_secrets_only() -> None:
    """A secret flag keeps its name and loses its value, in either spelling."""
    typed = ["x.py", "--token", "abc", "--api-key=def", "--max-tokens", "128", HUB]
    shown = ["x.py", "--token", "***", "--api-key=***", "--max-tokens", "128", "***"]
    assert redaction.redact_arguments(typed) == shown


def test_json_loses_secrets_only() -> None:
    """Values under secret names and secrets in values go, at any depth; types stay."""
    value = {"HUB_TOKEN": "abc", "rows": [1, 2.5, None, {"note": f"with {HUB}"}], "token": ""}
    assert redaction.redact_json(value) == {
        "HUB_TOKEN": "***",
        "rows": [1, 2.5, None, {"note": "with ***"}],
        "token": "",
    }
