"""The tensor: an array that remembers which ops made it."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendError, DtypeError, GraphError, LoratkError, ShapeError
from ..kernels import Backend, get_backend
from ..kernels.memory import empty
from .graph import Node, check_finite, record, run_backward
from .modes import modes
from .vjps import VJPS

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
CONSTANTS = (np.ndarray, np.generic, int, float, list, tuple)  # what becomes an array where it stands beside a tensor


class Tensor:
    """An array on a backend, with a gradient if it needs one.

    `data` is the backend's array; `grad`, None until a backward pass reaches the tensor, is an array of the same shape
    and dtype. Python floats and integers become float32, NumPy arrays keep their dtype (float32, float64, integers or
    bool). The array is used as it is, not copied.
    """

    __slots__ = ("__weakref__", "_node", "backend", "data", "grad", "requires_grad")
    __array_priority__ = 1000  # so that ndarray * Tensor comes here

    data: Any
    grad: Any
    _node: Node | None

    def __init__(self, data: Any, *, requires_grad: bool = False, backend: str | Backend = "cpu") -> None:
        self.backend = get_backend(backend)
        if isinstance(data, Tensor):
            raise DtypeError("A Tensor cannot be made from a Tensor: use detach() for a copy of the handle, to() for another backend.")
        if isinstance(data, (bool, int, float, list, tuple)):
            data = np.asarray(data)
            data = data.astype(np.float32) if data.dtype.kind in "fiu" else data
        if isinstance(data, (np.ndarray, np.generic)):
            data = np.asarray(data)
            if data.dtype not in FLOATS and data.dtype.kind not in "biu":
                raise DtypeError(
                    f"A tensor holds float32, float64, integers or bool, found dtype {data.dtype}; convert it with astype first."
                )
            data = self.backend.asarray(data)
        if not hasattr(data, "dtype"):
            raise DtypeError(f"A tensor holds an array or a number, found {type(data).__name__}.")
        self.data = data
        if requires_grad and self.dtype not in FLOATS:
            raise DtypeError(f"Only float32 and float64 tensors can need a gradient, found dtype {self.dtype}.")
        self.requires_grad, self.grad, self._node = requires_grad, None, None

    # What it is

    @property
    def shape(self) -> tuple[int, ...]:
        """The size along each axis."""
        return tuple(self.data.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.data.shape)

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The kind of number it holds."""
        return np.dtype(self.data.dtype)

    def __len__(self) -> int:
        if not self.ndim:
            raise ShapeError("A tensor without axes has no length.")
        return int(self.data.shape[0])

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        grad = f", op={self._node.op!r}" if self._node else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.numpy(), separator=', ', threshold=20, prefix='Tensor(')}, dtype={self.dtype}{grad})"

    # What it is made into

    def numpy(self) -> npt.NDArray[Any]:
        """The values as a NumPy array; on a CPU backend the very array, not a copy."""
        return self.backend.numpy(self.data)

    def item(self) -> float:
        """The only entry, as a Python number."""
        if self.size != 1:
            raise ShapeError(f"item() needs a tensor with one entry, found shape {self.shape}.")
        return self.numpy().reshape(()).item()

    def __float__(self) -> float:
        return float(self.item())

    def detach(self) -> "Tensor":
        """A tensor of the same array that needs no gradient."""
        return Tensor(self.data, backend=self.backend)

    def to(self, backend: str | Backend) -> "Tensor":
        """A leaf with the same values on another backend (itself if it is there already)."""
        backend = get_backend(backend)
        if backend is self.backend:
            return self
        return Tensor(backend.asarray(self.numpy()), requires_grad=self.requires_grad, backend=backend)

    # Arithmetic, broadcast as in NumPy

    def __add__(self, other: Any) -> "Tensor":
        return apply("add", self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return apply("add", other, self)

    def __sub__(self, other: Any) -> "Tensor":
        return apply("sub", self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return apply("sub", other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return apply("mul", self, other)

    def __rmul__(self, other: Any) -> "Tensor":
        return apply("mul", other, self)

    def __truediv__(self, other: Any) -> "Tensor":
        return apply("div", self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return apply("div", other, self)

    def __matmul__(self, other: Any) -> "Tensor":
        return apply("matmul", *matrices(self, other))

    def __rmatmul__(self, other: Any) -> "Tensor":
        return apply("matmul", *matrices(other, self))

    def __neg__(self) -> "Tensor":
        return apply("neg", self)

    def __pow__(self, exponent: float) -> "Tensor":
        if isinstance(exponent, Tensor):
            raise DtypeError("x ** y needs a number y, found a Tensor; write exp(y * log(x)) for a power that varies.")
        return apply("power", self, exponent=float(exponent))

    # Shape and sums; everything else is a function of `loratk.autograd.ops`

    def __getitem__(self, index: Any) -> "Tensor":
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, bool) or not (part is None or part is ... or isinstance(part, (int, np.integer, slice))):
                raise DtypeError(
                    f"A tensor is indexed by integers, slices, ... and None, found {type(part).__name__}; gather_rows() takes row numbers."
                )
        return apply("getitem", self, index=index)

    @property
    def T(self) -> "Tensor":
        """The axes reversed."""
        return apply("transpose", self, axes=tuple(range(self.ndim))[::-1])

    def reshape(self, *shape: int | tuple[int, ...]) -> "Tensor":
        """The same values in another shape, given as sizes or one tuple; one size may be -1."""
        return apply("reshape", self, shape=shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)

    def transpose(self, *axes: int) -> "Tensor":
        """The axes in another order."""
        return apply("transpose", self, axes=axes)

    def sum(self, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> "Tensor":
        """The sum over one axis, several, or all."""
        return apply("sum_over", self, axis=axis, keepdims=keepdims)

    def mean(self, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> "Tensor":
        """The mean over one axis, several, or all."""
        total = self.sum(axis, keepdims=keepdims)
        return total * (total.size / self.size if self.size else float("nan"))

    # Backward

    def backward(self, gradient: Any = None) -> None:
        """Add d self / d leaf, times `gradient`, to `grad` of every leaf that this tensor was computed from.

        `gradient` (an array of the tensor's shape) may be left out for a single number. Runs once per graph: what the
        graph held is freed. Raises GraphError where there is no graph or it has been used, ShapeError on a wrong gradient.
        """
        if not self.requires_grad:
            raise GraphError(
                "backward() needs a tensor that was computed from one with requires_grad=True, outside of no_grad(); "
                "this one depends on none."
            )
        if gradient is None:
            if self.size != 1:
                raise ShapeError(
                    f"backward() without a gradient needs a single number, found shape {self.shape}; take a sum or mean, or pass one."
                )
            seed = self.backend.asarray(np.ones(self.shape, self.data.dtype))
        else:
            seed = self._seed(gradient)
        if self._node is None:
            self.grad = seed if self.grad is None else self.backend.add(self.grad, seed)
        else:
            run_backward(self.backend, self._node, seed)

    def _seed(self, gradient: Any) -> Any:
        """The array of a gradient passed to `backward`, which must be like this tensor. Raises BackendError, DtypeError or ShapeError."""
        if isinstance(gradient, (int, float)):
            gradient = np.asarray(gradient, self.dtype)
        if not isinstance(gradient, Tensor):  # copied, as it may become the grad of a leaf
            if isinstance(gradient, np.ndarray):
                given, gradient = gradient, empty(gradient.shape, gradient.dtype)
                gradient[...] = given
            gradient = Tensor(gradient, backend=self.backend)
        if gradient.backend is not self.backend:
            raise BackendError(f"The gradient passed to backward() is on {gradient.backend.name!r}, the tensor on {self.backend.name!r}.")
        if gradient.dtype != self.dtype:
            raise DtypeError(f"The gradient passed to backward() must be {self.dtype}, as the tensor is, found {gradient.dtype}.")
        if gradient.shape != self.shape:
            raise ShapeError(f"The gradient passed to backward() must have the tensor's shape {self.shape}, found {gradient.shape}.")
        return gradient.data


def apply(op: str, *operands: Any, **options: Any) -> Tensor:
    """Run the kernel of that name on tensors (or what becomes constants beside them) and record it for the backward pass.

    Numbers and lists become arrays of the tensors' dtype. What is neither that nor a tensor nor a NumPy array, such as the
    handle of a frozen weight, goes to the kernel as it is. All tensors must be on one backend, and all arrays of one dtype
    but those that take no gradient, such as row numbers. Where the kernel returns a tuple, the first item is the op's value
    and the rest is there for the derivative.
    """
    K: Backend | None = None
    dtype: np.dtype[Any] | None = None
    alike, args, needs = True, [], []  # alike: all tensors have one dtype, and nothing beside them must become an array
    for operand in operands:
        if isinstance(operand, Tensor):
            if K is not operand.backend:
                if K is not None:
                    raise BackendError(f"{op} got tensors of two backends, {K.name!r} and {operand.backend.name!r}; move one with to().")
                K = operand.backend
            array = operand.data
            found = array.dtype
            if found is not dtype:
                alike = alike and dtype is None
                if found.kind != "b" and (dtype is None or dtype.kind != "f"):
                    dtype = found
            args.append(array)
            needs.append(operand.requires_grad)
        else:
            alike = alike and (operand is None or not isinstance(operand, CONSTANTS))
            args.append(operand)
            needs.append(False)
    if K is None:
        raise DtypeError(f"{op} needs at least one Tensor, found {', '.join(type(operand).__name__ for operand in operands)}.")
    if not alike:
        args = [_array(op, i, operand, K, dtype) for i, operand in enumerate(operands)]
    try:
        out = getattr(K, op)(*args, **options)
    except (ValueError, IndexError) as error:
        if isinstance(error, LoratkError):
            raise
        shapes = " and ".join(str(tuple(arg.shape)) for arg in args if hasattr(arg, "shape"))
        given = "".join(f", {name}={value!r}" for name, value in options.items())
        raise ShapeError(f"{op} does not fit shape {shapes}{given}: {error}.") from error
    value = out[0] if isinstance(out, tuple) else out
    if modes.anomaly:
        check_finite(K, value, f"The result of op {op!r}")
    trains = True in needs and modes.recording
    return made(K, value, record(op, K, operands, needs, out, args, options) if trains else None)


def made(K: Backend, array: Any, node: Node | None = None) -> Tensor:
    """The tensor of a kernel's result, which needs none of the checks of the constructor, and of the node that made it."""
    result = Tensor.__new__(Tensor)
    result.data, result.backend, result.requires_grad, result.grad, result._node = array, K, node is not None, None, node
    return result


def _array(op: str, place: int, operand: Any, K: Backend, dtype: np.dtype[Any] | None) -> Any:
    """The operand as the kernel takes it, its dtype checked against that of the tensors (None: they are all bool)."""
    if isinstance(operand, Tensor):
        array = operand.data
    elif isinstance(operand, (bool, int, float, list, tuple)):
        whole = dtype is not None and dtype.kind != "f" and not isinstance(operand, int)
        array = K.asarray(np.asarray(operand, np.float32 if whole else dtype or np.float32))
    elif isinstance(operand, (np.ndarray, np.generic)):
        array = K.asarray(np.asarray(operand))
    else:
        return operand
    if dtype is not None and array.dtype != dtype:
        makers = VJPS.get(op, (None,))
        if array.dtype.kind == "f" or makers[min(place, len(makers) - 1)] is not None:
            raise DtypeError(f"{op} got both {dtype} and {array.dtype}; convert one, nothing is converted silently.")
    return array


def matrices(a: Any, b: Any) -> tuple[Any, Any]:
    """The two operands of a matrix product, if each has the two axes it needs. Raises ShapeError."""
    for name, x in (("first", a), ("second", b)):
        if len(shape := np.shape(x.data if isinstance(x, Tensor) else x)) < 2:
            raise ShapeError(f"matmul needs at least two axes, found shape {shape} for its {name} argument; reshape it.")
    return a, b
