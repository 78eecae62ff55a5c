"""Adapters of every kind that a format may carry, as plain states: what `check_format` writes and reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from ..exchange.state import AdapterState
from ..exchange.transform import round_bfloat16

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
UP, GATE, TOKENS = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj", "model.embed_tokens"
Module = tuple[dict[str, Any], dict[str, np.ndarray]]


def format_states() -> dict[str, AdapterState]:
    """Small adapters by what is special about them, the same at each call. A module has one shape in all, and a name of transformers."""
    make = _Maker()
    return {
        "a linear layer": make.state({Q: make.lora(8, 12, 2)}),
        "two linear layers": make.state({Q: make.lora(8, 12, 2), UP: make.lora(8, 6, 2)}),
        "rank 1": make.state({GATE: make.lora(5, 3, 1)}),
        "full rank": make.state({GATE: make.lora(5, 3, 3)}),
        "float16": make.state({Q: make.lora(8, 12, 2, dtype="float16")}),
        "float64": make.state({Q: make.lora(8, 12, 2, dtype="float64")}),
        "bfloat16": make.state({Q: make.lora(8, 12, 2, dtype="bfloat16"), UP: make.lora(8, 6, 2, dtype="bfloat16")}),
        "alpha": make.state({Q: make.lora(8, 12, 2, alpha=5.0), UP: make.lora(8, 6, 2, alpha=5.0)}),
        "alpha 1/3": make.state({Q: make.lora(8, 12, 2, alpha=1 / 3)}),
        "alpha 0": make.state({Q: make.lora(8, 12, 2, alpha=0.0)}),
        "alpha below 0": make.state({Q: make.lora(8, 12, 2, alpha=-4.0)}),
        "ranks": make.state({Q: make.lora(8, 12, 2, alpha=4.0), UP: make.lora(8, 6, 3, alpha=3.0)}),
        "rank-stabilised": make.state({Q: make.lora(8, 12, 3, alpha=4.0, scaling=4 / sqrt(3))}),
        "conv2d": make.state({"model.conv": make.conv([3, 3], 2, 4, 2)}),
        "conv2d of one": make.state({"model.point": make.conv([1, 1], 5, 4, 2)}),
        "conv2d, odd window": make.state({"model.odd": make.conv([1, 3], 2, 4, 2)}),
        "conv1d": make.state({"model.line": make.conv([3], 2, 4, 2)}),
        "conv3d": make.state({"model.solid": make.conv([3, 3, 3], 2, 4, 2)}),
        "grouped conv2d": make.state({"model.groups": make.conv([3, 3], 2, 6, 4, groups=2)}),
        "embedding": make.state({TOKENS: make.lora(10, 8, 2, layer_type="embedding")}),
        "einsum": make.state({K: make.lora(16, 3, 2, layer_type="einsum", kernel=[2, 8, 3])}),
        "experts": make.state({"model.layers.0.mlp.experts.up_proj": make.lora(8, 6, 2, experts=3)}),
        "dora": make.state({Q: make.with_vectors(make.lora(8, 12, 2), "dora", "magnitude")}),
        "dora conv2d": make.state({"model.conv": make.with_vectors(make.conv([3, 3], 2, 4, 2), "dora", "magnitude")}),
        "bias": make.state({Q: make.with_vectors(make.lora(8, 12, 2), "lora", "bias")}),
        "bias alone": make.state({Q: make.lora(8, 12, 2), UP: ({"method": "bias"}, {"bias": make.draw(6)})}),
        "bias of lora_B": make.state({Q: make.with_vectors(make.lora(8, 12, 2), "lora", "lora_bias")}),
        "a whole module": make.state({Q: make.lora(8, 12, 2), "lm_head": make.whole("full", 10, 8)}),
        "a changed module": make.state({Q: make.lora(8, 12, 2), "lm_head": make.whole("diff", 10, 8)}),
        "loha": make.state({Q: make.loha(8, 12, 2)}),
        "metadata": make.state({Q: make.lora(8, 12, 2)}, metadata={"author": "me", "note": "größe / %\n"}),
        "fingerprint": make.state({Q: make.lora(8, 12, 2)}, fingerprint="sha256:00ff"),
    }


class _Maker:
    """Random modules and their records."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def draw(self, *shape: int) -> np.ndarray:
        """Random numbers, float32."""
        return self._rng.standard_normal(shape).astype(np.float32)

    def state(self, modules: Mapping[str, Module], **more: Any) -> AdapterState:
        """A state of these modules, named default."""
        tensors = {f"{module}.{key}": array for module, (_, held) in modules.items() for key, array in held.items()}
        return AdapterState("default", {}, tensors, {module: record for module, (record, _) in modules.items()}, **more)

    def lora(
        self, d: int, k: int, rank: int, *, alpha: float | None = None, scaling: float | None = None, dtype: str = "float32", **more: Any
    ) -> Module:
        """A layer's factors; alpha is the rank, and the scaling alpha / rank, if not given. `more` of the record: layer_type, experts."""
        alpha = float(rank) if alpha is None else alpha
        record = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": alpha}
        record |= {"scaling": alpha / rank if scaling is None else scaling} | more
        stack = [more["experts"]] if "experts" in more else []
        held = {"lora_A": self.draw(*stack, d, rank), "lora_B": self.draw(*stack, rank // more.get("groups", 1), k)}
        if dtype != "bfloat16":
            return record, {key: array.astype(dtype) for key, array in held.items()}
        return record | {"dtypes": dict.fromkeys(held, dtype)}, {key: round_bfloat16(array) for key, array in held.items()}

    def conv(self, kernel: Sequence[int], channels: int, k: int, rank: int, groups: int = 1) -> Module:
        """The factors of a convolution; `channels` are those of one group."""
        more: dict[str, Any] = {"layer_type": f"conv{len(kernel)}d", "kernel": list(kernel)} | ({"groups": groups} if groups > 1 else {})
        return self.lora(prod(kernel) * channels, k, rank, **more)

    def with_vectors(self, module: Module, method: str, *names: str) -> Module:
        """A module with further parameters (k,), positive as magnitudes are."""
        record, held = module
        return record | {"method": method}, held | {name: np.abs(self.draw(record["shape"][1])) for name in names}

    def whole(self, method: str, k: int, d: int) -> Module:
        """A weight (k, d) and a bias in torch's order."""
        return {"method": method, "orientation": "torch"}, {"weight": self.draw(k, d), "bias": self.draw(k)}

    def loha(self, d: int, k: int, rank: int) -> Module:
        """LoHa's four factors in torch's order."""
        record = {"method": "loha", "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": float(rank), "scaling": 1.0}
        sizes = {"hada_w1_a": (k, rank), "hada_w1_b": (rank, d), "hada_w2_a": (k, rank), "hada_w2_b": (rank, d)}
        return record | {"orientation": "torch"}, {name: self.draw(*shape) for name, shape in sizes.items()}
