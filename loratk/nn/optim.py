"""Optimisers: gradient descent with momentum, Adam and AdamW."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError, FormatError, ShapeError, StateError, faults
from ..kernels import Backend
from .flat import Flat, flats
from .param_groups import Group, make_groups, number
from .parameter import Parameter
from .state import state_faults

Schedule = Callable[[int], float]
Parameters = Iterable[Parameter] | Iterable[Mapping[str, Any]]


class _Slot:
    """A parameter, the options of its group, how many steps it has taken, and what the optimiser remembers of them."""

    def __init__(self, parameter: Parameter, options: Mapping[str, Any], names: Sequence[str]) -> None:
        self.parameter, self.options, self.steps = parameter, options, 0
        self.put({name: np.zeros(parameter.shape, parameter.dtype) for name in names})

    def put(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over arrays, which become the slot's own."""
        self.backend: Backend = self.parameter.backend
        self.arrays = {name: self.backend.asarray(array) for name, array in arrays.items()}

    def numpy(self) -> dict[str, np.ndarray]:
        """Copies of the arrays."""
        return {name: np.array(self.backend.numpy(array)) for name, array in self.arrays.items()}

    def ready(self, place: int) -> None:
        """Follow the parameter to its backend. Raises ShapeError if it or its gradient has changed its shape."""
        if self.backend is not self.parameter.backend:
            self.put(self.numpy())
        shape = self.parameter.data.shape
        for what, array in (("gradient", self.parameter.grad), *self.arrays.items()):
            if array.shape != shape:
                raise ShapeError(
                    f"Parameter {place} has shape {tuple(shape)}, but its {what} {tuple(array.shape)}; "
                    "after resizing a parameter, make a new optimiser."
                )


class Optimizer:
    """What optimisers share. A kind of optimiser defines `check`, `memory` and `update`.

    `parameters` are parameters, or groups: dicts with "params" and options that replace the optimiser's own for these.
    The learning rate of step t = 0, 1, ... is a group's lr times `schedule(t)`.
    """

    elementwise = False
    """Whether `update` treats each entry on its own: then small parameters are updated as one. Not inherited by a new `update`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "update" in vars(cls) and "elementwise" not in vars(cls):
            cls.elementwise = False

    def __init__(self, parameters: Parameters, schedule: Schedule | None, **defaults: Any) -> None:
        if schedule is not None and not callable(schedule):
            raise ConfigError(f"schedule must be a function from the step's number to a factor, found {schedule!r}.")
        self.groups: tuple[Group, ...] = make_groups(parameters, defaults, self.check, type(self).__name__)
        self.schedule, self.steps = schedule, 0
        self._slots = [
            _Slot(parameter, group.options, self.memory(group.options)) for group in self.groups for parameter in group.parameters
        ]
        self._flats = flats(self._slots) if self.elementwise else []

    # What a kind of optimiser defines

    def check(self, name: str, value: Any) -> Any:
        """The value of an option, in its final form. Raises ConfigError."""
        raise NotImplementedError(f"{type(self).__name__} defines no check()")

    def memory(self, options: Mapping[str, Any]) -> Sequence[str]:
        """The names of the arrays, of each parameter's shape and zero at first, that these options need."""
        raise NotImplementedError(f"{type(self).__name__} defines no memory()")

    def update(self, parameter: Parameter, arrays: Mapping[str, Any], options: Mapping[str, Any], *, lr: float, step: int) -> None:
        """Change a parameter, which has a gradient, and its arrays in place; `step` counts the parameter's own steps from 1."""
        raise NotImplementedError(f"{type(self).__name__} defines no update()")

    # What users call

    @property
    def lrs(self) -> tuple[float, ...]:
        """The learning rate of each group in the next step."""
        factor = self._factor()
        return tuple(group.options["lr"] * factor for group in self.groups)

    @property
    def lr(self) -> float:
        """The learning rate of the first group in the next step."""
        return self.lrs[0]

    def step(self) -> None:
        """Move every parameter that has a gradient; one whose gradient is None stays as it is, and so does its memory.

        Raises StateError if none has a gradient. If anything raises before the first update, nothing has changed.
        """
        factor = self._factor()
        together = self._gathered()
        done = {id(slot) for flat in together for slot in flat.slots}
        moving = [(place, slot) for place, slot in enumerate(self._slots) if id(slot) not in done and slot.parameter.grad is not None]
        if not moving and not together:
            raise StateError("step() found no gradient on any parameter; call backward() on a loss that depends on them first.")
        for place, slot in moving:
            slot.ready(place)
        for flat in together:
            step, options = flat.slots[0].steps + 1, flat.slots[0].options
            for slot in flat.slots:
                slot.steps = step
            self.update(flat.whole, flat.arrays, options, lr=options["lr"] * factor, step=step)
        for _, slot in moving:
            slot.steps += 1
            self.update(slot.parameter, slot.arrays, slot.options, lr=slot.options["lr"] * factor, step=slot.steps)
        self.steps += 1

    def _gathered(self) -> list[Flat]:
        """Those of the flats whose parameters take this step as one."""
        found = []
        for i, flat in enumerate(self._flats):
            if flat.gather():
                found.append(flat)
            elif (renewed := flat.renewed()) is not None:
                self._flats[i] = renewed
                if renewed.gather():
                    found.append(renewed)
        return found

    def restart(self, parameters: Iterable[Parameter]) -> None:
        """Forget what is remembered of parameters, and count their steps anew: for those that something else has moved far."""
        wanted = {id(parameter) for parameter in parameters}
        for slot in self._slots:
            if id(slot.parameter) in wanted:
                slot.steps = 0
                slot.put({name: np.zeros(slot.parameter.shape, slot.parameter.dtype) for name in slot.arrays})

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for slot in self._slots:
            slot.parameter.grad = None

    def _factor(self) -> float:
        if self.schedule is None:
            return 1.0
        return number(f"schedule({self.steps})", self.schedule(self.steps))

    # Its state

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all that steps change besides the parameters: `steps`, and for each parameter, by its place, `0.steps`, `0.m`, ...

        With the same parameters, options and state, training goes on bit for bit.
        """
        state = {"steps": np.array(self.steps, np.int64)}
        for place, slot in enumerate(self._slots):
            state[f"{place}.steps"] = np.array(slot.steps, np.int64)
            state |= {f"{place}.{name}": array for name, array in slot.numpy().items()}
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over a state of an optimiser of the same kind, over parameters of the same shapes in the same order.

        Raises FormatError, which lists every fault, and changes nothing then.
        """
        state = {name: np.asarray(array) for name, array in state.items()}
        found = state_faults(self.state_dict(), state)
        found += [f"wrong number: {n!r} must be at least 0, found {a}" for n, a in state.items() if n.endswith("steps") and np.any(a < 0)]
        if found:
            raise FormatError(faults(f"This state does not fit the {type(self).__name__} (nothing was loaded):", found))
        self.steps = int(state["steps"])
        for place, slot in enumerate(self._slots):
            slot.steps = int(state[f"{place}.steps"])
            slot.put({name: np.array(state[f"{place}.{name}"], order="C") for name in slot.arrays})

    def __repr__(self) -> str:
        return f"{type(self).__name__}(parameters={len(self._slots)}, groups={len(self.groups)}, lr={self.lr:g}, steps={self.steps})"


class SGD(Optimizer):
    """Gradient descent: v = momentum v + g; p -= lr v, or with `nesterov` p -= lr (g + momentum v). Sutskever et al. 2013, section 2.

    `weight_decay` p is added to g.
    """

    elementwise = True

    def __init__(
        self,
        parameters: Parameters,
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(parameters, schedule, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        for i, group in enumerate(self.groups):
            if group.options["nesterov"] and not group.options["momentum"]:
                raise ConfigError(f"nesterov needs a momentum above 0, and group {i} of SGD has none.")

    def check(self, name: str, value: Any) -> Any:
        """The value of an option, in its final form. Raises ConfigError."""
        if name == "nesterov":
            return flag(name, value)
        return number(name, value, high=1.0) if name == "momentum" else number(name, value)

    def memory(self, options: Mapping[str, Any]) -> Sequence[str]:
        """The velocity, if there is momentum."""
        return ("velocity",) if options["momentum"] else ()

    def update(self, parameter: Parameter, arrays: Mapping[str, Any], options: Mapping[str, Any], *, lr: float, step: int) -> None:
        """One step in place."""
        how = {name: options[name] for name in ("momentum", "nesterov", "weight_decay")}
        parameter.backend.sgd_step(parameter.data, parameter.grad, arrays.get("velocity"), lr=lr, **how)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1): steps of the mean gradient over its root mean square. `weight_decay` p is added to g."""

    elementwise = True
    decoupled = False

    def __init__(
        self,
        parameters: Parameters,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(parameters, schedule, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check(self, name: str, value: Any) -> Any:
        """The value of an option, in its final form. Raises ConfigError."""
        if name == "betas":
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise ConfigError(f"betas must be two numbers, found {value!r}.")
            return tuple(number(f"betas[{i}]", beta, high=1.0) for i, beta in enumerate(value))
        # an eps that float32 rounds to 0 makes 0 / 0 of a gradient that was always 0
        return number(name, value, low=1e-38) if name == "eps" else number(name, value)

    def memory(self, options: Mapping[str, Any]) -> Sequence[str]:
        """The two moments."""
        return "m", "v"

    def update(self, parameter: Parameter, arrays: Mapping[str, Any], options: Mapping[str, Any], *, lr: float, step: int) -> None:
        """One step in place."""
        beta1, beta2 = options["betas"]
        how = {"eps": options["eps"], "weight_decay": options["weight_decay"], "decoupled": self.decoupled, "step": step}
        parameter.backend.adam_step(parameter.data, parameter.grad, arrays["m"], arrays["v"], lr=lr, beta1=beta1, beta2=beta2, **how)


class AdamW(Adam):
    """Adam whose weight decay shrinks p by lr * weight_decay each step instead. Loshchilov & Hutter 2019, algorithm 2.

    LoRA+ (Hayou et al. 2024) is two groups, `[{"params": A}, {"params": B, "lr": 16 * lr}]`, with A and B the parameters
    whose names end in lora_A and lora_B.
    """

    decoupled = True

    def __init__(
        self,
        parameters: Parameters,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, schedule=schedule)


def flag(name: str, value: Any) -> bool:
    """True or False. Raises ConfigError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} must be True or False, found {value!r}.")
    return bool(value)
