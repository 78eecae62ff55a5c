"""The methods and their settings that are set beside each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class Way:
    """A way to adapt: its label, what its LoraConfig says, how its optimiser is made, and whether what training switched off is cut.

    `data`: whether its init looks at data. `recipe`: a function of `loratk.lora.recipes` that makes the optimiser's groups, or "".
    """

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: bool = False
    recipe: str = ""
    cut: bool = False


RANK, ALPHA = 4, 8.0
WAYS = (
    Way("LoRA"),
    Way("rsLoRA", {"rslora": True}),
    Way("DoRA", {"method": "dora"}),
)
