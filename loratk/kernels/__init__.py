"""Arrays in, arrays out: three backends with kernels of the same names.

`reference` is the specification in NumPy, `cpu` is Numba on all cores, `cuda` is numba.cuda. A backend is loaded when
it is first asked for, so that importing loratk does not import Numba.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from ..errors import BackendError, UnknownNameError, choices

Kernel = Callable[..., Any]
BACKENDS = ("reference", "cpu", "cuda")


class Backend:
    """A named table of kernels, each also an attribute, and the way to and from its arrays.

    `asarray` takes a NumPy array to the backend's own kind, `numpy` brings it back; both are the identity where the
    backend works on NumPy arrays.
    """

    def __init__(
        self,
        name: str,
        kernels: Mapping[str, Kernel],
        asarray: Callable[[Any], Any] = np.asarray,
        numpy: Callable[[Any], np.ndarray] = np.asarray,
    ) -> None:
        self.name, self.kernels, self.asarray, self.numpy = name, dict(kernels), asarray, numpy
        vars(self).update(self.kernels)

    def __getattr__(self, name: str) -> Kernel:  # only reached for what is not in the table
        if name.startswith("__"):
            raise AttributeError(name)
        raise BackendError(f"The backend {self.name!r} has no kernel {name!r}; its kernels: {choices(self.kernels)}.")

    def __repr__(self) -> str:
        return f"Backend({self.name!r}, {len(self.kernels)} kernels)"

    def __reduce__(self) -> tuple[Any, ...]:
        return get_backend, (self.name,)


@cache
def _load(name: str) -> Backend:
    module = importlib.import_module(f"{__name__}.{name}")
    ways = {way: getattr(module, way) for way in ("asarray", "numpy") if hasattr(module, way)}
    return Backend(name, module.KERNELS, **ways)


def get_backend(name: str | Backend) -> Backend:
    """The backend of that name: 'reference', 'cpu' or 'cuda'. Raises UnknownNameError, or BackendError without a GPU driver."""
    if isinstance(name, Backend):
        return name
    if name not in BACKENDS:
        raise UnknownNameError(f"Unknown backend {name!r}. Backends: {choices(BACKENDS)}.")
    return _load(name)
