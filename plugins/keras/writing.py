"""An adapter as a `.lora.h5`, or as the dual file: loratk's own layout, in which keras-hub finds its own by hard links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from loratk.errors import ConfigError, faults
from loratk.exchange import AdapterState, write_adapters
from loratk.exchange.transform import rebuilt
from loratk.io import Hdf5Store
from loratk.io.text import escape

from .beside import packed
from .layout import RANK, factor
from .placing import Placed

Arrays = dict[str, np.ndarray]


def write_plain(path: Path, state: AdapterState, placed: Sequence[Placed]) -> list[str]:
    """A `.lora.h5` with what only loratk reads beside. Atomic; returns notes."""
    arrays = _rank_array(placed)
    folded, notes = fold(path, placed)
    for module, (a, b) in zip(placed, folded, strict=True):
        arrays |= {factor(module.index, "a"): a, factor(module.index, "b"): b}
    kept = rebuilt(state, {module.module: (module.record, {"lora_A": module.a, "lora_B": module.b}) for module in placed})
    Hdf5Store().write(path, arrays, packed(kept, [(module.index, module.module, module.record) for module in placed]))
    return notes


def write_dual(path: Path, state: AdapterState, placed: Sequence[Placed]) -> list[str]:
    """loratk's own layout with scaling 1, and hard links where keras-hub looks: no number is there twice. Atomic; returns notes."""
    folded, notes = fold(path, placed)
    modules: dict[str, tuple[dict[str, Any], Arrays]] = {}
    links: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for module, (a, b) in zip(placed, folded, strict=True):
        record, rank, scaling = module.record, len(b), float(module.record["scaling"])
        new = {key: value for key, value in record.items() if key != "groups"} | {"rank": rank, "scaling": 1.0, "keras_layer": module.index}
        if scaling != 1 or record["alpha"] != rank:
            new |= {"alpha": float(rank), "alpha_source": f"alpha {record['alpha']:g}, scaling {scaling:g} folded into lora_B"}
        if "groups" in record:
            notes.append(f"module {module.module!r}: the factors of its {record['groups']} groups are written as those of one")
        modules[module.module] = new, {"lora_A": a.reshape(-1, rank), "lora_B": b}
        where = f"adapters/{escape(state.name)}/{escape(module.module)}"
        shapes[f"{where}/lora_A"] = a.shape
        links |= {factor(module.index, "a"): f"{where}/lora_A", factor(module.index, "b"): f"{where}/lora_B"}
    store = _LinkedStore(_rank_array(placed), links, shapes)
    write_adapters(path, [rebuilt(state, modules)], stores={store.name: store}, store=store.name)
    return [*notes, f"loratk and keras-hub both read it: {len(placed)} layers under /lora are links to the same numbers"]


class _LinkedStore(Hdf5Store):
    """HDF5 with further arrays, arrays in other shapes, and hard links."""

    def __init__(self, further: Arrays, links: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self._further, self._links, self._shapes = further, links, shapes

    def save(
        self, file: BinaryIO, arrays: Mapping[str, np.ndarray], strings: Mapping[str, str], links: Mapping[str, str] | None = None
    ) -> None:
        shaped = {name: array.reshape(self._shapes.get(name, array.shape)) for name, array in arrays.items()}
        super().save(file, shaped | self._further, strings, self._links)


def fold(path: Path, placed: Sequence[Placed]) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    """Factors in float32, the scaling in b, and notes. Raises ConfigError with each that float32 cannot hold."""
    found: list[str] = []
    rounded: Counter[str] = Counter()
    folded = []
    for module in placed:
        with np.errstate(over="ignore", under="ignore"):
            exact = module.a, module.b.astype(np.float64) * float(module.record["scaling"])
            a, b = (array.astype(np.float32) for array in exact)
        for name, array, want in (("lora_A", a, exact[0]), ("lora_B", b, exact[1])):
            if not np.isfinite(array).all():
                found.append(f"module {module.module!r}: {name} with its scaling is too large for float32")
            elif not np.array_equal(array, want):
                rounded[name] += 1
        folded.append((a, b))
    if found:
        raise ConfigError(faults(f"nothing was written to '{path}':", found))
    scalings = Counter(float(module.record["scaling"]) for module in placed)
    notes = [
        f"scaling {value:g} of {count} modules multiplied into lora_B, for Keras has no alpha"
        for value, count in scalings.items()
        if value != 1
    ]
    notes += [f"{name} of {count} modules rounded to float32" for name, count in sorted(rounded.items())]
    return folded, notes


def _rank_array(placed: Sequence[Placed]) -> Arrays:
    return {RANK: np.array(len(placed[0].b), np.int64)}
