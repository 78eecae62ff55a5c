"""Low-rank updates of which every row of a batch has its own, on one product."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..modes import modes
from ..tensor import Tensor, apply, made
from ..vjps import defvjp_joint


def grouped_lora(product: Any, x: Any, index: np.ndarray, mask: Any, bias: Any, *factors: Any, scalings: tuple[float, ...]) -> Tensor:
    """What the adapter that each row names makes of a product: (n, k), (n, d), integers (n,) -> (n, k).

    `factors` has four entries an adapter: A (d, r) and B (r, k) or both None, a stretch (k,) and a shift (k,), each or None; `index` is the
    adapter's place, or -1 for none. Row i is stretch (product_i + scaling (x_i A) B) + shift + bias. `mask` (n, d) carries dropout, kept
    entries divided by the keep probability; `mask` and `bias` (k,) may be None. Chen et al. 2023 (Punica), eq. 1; with stretch m / c
    DoRA (Liu et al. 2024, eq. 5).
    """
    if len(product.shape) != 2 or len(x.shape) != 2:
        raise ShapeError(f"grouped_lora needs a product (n, k) and x (n, d), found {product.shape} and {x.shape}.")
    return apply("grouped_lora", product, x, index, mask, bias, *factors, scalings=scalings)


def _grouped_lora(
    K: Any, needs: tuple[bool, ...], out: Any, product: Any, x: Any, index: Any, mask: Any, bias: Any, *factors: Any, scalings: Any
) -> Any:
    _, xa, z = out

    def pull(g: Any) -> list[Any]:
        gz, dx, *found = K.grouped_lora_grad(g, x, xa, z, index, mask, *factors, scalings=scalings, need_x=needs[1])
        rest = iter(found)
        grads = [gz, dx, None, None, g, *(None if factor is None else next(rest) for factor in factors)]
        return [grad if need else None for grad, need in zip(grads, needs, strict=True)]

    return pull


defvjp_joint("grouped_lora", _grouped_lora)


class GroupedLora:
    """`grouped_lora` with the same factors again and again: what it asks of each of them is asked once.

    Good for as long as no factor's array is replaced and none is frozen or set free.
    """

    def __init__(self, factors: Sequence[Any], scalings: tuple[float, ...]) -> None:
        self._factors, self._scalings = factors, scalings
        tensors = [factor for factor in factors if factor is not None]
        self._kinds = {(factor.backend, factor.data.dtype) for factor in tensors}
        self._arrays = [None if factor is None else factor.data for factor in factors]
        self._trains = any(factor.requires_grad for factor in tensors)

    def __call__(self, product: Tensor, x: Tensor, index: np.ndarray, mask: Any = None, bias: Any = None) -> Tensor:
        """See `grouped_lora`."""
        given = [product, x] if bias is None else [product, x, bias]
        kinds = {(each.backend, each.data.dtype) for each in given}
        records = modes.recording and (self._trains or any(each.requires_grad for each in given))
        if records or modes.anomaly or kinds != self._kinds or len(kinds) != 1:
            return grouped_lora(product, x, index, mask, bias, *self._factors, scalings=self._scalings)
        K, shift = product.backend, None if bias is None else bias.data
        return made(K, K.grouped_lora(product.data, x.data, index, mask, shift, *self._arrays, scalings=self._scalings)[0])
