"""LoRA factors as JSON that people read: how a tool might keep adapters."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loratk.errors import FormatError
from loratk.exchange import FEATURES, AdapterFormat, AdapterState, Reading, Request
from loratk.exchange.torch_layout import from_torch, to_torch
from loratk.io import atomic_file, strict_json
from loratk.io.store import open_binary

HEAD = b'{"listing": 1, "layers": '


class ListingFormat(AdapterFormat):
    """`{"listing": 1, "layers": {path: {"alpha": 4.0, "down": r rows of d numbers, "up": k rows of r}}}`: linear layers, output first."""

    name, title, suffixes = "listing", "JSON listing", (".listing.json",)
    carries = dict.fromkeys(FEATURES, "no") | dict.fromkeys(("names", "alpha", "ranks"), "yes")

    def detect(self, path: Path) -> str | None:
        """Whether it begins as `write` begins it."""
        if path.is_dir():
            return None
        with open_binary(path) as file:
            return "it begins as a listing" if file.read(len(HEAD)) == HEAD else None

    def adapters(self, path: Path) -> list[str]:
        """It has no names."""
        return ["default"]

    def read(self, path: Path, request: Request) -> Reading:
        """Its one adapter."""
        tensors, modules = {}, {}
        try:
            with open_binary(path) as file, np.errstate(over="ignore"):
                layers = strict_json.loads(file.read().decode())["layers"]
                for module, layer in layers.items():
                    facts, a, b = from_torch(np.array(layer["down"], np.float32), np.array(layer["up"], np.float32))
                    modules[module] = {"method": "lora", "alpha": layer["alpha"], "scaling": layer["alpha"] / facts["rank"], **facts}
                    tensors |= {f"{module}.lora_A": a, f"{module}.lora_B": b}
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise FormatError(f"'{path}' is not a sound listing: {error}; correct it or get a new copy") from error
        return Reading([AdapterState("default", {}, tensors, modules)])

    def write(self, path: Path, states: Sequence[AdapterState], request: Request) -> list[str]:
        """Write one adapter; `carries` keeps away what has no place in it."""
        layers = {}
        for module, held in states[0].parameters().items():
            down, up = to_torch(states[0].modules[module], held["lora_A"], held["lora_B"])
            layers[module] = {"alpha": states[0].modules[module]["alpha"], "down": down.tolist(), "up": up.tolist()}
        with atomic_file(path) as file:
            file.write(HEAD + strict_json.dumps(layers).encode() + b"}")
        return []
