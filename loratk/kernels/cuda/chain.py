"""A chain of LoRA linear layers with ReLU between them: built from the kernels of single layers."""

from ..reference.chain import check_input, layers_of
from .arrays import asarray, empty, flat, zeros
from .elementwise import add, relu_grad
from .elementwise import relu as positive
from .lora import lora_linear, lora_linear_grad
from .shape import concat, getitem

__all__ = ["lora_chain", "lora_chain_grad"]


def lora_chain(x, *links, scalings, relus):
    """x through linear layers with adapters and ReLU: (n, d) -> (n, k), and what `lora_chain_grad` needs, in one array.

    See the reference for what `links` and the array are.
    """
    x, results, thin = asarray(x), [], []
    check_input(x, links)
    for w, bias, a, b, scaling, relu, width in layers_of(links, scalings, relus):
        if a is None:
            x = w.matmul(x) if bias is None else add(w.matmul(x), bias)
        else:
            x, xa = lora_linear(x, w, a, b, None, bias, scaling=scaling)
            missing = width - xa.shape[1]
            thin.append(flat(concat(xa, zeros((xa.shape[0], missing), xa.dtype), axis=1) if missing else xa))
        x = positive(x) if relu else x
        results.append(x)
    kept = [*map(flat, results[:-1]), *thin]
    return x, concat(*kept, axis=0) if kept else empty((0,), x.dtype)


def lora_chain_grad(g, x, y, kept, *links, scalings, relus, need_x=True):
    """Gradients of `lora_chain` for x (None if not `need_x`), then A and B of each layer that has them."""
    layers, n, at = list(layers_of(links, scalings, relus)), x.shape[0], 0
    g, outs, thin = asarray(g), [], []
    for w, *_ in layers[:-1]:
        outs.append(getitem(kept, index=slice(at, at + n * w.shape[1])).reshape((n, w.shape[1])))
        at += n * w.shape[1]
    for _, _, a, *_, width in layers:
        if a is None:
            thin.append(None)
        else:
            whole = getitem(kept, index=slice(at, at + n * width)).reshape((n, width))
            thin.append(getitem(whole, index=(slice(None), slice(0, a.shape[1]))))
        at += n * width
    inputs, outs, factors = [x, *outs], [*outs, y], []
    for i in range(len(layers) - 1, -1, -1):
        w, _, a, b, scaling, relu, _ = layers[i]
        g = relu_grad(g, outs[i]) if relu else g
        need = need_x or i > 0
        if a is None:
            g = w.matmul_t(g) if need else None
        else:
            g, da, db = lora_linear_grad(g, inputs[i], thin[i], w, a, b, scaling=scaling, need_x=need)
            factors = [da, db, *factors]
    return g, *factors
