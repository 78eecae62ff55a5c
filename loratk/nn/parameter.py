"""Arrays that belong to a module: parameters, which train or are frozen, and buffers, which never train."""

from typing import Any

import numpy as np

from ..autograd import Tensor
from ..kernels import Backend


class Parameter(Tensor):
    """A tensor that belongs to a module and trains, until it is frozen.

    The array is copied, so nobody else's change shows. A frozen parameter is prepared once for its products (`handle`);
    on a CPU backend its array is read-only meanwhile, so that the two cannot drift apart. Assign `data` to replace it.
    """

    __slots__ = ("_data", "_handle")

    def __init__(self, data: Any, *, requires_grad: bool = True, backend: str | Backend = "cpu") -> None:
        if isinstance(data, np.ndarray):
            data = np.array(data, order="C")
        super().__init__(data, requires_grad=requires_grad, backend=backend)
        self._guard()

    @property
    def data(self) -> Any:
        """The backend's array."""
        return self._data

    @data.setter
    def data(self, array: Any) -> None:
        self._data, self._handle = array, None

    @property
    def frozen(self) -> bool:
        """Whether it takes no gradient."""
        return not self.requires_grad

    def _guard(self) -> None:
        if isinstance(self._data, np.ndarray) and self._data.flags.writeable == self.frozen:
            if not self.frozen and not self._data.flags.owndata:
                self._data = self._data.copy()  # a view of what may be read-only, such as a mapped file
            self._data.flags.writeable = not self.frozen

    def freeze(self) -> None:
        """Take no gradient from now on."""
        self.requires_grad, self.grad = False, None
        self._guard()

    def unfreeze(self) -> None:
        """Train from now on."""
        self.requires_grad, self._handle = True, None
        self._guard()

    def handle(self) -> Any:
        """The frozen weight as a matrix (d, k), prepared for many products: see `freeze_weight` among the kernels. Made once.

        All axes but the last are one, so that a convolution's (kh, kw, c, k) acts as (kh*kw*c, k).
        """
        assert self.frozen, "only a frozen parameter has a handle"
        if self._handle is None:
            shape = (self.size // self.shape[-1], self.shape[-1])
            self._handle = self.backend.freeze_weight(self.backend.reshape(self._data, shape=shape))
        return self._handle

    def assign(self, values: np.ndarray) -> None:
        """Replace the values by a copy of an array of the same shape and dtype, which the caller has checked."""
        self.data = self.backend.asarray(np.array(values, self.dtype, order="C"))
        self._guard()

    def move(self, backend: Backend) -> None:
        """Go to another backend, in place."""
        if backend is not self.backend:
            values = np.array(self.numpy(), order="C")
            self.backend, self.grad = backend, None
            self.data = backend.asarray(values)
            self._guard()


class Buffer(Parameter):
    """Part of a module's state that no optimiser touches, such as a running mean."""

    __slots__ = ()

    def __init__(self, data: Any, *, backend: str | Backend = "cpu") -> None:
        super().__init__(data, requires_grad=False, backend=backend)

    def unfreeze(self) -> None:
        """Nothing: a buffer never trains."""
