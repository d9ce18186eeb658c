"""Values as text in the grammar of overrides (Hydra's)."""

import re
from collections.abc import Mapping
from typing import Any

PLAIN = re.compile(r"[A-Za-z0-9_./-]+")
WORDS = ("true", "false", "null")  # which are no strings, in whatever case


def format_override(value: Any) -> str:
    """``value`` in the grammar of overrides; ``config.parse`` reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_override, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{k}:{format_override(v)}' for k, v in value.items())}}}"
    if not isinstance(value, str):
        return repr(value)
    if PLAIN.fullmatch(value) and value.lower() not in WORDS and not _is_number(value):
        return value
    # within quotes, only backslashes right before a quote need doubling
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"'{escaped}'"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
