"""Adapters on a fused q-k-v projection, as a whole (`attn.qkv`) or part by part (`attn.qkv.q`)."""

from collections.abc import Mapping
from typing import Any

from loratk import LayerType, Tensor, hookimpl, ops
from loratk.nn import QKVProjection


class QKVType(LayerType[QKVProjection]):
    """`QKVProjection`: x W, with an adapter of its own for each of the column blocks q, k and v."""

    name, module, linear, plain = "qkv", QKVProjection, True, True

    def apply(self, module: QKVProjection, x: Any, m: Any) -> Tensor:
        """(..., d), (d, c) -> (..., c)."""
        return ops.linear(x, m)

    def blocks(self, module: QKVProjection) -> Mapping[str, tuple[int, int]]:
        """First column and the one after the last of q, k and v."""
        return module.blocks


@hookimpl
def register_layer_types() -> list[LayerType[Any]]:
    """QKVProjection."""
    return [QKVType()]
