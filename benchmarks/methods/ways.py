"""The methods and their settings that are set beside each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RATES = (3e-3, 1e-2, 3e-2, 1e-1)
RANK, ALPHA = 4, 8.0


@dataclass(frozen=True)
class Way:
    """A way to adapt: its label, what its LoraConfig says, how its optimiser is made, and whether what training switched off is cut.

    `needs`: what its init looks at, "inputs" or "gradients", or "". `recipe`: a function of `loratk.lora.recipes` that makes the groups
    of the optimiser, or "". `faster`: what the rates are multiplied by, for methods whose few numbers move far.
    """

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""
    recipe: str = ""
    cut: bool = False
    faster: float = 1.0


WAYS = (
    Way("LoRA"),
    Way("LoRA, rank 1", {"rank": 1, "alpha": 2.0}),
    Way("rsLoRA", {"rslora": True}),
    Way("trained gain", {"method": "lora_gain"}),
    Way("LoRA+", recipe="lora_plus", faster=0.25),
    Way("LoRA-FA", {"options": {"freeze_A": True}}),
    Way("orthogonal", {"init": "orthogonal"}),
    Way("PiSSA", {"init": "pissa"}),
    Way("OLoRA", {"init": "olora"}),
    Way("MiCA", {"init": "mica"}),
    Way("EVA", {"init": "eva"}, needs="inputs"),
    Way("CorDA", {"init": "corda"}, needs="inputs", faster=0.1),
    Way("LoRA-GA", {"init": "lora_ga"}, needs="gradients"),
    Way("DoRA", {"method": "dora"}),
    Way("LoHa", {"method": "loha"}),
    Way("LoKr", {"method": "lokr"}),
    Way("VeRA", {"method": "vera", "rank": 64}, faster=10.0),
    Way("IA3", {"method": "ia3"}, faster=10.0),
    Way("sparse", {"method": "sparse"}),
    Way("AdaLoRA", {"method": "adalora", "rank": 6, "alpha": 12.0, "options": {"target_rank": 4}}, cut=True),
    Way("elastic rank", {"method": "elastic", "rank": 8, "alpha": 16.0}, cut=True),
    Way("SoRA", {"method": "sora"}, cut=True),
    Way("DyLoRA", {"method": "dylora"}),
    Way("rank dropout 0.2", {"rank_dropout": 0.2}),
)
