"""Low-rank updates of which every row of a batch has its own, on one product."""

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
    given = product, x, bias, *factors
    if modes.recording or modes.anomaly or not _alike(given):
        return apply("grouped_lora", product, x, index, mask, bias, *factors, scalings=scalings)
    K = product.backend
    arrays = [None if each is None else each.data for each in given]
    return made(K, K.grouped_lora(arrays[0], arrays[1], index, mask, *arrays[2:], scalings=scalings)[0])


def _alike(given: tuple[Any, ...]) -> bool:
    """Whether all that is there are tensors of one backend and dtype."""
    first = given[0]
    return isinstance(first, Tensor) and all(
        each is None or (isinstance(each, Tensor) and each.backend is first.backend and each.data.dtype == first.data.dtype)
        for each in given
    )


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
