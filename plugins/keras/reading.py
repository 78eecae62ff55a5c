"""A `.lora.h5` as an adapter: factors from its layout, names and alphas from whoever knows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loratk.errors import ConfigError, FormatError, choices, faults
from loratk.exchange import AdapterState, Reading, Request, config_for
from loratk.io import Hdf5Store

from .beside import Beside, unpacked
from .einsum import axes_of
from .factors import Module, gathered, kind_of, linear_of, read_pair
from .layers import Layer, read_map
from .layout import Layout, Pair, factor, looks_like
from .naming import find_family, name_layers

Options = Mapping[str, Any]
BESIDE = "kept beside by loratk"
_KNOWN_ANEW = {
    "columns", "dtypes", "equation", "experts", "groups", "kernel", "keras_kernel", "layer_type", "method", "name", "orientation", "rank",
    "scaling", "shape",
}  # fmt: skip
"""What a record says that the factors say themselves, or that no module of such a file has."""


def read_file(path: Path, request: Request, options: Options) -> Reading:
    """The adapter of a file. Raises FormatError with every fault of the file, ConfigError where an option does not fit it."""
    mapped, einsum = read_map(options["map"]), Einsum(options)
    find_family(options["family"])
    with Hdf5Store().open(path) as reader:
        if not looks_like(reader.names()):
            raise FormatError(f"'{path}' holds no LoRA factors of keras-hub (/lora/<layer>/vars/lora_kernel_a): {_seems(reader.names())}")
        layout = Layout(reader, request.may_miss)
        said = unpacked(reader.strings) or Beside()
        if found := [*layout.faults, *said.faults, *_lost(layout, said, request)]:
            raise FormatError(_title(path, found))
        layers, notes = name_layers(layout.kernels(), mapped, said, options)
        if request.adapters is not None and said.name not in request.adapters:
            return Reading([], layout.notes)
        pairs = {index: layout.pair(index) for index in layers}
        reader.verify()
    making = _Making(einsum, options["three_axes"])
    modules: dict[str, Module] = {}
    asked = []
    for index, layer in layers.items():
        try:
            modules[str(layer.name)] = making.module(index, layer, pairs[index], said.records.get(index, {}))
        except FormatError as error:
            found.append(f"layer {index}: {error}")
        except ConfigError as error:
            asked.append(f"layer {index}: {error}")
    if found:
        raise FormatError(_title(path, found))
    if asked:
        raise ConfigError(faults(f"'{path}' does not say all that is needed:", asked))
    state = _fitted(_state(said, modules), said)
    return Reading([state], [*layout.notes, *notes, *making.notes()])


def adapter_name(path: Path) -> str:
    """The name that loratk wrote beside the factors, or "default"."""
    with Hdf5Store().open(path) as reader:
        return (unpacked(reader.strings) or Beside()).name


class Einsum:
    """What becomes of einsum kernels: `linear` or kept; `equation` is that of those whose nobody else knows. Raises ConfigError."""

    def __init__(self, options: Options) -> None:
        asked, names = options["einsum"], options["names"]
        if names not in ("keras", "hf"):
            raise ConfigError(f"the option names must be 'keras' or 'hf', found {names!r}")
        if names == "hf" and options["family"] is None:
            raise ConfigError("names=hf gives the names of a family: say which with family=")
        if asked == "keep" and names == "hf":
            raise ConfigError("names=hf needs einsum=linear: transformers has plain matrices there")
        self.linear = asked not in (None, "keep") or names == "hf"
        self.equation = None if asked in (None, "keep", "linear") else str(asked)
        if self.equation is not None:
            try:
                axes_of(self.equation)
            except ValueError as error:
                raise ConfigError(f"the option einsum must be 'keep', 'linear' or an equation: {error}") from error


class _Making:
    """Modules out of layers, and what has to be told about all of them."""

    def __init__(self, einsum: Einsum, three_axes: str) -> None:
        self._einsum, self._three_axes = einsum, three_axes
        self._guessed: Counter[str] = Counter()
        self._inexact: set[float] = set()
        self._linear: set[int] = set()

    def module(self, index: int, layer: Layer, pair: Pair, beside: Mapping[str, Any]) -> Module:
        """The record, lora_A and lora_B of a layer. Raises FormatError if what is known does not fit, ConfigError if it is too little."""
        given = self._einsum.equation
        if layer.layer_type is None and layer.equation is None and pair.a.ndim > 2:
            if given is not None and axes_of(given).count == pair.a.ndim:
                layer = replace(layer, equation=given)
            else:
                self._guessed[kind_of(pair.a.ndim, self._three_axes)] += 1
        record, lora_a, lora_b = read_pair(pair, layer, self._three_axes)
        if beside.get("layer_type") == record["layer_type"] and beside.get("kernel") != record.get("kernel"):
            raise FormatError(f"loratk wrote down the kernel {beside.get('kernel')!r}, and the factors are for {record.get('kernel')}")
        scaling = float(beside.get("scaling", 1.0))
        lora_b = self._unfolded(lora_b, scaling)
        said = {key: value for key, value in beside.items() if key not in _KNOWN_ANEW}
        source = str(said.get("alpha_source", BESIDE))
        record = said | record | {"scaling": scaling, "keras_layer": index}
        if beside:
            record["alpha_source"] = source if BESIDE in source else f"{BESIDE}: {source}"
        else:
            record |= {"alpha": float(record["rank"]), "alpha_source": "keras-hub's own, the rank"}
        if beside.get("groups", 1) != 1:
            lora_b = gathered(record, lora_b, beside["groups"])
        if record["layer_type"] == "einsum" and self._einsum.linear:
            equation = layer.equation or given
            if equation is None or axes_of(equation).count != len(record["kernel"]):
                raise ConfigError(
                    f"which axes of its kernel {record['kernel']} are inputs is not known: give family=, a map with equations, or the "
                    "equation itself, einsum='btd,ndh->btnh'"
                )
            record, lora_a, lora_b = linear_of(record, lora_a, lora_b, equation)
            record["alpha"] = scaling * record["rank"]
            self._linear.add(record["rank"])
        if pair.bfloat16:
            record["dtypes"] = dict.fromkeys(pair.bfloat16, "bfloat16")
        return record, lora_a, lora_b

    def notes(self) -> list[str]:
        """What was decided."""
        notes = []
        if self._guessed:
            notes.append(f"taken for {', '.join(f'{count} {kind}' for kind, count in self._guessed.items())} by the number of their axes")
        if self._linear:
            ranks = ", ".join(map(str, sorted(self._linear)))
            notes.append(f"einsum kernels became linear layers of the same update, exactly, of rank {ranks}")
        if self._inexact:
            values = ", ".join(f"{value:g}" for value in sorted(self._inexact))
            notes.append(f"lora_B, divided by its scaling {values} again, is rounded in its last bit")
        return notes

    def _unfolded(self, lora_b: np.ndarray, scaling: float) -> np.ndarray:
        if scaling in (0.0, 1.0):
            return lora_b
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # a signalling NaN is told of by who checks the values
            divided = np.asarray(lora_b.astype(np.float64) / scaling, lora_b.dtype)
            if not np.array_equal(divided * np.float64(scaling), lora_b):
                self._inexact.add(scaling)
        return divided


def _state(said: Beside, modules: Mapping[str, Module]) -> AdapterState:
    tensors = {f"{module}.{key}": array for module, (_, a, b) in modules.items() for key, array in (("lora_A", a), ("lora_B", b))}
    records = {module: record for module, (record, _, _) in modules.items()}
    return AdapterState(said.name, said.config, tensors, records, said.fingerprint, said.metadata, said.version)


def _fitted(state: AdapterState, said: Beside) -> AdapterState:
    """The state with a config that fits its modules, where there is one and they are not those that it was written for."""
    written = {record["name"] for record in said.records.values()}
    if not state.config or (written == state.modules.keys() and not any("keras_kernel" in record for record in state.modules.values())):
        return state
    try:
        return replace(state, config=config_for(state))
    except ConfigError:
        return replace(state, config={})


def _lost(layout: Layout, said: Beside, request: Request) -> list[str]:
    """Layers that loratk wrote down and whose factors are gone."""

    def allowed(index: int) -> bool:
        a, b = (request.may_miss(factor(index, half)) for half in "ab")  # to name one of them will do
        return a or b

    gone = [index for index in said.records if index not in layout.layers]
    return [
        f"layer {index}, {said.records[index].get('name')!r} as loratk wrote it, has no factors" for index in gone if not allowed(index)
    ]


def _seems(names: list[str]) -> str:
    if any("/vars/" in f"/{name}" for name in names):
        return "it holds the weights of a Keras model, in which LoRA is merged; it can be the base (--base)"
    return f"it holds {len(names)} arrays ({choices(names[:3])})"


def _title(path: Path, found: list[str]) -> str:
    return faults(f"'{path}' is no sound .lora.h5 of keras-hub, or not of this model; correct it or get a new copy:", found)
