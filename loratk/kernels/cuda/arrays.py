"""Arrays on the device: made, moved, and seen as one row of elements."""

import math

import numpy as np
from numba import cuda

from ...errors import BackendError, DtypeError
from .device import launch


def is_device_array(x):
    """Whether x is already on the device."""
    return getattr(x, "__cuda_ndarray__", False)


def empty(shape, dtype):
    """A new device array, its values not set."""
    return cuda.device_array(shape, dtype)


@cuda.jit
def _fill(out, value):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = value


def zeros(shape, dtype):
    """A new device array of zeros."""
    out = empty(shape, dtype)
    launch(_fill, out.size, flat(out), out.dtype.type(0))
    return out


def asarray(x):
    """x on the device, C-contiguous: a NumPy array, or anything that NumPy makes one of, is copied there.

    A device array stays as it is. Raises DtypeError unless it holds booleans, integers, float32 or float64, and
    BackendError for a device array that is not C-contiguous.
    """
    if is_device_array(x):
        if x.size and not x.is_c_contiguous():
            raise BackendError(
                f"A kernel of the backend 'cuda' needs C-contiguous device arrays, found strides {tuple(x.strides)} for the shape "
                f"{tuple(x.shape)}. Copy it into a new array first."
            )
        return x
    host = np.asarray(x, order="C")
    if host.dtype.kind not in "biuf" or host.dtype in (np.float16, np.longdouble):
        raise DtypeError(f"The backend 'cuda' holds booleans, integers, float32 and float64, found an array of {host.dtype}.")
    host = host.astype(host.dtype.newbyteorder("="), order="C", copy=0 in host.strides)  # Numba drops axes of stride 0
    out = empty(host.shape, host.dtype)
    if host.size:
        out.copy_to_device(host)
    return out


def asarrays(*arrays):
    """Every one of them on the device."""
    return [asarray(x) for x in arrays]


def numpy(x):
    """x as a NumPy array."""
    return x.copy_to_host() if is_device_array(x) else np.asarray(x)


def reshaped(x, shape):
    """The same elements with another shape of the same size."""
    if not x.size:  # Numba takes some arrays without elements for non-contiguous ones
        return empty(shape, x.dtype)
    return x.reshape(shape)


def flat(x):
    """The elements of x in a row: how every kernel sees its arrays."""
    return reshaped(x, (math.prod(x.shape),))
