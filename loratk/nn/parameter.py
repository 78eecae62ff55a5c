"""Arrays that belong to a module: parameters, which train or are frozen, and buffers, which never train."""

from operator import attrgetter
from typing import Any, TypeVar

import numpy as np

from ..autograd import Tensor
from ..errors import DtypeError, ShapeError, StateError
from ..kernels import Backend
from .version import version

Self = TypeVar("Self", bound="Parameter")


class Parameter(Tensor):
    """A tensor that belongs to a module and trains, until it is frozen.

    The array is copied, so nobody else's change shows. A frozen parameter is prepared once for its products (`handle`);
    on a CPU backend its array is read-only meanwhile, so that the two cannot drift apart. Assign `data` to replace it.
    Copies (`copy.deepcopy`, pickle) have the same values and are frozen alike; the gradient stays behind.
    """

    __slots__ = ("_data", "_handle", "_trains")

    def __init__(self, data: Any, *, requires_grad: bool = True, backend: str | Backend = "cpu") -> None:
        self._trains = requires_grad
        if isinstance(data, np.ndarray):
            data = np.array(data, order="C")
        super().__init__(data, requires_grad=requires_grad, backend=backend)

    # The array, and whether it may change

    def _set_data(self, array: Any) -> None:
        if self.frozen and isinstance(array, np.ndarray):
            array = array.view()  # becomes read-only; the array of whoever handed it in stays as it is
        self._take(array)

    data = property(attrgetter("_data"), _set_data, doc="The backend's array.")  # read in every op: attrgetter runs no Python code

    def _set_requires_grad(self, trains: bool) -> None:
        if trains:
            self._check_trains()
            self._handle = None
        else:
            self.grad = None
        self._trains = trains
        self._guard()
        version.change()

    requires_grad = property(
        attrgetter("_trains"), _set_requires_grad, doc="Whether it takes a gradient. Setting it is the same as `freeze` and `unfreeze`."
    )

    @property
    def frozen(self) -> bool:
        """Whether it takes no gradient."""
        return not self._trains

    def freeze(self) -> None:
        """Take no gradient from now on."""
        self.requires_grad = False

    def unfreeze(self) -> None:
        """Train from now on."""
        self.requires_grad = True

    def _check_trains(self) -> None:
        if self.dtype.kind != "f":
            raise DtypeError(f"Only float32 and float64 parameters can need a gradient, found dtype {self.dtype}.")

    def _take(self, array: Any) -> None:
        self._data, self._handle = array, None
        self._guard()
        version.change()

    def _guard(self) -> None:
        """Make a NumPy array read-only where it is frozen, and one that may be written where it trains."""
        array = self._data
        if not isinstance(array, np.ndarray) or array.flags.writeable != self.frozen:
            return
        if self.frozen or array.flags.owndata:
            array.flags.writeable = not self.frozen
        else:
            self._data = np.array(array, order="C")  # a view of what may be read-only for good, such as a mapped file

    # What products take

    def handle(self) -> Any:
        """The frozen weight as a matrix (d, k), prepared for many products: see `freeze_weight` among the kernels. Made once.

        All axes but the last are one, so that a convolution's (kh, kw, c, k) acts as (kh*kw*c, k).
        """
        if self._trains:
            raise StateError("Only a frozen parameter has a handle, this one trains; freeze() it, or use matrix().")
        if self._handle is None:
            self._handle = self.backend.freeze_weight(self.backend.reshape(self._data, shape=self._as_matrix()))
        return self._handle

    def matrix(self) -> Any:
        """The weight as the matrix (d, k) that products take: the handle if it is frozen, else a tensor."""
        if self.frozen:
            return self.handle()
        return self if self.ndim == 2 else self.reshape(*self._as_matrix())

    def _as_matrix(self) -> tuple[int, int]:
        return self.size // self.shape[-1], self.shape[-1]

    # New values, another place, a copy

    def assign(self, values: np.ndarray) -> None:
        """Replace the values by a copy of an array of the same shape and dtype. Raises ShapeError or DtypeError."""
        if values.shape != self.shape:
            raise ShapeError(f"A parameter of shape {self.shape} cannot take values of shape {values.shape}.")
        if values.dtype != self.dtype:
            raise DtypeError(f"A parameter of {self.dtype} cannot take values of {values.dtype}; convert them with astype.")
        self._take(self.backend.asarray(np.array(values, order="C")))

    def move(self, backend: Backend) -> None:
        """Go to another backend, in place."""
        if backend is not self.backend:
            values = np.array(self.numpy(), order="C")
            self.backend, self.grad = backend, None
            self._take(backend.asarray(values))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.numpy(), self.requires_grad, self.backend)

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        return _rebuild(type(self), self.numpy(), self.requires_grad, self.backend)


class Buffer(Parameter):
    """Part of a module's state that no optimiser touches, such as a running mean."""

    __slots__ = ()

    def __init__(self, data: Any, *, backend: str | Backend = "cpu") -> None:
        super().__init__(data, requires_grad=False, backend=backend)

    def _check_trains(self) -> None:
        raise StateError("A buffer never trains, so it cannot be unfrozen; make it a Parameter if it should.")


def _rebuild(kind: type[Self], values: np.ndarray, requires_grad: bool, backend: Backend) -> Self:
    copy = kind.__new__(kind)
    Parameter.__init__(copy, values, requires_grad=requires_grad, backend=backend)
    return copy
