"""The module: a tree of layers with dotted names."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from ..autograd import Tensor
from ..errors import ConfigError, DtypeError, FormatError, UnknownNameError, choices, faults
from ..kernels import Backend, get_backend
from .parameter import Buffer, Parameter
from .state import state_faults
from .version import version

Self = TypeVar("Self", bound="Module")


def generator(rng: np.random.Generator | int) -> np.random.Generator:
    """A random generator from a generator (itself) or a seed."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool) or not isinstance(rng, (int, np.integer)) or rng < 0:
        raise ConfigError(f"rng must be a numpy.random.Generator or a seed (an integer of at least 0), found {rng!r}.")
    return np.random.default_rng(rng)


class Module:
    """A layer or a tree of layers. Subclasses set parameters and sub-modules as attributes and define `forward`.

    An attribute that is a Module is a child, one that is a Parameter a parameter, under the attribute's name; names join
    with dots: `encoder.0.weight`. Attributes with a leading underscore are private and are not looked at.
    """

    training = True
    adds_bias = False
    """Whether the module's own parameter `bias`, where it is not None, is added along the last axis of its output."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (Module, Parameter)):
            if name in vars(Module) or "." in name:
                why = "holds a dot, which separates names" if "." in name else "is taken: every module has something of that name"
                raise ConfigError(f"{type(self).__name__}.{name} {why}; choose another for this {type(value).__name__}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, (Module, Parameter)) for item in value) and name[0] != "_":
            raise DtypeError(
                f"{type(self).__name__}.{name} is a {type(value).__name__} of modules or parameters, whose names and gradients "
                "would not be found; put modules into a Sequential and give each parameter an attribute of its own."
            )
        super().__setattr__(name, value)
        version.change()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        version.change()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; each kind of module defines it."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The same as `forward`."""
        return self.forward(*args, **kwargs)

    def link(self) -> Any:
        """What the module is in a chain that goes through one op: a `chain.Link`, `chain.RELU`, or None if it has to be called.

        It must compute just that. Asked again whenever an attribute of any module or the array of a parameter was set since.
        """
        return None

    # The tree

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """Name and module of each direct child, in the order they were set."""
        for name, value in vars(self).items():
            if isinstance(value, Module) and not name.startswith("_"):
                yield name, value

    def modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Dotted name and module of the whole tree, this one first with the name ''; parents before children."""
        yield prefix, self
        for name, child in self.children():
            yield from child.modules(f"{prefix}.{name}" if prefix else name)

    def get(self, name: str) -> "Module":
        """The module of a dotted name below this one ('' is this one). Raises UnknownNameError."""
        module = self
        for i, part in enumerate(name.split(".") if name else ()):
            known = dict(module.children())
            if part not in known:
                at = ".".join(name.split(".")[:i]) or "the root"
                raise UnknownNameError(f"There is no module {name!r}: {at} has no child {part!r}. Its children: {choices(known)}.")
            module = known[part]
        return module

    def replace(self, name: str, module: "Module") -> None:
        """Put another module at a dotted name below this one. Raises UnknownNameError, or ConfigError for this one itself."""
        if not isinstance(module, Module):
            raise DtypeError(f"Only a Module can stand at {name!r}, found {type(module).__name__}.")
        if not name:
            raise ConfigError("A module cannot replace itself: '' names the root; use the other module in its stead.")
        self.get(name)
        parent, _, last = name.rpartition(".")
        setattr(self.get(parent), last, module)

    def _arrays(self) -> Iterator[tuple[str, Parameter]]:
        for prefix, module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and not name.startswith("_"):
                    yield f"{prefix}.{name}" if prefix else name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Dotted name and parameter, each parameter once, in the order of `modules`."""
        seen: set[int] = set()
        for name, value in self._arrays():
            if not isinstance(value, Buffer) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Dotted name and buffer, each buffer once, in the order of `modules`."""
        seen: set[int] = set()
        for name, value in self._arrays():
            if isinstance(value, Buffer) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, frozen ones too, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def trainable(self) -> list[Parameter]:
        """The parameters that are not frozen: what an optimiser takes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def controllers(self, steps: int | None = None) -> list[Any]:
        """What parts of the tree do around the steps of training beside computing: objects with the functions of `loratk.lora.Controller`.

        `steps`: how many there will be, None where nobody knows.
        """
        return [controller for _, child in self.children() for controller in child.controllers(steps)]

    def count(self, *, trainable: bool = False) -> int:
        """How many numbers the parameters hold; with `trainable`, those that are not frozen."""
        return sum(parameter.size for parameter in self.parameters() if parameter.requires_grad or not trainable)

    def generators(self) -> dict[str, np.random.Generator]:
        """The random generators of the tree by dotted name, of dropout for example: part of what a checkpoint must keep."""
        found = {}
        for prefix, module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, np.random.Generator):
                    found[f"{prefix}.{name}" if prefix else name] = value
        return found

    # Its state

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by dotted name, as NumPy arrays."""
        return {name: np.array(value.numpy()) for name, value in self._arrays()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over all values of a state dict. Raises FormatError, which lists every fault, and changes nothing then.

        Strict: each name must be there, none else, each array of the right shape and dtype.
        """
        mine, arrays = dict(self._arrays()), {name: np.asarray(array) for name, array in state.items()}
        if found := state_faults(mine, arrays):
            raise FormatError(faults(f"This state does not fit the {type(self).__name__} (nothing was loaded):", found))
        for name, value in mine.items():
            value.assign(arrays[name])

    # Its modes

    def freeze(self: Self) -> Self:
        """Freeze every parameter of the tree."""
        for parameter in self.parameters():
            parameter.freeze()
        return self

    def unfreeze(self: Self) -> Self:
        """Let every parameter of the tree train."""
        for parameter in self.parameters():
            parameter.unfreeze()
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Switch the tree to training (dropout works) or, with False, to evaluation."""
        for _, module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Switch the tree to evaluation: dropout is off."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    @property
    def backend(self) -> Backend:
        """Where the parameters are; 'cpu' for a module without any."""
        parameter = _first(self)
        return get_backend("cpu") if parameter is None else parameter.backend

    def to(self: Self, backend: str | Backend) -> Self:
        """Move all parameters and buffers to another backend, in place."""
        there = get_backend(backend)
        for _, parameter in self._arrays():
            parameter.move(there)
        return self

    def input(self, x: Any) -> Tensor:
        """x as a tensor on this module's backend, if it is not a tensor yet."""
        return x if isinstance(x, Tensor) else Tensor(x, backend=self.backend)

    # How it looks

    def describe(self) -> str:
        """What stands between the parentheses of the repr of a module without children."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()]
        if not lines:
            return f"{type(self).__name__}({self.describe()})"
        return f"{type(self).__name__}({self.describe()}\n  " + "\n  ".join(lines) + "\n)"


def _first(module: Module) -> Parameter | None:
    """The first of all parameters of a tree, without the names that `named_parameters` makes: asked for at every call of a model."""
    for name, value in vars(module).items():
        if isinstance(value, Parameter) and name[0] != "_":
            return value
    for _, child in module.children():
        if (found := _first(child)) is not None:
            return found
    return None


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """float32 or float64 as a NumPy dtype. Raises DtypeError for any other."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise DtypeError(f"dtype must be float32 or float64, found {dtype!r}.")
    return found
