"""Layer types: how a base module uses a matrix. A plugin adds one for a new kind of module, and every method works on it."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ShapeError
from ..nn import Embedding, Linear, Module, Parameter
from .linear_paths import PATHS

M = TypeVar("M", bound=Module)


class LayerType(Generic[M]):
    """How modules of one class use a matrix W (d, k): `forward(x)` is `apply(x, W)` plus, if there is one, the bias.

    A subclass names the class (`module`) and defines `apply`; it overrides the rest where the defaults do not fit.
    """

    name: ClassVar[str]
    module: ClassVar[type[Module]]
    linear: ClassVar[bool] = False
    """Whether the target pattern `all-linear` means it."""
    fused: ClassVar[Mapping[str, Callable[..., Tensor]]] = {}
    """By method name a faster way of product, update and bias: `(module, w, x, adapter, scaling, mask, bias) -> Tensor`, w the weight as
    `apply` takes it; see `LinearType`.

    For a method that is not `proportional` it is taken at weight 1 and without dropout only, so `mask` is None there.
    """

    plain: ClassVar[bool] = False
    """Whether `apply(module, x, m)` is x m for inputs (..., d): then rows of a batch that have adapters of their own share one product."""
    chains: ClassVar[bool] = False
    """Whether the product is x W and nothing else, so that neighbouring layers may go through one op (`Module.link`)."""

    def apply(self, module: M, x: Any, m: Any) -> Tensor:
        """The module's operation with a matrix in its weight's place, without bias.

        `m` (d, c) is a tensor or a frozen weight's handle, of any number of columns c. Linear in m; the result's last
        axis has size c.
        """
        raise NotImplementedError

    def rows(self, module: M, x: Tensor) -> np.ndarray:
        """The inputs as the rows that meet the weight, so that `apply(x, W)` is rows @ W: (n, d). What data-driven inits look at.

        As it stands what the operation makes of the identity: right for all, and worth overriding where there is a shorter way.
        """
        d, _ = self.shape(module)
        one = Tensor(np.eye(d, dtype=self.weight(module).dtype), backend=x.backend)
        return self.apply(module, x, one).numpy().reshape(-1, d)

    def weight(self, module: M) -> Parameter:
        """The parameter that acts as the matrix: its last axis is k, all others together are d."""
        return module.weight  # type: ignore[attr-defined]

    def bias(self, module: M) -> Parameter | None:
        """The parameter (k,) that is added along the last axis, or None."""
        return getattr(module, "bias", None)

    def shape(self, module: M) -> tuple[int, int]:
        """(d, k)."""
        weight = self.weight(module)
        return weight.size // weight.shape[-1], weight.shape[-1]

    def window(self, module: M) -> tuple[int, ...]:
        """The window of a convolution, whose d counts as (*window, channels); () for any other layer."""
        return ()

    def blocks(self, module: M) -> Mapping[str, tuple[int, int]]:
        """The column blocks that can have adapters of their own, name to (start, stop), in order; one unnamed block otherwise."""
        return {"": (0, self.shape(module)[1])}

    def read(self, module: M) -> np.ndarray:
        """The weight as a matrix (d, k), a NumPy array."""
        return self.weight(module).numpy().reshape(self.shape(module))

    def write(self, module: M, matrix: np.ndarray) -> None:
        """Replace the weight by a matrix (d, k)."""
        weight = self.weight(module)
        weight.assign(matrix.reshape(weight.shape))

    def own_matrix(self, module: M) -> Any:
        """The weight in the form `apply` takes: the handle if it is frozen, else a tensor (d, k)."""
        weight = self.weight(module)
        return weight.handle() if weight.frozen else weight if weight.ndim == 2 else weight.reshape(*self.shape(module))

    def hold(self, module: M, matrix: np.ndarray) -> Any:
        """Another frozen matrix (d, k) in the form `apply` takes."""
        K = self.weight(module).backend
        return K.freeze_weight(K.asarray(matrix))


def _lora_linear(module: Linear, w: Any, x: Tensor, adapter: Any, scaling: float, mask: Any, bias: Any) -> Tensor:
    a, b = adapter.lora_A, adapter.lora_B
    if x.ndim == 0:
        raise ShapeError(f"A Linear({w.shape[0]}, {w.shape[1]}) needs an input (..., {w.shape[0]}), found one without axes.")
    if x.ndim == 2:
        return ops.lora_linear(x, w, a, b, mask, bias, scaling=scaling)
    rows = x.reshape(x.size // x.shape[-1] if x.shape[-1] else 0, x.shape[-1])
    flat = None if mask is None else mask.reshape(rows.shape)
    y = ops.lora_linear(rows, w, a, b, flat, bias, scaling=scaling)
    return y.reshape(*x.shape[:-1], y.shape[1])


def _dora_linear(module: Linear, w: Any, x: Tensor, adapter: Any, scaling: float, mask: Any, bias: Any) -> Tensor:
    a, b, m = adapter.lora_A, adapter.lora_B, adapter.magnitude
    if x.ndim == 2:
        return ops.dora_linear(x, w, a, b, m, bias, scaling=scaling)
    y = ops.dora_linear(x.reshape(x.size // x.shape[-1] if x.shape[-1] else 0, x.shape[-1]), w, a, b, m, bias, scaling=scaling)
    return y.reshape(*x.shape[:-1], y.shape[1])


class LinearType(LayerType[Linear]):
    """`Linear`: x W."""

    name, module, linear, plain, chains = "linear", Linear, True, True, True
    fused: ClassVar[Mapping[str, Callable[..., Tensor]]] = {"lora": _lora_linear, "dora": _dora_linear, **PATHS}

    def apply(self, module: Linear, x: Any, m: Any) -> Tensor:
        """(..., d), (d, c) -> (..., c)."""
        return ops.linear(x, m)

    def rows(self, module: Linear, x: Tensor) -> np.ndarray:
        """The inputs themselves: (..., d) -> (n, d)."""
        return x.numpy().reshape(-1, x.shape[-1])


class EmbeddingType(LayerType[Embedding]):
    """`Embedding`: rows of W by number, which is what a one-hot row vector times W is."""

    name, module = "embedding", Embedding

    def apply(self, module: Embedding, x: Any, m: Any) -> Tensor:
        """Integers (...,), (v, c) -> (..., c)."""
        return ops.gather_rows(m, x)

    def rows(self, module: Embedding, x: Tensor) -> np.ndarray:
        """A one-hot row for each number: (...,) -> (n, v)."""
        numbers = x.numpy().ravel()
        rows = np.zeros((numbers.size, self.shape(module)[0]), self.weight(module).dtype)
        rows[np.arange(numbers.size), numbers] = 1
        return rows

    def bias(self, module: Embedding) -> None:
        """None: an embedding adds no bias."""

    def own_matrix(self, module: Embedding) -> Any:
        """The weight itself: picking rows needs no preparation."""
        return module.weight

    def hold(self, module: Embedding, matrix: np.ndarray) -> Any:
        """A tensor of it."""
        return Tensor(matrix, backend=module.backend)
