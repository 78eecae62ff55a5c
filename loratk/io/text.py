"""Any text as one part of a name, and any JSON value as a readable string; both are undone exactly."""

from __future__ import annotations

import re
from typing import Any

from . import strict_json


def escape(part: str) -> str:
    """Text as one part of a name: `%` and `/` become `%25` and `%2F`; `.`, `..` and the empty text become `%2E`, `%2E%2E` and `%`."""
    if part in (".", ".."):
        return part.replace(".", "%2E")
    return part.replace("%", "%25").replace("/", "%2F") or "%"


def unescape(part: str) -> str:
    """The inverse of `escape`."""
    return "" if part == "%" else re.sub("%(25|2F|2E)", lambda found: chr(int(found[1], 16)), part)


def to_text(value: Any) -> str:
    """A string as it stands; anything else, and a string that would read as JSON, as JSON. Raises ValueError."""
    if isinstance(value, str):
        try:
            strict_json.loads(value)
        except ValueError:
            return value
    return strict_json.dumps(value)


def from_text(text: str) -> Any:
    """The inverse of `to_text`."""
    try:
        return strict_json.loads(text)
    except ValueError:
        return text
