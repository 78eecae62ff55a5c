"""JSON as its standard has it: no NaN, no infinities, no repeated keys. Both ways raise ValueError that says what is wrong."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """One line of JSON with sorted keys, the same for the same value. Raises ValueError."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not expressible as JSON: {error}") from error


def loads(text: str) -> Any:
    """The value of a JSON text. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found
