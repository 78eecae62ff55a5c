"""The `.lora.h5` of keras-hub as an adapter format."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from loratk.errors import ConfigError, FormatError
from loratk.exchange import FORMAT, AdapterFormat, AdapterState, Option, Reading, Request
from loratk.io import Hdf5Store

from .families import FAMILIES
from .layout import RANK, looks_like
from .placing import place
from .reading import adapter_name, read_file
from .writing import write_dual, write_plain

READING, WRITING = ("names", "einsum", "three_axes"), ("head_dim", "rank", "dual")
"""Options of one direction."""
TRUTHS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class KerasFormat(AdapterFormat):
    """One adapter by layer numbers, in HDF5 (`Backbone.save_lora_weights`)."""

    name = "keras"
    title = "keras-hub .lora.h5"
    suffixes = (".lora.h5",)
    carries: ClassVar[Mapping[str, str]] = {
        "names": "numbers; names beside, for loratk", "several": "no", "alpha": "in lora_B; alpha beside, for loratk",
        "ranks": "one rank; every alpha in lora_B", "rslora": "in lora_B", "conv": "yes", "embedding": "no", "einsum": "yes",
        "experts": "no", "dora": "no", "bias": "no", "full": "no", "methods": "no", "bfloat16": "no",
        "metadata": "beside, for loratk", "fingerprint": "beside, for loratk",
    }  # fmt: skip
    options: ClassVar[Mapping[str, Option]] = {
        "map": Option("names by layer number: a JSON file, or 8=decoder.value,10=decoder.query (docs/keras.md)"),
        "family": Option(f"names by the table of a known model: {', '.join(FAMILIES)}"),
        "names": Option("which names a family gives: keras, or hf (those of transformers)", "keras"),
        "einsum": Option("read kernels of heads as they are (keep) or as plain layers (linear); an equation says which axes are inputs"),
        "three_axes": Option("what factors for a kernel of three axes are taken for: einsum or conv1d", "einsum"),
        "head_dim": Option("the size of an attention head, to write plain layers as kernels of heads"),
        "rank": Option("the rank to write: smaller ones are filled up, the nearest factors cut off"),
        "dual": Option("write loratk's own layout, which keras-hub loads too (yes or no)", False),
    }

    def detect(self, path: Path) -> str | None:
        """Whether it has the arrays of a `.lora.h5`. loratk's own layout goes first, for a file that is both."""
        store = Hdf5Store()
        if path.is_dir() or not store.sniff(path):
            return None
        try:
            with store.open(path) as reader:
                names = reader.names()
                if reader.strings.get("format") == FORMAT or not looks_like(names):
                    return None
                return f"it has the array /{RANK}" if RANK in names else "it has arrays /lora/<layer>/vars/lora_kernel_a or _b"
        except FormatError:
            return None

    def adapters(self, path: Path) -> list[str]:
        """The name that loratk wrote beside the factors, else "default"."""
        return [adapter_name(path)]

    def read(self, path: Path, request: Request) -> Reading:
        """The adapter in the file."""
        reading = read_file(path, request, self._asked(request))
        return replace(reading, notes=[*reading.notes, *_idle(request, WRITING, "reading")])

    def write(self, path: Path, states: Sequence[AdapterState], request: Request) -> list[str]:
        """Write one adapter as a `.lora.h5`, or as the dual file."""
        options = self._asked(request)
        (state,) = states
        placed, notes = place(state, options, bake=request.bake)
        if not placed:
            raise ConfigError(f"the adapter {state.name!r} has no factors to write")
        notes += (write_dual if options["dual"] else write_plain)(path, state, placed)
        return [*notes, *_idle(request, READING, "writing")]

    def _asked(self, request: Request) -> dict[str, Any]:
        """All options with their values, those from the command line as what they mean."""
        asked = {name: self.option(request, name) for name in self.options}
        for name in ("head_dim", "rank"):
            asked[name] = _whole(name, asked[name])
        if asked["three_axes"] not in ("einsum", "conv1d"):
            raise ConfigError(f"the option three_axes must be 'einsum' or 'conv1d', found {asked['three_axes']!r}")
        if (dual := str(asked["dual"]).lower()) not in TRUTHS:
            raise ConfigError(f"the option dual must be yes or no, found {asked['dual']!r}")
        return asked | {"dual": TRUTHS[dual]}


def _idle(request: Request, names: Collection[str], what: str) -> list[str]:
    return [f"the option {name} has no effect on {what}" for name in names if name in request.options]


def _whole(name: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        number = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if not 1 <= number < 1 << 20:
        raise ConfigError(f"the option {name} must be a whole number from 1 up, found {value!r}")
    return number
