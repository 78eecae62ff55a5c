"""What layers see in data before they have an adapter: their inputs, and the gradients of the loss for their weights.

The model computes as ever meanwhile; nothing about it is changed, and what is put around its layers for the time is taken off again, also
after an error.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad
from ..errors import AnomalyError, ConfigError, DtypeError, faults
from ..nn import Module, Parameter
from .inits import Gatherer
from .tree import ROOT, swap, walk

BLOCK = 1 << 22
"""How many numbers of made rows are held at a time."""


@dataclass
class Watch:
    """What is wanted of one module: gatherers of its inputs, and whether the gradient of its weight (d, k) is, which is found here then."""

    layer_type: Any
    gatherers: Sequence[Gatherer] = ()
    gradient: bool = False
    total: Any = None
    calls: int = 0
    batches: int = 0

    def mean(self) -> np.ndarray:
        """The mean gradient (d, k), float64, over the batches."""
        return np.asarray(self.total / self.batches)


class Watcher(Module):
    """A module that is watched in another's place: the same output, and for the gradient a product with a weight of zeros beside it."""

    def __init__(self, name: str, outer: Module, module: Module, watch: Watch) -> None:
        self.outer = outer
        self._name, self._module, self._watch = name, module, watch
        self._zero: Parameter | None = None
        if watch.gradient:
            weight = watch.layer_type.weight(module)
            zeros = np.zeros(watch.layer_type.shape(module), weight.dtype)
            self._zero = Parameter(zeros, backend=weight.backend)

    def forward(self, x: Any) -> Tensor:
        """What the module makes of x."""
        x, watch = self._module.input(x), self._watch
        for rows in made_rows(watch.layer_type, self._module, x) if watch.gatherers else ():
            if not np.isfinite(rows).all():
                raise AnomalyError(f"The inputs of {self._name!r} hold NaN or infinity in this data; look for where they come from.")
            for gatherer in watch.gatherers:
                gatherer.add(rows)
        watch.calls += 1
        y: Tensor = self.outer(x)
        return y if self._zero is None else y + watch.layer_type.apply(self._module, x, self._zero)

    def take(self) -> None:
        """Add the gradient of a batch to the total."""
        assert self._zero is not None
        gradient, self._zero.grad = self._zero.grad, None
        if gradient is not None:
            found = self._zero.backend.numpy(gradient).astype(np.float64)
            if not np.isfinite(found).all():
                raise AnomalyError(f"The gradient for the weight of {self._name!r} is not finite in this data; look there for huge values.")
            self._watch.total = found if self._watch.total is None else self._watch.total + found

    def __getattr__(self, name: str) -> Any:  # as a LoraLayer's: weight, bias, heads, ...
        if name.startswith("_") or "outer" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.outer, name)


def made_rows(layer_type: Any, module: Module, x: Tensor) -> Iterator[np.ndarray]:
    """A layer's inputs as the rows that meet its weight (`LayerType.rows`), float64, in blocks of bounded size."""
    array = x.numpy()
    if array.ndim < 2 and array.dtype.kind == "f":
        array = array[None]
    with no_grad():
        size = layer_type.rows(module, Tensor(array[:1], backend=x.backend)).size if len(array) else 0
        step = max(1, BLOCK // max(1, size))
        for start in range(0, len(array), step):
            yield layer_type.rows(module, Tensor(array[start : start + step], backend=x.backend)).astype(np.float64)


def observe(base: Module, watches: Mapping[str, Watch], data: Any, loss: Any) -> None:
    """Run a model once over batches x or (x, y), in evaluation mode, and fill the watches, which are given by module name.

    With a gradient wanted, `loss(output, y)` is run backward for each batch. Raises ConfigError for data without a batch and for modules
    that saw none of it, DtypeError, AnomalyError.
    """
    gradients, ran = any(watch.gradient for watch in watches.values()), 0
    with watched(base, watches) as (root, watchers):
        for batch in data:
            x, y = pair(batch, gradients)
            ran += 1
            if not gradients:
                with no_grad():
                    root(x)
                continue
            if (value := number(loss(root(x), y))).requires_grad:
                value.backward()
            for watcher in watchers:
                if watcher._watch.gradient:
                    watcher.take()
    if not ran:
        raise ConfigError("The data gave no batch: it is empty, or an iterator that is used up.")
    unseen = [f"{name!r} was not reached" for name, watch in watches.items() if not watch.calls]
    unseen += [
        f"the loss does not depend on {name!r}" for name, watch in watches.items() if watch.calls and watch.gradient and watch.total is None
    ]
    if unseen:
        raise ConfigError(faults("Data must reach every layer that is to start from it; exclude those it cannot reach:", unseen))
    for watch in watches.values():
        watch.batches = ran


@contextlib.contextmanager
def watched(base: Module, watches: Mapping[str, Watch]) -> Iterator[tuple[Module, list[Watcher]]]:
    """The model with watchers in it, in evaluation mode, its gradients and modes put back afterwards."""
    modes = [(module, module.training) for _, module in base.modules()]
    kept = [(parameter, parameter.grad) for parameter in base.parameters()]
    root, put = base, []
    try:
        base.eval()
        found = {id(inner): (name or ROOT, inner, layer) for name, inner, layer in reversed(list(walk(base)))}
        for name, inner, layer in found.values():
            if name in watches:
                watcher = Watcher(name, layer or inner, inner, watches[name])
                root = swap(root, layer or inner, watcher)
                put.append(watcher)
        yield root, put
    finally:
        for watcher in reversed(put):
            root = swap(root, watcher, watcher.outer)
        for module, mode in modes:
            module.training = mode
        for parameter, grad in kept:
            parameter.grad = grad


def checked(data: Any) -> Iterable[Any]:
    """Data that can be batches. Raises DtypeError."""
    if isinstance(data, (tuple, np.ndarray, Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise DtypeError(f"data must be an iterable of batches x or (x, y), found a {type(data).__name__}; put a single batch into a list.")
    return data


def pair(batch: Any, needs_y: bool = True) -> tuple[Any, Any]:
    """A batch as x and y, which is None where it is x alone. Raises DtypeError."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, (tuple, list)) or needs_y:
        found = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        raise DtypeError(f"A batch of data must be a pair (x, y){'' if needs_y else ' or x alone'}, found {found}.")
    return batch, None


def number(value: Any) -> Tensor:
    """A loss that is a tensor with a single finite number. Raises DtypeError, AnomalyError."""
    if not isinstance(value, Tensor) or value.size != 1:
        found = f"a tensor of shape {value.shape}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise DtypeError(f"The loss must be a Tensor with a single number, such as cross_entropy(outputs, targets) gives; found {found}.")
    if not np.isfinite(value.item()):
        raise AnomalyError(f"The loss is {value.item()} on a batch of this data; look there for NaN or huge values.")
    return value
