"""The LoRA linear layer, forward and backward."""

__all__ = ["lora_linear", "lora_linear_grad"]


def lora_linear(x, w, a, b, mask=None, bias=None, *, scaling):
    """x W + bias + scaling (x' A) B and x' A, x' = x or x * mask: (n, d), handle (d, k), (d, r), (r, k) -> (n, k), (n, r).

    `mask` (n, d) carries dropout, already divided by the keep probability; `bias` is (k,). Hu et al. 2021, eq. 3.
    """
    xa = (x if mask is None else x * mask) @ a
    y = w.matmul(x) + scaling * (xa @ b)
    return y if bias is None else y + bias, xa


def lora_linear_grad(g, x, xa, w, a, b, mask=None, *, scaling, need_x=True):
    """Gradients of `lora_linear` for x, A and B: (n, k) -> (n, d) or None, (d, r), (r, k).

    With gb = scaling g B^T: dA = x'^T gb, dB = scaling (x' A)^T g, dx = g W^T + (gb A^T) * mask.
    """
    gb = scaling * (g @ b.T)
    masked = x if mask is None else x * mask
    dx = None
    if need_x:
        low = gb @ a.T
        dx = w.matmul_t(g) + (low if mask is None else low * mask)
    return dx, masked.T @ gb, scaling * (xa.T @ g)
