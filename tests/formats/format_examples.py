"""How each registered format is tried: the options and the base it needs, and module names it knows. A format without an entry fails."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from loratk.exchange import AdapterFormat, AdapterState, Request, formats_of
from loratk.exchange.transform import rename
from loratk.plugins import default_registry
from loratk.testing import format_states

FORMATS: dict[str, AdapterFormat] = formats_of(default_registry())


class Shapes:
    """A base as far as names and shapes go, in torch's order."""

    path, order = "shapes", "output-first"

    def __init__(self, shapes):
        self._shapes = shapes

    def modules(self):
        return list(self._shapes)

    def shape(self, module):
        return self._shapes[module]


def shape_of(record, held):
    """The shape of the weight that a module changes, as torch has it."""
    if "shape" not in record:
        return held.get("weight", held.get("bias")).shape
    (d, k), kernel = record["shape"], record.get("kernel", [])
    if record["layer_type"].startswith("conv"):
        return (k, d // prod(kernel), *kernel)
    return (d, k) if record["layer_type"] == "embedding" else (k, d)


SHAPES: dict[str, tuple[int, ...]] = {}
for _state in format_states().values():
    for _module, _held in _state.parameters().items():
        SHAPES.setdefault(_module, shape_of(_state.modules[_module], _held))


@dataclass(frozen=True)
class Example:
    """Options for reading and for writing; whether names come from a base; new names for the modules of the states that are tried."""

    reads: Mapping[str, Any] = field(default_factory=dict)
    writes: Mapping[str, Any] = field(default_factory=dict)
    base: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)

    def states(self) -> dict[str, AdapterState]:
        return {title: self.renamed(state) for title, state in format_states().items()}

    def renamed(self, state: AdapterState) -> AdapterState:
        names = {old: new for old, new in self.rename.items() if any(path == old or path.startswith(f"{old}.") for path in state.modules)}
        return rename([state], names)[0] if names else state

    def back(self, state: AdapterState) -> AdapterState:
        return replace(self, rename={new: old for old, new in self.rename.items()}).renamed(state)

    def request(self, options: Mapping[str, Any]) -> Request:
        return Request(options=options, base=Shapes({self.path(path): shape for path, shape in SHAPES.items()}) if self.base else None)

    def path(self, path: str) -> str:
        for old, new in self.rename.items():
            if path == old or path.startswith(f"{old}."):
                return new + path[len(old) :]
        return path


LLAMA = {"architecture": "llama", "n_head": 2, "n_head_kv": 2}
EXAMPLES = {
    "diffusers": Example(rename={"model": "unet"}),
    "gguf": Example(LLAMA, LLAMA, rename={"model.layers.0.mlp.experts.up_proj": "model.layers.0.block_sparse_moe.experts.w3"}),
    "hdf5": Example(),
    "keras": Example(writes={"map": {str(at): path for at, path in enumerate(SHAPES)}}),
    "kohya": Example(base=True),
    "loralib": Example(),
    "mlx": Example(),
    "npz": Example(),
    "peft": Example(),
    "safetensors": Example(),
}
