"""What one adapter holds for one layer."""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from ..errors import ConfigError
from ..nn import Module, Parameter
from .adapter import LoraAdapter

ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class LayerAdapter(Module):
    """What one adapter holds for one layer: a LoraAdapter per adapted column block, and the change of the bias if that trains.

    `bias` (k,) is what is added to the base's bias, zero at first: the base itself stays as it is.
    """

    def __init__(self, blocks: Mapping[str, LoraAdapter], bias: Parameter | None) -> None:
        for name, adapter in blocks.items():
            setattr(self, name or "matrix", adapter)
        self.bias = bias

    def blocks(self) -> dict[str, LoraAdapter]:
        """The adapters by block; '' is the only block of a layer that has one."""
        return {"" if name == "matrix" else name: child for name, child in self.children() if isinstance(child, LoraAdapter)}

    def block(self, name: str) -> LoraAdapter | None:
        """The adapter of one block, or None."""
        found = vars(self).get(name or "matrix")
        return found if isinstance(found, LoraAdapter) else None

    def tensors(self) -> dict[str, Parameter]:
        """All parameters, by name relative to the layer: `lora_A`, `q.lora_A`, `bias`."""
        found = {".".join(p for p in (block, key) if p): value for block, a in self.blocks().items() for key, value in a.tensors().items()}
        return found if self.bias is None else {**found, "bias": self.bias}

    def faults(self, values: Mapping[str, np.ndarray]) -> Iterator[str]:
        """What is wrong with values for all parameters, by the names of `tensors`, whose shapes and dtypes fit."""
        for block, adapter in self.blocks().items():
            where = f"{block}." if block else ""
            for fault in adapter.faults({key: values[where + key] for key in adapter.own()}):
                yield f"{block}: {fault}" if block else fault


def check_adapter_name(name: str) -> None:
    """Raise ConfigError unless the name can stand in dotted names and in files."""
    if not isinstance(name, str) or not ADAPTER_NAME.fullmatch(name):
        raise ConfigError(f"An adapter's name is made of letters, digits, '-' and '_' and starts with a letter or digit, found {name!r}.")
