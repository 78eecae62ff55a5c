"""LoRA."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...autograd import Tensor
from ...kernels import Backend
from ..inits.base import Start
from ..inits.chance import Kaiming
from .base import Call, Method

if TYPE_CHECKING:
    from ..control import Controller
    from ..model import LoraModel


class Lora(Method):
    """Low-rank adaptation: W + scaling A B, A random, B zero. Hu et al. 2021, eq. 3.

    `freeze_A`: only B trains, and a layer's pass keeps x A (n, r) for its gradient, not x (n, d), also of a convolution. Zhang et al. 2023
    (LoRA-FA).
    `corrected`: the gradient of B is turned into the one whose step moves W most like full fine-tuning's; see `lora_fa.Corrected`.
    """

    name, proportional, takes_init, drops_ranks = "lora", True, True, True
    scales = ("lora_A", "lora_B")
    options: ClassVar[Mapping[str, Any]] = {"freeze_A": False, "corrected": False}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """An unknown one, one that is no flag, or a correction without a frozen A."""
        yield from super().option_faults(options)
        for name in ("freeze_A", "corrected"):
            if not isinstance(options.get(name, False), bool):
                yield f"{name} of the method {self.name!r} must be True or False, found {options[name]!r}"
        if options.get("corrected", False) is True and options.get("freeze_A", False) is not True:
            yield f"corrected of the method {self.name!r} holds for a frozen A alone; set freeze_A too"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """lora_A (d, r) random, lora_B (r, k) zero."""
        started = Kaiming().start(Start(weight, rank, 1.0, rng))
        return {"lora_A": started.lora_A, "lora_B": started.lora_B}

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """lora_A (d, r), lora_B (r, k)."""
        return {"lora_A": (d, rank), "lora_B": (rank, k)}

    def frozen(self, options: Mapping[str, Any]) -> frozenset[str]:
        """A with `freeze_A`."""
        return frozenset({"lora_A"} if options.get("freeze_A") else ())

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """scaling (x A) B."""
        return call.drop_ranks(call.apply(parameters["lora_A"])) @ (parameters["lora_B"] * scaling)

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """scaling A B."""
        return times(K, K.matmul(parameters["lora_A"], parameters["lora_B"]), scaling)

    def factors(self, parameters: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        """lora_A, lora_B."""
        return parameters["lora_A"], parameters["lora_B"]

    def take(self, parameters: Mapping[str, np.ndarray], ranks: np.ndarray) -> dict[str, np.ndarray]:
        """Those columns of A and rows of B; what else there is stays."""
        return {**parameters, "lora_A": parameters["lora_A"][:, ranks], "lora_B": parameters["lora_B"][ranks]}

    def controller(self, model: "LoraModel", adapter: str, steps: int | None) -> "Controller | None":
        """The correction of the gradient, where a layer asks for it."""
        from .lora_fa import corrected

        return corrected(model, adapter, self)


def times(K: Backend, x: Any, factor: float) -> Any:
    """x times a number, in x's dtype."""
    return K.mul(x, K.asarray(np.asarray(factor, x.dtype)))
