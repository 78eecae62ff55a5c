"""A batch whose rows have adapters of their own, in one layer.

Rows whose adapter is LoRA or DoRA on a plain product share that product, and one kernel adds what each adapter makes of its rows. All
other rows run as batches of their own, adapter by adapter, which is what every method and layer type can do.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autograd import Tensor, ops
from .adapter import LoraAdapter
from .selection import Selection

if TYPE_CHECKING:
    from .layer import LayerAdapter, LoraLayer

Group = list[tuple["LayerAdapter", float]]
Factors = tuple[Any, Any, Any, float]  # A (d, r), B (r, k), stretch (k,) or None, scaling


def _lora(part: LoraAdapter, weight: float, handle: Callable[[], Any]) -> Factors:
    held = vars(part)
    a, b = held["lora_A"], held["lora_B"]
    if (first := part.first()) is not None:  # what the init takes off the weight is one more pair of factors
        a, b = ops.concat([a, first[0]], axis=1), ops.concat([b, first[1] * -1.0], axis=0)
    return a, b, None, part.scaling * weight


def _dora(part: LoraAdapter, weight: float, handle: Callable[[], Any]) -> Factors:
    a, b, m = (vars(part)[name] for name in ("lora_A", "lora_B", "magnitude"))
    return a, b, _stretch(part, handle(), a, b, m), part.scaling


def _stretch(part: LoraAdapter, handle: Any, a: Any, b: Any, m: Any) -> Any:
    """m over the column norms of W + scaling A B, kept while all of them are frozen: then arrays are replaced, never changed."""
    key = (handle, a.data, b.data, m.data)
    known, stretch = vars(part).get("_stretch", ((), None))
    if len(known) == len(key) and all(x is y for x, y in zip(known, key, strict=True)):
        return stretch
    K = a.backend
    norm = K.lora_column_norm(handle, a.data, b.data, scaling=part.scaling)
    norm = K.maximum(norm, K.asarray(np.asarray(np.finfo(norm.dtype).tiny, norm.dtype)))
    stretch = m / Tensor(norm, backend=K)
    if a.frozen and b.frozen and m.frozen:
        vars(part)["_stretch"] = key, stretch
    return stretch


GROUPED: Mapping[str, Callable[[LoraAdapter, float, Callable[[], Any]], Factors]] = {"lora": _lora, "dora": _dora}
"""By method what the kernel takes of an adapter: (adapter, weight, handle of the weight) -> factors."""


def _fits(layer: "LoraLayer", group: Group) -> bool:
    """Whether the kernel computes what these adapters do."""
    if not group:
        return True
    if len(group) > 1 or not layer.use_fused:
        return False
    (held, weight), settings = group[0], [part.settings for part in group[0][0].blocks().values()]
    if any(part.training and (of.rank_dropout or of.module_dropout) for part, of in zip(held.blocks().values(), settings, strict=True)):
        return False
    return all(
        part.method.name in GROUPED
        and part.rank_now is None
        and not (part.drops and part.first() is not None)
        and (part.method.proportional or (weight == 1.0 and not part.drops))
        for part in held.blocks().values()
    )


def forward_rows(layer: "LoraLayer", x: Any, selection: Selection) -> Any:
    """What the layer makes of each row with that row's own adapters. Raises ShapeError where axis 0 is not the rows."""
    groups: list[Group] = [
        [(layer.adapter(name), weight) for name, weight in group.items() if name in vars(layer.adapters)] for group in selection.groups
    ]
    if not any(groups):
        return layer.base(x)
    where = layer.name or type(layer.base).__name__
    if layer.layer_type is None:
        y = layer.base(x)
        return _shifted(y, selection.rows(y.shape, where), groups)
    x = layer.base.input(x)
    places = np.array([at if group else -1 for at, group in enumerate(groups)] + [-1])
    index = places[selection.rows(x.shape, where)]  # rows without an adapter in this layer are rows without
    here = np.unique(index).tolist()
    if len(here) == 1:
        return layer.act(x, groups[here[0]]) if here[0] >= 0 else layer.base(x)
    if layer.layer_type.plain:
        apart = [at for at in here if at >= 0 and not _fits(layer, groups[at])]
    else:
        apart = here
    if not apart:
        return _together(layer, x, index, groups, here)
    left = [at for at in here if at not in apart]
    rows = [np.flatnonzero(np.isin(index, left))] if left else []
    parts = [_together(layer, _taken(x, rows[0]), index[rows[0]], groups, left)] if left else []
    for at in apart:
        rows.append(np.flatnonzero(index == at))
        mine = _taken(x, rows[-1])
        parts.append(layer.act(mine, groups[at]) if at >= 0 else layer.base(mine))
    return _taken(ops.concat(parts, axis=0), np.argsort(np.concatenate(rows)))


def _taken(x: Tensor, rows: np.ndarray) -> Tensor:
    """Rows along axis 0, each once."""
    size = int(np.prod(x.shape[1:]))
    return ops.gather_rows(x.reshape(x.shape[0], size), rows).reshape(len(rows), *x.shape[1:])


def _together(layer: "LoraLayer", x: Tensor, index: np.ndarray, groups: Sequence[Group], here: Sequence[int]) -> Tensor:
    """One product for all rows, and one kernel for what their adapters add, `here` being the groups that have rows."""
    layer_type, base = layer.layer_type, layer.base
    assert layer_type is not None
    used = [at for at in here if at >= 0]
    product, bias = layer_type.apply(base, x, layer_type.own_matrix(base)), layer.base_bias()
    if not used:
        return product if bias is None else product + bias
    inner = int(np.prod(x.shape[1:-1]))
    order = np.searchsorted(used, np.maximum(index, 0))
    numbers = np.repeat(np.where(index >= 0, order, -1), inner)
    rows, of_x = product.reshape(len(numbers), product.shape[-1]), x.reshape(len(numbers), x.shape[-1])
    ranges, pieces = layer_type.blocks(base), []
    for block, (start, stop) in ranges.items():
        cut = partial(_cut, start=start, stop=stop, whole=len(ranges) == 1)
        factors: list[Any] = []
        scalings: list[float] = []
        mask: Any = None
        for at in used:
            ((held, weight),) = groups[at]
            part, shift = held.block(block), held.bias
            a = b = stretch = None
            scaling = 0.0
            if part is not None:
                a, b, stretch, scaling = GROUPED[part.method.name](part, weight, partial(layer._weight_handle, block))
                mask = _masked(mask, part, x, index == at)
            factors += [a, b, stretch, None if shift is None else cut(shift if weight == 1.0 else shift * weight)]
            scalings.append(scaling)
        flat = None if mask is None else mask.reshape(of_x.shape)
        own = None if bias is None else cut(bias)
        pieces.append(ops.grouped_lora(cut(rows), of_x, numbers, flat, own, *factors, scalings=tuple(scalings)))
    y = pieces[0] if len(pieces) == 1 else ops.concat(pieces, axis=-1)
    return y if y.shape == product.shape else y.reshape(*product.shape)


def _masked(mask: Any, part: LoraAdapter, x: Tensor, mine: np.ndarray) -> Any:
    """The masks of all rows, with an adapter's dropout for its own, as it would draw it for them alone."""
    if not part.drops:
        return mask
    rows = np.flatnonzero(mine)
    drawn = part.mask(np.broadcast_to(np.float32(0), (len(rows), *x.shape[1:])))
    mask = np.ones(x.shape, drawn.dtype) if mask is None else mask
    mask[rows] = drawn
    return mask


def _cut(x: Tensor, start: int, stop: int, whole: bool) -> Tensor:
    return x if whole else x[..., start:stop]


def _shifted(y: Tensor, index: np.ndarray, groups: Sequence[Group]) -> Tensor:
    """y plus the changes of the bias that each row's adapters train."""
    changes = [[held.bias * weight for held, weight in group if held.bias is not None] for group in groups]
    zero = np.zeros((1, y.shape[-1]), y.dtype)
    table = [sum(terms[1:], terms[0]).reshape(1, y.shape[-1]) if terms else Tensor(zero, backend=y.backend) for terms in changes]
    rows = ops.gather_rows(ops.concat([*table, Tensor(zero, backend=y.backend)], axis=0), np.where(index < 0, len(groups), index))
    return y + rows.reshape(len(index), *(1,) * (y.ndim - 2), y.shape[-1])
