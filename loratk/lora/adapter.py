"""One adapter on one matrix."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ConfigError, ShapeError, faults
from ..kernels import Backend, get_backend
from ..nn import Module, Parameter
from ..nn.parameter import Buffer
from ..plugins import Registry, default_registry
from .config import LoraConfig
from .inits import Init, Start
from .methods import Call, Method
from .settings import LayerSettings, scaling

FIRST = ("initial_A", "initial_B")
"""The first factors of an init that moves the base, as parameters of the adapter."""


def layer_generator(seed: int, name: str, purpose: str) -> np.random.Generator:
    """A generator of its own for a layer: equal for equal seed and name, whatever else the model holds."""
    digest = hashlib.sha256(f"{purpose}:{name}".encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], "<u4").tolist()])


def start_factors(init: Init, start: Start, name: str) -> dict[str, np.ndarray]:
    """What an init gives the two factors of a layer of that name. Raises ConfigError where it cannot, or gives another shape."""
    d, k = start.weight.shape
    where = _layer(name)
    if init.needs and start.evidence is None:
        raise ConfigError(_lacks(name, f"init {init.name!r}", init.needs))
    if found := list(init.layer_faults(d, k, start.rank, start.scaling, start.options)):
        raise ConfigError(faults(f"{where} cannot start so:", found))
    try:
        made = init.start(start)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}.") from error
    want = (d, start.rank), (start.rank, k)
    if (got := (made.lora_A.shape, made.lora_B.shape)) != want:
        raise ConfigError(f"{where}: the init {init.name!r} gave factors of shapes {got}, and the rank asks for {want}.")
    return {"lora_A": made.lora_A, "lora_B": made.lora_B}


def _layer(name: str) -> str:
    return f"Layer {name!r}" if name else "This layer"


def _lacks(name: str, what: str, needs: str) -> str:
    return (
        f"{_layer(name)}: the {what} starts from the {needs} of the layer in data, and there are none; give a whole model data=, by "
        "LoraModel.adapt or add_adapter."
    )


class LoraAdapter(Module):
    """The parameters of one method for one (d, k) weight, and the update they make.

    Parameters are attributes under the names the method gives them, such as `lora_A` (d, r) and `lora_B` (r, k), in the
    dtype of the weight. Standing alone, `adapter(x)` is the update of the plain product x W: for LoRA scaling (x A) B.
    With the config's seed the name decides what is drawn, so that layers of one shape differ. `within`, the name of the
    module whose column block it adapts, and `linear` serve the config's patterns. `evidence` is what its method or the config's init
    needs of data. With `filled` False that and the init are left out: the values will come from a file. `window` is that of a convolution.
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
        window: tuple[int, ...] = (),
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
        self.rank, self.alpha = self.settings.rank if self.method.ranked else 0, self.settings.alpha
        self.scaling = self.settings.scaling if self.method.scaled else 1.0
        self.dropout = self.settings.dropout
        self.rank_now: int | None = None
        self.rank_drawn: int | None = None
        self._seen: Callable[[Tensor], None] | None = None
        self.rng = layer_generator(config.seed, name, "dropout")

        def draw() -> np.random.Generator:
            return layer_generator(config.seed, name, "initial")

        given = weight.reshape(*window, -1, k) if self.method.windowed else weight
        if filled and (needs := self.method.needs(self.settings.options)):
            if evidence is None:
                raise ConfigError(_lacks(name, f"method {self.method.name!r}", needs))
            values = self.method.informed(given, self.rank, draw(), self.settings.options, evidence)
        else:
            values = self.method.initial(given, self.rank, draw(), self.settings.options)
        frozen = self.method.frozen(self.settings.options)
        if self.settings.init_name is not None:
            init = registry.init(self.settings.init_name)
            options = {**init.options, **self.settings.init_options}
            if filled:
                values |= start_factors(init, Start(weight, self.rank, self.scaling, draw(), options, evidence), name)
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
    def form(self) -> str:
        """The method whose fused path computes what a pass takes now; "" for none."""
        watched = self._seen is not None or self.rank_used is not None
        return "" if watched else self.method.form or self.method.name

    @property
    def rank_used(self) -> int | None:
        """How many of its first ranks a pass now takes, None for all: what a step of training drew, else `rank_now`, which users choose."""
        return self.rank_drawn if self.training and self.rank_drawn is not None else self.rank_now

    def scaling_at(self, rank: int | None) -> float:
        """The scaling with the first ranks alone, by the same alpha; None for all of them."""
        return self.scaling if rank is None else scaling(rank, self.alpha, self.settings.rslora)

    def chosen(self) -> dict[str, np.ndarray]:
        """The values of the method's own parameters, of the first `rank_now` ranks alone where these are chosen."""
        values = {name: value.numpy() for name, value in self.own().items()}
        return values if self.rank_now is None else self.method.take(values, np.arange(self.rank_now))

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
        matrix: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """What the adapter adds to `product` = `project(x)`, the layer's operation with its own matrix; `apply(x, m)` takes any.

        What its init takes off the weight is not in it: that is the layer's part.
        """
        mask, rank = self.mask(x), self.rank_used
        more = bias, self.drop_ranks, rank, self.rng if self.training else None, matrix
        if mask is None:
            call = Call(product, lambda m: apply(x, m), lambda: product, weight, *more)
        elif isinstance(x, Tensor) and x.dtype.kind == "f":
            dropped = ops.mul(x, mask)
            call = Call(product, lambda m: apply(dropped, m), lambda: project(dropped), weight, *more)
        else:
            kept = mask[..., None]
            call = Call(product, lambda m: apply(x, m) * kept, lambda: product * kept, weight, *more)
        update = self.method.update(call, self.own(), self.scaling_at(rank))
        if self._seen is not None:
            first = self.first()
            self._seen(update if first is None else update - apply(x, first[0]) @ (first[1] * self.scaling))
        return update

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
        if self.rank_now is not None:
            tensors = {name: K.asarray(np.ascontiguousarray(value)) for name, value in self.chosen().items()}
        delta = K.numpy(self.method.delta(K, K.asarray(weight), tensors, self.scaling_at(self.rank_now)))
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

    def renew(self, config: LoraConfig, settings: LayerSettings, method: Method, values: dict[str, np.ndarray]) -> None:
        """Take the values of all parameters under another rank or method. What keeps its name stays the same object.

        So an optimiser that was made before refuses what has another shape now.
        """
        same, self.config, self.settings, self.method = method is self.method, config, settings, method
        self.rank, self.alpha = settings.rank if method.ranked else 0, settings.alpha
        self.scaling = settings.scaling if method.scaled else 1.0
        self.rank_now = self.rank_drawn = None
        frozen = method.frozen(settings.options)
        backend = self.backend
        for name in self.tensors().keys() - values.keys():
            delattr(self, name)
        for name, array in values.items():
            held = vars(self).get(name)
            trains = held.requires_grad if same and held is not None else name not in frozen
            if held is None or held.requires_grad != trains:
                setattr(self, name, Parameter(array, requires_grad=trains, backend=backend))
            else:
                held.data, held.grad = held.backend.asarray(np.array(array, order="C")), None

    def faults(self, values: dict[str, np.ndarray]) -> list[str]:
        """What is wrong with values of its own parameters, whose shapes and dtypes fit."""
        return list(self.method.parameter_faults({name: values[name] for name in self.own()}, self.d, self.k, self.rank))

    def reduction(self) -> float:
        """The share of the weight's numbers that the adapter does not train: 1 - its own count / (d k)."""
        return 1 - self.count() / (self.d * self.k)

    def describe(self) -> str:
        """Shape and settings, for the repr."""
        return f"{self.d}, {self.k}, method={self.method.name!r}, rank={self.rank}, scaling={self.scaling:g}, parameters={self.count()}"
