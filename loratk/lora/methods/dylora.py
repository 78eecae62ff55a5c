"""DyLoRA."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ...autograd import Tensor
from ..settings import is_integer
from .base import Call
from .lora import Lora

if TYPE_CHECKING:
    from ..control import Controller
    from ..model import LoraModel


class Dylora(Lora):
    """LoRA whose first b ranks are an adapter of rank b, for every b at once. Valipour et al. 2023, eq. 4-6 and algorithm 1.

    In each step of training a b is drawn from min_rank to the rank, the same for all layers, and the update is alpha / b times the first b
    columns of A and rows of B. Afterwards `LoraModel.use_rank` chooses a rank, and `LoraModel.resize` cuts to one.

    update: "all" lets all first b ranks learn in a step, "last" the b-th alone (the paper's frozen variant, section 4).
    """

    name, form, nested = "dylora", "lora", True
    options: ClassVar[Mapping[str, Any]] = {"min_rank": 1, "update": "all"}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """Unknown names and values out of range."""
        yield from super().option_faults(options)
        values = {**self.options, **options}
        if not is_integer(values["min_rank"]) or values["min_rank"] < 1:
            yield f"min_rank of the method 'dylora' must be a whole number of at least 1, found {values['min_rank']!r}"
        if values["update"] not in ("all", "last"):
            yield f"update of the method 'dylora' must be 'all' or 'last', found {values['update']!r}"

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """scaling (x A_b) B_b, of the first b ranks."""
        if call.rank is not None:
            parameters = {"lora_A": parameters["lora_A"][:, : call.rank], "lora_B": parameters["lora_B"][: call.rank]}
        return super().update(call, parameters, scaling)

    def controller(self, model: "LoraModel", adapter: str, steps: int | None) -> "Controller | None":
        """The drawing of ranks."""
        from ..drawn_rank import DrawnRank

        return DrawnRank(model, adapter, self)
