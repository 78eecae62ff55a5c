"""The LoRA linear layer, forward and backward: built from the product kernel."""

from .arrays import asarrays
from .elementwise import add, mul
from .gemm import product

__all__ = ["lora_linear", "lora_linear_grad"]


def lora_linear(x, w, a, b, mask=None, bias=None, *, scaling):
    """x W + bias + scaling (x' A) B and x' A, x' = x or x * mask: (n, d), handle (d, k), (d, r), (r, k) -> (n, k), (n, r).

    `mask` (n, d) carries dropout, already divided by the keep probability; `bias` is (k,). Hu et al. 2021, eq. 3.
    """
    xa = product(x if mask is None else mul(x, mask), a)
    y = product(xa, b, scale=scaling, add_to=w.matmul(x))
    return y if bias is None else add(y, bias), xa


def lora_linear_grad(g, x, xa, w, a, b, mask=None, *, scaling, need_x=True):
    """Gradients of `lora_linear` for x, A and B: (n, k) -> (n, d) or None, (d, r), (r, k).

    With gb = scaling g B^T: dA = x'^T gb, dB = scaling (x' A)^T g, dx = g W^T + (gb A^T) * mask.
    """
    g, x, xa, a, b = asarrays(g, x, xa, a, b)
    gb = product(g, b, b_t=True, scale=scaling)
    masked = x if mask is None else mul(x, mask)
    dx = None
    if need_x and mask is None:
        dx = product(gb, a, b_t=True, add_to=w.matmul_t(g))
    elif need_x:
        dx = add(w.matmul_t(g), mul(product(gb, a, b_t=True), mask))
    return dx, product(masked, gb, a_t=True), product(xa, g, a_t=True, scale=scaling)
