"""The metadata that sd-scripts and LyCORIS write beside the tensors, and the two hashes of a file by which model lists know it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import numpy as np

from loratk.io import strict_json
from loratk.io.bfloat16 import to_bits
from loratk.io.safetensors_header import DTYPE_OF, build_header

from .writing import Packed

PLACE, LENGTH = 0x100000, 0x10000
"""The bytes that the legacy hash is of."""


def metadata(packed: Packed, own: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file: the user's own, the facts that the tensors settle, and the hashes."""
    said = dict(own) | {
        "ss_network_dim": _one({rank for rank, _ in packed.scales}),
        "ss_network_alpha": _one({a for _, a in packed.scales}),
    }
    plain = packed.methods <= {"lora", "bias"}
    module = own.get("ss_network_module", "")
    if not module or (not plain and module.startswith("networks.lora")):
        said["ss_network_module"] = "networks.lora" if plain else "lycoris.kohya"
    said.setdefault("ss_network_args", strict_json.dumps(_args(packed)))
    said["sshs_model_hash"], said["sshs_legacy_hash"] = hashes(
        packed.arrays, packed.bfloat16, {key: text for key, text in said.items() if key.startswith("ss_")}
    )
    return said


def _one(values: Collection[float]) -> str:
    """The value all modules have as text, "Dynamic" where they differ; sd-scripts writes 8 or 8.0 for what is given so."""
    if len(values) != 1:
        return "Dynamic" if values else "None"
    value = next(iter(values))
    return str(int(value)) if value == int(value) else str(value)


def _args(packed: Packed) -> dict[str, str]:
    """The arguments of LyCORIS that say which algorithm made a file of one method."""
    algorithms = {"locon": "lora", "dora": "lora", "dora_in": "lora", "oft": "diag-oft", "diff": "full"}
    methods = {algorithms.get(method, method) for method in packed.methods - {"bias"}}
    found = {"algo": methods.pop()} if len(methods) == 1 and not packed.methods <= {"lora", "bias"} else {}
    return found | ({"dora_wd": "True"} if {"dora", "dora_in"} & packed.methods else {})


def hashes(arrays: Mapping[str, np.ndarray], bfloat16: Collection[str], kept: Mapping[str, str]) -> tuple[str, str]:
    """sshs_model_hash, the SHA-256 of all tensor bytes, and sshs_legacy_hash, of 64 KiB at 1 MiB of the file that has `kept` alone."""
    layout = {
        name: ("BF16" if name in bfloat16 else DTYPE_OF[array.dtype.newbyteorder("=")], array.shape) for name, array in arrays.items()
    }
    header, entries = build_header(layout, kept)
    whole, part = hashlib.sha256(), hashlib.sha256(header[PLACE : PLACE + LENGTH])
    for name, entry in entries.items():
        array = to_bits(arrays[name]) if entry.dtype == "BF16" else arrays[name]
        data = np.asarray(array, array.dtype.newbyteorder("<"), order="C").reshape(-1).view(np.uint8).data
        whole.update(data)
        begin = len(header) + entry.begin
        part.update(data[max(PLACE - begin, 0) : max(PLACE + LENGTH - begin, 0)])
    return whole.hexdigest(), part.hexdigest()[:8]
