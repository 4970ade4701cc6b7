"""Take secrets and home folders out of everything that a report shows."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(hidden)"

_HOME = re.compile(
    r"(?<![\w.])(/home/[\w.-]+|/Users/[\w.-]+|/root(?![\w.-])|[A-Za-z]:\\Users\\[\w.-]+)"
)
_SECRET_NAME = re.compile(
    r"(^|_)(token|api_key|apikey|access_key|secret|password|passwd|credentials?)$", re.IGNORECASE
)
_SECRET_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}"
    r"|xox[a-z]-[A-Za-z0-9-]{10,})"
)
_CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def redact(value: Any, name: str = "") -> Any:
    """A JSON value without secrets; home folders become `~`.

    Args:
        value: As `json.loads` gives it.
        name: The key that it stands under: texts under names such as hub_token or api_key are
            hidden whatever they look like.
    """
    if isinstance(value, dict):
        return {redact_text(str(key)): redact(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [redact(inner, name) for inner in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if value and _SECRET_NAME.search(name) else redact_text(value)


def redact_text(text: str) -> str:
    """A text without what looks like a secret; home folders become `~`."""
    text = _SECRET_VALUE.sub(HIDDEN, text)
    text = _CREDENTIALS_IN_URL.sub(HIDDEN, text)
    return _HOME.sub("~", text)
