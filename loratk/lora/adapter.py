"""One adapter on one matrix."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ShapeError
from ..kernels import Backend, get_backend
from ..nn import Module, Parameter
from ..plugins import Registry, default_registry
from .config import LoraConfig
from .methods import Call


def layer_generator(seed: int, name: str, purpose: str) -> np.random.Generator:
    """A generator of its own for a layer: equal for equal seed and name, whatever else the model holds."""
    digest = hashlib.sha256(f"{purpose}:{name}".encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], "<u4").tolist()])


class LoraAdapter(Module):
    """The parameters of one method for one (d, k) weight, and the update they make.

    Parameters are attributes under the names the method gives them, such as `lora_A` (d, r) and `lora_B` (r, k), in the
    dtype of the weight. Standing alone, `adapter(x)` is the update of the plain product x W: for LoRA scaling (x A) B.
    With the config's seed the name decides what is drawn, so that layers of one shape differ. `within`, the name of the
    module whose column block it adapts, and `linear` serve the config's patterns.
    """

    def __init__(
        self,
        weight: Any,
        config: LoraConfig,
        *,
        name: str = "",
        within: str = "",
        linear: bool = False,
        registry: Registry | None = None,
        backend: str | Backend = "cpu",
        check_rank: bool = True,
    ) -> None:
        weight = np.asarray(weight)
        if weight.ndim != 2 or not weight.size:
            raise ShapeError(f"An adapter needs a weight (d, k) without empty axes, found shape {weight.shape}.")
        d, k = weight.shape
        if check_rank:
            config.validate(d, k, name, within, linear=linear)
        self.config, self.d, self.k = config, d, k
        self.method = (registry or default_registry()).method(config.method)
        self.rank, self.alpha = config.rank_of(name, within, linear=linear), config.alpha_of(name, within, linear=linear)
        self.scaling, self.dropout = config.scaling_of(self.rank, self.alpha), config.dropout
        self.rng = layer_generator(config.seed, name, "dropout")
        initial = self.method.initial(weight, self.rank, layer_generator(config.seed, name, "initial"), config.options)
        for key, values in initial.items():
            setattr(self, key, Parameter(values, backend=backend))

    @classmethod
    def blank(cls, d: int, k: int, config: LoraConfig, *, dtype: Any = np.float32, name: str = "") -> "LoraAdapter":
        """An adapter for a (d, k) weight that is not at hand, taken as zeros."""
        return cls(np.zeros((d, k), dtype), config, name=name)

    def tensors(self) -> dict[str, Parameter]:
        """The parameters by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Parameter)}

    @property
    def drops(self) -> bool:
        """Whether a pass now would draw a mask."""
        return bool(self.dropout) and self.training

    def mask(self, x: Any) -> Any:
        """The dropout of one pass: None where there is none, else an array that the adapter's input is multiplied by.

        Floating inputs lose single entries. Integer inputs pick rows of the weight, as one-hot vectors would, so there
        a whole look-up is lost: the mask has the shape of x.
        """
        if not self.drops:
            return None
        dtype = next(iter(self.tensors().values())).dtype.type
        return (self.rng.random(x.shape, np.float32) >= self.dropout) * dtype(1 / (1 - self.dropout))

    def update(
        self, x: Any, product: Tensor, apply: Callable[[Any, Any], Tensor], project: Callable[[Any], Tensor], weight: Callable[[], Any]
    ) -> Tensor:
        """What the adapter adds to `product` = `project(x)`, the layer's operation with its own matrix; `apply(x, m)` takes any."""
        mask = self.mask(x)
        if mask is None:
            call = Call(product, lambda m: apply(x, m), lambda: product, weight)
        elif isinstance(x, Tensor) and x.dtype.kind == "f":
            dropped = ops.mul(x, mask)
            call = Call(product, lambda m: apply(dropped, m), lambda: project(dropped), weight)
        else:
            kept = mask[..., None]
            call = Call(product, lambda m: apply(x, m) * kept, lambda: product * kept, weight)
        return self.method.update(call, self.tensors(), self.scaling)

    def forward(self, x: Any) -> Tensor:
        """The update of x W where W is zero: (..., d) -> (..., k)."""
        x = self.input(x)
        zero = Tensor(np.zeros((self.d, self.k), next(iter(self.tensors().values())).dtype), backend=x.backend)
        K = get_backend(x.backend)
        return self.update(x, ops.linear(x, zero), ops.linear, lambda x: ops.linear(x, zero), lambda: K.freeze_weight(zero.data))

    def delta(self, weight: np.ndarray) -> np.ndarray:
        """What the adapter adds to the weight: (d, k) -> (d, k)."""
        K = self.backend
        tensors = {name: value.data for name, value in self.tensors().items()}
        return K.numpy(self.method.delta(K, K.asarray(weight), tensors, self.scaling))

    def reduction(self) -> float:
        """The share of the weight's numbers that the adapter does not train: 1 - its own count / (d k)."""
        return 1 - self.count() / (self.d * self.k)

    def describe(self) -> str:
        """Shape and settings, for the repr."""
        return f"{self.d}, {self.k}, method={self.method.name!r}, rank={self.rank}, scaling={self.scaling:g}, parameters={self.count()}"
