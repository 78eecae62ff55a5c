"""IA3."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from ...autograd import Tensor
from ...errors import choices
from ...kernels import Backend
from .base import Call, Method

SIDES = ("outputs", "inputs", "products")


class Ia3(Method):
    """Inner activations inhibited and amplified: l * y of the outputs, or l * x of the inputs. Liu et al. 2022, sec. 3.3.

    `side` says of which: "outputs", with the layer's bias, as PEFT does and the paper for keys and values; "inputs", as the paper for
    the second layer of a feed-forward block (choose these by `layer_pattern`): of a convolution its channels, of an embedding its rows;
    "products", the outputs before the bias is added, as LyCORIS does. The factors, `ia3_outputs` (k,), `ia3_inputs` (c,) or
    `ia3_products` (k,), start at 1. Rank and alpha mean nothing to it.
    """

    name, scaled, ranked, windowed = "ia3", False, False, True
    options: ClassVar[Mapping[str, Any]] = {"side": "outputs"}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """Unknown names, and another side."""
        yield from super().option_faults(options)
        if (side := options.get("side", "outputs")) not in SIDES:
            yield f"side must be one of {choices(SIDES)}, found {side!r}"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """ia3_outputs (k,), ia3_inputs (c,) or ia3_products (k,), of ones."""
        side = options.get("side", "outputs")
        return {f"ia3_{side}": np.ones(weight.shape[-2 if side == "inputs" else -1], weight.dtype)}

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """ia3_outputs (k,)."""
        return {"ia3_outputs": (k,)}

    def parameter_faults(self, parameters: Mapping[str, np.ndarray], d: int, k: int, rank: int) -> Iterator[str]:
        """Anything but one array of factors for the outputs, or for inputs that d is a multiple of."""
        shapes = {name: array.shape for name, array in parameters.items()}
        ((name, shape),) = shapes.items() if len(shapes) == 1 else (("", ()),)
        fits = len(shape) == 1 and (d % max(shape[0], 1) == 0 if name == "ia3_inputs" else shape == (k,))
        if name not in {f"ia3_{side}" for side in SIDES} or not fits:
            yield f"for a {d, k} weight its tensor must be ia3_outputs or ia3_products ({k},), or ia3_inputs ({d},), found {shapes}"

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """(l - 1) * (x W + bias), (l - 1) * x W, or x (W * (l - 1)) with a factor for each row."""
        if "ia3_outputs" in parameters:
            product = call.dropped_product()
            return (product if call.bias is None else product + call.bias) * (parameters["ia3_outputs"] - 1.0)
        if "ia3_products" in parameters:
            return call.dropped_product() * (parameters["ia3_products"] - 1.0)
        factors = parameters["ia3_inputs"]
        weight = call.matrix() if call.matrix is not None else Tensor(call.weight().numpy(), backend=factors.backend)
        (d, k), c = weight.shape, factors.size
        return call.apply((weight.reshape(d // c, c, k) * (factors - 1.0).reshape(1, c, 1)).reshape(d, k))

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """W * (l - 1)."""
        ((name, factors),) = parameters.items()
        change = K.sub(factors, K.asarray(np.ones((), factors.dtype)))
        if name != "ia3_inputs":
            return K.mul(weight, change)
        (d, k), c = weight.shape, factors.shape[0]
        return K.reshape(K.mul(K.reshape(weight, shape=(d // c, c, k)), K.reshape(change, shape=(1, c, 1))), shape=(d, k))

    def bias_delta(self, bias: np.ndarray, parameters: Mapping[str, np.ndarray], scaling: float) -> np.ndarray | None:
        """bias * (l - 1) of the outputs."""
        return bias * (parameters["ia3_outputs"] - 1) if "ia3_outputs" in parameters else None
