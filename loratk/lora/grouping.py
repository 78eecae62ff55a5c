"""What the kernel of grouped updates takes of adapters, where it computes what they do."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autograd import Tensor, ops
from .adapter import LoraAdapter

if TYPE_CHECKING:
    from .layer import LoraLayer
    from .layer_adapter import LayerAdapter

Group = list[tuple["LayerAdapter", float]]
"""The adapters of a row in one layer, with their weights."""
Factors = tuple[Any, Any, Any, float, bool]
"""A (d, r), B (r, k), stretch (k,) or None, scaling; and whether they last: for as long as no array is replaced."""


def _lora(part: LoraAdapter, weight: float, handle: Callable[[], Any]) -> Factors:
    held = vars(part)
    a, b = held["lora_A"], held["lora_B"]
    first, lasting = part.first(), True
    if first is not None:  # what the init takes off the weight is one more pair of factors
        lasting = a.frozen and b.frozen
        a, b = ops.concat([a, first[0]], axis=1), ops.concat([b, first[1] * -1.0], axis=0)
    return a, b, None, part.scaling * weight, lasting


def _dora(part: LoraAdapter, weight: float, handle: Callable[[], Any]) -> Factors:
    a, b, m = (vars(part)[name] for name in ("lora_A", "lora_B", "magnitude"))
    K = m.backend
    norm = K.lora_column_norm(handle(), a.data, b.data, scaling=part.scaling)
    norm = K.maximum(norm, K.asarray(np.asarray(np.finfo(norm.dtype).tiny, norm.dtype)))
    return a, b, m / Tensor(norm, backend=K), part.scaling, a.frozen and b.frozen and m.frozen


GROUPED: Mapping[str, Callable[[LoraAdapter, float, Callable[[], Any]], Factors]] = {"lora": _lora, "dora": _dora}
"""By method what the kernel takes of an adapter: (adapter, weight, handle of the layer's weight) -> factors."""


def fits(layer: "LoraLayer", group: Group) -> bool:
    """Whether the kernel computes what the adapters of a group do on a plain product."""
    if len(group) > 1 or not layer.use_fused:
        return False
    held, weight = group[0]
    return all(_part_fits(part, weight) for part in held.blocks().values())


def _part_fits(part: LoraAdapter, weight: float) -> bool:
    settings = part.settings
    if part.method.name not in GROUPED or part.rank_now is not None:
        return False
    if part.training and (settings.rank_dropout or settings.module_dropout):
        return False
    if part.drops and part.first() is not None:  # dropout is the adapter's, not that of what its init takes off
        return False
    return part.method.proportional or (weight == 1.0 and not part.drops)


def block_factors(
    layer: "LoraLayer", adapters: Sequence[tuple["LayerAdapter", float]], block: str, columns: slice | None
) -> tuple[list[Any], list[float], bool]:
    """Four factors and a scaling for each adapter, on one column block of a layer, and whether all of them last."""
    factors: list[Any] = []
    scalings: list[float] = []
    lasts = True
    for held, weight in adapters:
        part, shift = held.block(block), held.bias
        a = b = stretch = None
        scaling, lasting = 0.0, True
        if part is not None:
            a, b, stretch, scaling, lasting = GROUPED[part.method.name](part, weight, partial(layer.weight_handle, block))
        if shift is not None and (weight != 1.0 or columns is not None):
            lasting = lasting and shift.frozen
            shift = shift * weight if columns is None else (shift * weight)[columns]  # type: ignore[assignment]
        factors += [a, b, stretch, shift]
        scalings.append(scaling)
        lasts = lasts and lasting
    return factors, scalings, lasts
