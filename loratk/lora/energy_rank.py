"""The method `elastic` around the steps of training: looks at the energy of updates, cuts and growth.

Arrays keep their size throughout: columns of A and rows of B that are not used are zero, where gradients vanish too. A cut turns the
factors to the singular directions, A = U sqrt(S) and B = sqrt(S) V^T, whose product is the best one of that rank (Eckart & Young 1936);
what an optimiser remembers belongs to other directions then, and `moved` names these parameters, so that it starts them anew
(`Optimizer.restart`). A new rank is a random column of A beside a zero row of B, so that the update stays what it is.

A layer in which a new rank was cut again at the next look waits twice as many looks as before until it tries another.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..exchange.factors import core
from ..exchange.lowrank import truncated
from ..nn import Parameter
from .budget import in_steps
from .control import Controller, check_shapes, put
from .parts import trained_by

if TYPE_CHECKING:
    from .adapter import LoraAdapter
    from .methods import Method
    from .model import LoraModel


class EnergyRank(Controller):
    """Ranks of the layers of an adapter by their energy. Layers may have options of their own."""

    def __init__(self, model: "LoraModel", adapter: str, method: "Method", steps: int | None) -> None:
        self._find = lambda: trained_by(model, adapter, method)
        self.parts, self.total, self.step = self._find(), steps, 0
        self._shapes = self._shapes_now()
        self._options = {name: {**method.options, **part.settings.options} for name, part in self.parts.items()}
        self.used = {name: vars(part)["lora_A"].numpy().any(axis=0) for name, part in self.parts.items()}
        self.wait, self.pause = dict.fromkeys(self.parts, 0), dict.fromkeys(self.parts, 0)
        self.grown = dict.fromkeys(self.parts, False)
        self._moved: list[Parameter] = []

    def before_step(self) -> None:
        """Raise StateError if the adapter was resized."""
        check_shapes(self._shapes, self._shapes_now())

    def after_update(self, lr: float) -> None:
        """Look at the layers whose turn it is."""
        self.step += 1
        self._moved = []
        for name, part in self.parts.items():
            options = self._options[name]
            if self.step % options["every"] == 0:
                self._look(name, part, options)
            self._clear(name, part)

    def _look(self, name: str, part: "LoraAdapter", options: Mapping[str, Any]) -> None:
        used = self.used[name]
        a, b = (vars(part)[key].numpy().astype(np.float64) for key in ("lora_A", "lora_B"))
        a, b = a[:, used], b[used]
        inner = core(a, b)
        if not np.isfinite(inner).all() or not inner.any():
            return
        rank = len(b)
        needed = max(min(options["min_rank"], rank), directions(np.linalg.svd(inner, compute_uv=False), options["energy"]))
        if needed < rank:
            self.pause[name] = max(1, 2 * self.pause[name]) if self.grown[name] else self.pause[name]
            self.wait[name], self.grown[name] = self.pause[name], False
            self._put(name, part, *truncated(a, b, needed)[0])
        elif self.wait[name]:
            self.wait[name] -= 1
        elif rank < min(part.rank, part.d, part.k) and not self._settling(options):
            place, values = np.flatnonzero(~used)[0], vars(part)["lora_A"].numpy().copy()
            values[:, place] = part.rng.uniform(-1, 1, part.d) / part.d**0.5
            put(vars(part)["lora_A"], values)
            used[place] = self.grown[name] = True
        else:
            self.grown[name] = False

    def _settling(self, options: Mapping[str, Any]) -> bool:
        """Whether the run is in its last steps, where ranks grow no more."""
        return self.total is not None and self.step > self.total - in_steps(options["tfinal"], self.total)

    def _put(self, name: str, part: "LoraAdapter", a: np.ndarray, b: np.ndarray) -> None:
        """Give a layer new factors (d, m), (m, k), and zeros beside them."""
        for key, values, axis in (("lora_A", a, 1), ("lora_B", b, 0)):
            parameter = vars(part)[key]
            whole = np.zeros(parameter.shape, parameter.dtype)
            whole[(slice(None), slice(len(b))) if axis else slice(len(b))] = values
            put(parameter, whole)
            self._moved.append(parameter)
        self.used[name] = np.arange(part.rank) < len(b)

    def _clear(self, name: str, part: "LoraAdapter") -> None:
        """Keep what is not used at zero, also against the momentum of an optimiser that was not started anew."""
        off = ~self.used[name]
        for key, places in (("lora_A", (slice(None), off)), ("lora_B", off)):
            values = vars(part)[key].numpy()
            if values[places].any():
                values = values.copy()
                values[places] = 0
                put(vars(part)[key], values)

    def moved(self) -> Sequence[Parameter]:
        """The factors that were cut in the last step."""
        return self._moved

    def record(self) -> Mapping[str, float]:
        """`ranks`: how many all layers use together."""
        return {"ranks": int(sum(used.sum() for used in self.used.values()))}

    def state_dict(self) -> dict[str, Any]:
        """The step, and what each layer uses and waits for."""
        state: dict[str, Any] = {"step": self.step}
        for i, name in enumerate(self.parts):
            state |= {f"{i}.used": self.used[name].astype(np.uint8), f"{i}.wait": self.wait[name], f"{i}.pause": self.pause[name]}
            state[f"{i}.grown"] = self.grown[name]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.step = state["step"]
        for i, name in enumerate(self.parts):
            self.used[name] = state[f"{i}.used"].astype(bool)
            self.wait[name], self.pause[name], self.grown[name] = (state[f"{i}.{key}"] for key in ("wait", "pause", "grown"))

    def _shapes_now(self) -> dict[str, tuple[Any, ...]]:
        return {name: (part.d, part.rank, part.k) for name, part in self._find().items()}


def directions(values: np.ndarray, energy: float) -> int:
    """How many of the singular values, which fall, hold that share of the sum of their squares."""
    shares = np.cumsum(np.square(values / values[0]))
    return int(np.searchsorted(shares, energy * shares[-1] * (1 - 1e-12))) + 1
