"""What a file holds, without the model that it belongs to: adapters with their norms, or plain arrays."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .exchange import FORMAT, AdapterState, read_adapters
from .io import Store, find_store


@dataclass(frozen=True)
class ModuleReport:
    """One adapted module. `norms` are Frobenius norms by parameter; `delta_norm` that of what is added to the weight.

    `delta_norm` is None where it depends on the base's weight. rank, alpha, scaling and shape are None where the file does not say.
    """

    name: str
    method: str
    layer_type: str | None
    shape: list[int] | None
    rank: int | None
    alpha: float | None
    scaling: float | None
    dtype: str
    parameters: int
    norms: dict[str, float]
    delta_norm: float | None


@dataclass(frozen=True)
class AdapterReport:
    """One adapter."""

    name: str
    parameters: int
    fingerprint: str
    version: str
    config: dict[str, Any]
    metadata: dict[str, str]
    modules: list[ModuleReport]


@dataclass(frozen=True)
class ArrayReport:
    """One array of a file that holds no adapters."""

    name: str
    shape: list[int]
    dtype: str


@dataclass(frozen=True)
class FileReport:
    """A file: its store, its size in bytes, and either adapters or arrays and strings."""

    path: str
    store: str
    bytes: int
    adapters: list[AdapterReport] | None
    arrays: list[ArrayReport] | None
    strings: dict[str, str] | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON can hold; what is None is left out of the top level."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def describe(path: str | Path, stores: Mapping[str, Store]) -> FileReport:
    """What a file holds. Adapters are read whole and checked, of other files only names and shapes. Raises FormatError, StoreError."""
    path = Path(path)
    store = find_store(path, stores)
    size = path.stat().st_size
    with store.open(path) as reader:
        strings = dict(reader.strings)
        if strings.get("format") != FORMAT:
            infos = ((name, *reader.info(name)) for name in sorted(reader.names()))
            arrays = [ArrayReport(name, list(shape), dtype.name) for name, shape, dtype in infos]
            return FileReport(str(path), store.name, size, None, arrays, strings)
    adapters = [_adapter(state) for state in read_adapters(path, stores=stores)]
    return FileReport(str(path), store.name, size, adapters, None, None)


def _adapter(state: AdapterState) -> AdapterReport:
    modules = [_module(name, record, _tensors(state, name)) for name, record in sorted(state.modules.items())]
    total = sum(module.parameters for module in modules)
    return AdapterReport(state.name, total, state.fingerprint, state.version, state.config, state.metadata, modules)


def _tensors(state: AdapterState, module: str) -> dict[str, np.ndarray]:
    pairs = ((name.rpartition("."), tensor) for name, tensor in state.tensors.items())
    return {parameter: tensor for (owner, _, parameter), tensor in pairs if owner == module}


def _module(name: str, record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> ModuleReport:
    scaling, delta = record.get("scaling"), None
    if record["method"] == "lora" and scaling is not None:
        delta = abs(scaling) * product_norm(tensors["lora_A"], tensors["lora_B"])
    return ModuleReport(
        name,
        record["method"],
        record.get("layer_type"),
        record.get("shape"),
        record.get("rank"),
        record.get("alpha"),
        scaling,
        dtype="+".join(sorted({tensor.dtype.name for tensor in tensors.values()})),
        parameters=sum(tensor.size for tensor in tensors.values()),
        norms={key: float(np.linalg.norm(tensor.astype(np.float64))) for key, tensor in tensors.items()},
        delta_norm=delta,
    )


def product_norm(a: np.ndarray, b: np.ndarray) -> float:
    """The Frobenius norm of A B: (d, r), (r, k) -> number, without the (d, k) product.

    With A = Q R and the transpose of B = P S (QR decompositions), it is that of R times the transpose of S, (r, r).
    """
    r, s = (np.asarray(np.linalg.qr(matrix.astype(np.float64), mode="r")) for matrix in (a, b.T))
    return float(np.linalg.norm(r @ s.T))
