"""Modules that other tools keep in another way, as LyCORIS would: IA3 of inputs, and sparse changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loratk.exchange.plain import as_other

Module = tuple[dict[str, Any], dict[str, np.ndarray]]


def lycoris(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> Module:
    """A module as LyCORIS keeps it, where that is another way and the same update; any other as it is.

    IA3 of inputs has factors less 1 there. A sparse change becomes the whole difference, with zeros. IA3 of outputs stays: in PEFT it
    multiplies the bias too, in LyCORIS it does not.
    """
    record, held = dict(record), dict(held)
    if record["method"] == "ia3" and record.get("side") == "inputs" and held.keys() == {"ia3_l"}:
        factors = held["ia3_l"]
        change = factors - factors.dtype.type(1)
        kept = {key: value for key, value in record.items() if key not in ("side", "dtypes")}
        return kept, {"weight": change.reshape(-1) if change.ndim == 2 else change, "on_input": np.array(1)}
    if record["method"] == "sparse" and record.get("orientation") == "torch" and "columns" not in record:
        window, k = record.get("kernel", []), record["shape"][1]
        dense = as_other(record, held, "").update().astype(held["sparse_values"].dtype)
        kept = {key: record[key] for key in ("layer_type", "shape", "kernel", "orientation", "prefix") if key in record}
        whole = {"weight": dense.reshape(k, -1, *window)}
        return {"method": "diff", **kept}, whole | ({"bias": held["bias"]} if "bias" in held else {})
    return record, held
