"""The LoRA linear layer as one op, so that its forward and backward passes share their thin products."""

from typing import Any

from ...errors import ShapeError
from ..tensor import Tensor, apply
from ..vjps import defvjp_joint


def lora_linear(x: Tensor, w: Any, a: Any, b: Any, mask: Any = None, *, scaling: float) -> Tensor:
    """x W + scaling (x' A) B, x' = x or x * mask: (n, d), a frozen weight's handle (d, k), (d, r), (r, k) -> (n, k).

    Hu et al. 2021, eq. 3. `mask` (n, d) carries the adapter's dropout, kept entries divided by the keep probability.
    """
    shapes = [tuple(array.shape) for array in (x, w, a, b)]
    if any(len(shape) != 2 for shape in shapes) or not (x.shape[1] == w.shape[0] == a.shape[0] and (a.shape[1], w.shape[1]) == shapes[3]):
        raise ShapeError("lora_linear needs x (n, d), W (d, k), A (d, r) and B (r, k), found {}, {}, {} and {}.".format(*shapes))
    if mask is not None and tuple(mask.shape) != shapes[0]:
        raise ShapeError(f"lora_linear needs a mask of x's shape {shapes[0]}, found {tuple(mask.shape)}.")
    return apply("lora_linear", x, w, a, b, mask, scaling=scaling)


def _lora_linear(K: Any, needs: tuple[bool, ...], out: Any, x: Any, w: Any, a: Any, b: Any, mask: Any, scaling: float) -> Any:
    xa = out[1]

    def pull(g: Any) -> tuple[Any, ...]:
        dx, da, db = K.lora_linear_grad(g, x, xa, w, a, b, mask, scaling=scaling, need_x=needs[0])
        return dx, None, da if needs[2] else None, db if needs[3] else None, None

    return pull


defvjp_joint("lora_linear", _lora_linear)
