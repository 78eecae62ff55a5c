"""What a method is, and what it is given in a forward pass."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...autograd import Tensor
from ...errors import choices
from ...kernels import Backend

if TYPE_CHECKING:
    from ..control import Controller
    from ..model import LoraModel


def _same(z: Tensor) -> Tensor:
    return z


@dataclass(frozen=True)
class Call:
    """One forward pass through one adapter, as its method sees it: the layer's own operation, with matrices to choose.

    product: what the frozen weight makes of the input, without bias, (..., k).
    apply: the layer's operation with a matrix (d, c) in the weight's place, on the input after the adapter's dropout.
    dropped_product: `product` on the input after dropout (the same tensor where there is none), computed when called.
    weight: a handle of the weight (d, k) for the kernels; its gradient is not taken.
    bias: the layer's own bias (k,), which is added to the product afterwards, or None.
    matrix: the weight (d, k) as a tensor, whose gradient is taken where the base trains too; None where nobody gives it.
    drop_ranks: rank dropout, to be applied to the (..., r) between the factors by a method that `drops_ranks`.
    rank: how many of the ranks act, where it is fewer than all, else None.
    rng: the adapter's own generator in a pass of training, else None.
    """

    product: Tensor
    apply: Callable[[Any], Tensor]
    dropped_product: Callable[[], Tensor]
    weight: Callable[[], Any]
    bias: Tensor | None = None
    drop_ranks: Callable[[Tensor], Tensor] = _same
    rank: int | None = None
    rng: np.random.Generator | None = None
    matrix: Callable[[], Tensor] | None = None


class Method:
    """A way of updating a matrix. A subclass gives its `name`, the functions below, and its options with defaults.

    Parameters are named arrays; `scaling` is alpha / rank or what the config makes of it. Orientation: A (d, r), B (r, k). Those of
    integers, and those that `frozen` names, do not train but belong to the adapter and its file.
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    """The method's own options and their defaults."""
    proportional: ClassVar[bool] = False
    """Whether the update is proportional to `scaling` and, given a mask, that of the masked input: then a layer type's fused path
    serves adapters of any weight, and dropout."""
    takes_init: ClassVar[bool] = False
    """Whether it has the factors lora_A and lora_B, which a registered init may give their first values."""
    drops_ranks: ClassVar[bool] = False
    """Whether `update` applies `Call.drop_ranks`."""
    form: ClassVar[str | None] = None
    """The method whose parameters and update it has, where only training differs: files say that one, and its fused paths serve it."""
    nested: ClassVar[bool] = False
    """Whether its first ranks alone are an adapter: then `update` follows `Call.rank`, and `LoraModel.use_rank` may choose one."""
    scales: ClassVar[tuple[str, ...]] = ()
    """Parameters in each of which, if it is there, the update is linear: all n times c^(1/n) make it c times as large, for `max_norm`."""
    scaled: ClassVar[bool] = True
    """Whether `scaling` means anything to it; where not, it is 1 whatever rank and alpha are."""
    ranked: ClassVar[bool] = True
    """Whether the rank means anything to it; where not, it is 0 whatever the config says."""
    windowed: ClassVar[bool] = False
    """Whether `initial` is given the weight of a convolution with its window, (*window, channels, k), where d counts in that order."""

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with the options of a config, a line each."""
        for name in options:
            if name not in self.options:
                yield f"the method {self.name!r} has no option {name!r}; its options: {choices(self.options)}"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The parameters to start from, by name, for a weight (d, k), such that the update is 0; in the weight's dtype, or integers."""
        raise NotImplementedError

    def needs(self, options: Mapping[str, Any]) -> str | None:
        """What must be seen in data first under these options: "gradients" of the loss for the weights, or None. Then `informed` starts."""
        return None

    def informed(
        self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any], evidence: np.ndarray
    ) -> dict[str, np.ndarray]:
        """As `initial`, from the mean gradient of the loss for the weight (d, k), float64."""
        raise NotImplementedError

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter for a (d, k) weight; under the default options, where they depend on options."""
        raise NotImplementedError

    def rank_limit(self, d: int, k: int, options: Mapping[str, Any]) -> int | None:
        """The largest rank that makes sense for a (d, k) weight; None for any."""
        return min(d, k) if self.ranked else None

    def parameter_faults(self, parameters: Mapping[str, np.ndarray], d: int, k: int, rank: int) -> Iterator[str]:
        """What is wrong with parameters from a file for a (d, k) weight, a line each; where shapes depend on options, of any of them."""
        want, found = self.shapes(d, k, rank), {name: array.shape for name, array in parameters.items()}
        if found != want:
            yield f"for a {d, k} weight its tensors must be {want}, found {found}"

    def frozen(self, options: Mapping[str, Any]) -> frozenset[str]:
        """The names of parameters that do not train under these options."""
        return frozenset()

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """What the adapter adds to `call.product`: (..., k)."""
        raise NotImplementedError

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """What the adapter adds to the weight, as an array of the backend (d, k): what merging adds."""
        raise NotImplementedError

    def norm(self, parameters: Mapping[str, np.ndarray], scaling: float) -> float | None:
        """The Frobenius norm of the update, where the parameters of a method without factors tell it; else None."""
        return None

    def bias_delta(self, bias: np.ndarray, parameters: Mapping[str, np.ndarray], scaling: float) -> np.ndarray | None:
        """What merging adds to the layer's bias (k,), for a method whose update depends on `Call.bias`; None for nothing."""
        return None

    def factors(self, parameters: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        """A (d, r) and B (r, k) whose product, times the scaling, is the update of a low-rank method; None for any other."""
        return None

    def take(self, parameters: Mapping[str, np.ndarray], ranks: np.ndarray) -> dict[str, np.ndarray]:
        """The parameters of these ranks alone, given by number, of a method that has `factors`."""
        raise NotImplementedError

    def compact(self, parameters: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int] | None:
        """The same update from smaller parameters, and their rank (0 for none): what training switched off is cut; None if nothing is."""
        return None

    def controller(self, model: "LoraModel", adapter: str, steps: int | None) -> "Controller | None":
        """What the method does around the steps of training, over all layers of an adapter that have it; None for nothing.

        `steps`: how many there will be, None where nobody knows.
        """
        return None
