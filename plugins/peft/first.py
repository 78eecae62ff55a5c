"""Adapters that PEFT trained beside a base it had changed: PiSSA, OLoRA, CorDA and LoRA-GA took their first factors off the weights.

What the file holds is an update of the changed weights. PEFT changes them again when it loads such an adapter; its config says so by
`init_lora_weights`, unless it was converted on saving (`path_initial_model_for_weight_conversion`), when it says true and all is well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from loratk.errors import LoratkError
from loratk.exchange import AdapterState

from .fields import flag

if TYPE_CHECKING:
    from .reading import Adapter

MOVING = ("pissa", "olora", "corda", "lora_ga")
KNOWN = ("pissa", "olora")
"""Those whose first factors follow from the weight alone."""
CURE = "save it anew with PEFT's path_initial_model_for_weight_conversion, or say by the option residual_base that the base is that one"


def settled(adapter: Adapter, state: AdapterState) -> AdapterState:
    """The state with its first factors, worked out from the base, or a fault or note that says why they are not there."""
    init = adapter.config.get("init_lora_weights", True)
    kind = init.lower() if isinstance(init, str) else ""
    if adapter.config.method != "LORA" or not kind.startswith(MOVING):
        return state
    where = f"init_lora_weights is {init!r}: training changed the base's weights, and the adapter fits the changed ones only"
    if flag("residual_base", adapter.request.options.get("residual_base", False)):
        adapter.notes.append(f"{where}; taken as it is, as the option residual_base says")
        return state
    if adapter.request.base is None:
        cure = "give the base as it was (--base), and what was taken off it is worked out" if kind in KNOWN else CURE
        adapter.notes.append(f"{where}; {cure}")
        return state
    if kind not in KNOWN:
        adapter.found.append(f"{where}, in a way that the file does not tell; {CURE}")
        return state
    return _with_first(adapter, state, kind)


def _with_first(adapter: Adapter, state: AdapterState, kind: str) -> AdapterState:
    base = adapter.request.base
    assert base is not None
    tensors, count = dict(state.tensors), 0
    for module, held in state.parameters().items():
        record = state.modules[module]
        if "lora_A" not in held:
            continue
        try:
            if record["method"] != "lora" or "experts" in record or record.get("groups", 1) != 1:
                raise ValueError(f"init_lora_weights {kind!r} is for plain LoRA, found {record['method']} of {record.get('layer_type')}")
            weight = base.weight(module)
            if list(weight.shape) != list(record["shape"]):
                raise ValueError(f"it is for a weight {record['shape']}, the base's is {list(weight.shape)}")
            a, b = first_factors(kind, weight, record)
        except (LoratkError, ValueError) as error:
            adapter.found.append(f"module {module!r}, whose first factors follow from the base: {error}")
            continue
        tensors |= {f"{module}.initial_A": a, f"{module}.initial_B": b}
        count += 1
    adapter.notes.append(
        f"init_lora_weights is {kind!r}: what it took off {count} weight{'s' * (count != 1)} of '{base.path}' was worked out anew"
    )
    metadata = {key: text for key, text in state.metadata.items() if key != "peft.init_lora_weights"}
    return replace(state, tensors=tensors, metadata=metadata, config={"init": kind})


def first_factors(kind: str, weight: np.ndarray, record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A (d, r) and B (r, k) from which PEFT's PiSSA or OLoRA starts, float32; their signs may differ, their product does not."""
    from loratk.lora.inits.base import Start
    from loratk.lora.inits.spectral import Olora, Pissa

    rank, scaling = int(record["rank"]), float(record["scaling"])
    if rank > min(weight.shape) or scaling <= 0:
        raise ValueError(f"no adapter of rank {rank} and scaling {scaling:g} starts so on a weight {weight.shape}")
    init = Pissa() if kind == "pissa" else Olora()
    start = init.start(Start(weight.astype(np.float32), rank, scaling, np.random.default_rng(0), init.options))
    return start.lora_A, start.lora_B
