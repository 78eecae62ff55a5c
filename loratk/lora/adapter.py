"""One adapter on one matrix."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ShapeError
from ..kernels import Backend, get_backend
from ..nn import Module, Parameter
from ..nn.parameter import Buffer
from ..plugins import Registry, default_registry
from .config import LoraConfig
from .inits import Start
from .methods import Call

FIRST = ("initial_A", "initial_B")
"""The first factors of an init that moves the base, as parameters of the adapter."""


def layer_generator(seed: int, name: str, purpose: str) -> np.random.Generator:
    """A generator of its own for a layer: equal for equal seed and name, whatever else the model holds."""
    digest = hashlib.sha256(f"{purpose}:{name}".encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], "<u4").tolist()])


class LoraAdapter(Module):
    """The parameters of one method for one (d, k) weight, and the update they make.

    Parameters are attributes under the names the method gives them, such as `lora_A` (d, r) and `lora_B` (r, k), in the
    dtype of the weight. Standing alone, `adapter(x)` is the update of the plain product x W: for LoRA scaling (x A) B.
    With the config's seed the name decides what is drawn, so that layers of one shape differ. `within`, the name of the
    module whose column block it adapts, and `linear` serve the config's patterns. `evidence` is what the config's init needs of data.
    With `filled` False the init is left out: the values will come from a file.
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
        evidence: Any = None,
        filled: bool = True,
    ) -> None:
        weight = np.asarray(weight)
        if weight.ndim != 2 or not weight.size:
            raise ShapeError(f"An adapter needs a weight (d, k) without empty axes, found shape {weight.shape}.")
        d, k = weight.shape
        if check_rank:
            config.validate(d, k, name, within, linear=linear)
        self.config, self.d, self.k = config, d, k
        registry = registry or default_registry()
        self.settings = config.layer(name, within, linear=linear)
        self.method = registry.method(self.settings.method)
        self.rank, self.alpha = self.settings.rank, self.settings.alpha
        self.scaling = self.settings.scaling if self.method.scaled else 1.0
        self.dropout = self.settings.dropout
        self.rank_now: int | None = None
        self.rng = layer_generator(config.seed, name, "dropout")

        def draw() -> np.random.Generator:
            return layer_generator(config.seed, name, "initial")

        values = self.method.initial(weight, self.rank, draw(), self.settings.options)
        frozen = self.method.frozen(self.settings.options)
        if self.settings.init_name is not None:
            init = registry.init(self.settings.init_name)
            options = {**init.options, **self.settings.init_options}
            if filled:
                started = init.start(Start(weight, self.rank, self.scaling, draw(), options, evidence))
                values |= {"lora_A": started.lora_A, "lora_B": started.lora_B}
            frozen |= init.frozen(options)
            if init.moves_base:
                values |= {first: values[name] for first, name in zip(FIRST, ("lora_A", "lora_B"), strict=True)}
                frozen |= {*FIRST}
        for key, array in values.items():
            trains = key not in frozen
            kept = Parameter(array, requires_grad=trains, backend=backend) if array.dtype.kind == "f" else Buffer(array, backend=backend)
            setattr(self, key, kept)

    @classmethod
    def blank(cls, d: int, k: int, config: LoraConfig, *, dtype: Any = np.float32, name: str = "") -> "LoraAdapter":
        """An adapter for a (d, k) weight that is not at hand, taken as zeros."""
        return cls(np.zeros((d, k), dtype), config, name=name)

    def tensors(self) -> dict[str, Parameter]:
        """The parameters by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Parameter)}

    def own(self) -> dict[str, Parameter]:
        """The method's own parameters: all but the first factors."""
        return {name: value for name, value in self.tensors().items() if name not in FIRST}

    def first(self) -> tuple[Parameter, Parameter] | None:
        """The factors (d, r), (r, k) whose product, times the scaling, is taken off the weight while the adapter is active; or None."""
        found = tuple(vars(self)[name] for name in FIRST if name in vars(self))
        return found if len(found) == 2 else None

    @property
    def drops(self) -> bool:
        """Whether a pass now would draw anything."""
        return self.training and bool(self.dropout or self.settings.rank_dropout or self.settings.module_dropout)

    def skips(self) -> bool:
        """Whether this pass is one that module dropout leaves the adapter out of; draws where there is such dropout."""
        chance = self.settings.module_dropout
        return bool(chance) and self.training and bool(self.rng.random() < chance)

    def drop_ranks(self, z: Tensor) -> Tensor:
        """Rank dropout: of a (n, ..., r) each rank of each n is divided by the keep probability, or 0. As in kohya's sd-scripts."""
        chance = self.settings.rank_dropout
        if not (chance and self.training):
            return z
        shape = (z.shape[0], *(1,) * (z.ndim - 2), z.shape[-1]) if z.ndim > 1 else z.shape
        return z * ((self.rng.random(shape, np.float32) >= chance) * z.dtype.type(1 / (1 - chance)))

    def mask(self, x: Any) -> Any:
        """The dropout of one pass: None where there is none, else an array that the adapter's input is multiplied by.

        Floating inputs lose single entries. Integer inputs pick rows of the weight, as one-hot vectors would, so there
        a whole look-up is lost: the mask has the shape of x.
        """
        if not (self.dropout and self.training):
            return None
        dtype = self.float_dtype.type
        return (self.rng.random(x.shape, np.float32) >= self.dropout) * dtype(1 / (1 - self.dropout))

    @property
    def float_dtype(self) -> np.dtype[Any]:
        """The dtype of its numbers: that of the weight."""
        return next(value.dtype for value in self.tensors().values() if value.dtype.kind == "f")

    def update(
        self,
        x: Any,
        product: Tensor,
        apply: Callable[[Any, Any], Tensor],
        project: Callable[[Any], Tensor],
        weight: Callable[[], Any],
        bias: Tensor | None = None,
    ) -> Tensor:
        """What the adapter adds to `product` = `project(x)`, the layer's operation with its own matrix; `apply(x, m)` takes any.

        What its init takes off the weight is not in it: that is the layer's part.
        """
        mask = self.mask(x)
        more = bias, self.drop_ranks, self.rank_now, self.rng if self.training else None
        if mask is None:
            call = Call(product, lambda m: apply(x, m), lambda: product, weight, *more)
        elif isinstance(x, Tensor) and x.dtype.kind == "f":
            dropped = ops.mul(x, mask)
            call = Call(product, lambda m: apply(dropped, m), lambda: project(dropped), weight, *more)
        else:
            kept = mask[..., None]
            call = Call(product, lambda m: apply(x, m) * kept, lambda: product * kept, weight, *more)
        return self.method.update(call, self.own(), self.scaling)

    def forward(self, x: Any) -> Tensor:
        """The update of x W where W is zero: (..., d) -> (..., k)."""
        x = self.input(x)
        zero = Tensor(np.zeros((self.d, self.k), self.float_dtype), backend=x.backend)
        K = get_backend(x.backend)
        update = self.update(x, ops.linear(x, zero), ops.linear, lambda x: ops.linear(x, zero), lambda: K.freeze_weight(zero.data))
        if (first := self.first()) is not None:
            update = update - ops.linear(x, first[0]) @ (first[1] * self.scaling)
        return update

    def delta(self, weight: np.ndarray) -> np.ndarray:
        """What the adapter adds to the weight: (d, k) -> (d, k)."""
        K = self.backend
        tensors = {name: value.data for name, value in self.own().items()}
        delta = K.numpy(self.method.delta(K, K.asarray(weight), tensors, self.scaling))
        return delta if self.first() is None else delta - self.offset()

    def offset(self) -> np.ndarray:
        """What its init takes off the weight, scaling initial_A initial_B: (d, k)."""
        first = self.first()
        assert first is not None
        a, b = (parameter.numpy().astype(np.float64) for parameter in first)
        return (a @ (b * self.scaling)).astype(self.float_dtype)

    def bias_delta(self, bias: np.ndarray) -> np.ndarray | None:
        """What the method adds to the layer's bias (k,), or None."""
        return self.method.bias_delta(bias, {name: value.numpy() for name, value in self.own().items()}, self.scaling)

    def reduction(self) -> float:
        """The share of the weight's numbers that the adapter does not train: 1 - its own count / (d k)."""
        return 1 - self.count() / (self.d * self.k)

    def describe(self) -> str:
        """Shape and settings, for the repr."""
        return f"{self.d}, {self.k}, method={self.method.name!r}, rank={self.rank}, scaling={self.scaling:g}, parameters={self.count()}"
