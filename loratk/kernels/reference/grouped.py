"""Low-rank updates of which every row has its own: many adapters on one product."""

import numpy as np

from ...errors import ShapeError

__all__ = ["grouped_lora", "grouped_lora_grad"]

LANES = 16  # what the columns of x A are filled up to a multiple of, with zeros


def groups_of(factors, d, k):
    """A, B, stretch and shift of each adapter. Raises ShapeError for what does not fit (d, k)."""
    if len(factors) % 4:
        raise ShapeError(f"Adapters come as four arrays each, A, B, stretch and shift, found {len(factors)} arrays.")
    groups = [tuple(factors[i : i + 4]) for i in range(0, len(factors), 4)]
    for at, (a, b, t, shift) in enumerate(groups):
        pair = (None, None) if a is None or b is None else (tuple(a.shape), tuple(b.shape))
        thin = (a is None and b is None) or (None not in pair and pair == ((d, pair[0][-1]), (pair[0][-1], k)))
        if not thin or any(row is not None and tuple(row.shape) != (k,) for row in (t, shift)):
            found = ", ".join(str(None if each is None else tuple(each.shape)) for each in (a, b, t, shift))
            raise ShapeError(f"Adapter {at} of a group needs A ({d}, r), B (r, {k}), a stretch and a shift ({k},), or None, found {found}.")
    return groups


def check_rows(product, x, index, mask, bias, count):
    """Raise ShapeError or IndexError unless product (n, k), x (n, d), index (n,), mask (n, d) and bias (k,) fit together."""
    fits = product.ndim == x.ndim == 2 and tuple(index.shape) == product.shape[:1] == x.shape[:1]
    fits = fits and (mask is None or mask.shape == x.shape) and (bias is None or bias.shape == product.shape[1:])
    if not fits:
        found = ", ".join(str(None if each is None else tuple(each.shape)) for each in (product, x, index, mask, bias))
        raise ShapeError(f"A group needs a product (n, k), x (n, d), an index (n,), a mask (n, d) and a bias (k,), found {found}.")
    if index.size and not -1 <= (low := int(index.min())) <= (high := int(index.max())) < count:
        raise IndexError(f"Rows name adapters 0 to {count - 1}, or -1 for none, found {low} to {high}.")


def widest(groups):
    """How many columns x A takes, and whether a row may be stretched."""
    ranks = [a.shape[1] for a, *_ in groups if a is not None]
    return -(-max(ranks, default=0) // LANES) * LANES, any(t is not None for _, _, t, _ in groups)


def grouped_lora(product, x, index, mask, bias, *factors, scalings):
    """What each row's own adapter makes of it: (n, k), (n, d), integers (n,) -> (n, k), (n, width), (n, k) or (0, k).

    `factors` has four entries an adapter: A (d, r) and B (r, k) or both None, a stretch t (k,) and a shift (k,), each or None. Row i of
    the result is t (product_i + scaling (x'_i A) B) + shift + bias with the factors of adapter index[i], and product_i + bias where
    that is -1; x' = x or x * mask (n, d), which carries dropout. With t = m / c that is DoRA (Liu et al. 2024, eq. 5). Chen et al. 2023
    (Punica), eq. 1, and Sheng et al. 2023 (S-LoRA), section 5: adapters of any rank side by side. The other two results are what
    `grouped_lora_grad` needs: x' A, its columns filled up with zeros to a multiple of 16, and, if any row may be stretched, what is.
    """
    (n, k), groups = product.shape, groups_of(factors, x.shape[1], product.shape[1])
    check_rows(product, x, index, mask, bias, len(groups))
    width, stretched = widest(groups)
    y, xa, z = np.array(product), np.zeros((n, width), product.dtype), np.zeros((n if stretched else 0, k), product.dtype)
    x = x if mask is None else x * mask
    if stretched:
        z[:] = product
    for at, (a, b, t, shift) in enumerate(groups):
        rows = index == at
        if a is not None:
            xa[rows, : a.shape[1]] = x[rows] @ a
            y[rows] += scalings[at] * (xa[rows, : a.shape[1]] @ b)
        if stretched:
            z[rows] = y[rows]
        if t is not None:
            y[rows] *= t
        if shift is not None:
            y[rows] += shift
    return y if bias is None else y + bias, xa, z


def grouped_lora_grad(g, x, xa, z, index, mask, *factors, scalings, need_x=True):
    """Gradients of `grouped_lora` for the product, x (None if not `need_x`), then A, B, stretch and shift of each adapter that has them.

    (n, k) -> (n, k), (n, d) or None, (d, r), (r, k), (k,), (k,), ... With gz = g t and gb = scaling gz B^T, over the rows of an adapter:
    dA = x'^T gb, dB = scaling (x' A)^T gz, dx = (gb A^T) * mask, dt = sum(g z), dshift = sum(g). Zero for an adapter without rows.
    """
    groups = groups_of(factors, x.shape[1], g.shape[1])
    gz, dx, grads = np.array(g), np.zeros_like(x) if need_x else None, []
    masked = x if mask is None else x * mask
    for at, (a, b, t, shift) in enumerate(groups):
        rows = index == at
        if t is not None:
            gz[rows] *= t
        if a is not None:
            gb = scalings[at] * (gz[rows] @ b.T)
            grads += [masked[rows].T @ gb, scalings[at] * (xa[rows, : a.shape[1]].T @ gz[rows])]
            if need_x:
                dx[rows] = gb @ a.T
        if t is not None:
            grads.append(np.sum(g[rows] * z[rows], axis=0))
        if shift is not None:
            grads.append(np.sum(g[rows], axis=0))
    return gz, dx if mask is None or dx is None else dx * mask, *grads
