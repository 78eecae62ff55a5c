"""Where an adapter came from: which adapters, with which weights, by which rule, kept in its metadata as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError, choices
from ..exchange.state import AdapterState
from ..io import strict_json

LINEAGE = "lineage"
"""The key among an adapter's metadata: {"rule": ..., "adapters": [{"name", "weight", "lineage" of it if it has one}, ...], ...}."""


def metadata_of(
    states: Sequence[AdapterState], rule: str, weights: Sequence[float] | None = None, **facts: Any
) -> tuple[dict[str, str], list[str]]:
    """The metadata of what a rule makes of adapters, with its lineage, and notes about what of theirs is left out.

    Of the user's own metadata what no two adapters say differently stays.
    """
    origins = []
    for number, state in enumerate(states):
        weight = {} if weights is None else {"weight": float(weights[number])}
        origins.append({"name": state.name, **weight, **_own(state)})
    lineage = json.dumps({"rule": rule, "adapters": origins, **facts}, ensure_ascii=False)
    metadata: dict[str, str] = {}
    differing: set[str] = set()
    for state in states:
        for key, text in state.metadata.items():
            if key != LINEAGE and metadata.setdefault(key, text) != text:
                differing.add(key)
    notes = [f"metadata {choices(differing)} are not the same in all adapters, and were left out"] if differing else []
    return {key: text for key, text in metadata.items() if key not in differing} | {LINEAGE: lineage}, notes


def _own(state: AdapterState) -> Mapping[str, Any]:
    """The lineage that an adapter has already; as text where it is not what loratk wrote."""
    if LINEAGE not in state.metadata:
        return {}
    try:
        return {LINEAGE: strict_json.loads(state.metadata[LINEAGE])}
    except ValueError:
        return {LINEAGE: state.metadata[LINEAGE]}


def common_fingerprint(states: Sequence[AdapterState], any_base: bool = False) -> str:
    """The fingerprint of the base of all adapters, "" where none tells. Raises ConfigError where they were made for different bases."""
    found = {state.fingerprint: state.name for state in states if state.fingerprint}
    if len(found) > 1 and not any_base:
        told = ", ".join(f"{name!r} for {mark[:12]}..." for mark, name in found.items())
        raise ConfigError(f"the adapters were made for different bases: {told}; pass any_base=True (--any-base) if you know that they fit")
    return next(iter(found)) if len(found) == 1 else ""
