"""A batch whose rows have adapters of their own, in one layer.

Rows whose adapter is LoRA or DoRA on a plain product share that product, and one kernel adds what each adapter makes of its rows. All
other rows run as batches of their own, adapter by adapter, which is what every method and layer type can do.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autograd import Tensor, ops
from ..autograd.modes import modes
from ..autograd.ops.grouped import GroupedLora
from ..nn.chain import MOST_ROWS
from ..nn.version import version
from .adapter import LoraAdapter
from .grouping import Group, block_factors, fits
from .selection import Selection

if TYPE_CHECKING:
    from .layer import LoraLayer

MOST_MIXTURES = 32  # kept by one layer
FEW_ROWS = 16  # below which threads share out columns of a product, not rows


class Mixture:
    """What a layer knows of the groups of adapters in a batch, whichever row has which: what holds of them in one version."""

    def __init__(self, layer: "LoraLayer", selection: Selection) -> None:
        self.version = version.now  # before anything is asked
        self.groups: list[Group] = [
            [(layer.adapter(name), weight) for name, weight in group.items() if name in vars(layer.adapters)] for group in selection.groups
        ]
        plain = layer.layer_type is not None and layer.layer_type.plain
        empty = [not group for group in self.groups]
        self.bare = selection.bare or any(empty)  # rows without an adapter here
        self.apart = [at for at, group in enumerate(self.groups) if group and not (plain and fits(layer, group))]
        if self.bare and not plain:
            self.apart.append(-1)
        self.used = [at for at, group in enumerate(self.groups) if group and at not in self.apart]
        self.together = [*self.used, -1] if self.bare and plain else self.used
        # Groups as they are numbered here, the last being for -1: those without an adapter are -1, those of the kernel in its order.
        self.places = np.array([-1 if none else at for at, none in enumerate(empty)] + [-1])
        self.kernel = np.full(len(self.groups) + 1, -1)
        self.kernel[self.used] = np.arange(len(self.used))
        self.drops = any(part.drops for at in self.used for part in self.groups[at][0][0].blocks().values())
        self._blocks: dict[str, GroupedLora] = {}

    def block(self, layer: "LoraLayer", block: str, columns: slice | None) -> GroupedLora:
        """The op of a column block; kept where nothing in it was computed from what trains."""
        op = self._blocks.get(block)
        if op is None:
            factors, scalings, lasting = block_factors(layer, [self.groups[at][0] for at in self.used], block, columns)
            op = GroupedLora(factors, tuple(scalings))
            if lasting:
                self._blocks[block] = op
        return op


def mixture(layer: "LoraLayer", selection: Selection) -> Mixture:
    """The mixture of these groups in this layer, kept for as long as nothing changes."""
    kept: dict[Any, Mixture] = vars(layer).get("_mixtures", {})
    found = kept.get(selection.mix)
    if found is None or found.version is not version.now:
        found = Mixture(layer, selection)
        others = {key: old for key, old in kept.items() if old.version is found.version}
        vars(layer)["_mixtures"] = dict(list(others.items())[1 - MOST_MIXTURES :]) | {selection.mix: found}  # others may be reading the old
    return found


def forward_rows(layer: "LoraLayer", x: Any, selection: Selection) -> Any:
    """What the layer makes of each row with that row's own adapters. Raises ShapeError where axis 0 is not the rows."""
    mix = mixture(layer, selection)
    where = layer.name or type(layer.base).__name__
    if not mix.used and not any(at >= 0 for at in mix.apart):
        return layer.base(x)
    if layer.layer_type is None:
        y = layer.base(x)
        return _shifted(y, selection.rows(y.shape, where), mix.groups)
    x = layer.base.input(x)
    index = mix.places[selection.rows(x.shape, where)]
    if not index.size:
        return layer.base(x)
    if not mix.apart:
        return layer.act(x, mix.groups[0]) if len(mix.groups) == 1 and not mix.bare else _together(layer, x, index, mix)
    rows = [np.flatnonzero(np.isin(index, mix.together))] if mix.together else []
    parts = [_together(layer, _taken(x, rows[0]), index[rows[0]], mix)] if mix.together else []
    for at in mix.apart:
        rows.append(np.flatnonzero(index == at))
        mine = x if len(rows[-1]) == len(index) else _taken(x, rows[-1])
        parts.append(layer.act(mine, mix.groups[at]) if at >= 0 else layer.base(mine))
    return parts[0] if len(parts) == 1 else _taken(ops.concat(parts, axis=0), np.argsort(np.concatenate(rows)))


def _taken(x: Tensor, rows: np.ndarray) -> Tensor:
    """Rows along axis 0, each once."""
    size = math.prod(x.shape[1:])
    return ops.gather_rows(x.reshape(x.shape[0], size), rows).reshape(len(rows), *x.shape[1:])


def _together(layer: "LoraLayer", x: Tensor, index: np.ndarray, mix: Mixture) -> Tensor:
    """One product for all rows, and one kernel for what their adapters add."""
    layer_type, base = layer.layer_type, layer.base
    assert layer_type is not None
    product, bias = _product(layer, x), layer.base_bias()
    if not mix.used:
        return product if bias is None else product + bias
    rows, of_x, numbers = product, x, mix.kernel[index]
    if product.ndim != 2:
        numbers = np.repeat(numbers, math.prod(x.shape[1:-1]))
        rows, of_x = product.reshape(len(numbers), product.shape[-1]), x.reshape(len(numbers), x.shape[-1])
    ranges, pieces = layer_type.blocks(base), []
    for block, (start, stop) in ranges.items():
        columns = None if len(ranges) == 1 else slice(start, stop)
        mask = _mask(block, x, index, mix).reshape(of_x.shape) if mix.drops else None
        part, shift = (rows, bias) if columns is None else (rows[:, columns], None if bias is None else bias[columns])
        pieces.append(mix.block(layer, block, columns)(part, of_x, numbers, mask, shift))
    y = pieces[0] if len(pieces) == 1 else ops.concat(pieces, axis=-1)
    return y if product.ndim == 2 else y.reshape(*product.shape)


def _product(layer: "LoraLayer", x: Tensor) -> Tensor:
    """What the base's weight makes of all rows, as a chain of one where that goes: its threads are handed their work without Python."""
    layer_type, base = layer.layer_type, layer.base
    assert layer_type is not None
    if layer_type.chains and x.ndim == 2 and FEW_ROWS <= len(x) <= MOST_ROWS and not modes.anomaly and (link := base.link()) is not None:
        return ops.lora_chain(x, link.weight, None, None, None, scalings=(0.0,), relus=(False,))
    return layer_type.apply(base, x, layer_type.own_matrix(base))


def _mask(block: str, x: Tensor, index: np.ndarray, mix: Mixture) -> np.ndarray:
    """The dropout of all rows: for each adapter's what it would draw for them alone."""
    mask = np.ones(x.shape, x.dtype)
    for at in mix.used:
        part = mix.groups[at][0][0].block(block)
        if isinstance(part, LoraAdapter) and part.drops:
            rows = np.flatnonzero(index == at)
            mask[rows] = part.mask(np.broadcast_to(x.dtype.type(0), (len(rows), *x.shape[1:])))
    return mask


def _shifted(y: Tensor, index: np.ndarray, groups: Sequence[Group]) -> Tensor:
    """y plus the changes of the bias that each row's adapters train."""
    changes = [[held.bias * weight for held, weight in group if held.bias is not None] for group in groups]
    zero = Tensor(np.zeros((1, y.shape[-1]), y.dtype), backend=y.backend)
    table = [sum(terms[1:], terms[0]).reshape(1, y.shape[-1]) if terms else zero for terms in changes]
    rows = ops.gather_rows(ops.concat([*table, zero], axis=0), np.where(index < 0, len(groups), index))
    return y + rows.reshape(len(index), *(1,) * (y.ndim - 2), y.shape[-1])
