"""A chain of LoRA linear layers with ReLU between them, forward and backward."""

import numpy as np

from ...errors import ShapeError
from .lora import lora_linear, lora_linear_grad

__all__ = ["lora_chain", "lora_chain_grad"]

LANES = 16  # what the columns of x A are filled up to a multiple of, with zeros


def layers_of(links, scalings, relus):
    """Handle, bias, A, B, scaling and ReLU of each layer, and how many columns its x A takes. Raises ShapeError for what does not fit."""
    size = links[0].shape[0]
    for i, (scaling, relu) in enumerate(zip(scalings, relus, strict=True)):
        w, bias, a, b = links[4 * i : 4 * i + 4]
        d, k = w.shape
        if d != size:
            raise ShapeError(f"Layer {i} of a chain takes {d} inputs, the layer before has {size} outputs.")
        if (a is not None and (a.shape[0] != d or b.shape != (a.shape[1], k))) or (bias is not None and bias.shape != (k,)):
            found = ", ".join(str(None if each is None else tuple(each.shape)) for each in (a, b, bias))
            raise ShapeError(f"Layer {i} of a chain needs A ({d}, r), B (r, {k}) and a bias ({k},), found {found}.")
        size = k
        yield w, bias, a, b, scaling, relu, 0 if a is None else -(-a.shape[1] // LANES) * LANES


def check_input(x, links):
    """Raise ShapeError unless the first layer can take x."""
    if x.ndim != 2 or x.shape[1] != links[0].shape[0]:
        raise ShapeError(f"A chain whose first weight is {tuple(links[0].shape)} needs x (n, {links[0].shape[0]}), found {tuple(x.shape)}.")


def lora_chain(x, *links, scalings, relus):
    """x through linear layers with adapters and ReLU: (n, d) -> (n, k), and what `lora_chain_grad` needs, in one array.

    `links` has four entries a layer: a frozen weight's handle (d, k), a bias (k,) or None, A (d, r) and B (r, k) or both None. A
    layer is x W + bias + scaling (x A) B (Hu et al. 2021, eq. 3), then max(., 0) where `relus` says so. The array holds the
    results of all layers but the last, then each layer's x A, its columns filled up with zeros to a multiple of 16.
    """
    results, thin = [], []
    check_input(x, links)
    for w, bias, a, b, scaling, relu, width in layers_of(links, scalings, relus):
        if a is None:
            x = w.matmul(x) if bias is None else w.matmul(x) + bias
        else:
            x, xa = lora_linear(x, w, a, b, None, bias, scaling=scaling)
            thin.append(np.pad(xa, ((0, 0), (0, width - xa.shape[1]))))
        x = np.maximum(x, 0) if relu else x
        results.append(x)
    return x, np.concatenate([*results[:-1], *thin], axis=None, dtype=x.dtype) if len(results) > 1 or thin else np.empty(0, x.dtype)


def lora_chain_grad(g, x, y, kept, *links, scalings, relus, need_x=True):
    """Gradients of `lora_chain` for x (None if not `need_x`), then A and B of each layer that has them."""
    layers, n, at = list(layers_of(links, scalings, relus)), x.shape[0], 0
    inputs, outs, thin = [x], [], []
    for w, *_ in layers[:-1]:
        outs.append(kept[at : at + n * w.shape[1]].reshape(n, w.shape[1]))
        at += outs[-1].size
    for _, _, a, *_, width in layers:
        thin.append(None if a is None else kept[at : at + n * width].reshape(n, width)[:, : a.shape[1]])
        at += n * width
    inputs, outs = [x, *outs], [*outs, y]
    factors = []
    for i in range(len(layers) - 1, -1, -1):
        w, _, a, b, scaling, relu, _ = layers[i]
        g = np.where(outs[i] > 0, g, g.dtype.type(0)) if relu else g
        need = need_x or i > 0
        if a is None:
            g = w.matmul_t(g) if need else None
        else:
            g, da, db = lora_linear_grad(g, inputs[i], thin[i], w, a, b, scaling=scaling, need_x=need)
            factors = [da, db, *factors]
    return g, *factors
