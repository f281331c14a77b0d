"""Tokens and passwords never reach a log, a record or an error message."""

import os
import re
from collections.abc import Sequence
from typing import Any

HIDDEN = "***"
SECRET_WORDS = frozenset({"token", "secret", "password"})
# Shorter values are switches (HF_HUB_DISABLE_IMPLICIT_TOKEN=1), not secrets.
LEAST_SECRET = 8
# Tokens of the hub; the password in https://user:password@host; what signs an address for whoever
# has it: ?X-Amz-Signature=, &sig=, ?token=.
_SIGNED = r"([?&][\w-]*(?:signature|sig|credential|token|secret|password|key)=)(?!\*)[^&#\s\"')]+"
_SHAPES = (
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{8,}"), HIDDEN),
    (re.compile(r"(://[^/\s:@]*):[^/\s@]+@"), rf"\1:{HIDDEN}@"),
    (re.compile(_SIGNED, re.IGNORECASE), rf"\1{HIDDEN}"),
)


def is_secret(name: str) -> bool:
    """Say whether a flag, a constant or a variable of the environment holds a secret.

    `--hub-token` and HF_TOKEN do; MAX_TOKENS and TOKENIZER do not.
    """
    words = re.split(r"[^a-z]+", name.lower())
    return bool(SECRET_WORDS & set(words)) or words[-2:] in (["api", "key"], ["access", "key"])


def redact(text: str) -> str:
    """Return `text` without the environment's secrets and without what looks like one."""
    for name, value in os.environ.items():
        if len(value) >= LEAST_SECRET and is_secret(name):
            text = text.replace(value, HIDDEN)
    for shape, shown in _SHAPES:
        text = shape.sub(shown, text)
    return text


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line without secrets: `--token x` and `--token=x` keep the flag alone."""
    shown: list[str] = []
    for argument in arguments:
        flag, given, _ = argument.partition("=")
        if shown and shown[-1].startswith("-") and is_secret(shown[-1]):
            argument = HIDDEN
        elif given and flag.startswith("-") and is_secret(flag):
            argument = f"{flag}={HIDDEN}"
        shown.append(redact(argument))
    return shown


def redact_json(value: Any) -> Any:  # noqa: ANN401  anything that JSON can carry
    """Return a JSON value without secrets, those under names like HUB_TOKEN included."""
    if isinstance(value, dict):
        return {
            name: HIDDEN
            if isinstance(entry, str) and entry and isinstance(name, str) and is_secret(name)
            else redact_json(entry)
            for name, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_json(entry) for entry in value]
    return redact(value) if isinstance(value, str) else value
