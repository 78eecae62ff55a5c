"""The LoRA and DoRA linear layers as one op each, whose forward and backward passes share their products, and chains of layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..graph import Node
from ..modes import modes
from ..tensor import Tensor, apply, made
from ..vjps import defvjp_joint


def lora_linear(x: Tensor, w: Any, a: Any, b: Any, mask: Any = None, bias: Any = None, *, scaling: float) -> Tensor:
    """x W + bias + scaling (x' A) B, x' = x or x * mask: (n, d), a frozen weight's handle (d, k), (d, r), (r, k) -> (n, k).

    Hu et al. 2021, eq. 3. `mask` (n, d) carries the adapter's dropout, kept entries divided by the keep probability;
    `bias` is (k,).
    """
    of_x, of_w, of_a, of_b = x.shape, tuple(w.shape), a.shape, b.shape
    if not (len(of_x) == len(of_w) == len(of_a) == 2 and of_x[1] == of_w[0] == of_a[0] and of_b == (of_a[1], of_w[1])):
        raise ShapeError(f"lora_linear needs x (n, d), W (d, k), A (d, r) and B (r, k), found {of_x}, {of_w}, {of_a} and {of_b}.")
    if mask is not None and tuple(mask.shape) != of_x:
        raise ShapeError(f"lora_linear needs a mask of x's shape {of_x}, found {tuple(mask.shape)}.")
    if bias is not None and tuple(bias.shape) != of_w[1:]:
        raise ShapeError(f"lora_linear needs a bias of shape {of_w[1:]}, as W is {of_w}, found {tuple(bias.shape)}.")
    return apply("lora_linear", x, w, a, b, mask, bias, scaling=scaling)


def _lora_linear(K: Any, needs: tuple[bool, ...], out: Any, x: Any, w: Any, a: Any, b: Any, mask: Any, bias: Any, scaling: float) -> Any:
    xa = out[1]
    if not needs[2]:
        return _lora_linear_fixed_a(K, needs, xa, w, a, b, mask, scaling)

    def pull(g: Any) -> tuple[Any, ...]:
        dx, da, db = K.lora_linear_grad(g, x, xa, w, a, b, mask, scaling=scaling, need_x=needs[0])
        return dx, None, da, db if needs[3] else None, None, g if needs[5] else None

    return pull


def _lora_linear_fixed_a(K: Any, needs: tuple[bool, ...], xa: Any, w: Any, a: Any, b: Any, mask: Any, scaling: float) -> Any:
    """The pullback where A takes no gradient: nobody needs x then, x A (n, r) is all that is kept of it. Zhang et al. 2023 (LoRA-FA)."""
    mask = mask if needs[0] else None

    def pull(g: Any) -> tuple[Any, ...]:
        dx = db = None
        scale = K.asarray(np.asarray(scaling, g.dtype))
        if needs[0]:
            low = K.matmul(K.mul(K.matmul(g, K.transpose(b, axes=(1, 0))), scale), K.transpose(a, axes=(1, 0)))
            dx = K.add(K.frozen_matmul_t(g, w), low if mask is None else K.mul(low, mask))
        if needs[3]:
            db = K.mul(K.matmul(K.transpose(xa, axes=(1, 0)), g), scale)
        return dx, None, None, db, None, g if needs[5] else None

    return pull


defvjp_joint("lora_linear", _lora_linear)


def dora_linear(x: Tensor, w: Any, a: Any, b: Any, m: Any, bias: Any = None, *, scaling: float) -> Tensor:
    """m/c (x W + scaling (x A) B) + bias, c the column norms of W + scaling A B, a constant in the backward pass.

    (n, d), a frozen weight's handle (d, k), (d, r), (r, k), (k,), (k,) or None -> (n, k). Liu et al. 2024 (DoRA), eq. 5 and section 4.3.
    """
    of_x, of_w, of_a, of_b, of_m = x.shape, tuple(w.shape), a.shape, b.shape, m.shape
    fits = len(of_x) == 2 and of_x[1] == of_w[0] == of_a[0] and of_b == (of_a[1], of_w[1]) and of_m == of_w[1:]
    if not fits or (bias is not None and bias.shape != of_m):
        found = f"{of_x}, {of_w}, {of_a}, {of_b}, {of_m} and {None if bias is None else bias.shape}"
        raise ShapeError(f"dora_linear needs x (n, d), W (d, k), A (d, r), B (r, k), m (k,) and a bias (k,) or None, found {found}.")
    return apply("dora_linear", x, w, a, b, m, bias, scaling=scaling)


def _dora_linear(K: Any, needs: tuple[bool, ...], out: Any, x: Any, w: Any, a: Any, b: Any, m: Any, bias: Any, scaling: float) -> Any:
    _, c, z, xa = out

    def pull(g: Any) -> tuple[Any, ...]:
        dx, da, db, dm = K.dora_linear_grad(g, x, c, z, xa, w, a, b, m, scaling=scaling, need_x=needs[0])
        grads = dx, None, da, db, dm, g
        return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))

    return pull


defvjp_joint("dora_linear", _dora_linear)


def lora_chain(x: Tensor, *links: Any, scalings: tuple[float, ...], relus: tuple[bool, ...]) -> Tensor:
    """x through frozen linear layers with adapters and ReLU, as one op: (n, d) -> (n, k).

    `links` has four entries a layer: its weight's handle (d, k), its bias (k,) or None, and A (d, r) and B (r, k), or None twice. A
    layer is x W + bias + scaling (x A) B (Hu et al. 2021, eq. 3), then max(., 0) where `relus` says so.
    """
    return apply("lora_chain", x, *links, scalings=scalings, relus=relus)


class LoraChain:
    """`lora_chain` with the same links again and again: what it asks of each of them is asked once.

    Good for as long as no link's array is replaced and none is frozen or set free.
    """

    def __init__(self, links: Sequence[Any], scalings: tuple[float, ...], relus: tuple[bool, ...]) -> None:
        self._links = links
        self._options: dict[str, Any] = {"scalings": scalings, "relus": relus}
        tensors = [link for link in links if isinstance(link, Tensor)]
        self._alike = len({(tensor.backend, tensor.dtype) for tensor in tensors}) == 1
        self._arrays = [link.data if isinstance(link, Tensor) else link for link in links]
        trains = [isinstance(link, Tensor) and link.requires_grad for link in links]
        self._trains = True in trains and all(link._node is None for link in tensors)
        self._sources = [link if train else None for link, train in zip(links, trains, strict=True)]
        self._shapes = [link.data.shape if train else None for link, train in zip(links, trains, strict=True)]
        self._first = tensors[0] if tensors else None

    def __call__(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, k)."""
        first = self._first
        if first is None or not (self._alike and self._trains and x.backend is first.backend and x.dtype == first.data.dtype):
            return lora_chain(x, *self._links, **self._options)
        K, arrays, options = first.backend, self._arrays, self._options
        out = K.lora_chain(x.data, *arrays, **options)
        if not modes.recording:
            return made(K, out[0])
        needs = x.requires_grad
        node = Node("lora_chain", [(x._node or x) if needs else None, *self._sources], [x.data.shape if needs else None, *self._shapes])
        node.joint = _lora_chain(K, (needs,), out, x.data, *arrays, **options)
        return made(K, out[0], node)


def _lora_chain(K: Any, needs: tuple[bool, ...], out: Any, x: Any, *links: Any, scalings: Any, relus: Any) -> Any:
    y, kept = out

    def pull(g: Any) -> list[Any]:
        dx, *factors = K.lora_chain_grad(g, x, y, kept, *links, scalings=scalings, relus=relus, need_x=needs[0])
        rest = iter(factors)
        grads = [dx]
        for i in range(len(relus)):
            if links[4 * i + 2] is None:
                grads += (None, None, None, None)
            else:
                grads += (None, None, next(rest), next(rest))
        return grads

    return pull


defvjp_joint("lora_chain", _lora_chain)
