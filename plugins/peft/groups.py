"""Factors of grouped convolutions. PEFT's lora_A has the channels of all groups and only its lora_B is grouped.

    here            lora_A (window channels, r)       lora_B (r / g, k)
    PEFT            lora_A (window g channels, r)     lora_B (r / g, k)

So PEFT's update is that of a convolution without groups, which no grouped kernel can take up, unless each column of lora_A is zero but in
the channels of its own group: then it is the update of a grouped one.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from loratk.errors import FormatError

Factors = tuple[dict[str, Any], np.ndarray, np.ndarray]
MARK = "peft_groups"
"""In the record of a convolution that PEFT holds with a grouped lora_B, and that has none here: the number of groups."""


def from_peft(facts: dict[str, Any], lora_a: np.ndarray, lora_b: np.ndarray) -> Factors:
    """PEFT's factors, in loratk's orientation, as those of a grouped convolution if they are, else of one without groups. Exact."""
    groups, rank, k = facts["groups"], facts["rank"], facts["shape"][1]
    inner, window = rank // groups, prod(facts["kernel"])
    channels = len(lora_a) // window
    if channels % groups == 0:
        cut = lora_a.reshape(window, groups, channels // groups, groups, inner)
        own = np.stack([cut[:, group, :, group] for group in range(groups)], axis=2)
        if np.count_nonzero(own) == np.count_nonzero(lora_a):
            lora_a = np.ascontiguousarray(own.reshape(-1, rank))
            return facts | {"shape": [len(lora_a), k]}, lora_a, lora_b
    whole = np.zeros((rank, k), lora_b.dtype)
    for group in range(groups):
        rows, columns = slice(group * inner, (group + 1) * inner), slice(group * k // groups, (group + 1) * k // groups)
        whole[rows, columns] = lora_b[:, columns]
    return {key: value for key, value in facts.items() if key != "groups"} | {MARK: groups}, lora_a, whole


def to_peft(record: dict[str, Any], lora_a: np.ndarray, lora_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse. Raises FormatError where lora_B is not made of the blocks that the mark promises."""
    if groups := record.get("groups"):
        window, rank = prod(record["kernel"]), record["rank"]
        channels, inner = len(lora_a) // window, rank // groups
        wide = np.zeros((window, groups, channels, groups, inner), lora_a.dtype)
        for group, block in enumerate(np.split(lora_a.reshape(window, channels, rank), groups, axis=2)):
            wide[:, group, :, group] = block
        return wide.reshape(-1, rank), lora_b
    groups, (rank, k) = record[MARK], lora_b.shape
    if not isinstance(groups, int) or groups < 1 or rank % groups or k % groups:
        raise FormatError(f"{MARK} must be a number that divides rank and outputs, {rank} and {k}, found {groups!r}")
    cut = lora_b.reshape(groups, rank // groups, groups, k // groups)
    own = np.stack([cut[group, :, group] for group in range(groups)], axis=1).reshape(rank // groups, k)
    if np.count_nonzero(own) != np.count_nonzero(lora_b):
        raise FormatError(f"its lora_B is not made of {groups} blocks, as {MARK} says")
    return lora_a, own
