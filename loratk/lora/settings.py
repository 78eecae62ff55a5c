"""What a config says about one layer, and what can be wrong with it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import choices
from ..plugins import Registry
from .frozen import FrozenDict

FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class LayerSettings:
    """The part of a LoraConfig that a pattern may change for some layers: see there what each field means."""

    rank: int = 8
    alpha: float = 8.0
    rslora: bool = False
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    max_norm: float | None = None
    method: str = "lora"
    options: Mapping[str, Any] = FrozenDict()
    init: str | Mapping[str, Any] | None = None

    @property
    def scaling(self) -> float:
        """alpha / rank, or alpha / sqrt(rank) with `rslora`."""
        return scaling(self.rank, self.alpha, self.rslora)

    @property
    def init_name(self) -> str | None:
        """The name of the initialisation; None for the method's own."""
        return str(self.init["name"]) if isinstance(self.init, Mapping) else self.init

    @property
    def init_options(self) -> dict[str, Any]:
        """The initialisation's own options."""
        return {key: value for key, value in self.init.items() if key != "name"} if isinstance(self.init, Mapping) else {}


FIELDS = tuple(LayerSettings.__dataclass_fields__)


def scaling(rank: int, alpha: float, rslora: bool) -> float:
    """alpha / rank (Hu et al. 2021), or alpha / sqrt(rank) (Kalajdzievski 2023, eq. 8)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def is_number(value: Any) -> bool:
    """Whether it is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def value_faults(name: str, value: Any, where: str = "") -> Iterator[str]:
    """What is wrong with the value of one field, `options` and `init` aside; `where` is what messages call it."""
    where = where or name
    if name == "rank" and (not is_integer(value) or not 1 <= value < 2**31):
        yield f"{where} must be an integer of at least 1 (and below 2**31), found {value!r}"
    elif name == "alpha" and (not is_number(value) or not 0 <= value <= FLOAT32_MAX):
        yield f"{where} must be a finite number of at least 0 that float32 can hold, found {value!r}"
    elif name in ("dropout", "rank_dropout", "module_dropout") and (not is_number(value) or not 0 <= value < 1):
        yield f"{where} must be a number in [0, 1), found {value!r}"
    elif name == "rslora" and not isinstance(value, bool):
        yield f"{where} must be True or False, found {value!r}"
    elif name == "max_norm" and value is not None and (not is_number(value) or not 0 < value <= FLOAT32_MAX):
        yield f"{where} must be a finite number above 0 or None, found {value!r}"


def together_faults(values: Mapping[str, Any], registry: Registry, where: str = "") -> Iterator[str]:
    """What is wrong with method, options and init, and with what they are asked to do; `where` goes before each line."""
    name, options = values["method"], values["options"]
    if not isinstance(name, str) or name not in registry.methods:
        yield f"{where}method must be one of {choices(registry.methods)}, found {name!r}; a plugin that provides it may not be installed"
        return
    method = registry.methods[name]
    if not isinstance(options, Mapping):
        yield f"{where}options must map names to values, found {options!r}"
    else:
        yield from (where + fault for fault in method.option_faults(options))
    if is_number(values["rank_dropout"]) and values["rank_dropout"] > 0 and not method.drops_ranks:
        yield f"{where}the method {name!r} has no ranks that rank_dropout could drop; leave it at 0"
    if values["max_norm"] is not None and not (method.scales and method.proportional):
        yield f"{where}the update of the method {name!r} cannot be scaled down, as max_norm would ask for; leave it out"
    yield from (where + fault for fault in _init_faults(values["init"], name, options, registry))
    if values["max_norm"] is not None and _moves_base(values["init"], registry):
        yield f"{where}max_norm cannot scale down an update from which an init takes its first product, as {values['init']!r} does"


def _init_faults(init: Any, name: str, options: Any, registry: Registry) -> Iterator[str]:
    method = registry.methods[name]
    if init is None:
        return
    chosen = init.get("name") if isinstance(init, Mapping) else init
    if not isinstance(chosen, str) or chosen not in registry.inits:
        yield f"init must be one of {choices(registry.inits)}, or a dict with such a 'name' and its options, found {init!r}"
    elif not method.takes_init:
        yield f"the method {name!r} has first values of its own and takes no init, found {init!r}"
    else:
        found = registry.inits[chosen]
        own = {key: value for key, value in init.items() if key != "name"} if isinstance(init, Mapping) else {}
        yield from found.option_faults(own)
        if isinstance(options, Mapping) and {"lora_A", "lora_B"} <= method.frozen(options) | found.frozen({**found.options, **own}):
            yield f"the method {name!r} with these options freezes one factor and init {chosen!r} the other: nothing would train"
        if found.moves_base and (not method.proportional or method.nested):
            yield f"init {chosen!r} takes its first product off the base's weight, which the method {name!r} does not allow"


def _moves_base(init: Any, registry: Registry) -> bool:
    chosen = init.get("name") if isinstance(init, Mapping) else init
    return isinstance(chosen, str) and chosen in registry.inits and registry.inits[chosen].moves_base
