"""Reshape, transpose, indexing, joining, and rows by number."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import DtypeError, ShapeError
from ..tensor import Tensor, apply
from ..vjps import defvjp, defvjp_joint


def reshape(x: Any, shape: tuple[int, ...]) -> Tensor:
    """The same values in another shape; one size may be -1."""
    return apply("reshape", x, shape=shape)


def _reshape(K: Any, out: Any, x: Any, shape: tuple[int, ...]) -> Any:
    before = x.shape
    return lambda g: K.reshape(g, shape=before)


defvjp("reshape", _reshape)


def transpose(x: Any, axes: tuple[int, ...]) -> Tensor:
    """The axes in another order."""
    return apply("transpose", x, axes=axes)


def _transpose(K: Any, out: Any, x: Any, axes: tuple[int, ...]) -> Any:
    inverse = tuple(int(i) for i in np.argsort([axis % len(axes) for axis in axes]))
    return lambda g: K.transpose(g, axes=inverse)


defvjp("transpose", _transpose)


def getitem(x: Any, index: Any) -> Tensor:
    """x[index] for integers, slices, `...` and None."""
    return apply("getitem", x, index=index)


def _getitem(K: Any, out: Any, x: Any, index: Any) -> Any:
    shape = x.shape
    return lambda g: K.getitem_grad(g, index=index, shape=shape)


defvjp("getitem", _getitem)


def concat(tensors: Sequence[Any], axis: int = -1) -> Tensor:
    """Tensors joined along an axis."""
    if len(dtypes := {str(tensor.dtype) for tensor in tensors}) > 1:
        raise DtypeError(f"concat got both {' and '.join(sorted(dtypes))}; convert one, nothing is converted silently.")
    return apply("concat", *tensors, axis=axis)


def _concat(K: Any, needs: tuple[bool, ...], out: Any, *arrays: Any, axis: int) -> Any:
    place = axis % len(out.shape)
    sizes = [array.shape[place] for array in arrays]

    def pull(g: Any) -> list[Any]:
        cuts = [0, *np.cumsum(sizes).tolist()]
        before = (slice(None),) * place
        return [K.getitem(g, index=(*before, slice(cuts[i], cuts[i + 1]))) if need else None for i, need in enumerate(needs)]

    return pull


defvjp_joint("concat", _concat)


def gather_rows(w: Any, index: Any) -> Tensor:
    """Rows of w by number: (v, k), integers (...,) -> (..., k). Raises ShapeError for a number outside [0, v)."""
    numbers = index.numpy() if isinstance(index, Tensor) else np.asarray(index)
    if numbers.dtype.kind not in "iu":
        raise DtypeError(f"gather_rows needs integer row numbers, found dtype {numbers.dtype}.")
    if len(w.shape) != 2:
        raise ShapeError(f"gather_rows needs a matrix (v, k) to take rows of, found shape {tuple(w.shape)}.")
    rows = w.shape[0]
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < rows):
        raise ShapeError(f"gather_rows needs row numbers from 0 to {rows - 1}, found {numbers.min()} to {numbers.max()}.")
    return apply("gather_rows", w, index if isinstance(index, Tensor) else numbers)


def _gather_rows(K: Any, out: Any, w: Any, index: Any) -> Any:
    rows = w.shape[0]
    return lambda g: K.scatter_add_rows(g, index, rows=rows)


defvjp("gather_rows", _gather_rows, None)


def scatter(x: Any, index: Any, size: int) -> Tensor:
    """Zeros with the entries of x at the places `index`, each of which occurs once: (n,), integers (n,) in [0, size) -> (size,).

    The caller vouches for the places.
    """
    if len(x.shape) != 1 or tuple(index.shape) != tuple(x.shape):
        raise ShapeError(f"scatter needs entries and places of one length, found shapes {tuple(x.shape)} and {tuple(index.shape)}.")
    return apply("scatter", x, index, size=size)


def _scatter(K: Any, out: Any, x: Any, index: Any, size: int) -> Any:
    return lambda g: K.reshape(K.gather_rows(K.reshape(g, shape=(size, 1)), index), shape=(-1,))


defvjp("scatter", _scatter, None)
