"""What a file holds, without the model that it belongs to: adapters with norms and spectra, or plain arrays."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .algebra.exact import Exact
from .errors import FormatError, LoratkError, UnknownNameError
from .exchange import AdapterState, Base, Detected, detect_format, load_adapter
from .exchange.base import opened_base
from .exchange.cautions import cautions, scale_lines
from .exchange.factors import frobenius, norm, update_pairs
from .exchange.plain import as_factors
from .exchange.spectrum import Spectrum, spectrum
from .exchange.state import dtypes_of
from .io import find_store
from .plugins import Registry, default_registry

Track = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class ModuleReport:
    """One adapted module. `norms` are Frobenius norms by parameter; `delta_norm` is that of what is added to the weight.

    `delta_norm` is None where it depends on the base's weight and no base is given, or cannot be told from factors; `base_norm`, the
    norm of the weight itself, is None without a base that has it. rank, alpha, scaling and shape are None where the file does not say.
    """

    name: str
    method: str
    layer_type: str | None
    shape: list[int] | None
    rank: int | None
    alpha: float | None
    alpha_source: str | None
    scaling: float | None
    dtype: str
    parameters: int
    finite: bool
    norms: dict[str, float]
    delta_norm: float | None
    base_norm: float | None
    spectrum: Spectrum | None


@dataclass(frozen=True)
class AdapterReport:
    """One adapter. `scales` sums up ranks, alphas and scalings; `cautions` are what is worth a second look."""

    name: str
    parameters: int
    fingerprint: str
    version: str
    config: dict[str, Any]
    metadata: dict[str, str]
    scales: list[str]
    cautions: list[str]
    modules: list[ModuleReport]


@dataclass(frozen=True)
class ArrayReport:
    """One array of a file that holds no adapters."""

    name: str
    shape: list[int]
    dtype: str


@dataclass(frozen=True)
class FileReport:
    """A file or folder: its format and the evidence for it, its size in bytes, and either adapters or arrays and strings."""

    path: str
    format: str
    evidence: str
    bytes: int
    notes: list[str]
    adapters: list[AdapterReport] | None
    arrays: list[ArrayReport] | None
    strings: dict[str, str] | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON can hold, numbers that are not finite as None. At the top, what is None is left out."""
        return {key: _plain(value) for key, value in asdict(self).items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(
    path: str | Path,
    *,
    format: str | None = None,
    base: str | Path | Base | None = None,
    options: Mapping[str, Any] | None = None,
    spectra: bool = False,
    registry: Registry | None = None,
    track: Track = lambda items, what: items,
) -> FileReport:
    """What a file or folder holds. Adapters are read whole and checked, but for NaN in their values; of other files only names are read.

    `base` gives a format the names it needs, and updates their size beside the weights. `track` is given modules and a few words, and
    yields the modules: for a progress bar. Raises as `load_adapter` does, but not over a file of plain arrays.
    """
    registry, path = registry or default_registry(), Path(path)
    try:
        found = detect_format(path, format=format, registry=registry)
    except FormatError as error:
        if format is None and not path.is_dir() and (report := _arrays(path, registry, error)) is not None:
            return report
        raise
    return _adapters(path, found, base, options, spectra, registry, track)


def _adapters(
    path: Path,
    found: Detected,
    base: str | Path | Base | None,
    options: Mapping[str, Any] | None,
    spectra: bool,
    registry: Registry,
    track: Track,
) -> FileReport:
    with opened_base(base, registry.stores) as opened:
        reading = load_adapter(path, format=found, base=opened, options=options, finite=False, registry=registry)
        warned = {state.name: list(cautions(state)) for state in reading.states}
        told = {reading.notes[0], *(f"adapter {name!r}: {line}" for name, lines in warned.items() for line in lines)}
        reports = []
        for state in reading.states:
            exact = Exact(state, registry, opened)
            modules = [_module(exact, name, opened, spectra) for name in track(sorted(exact.held, key=_natural), "measuring")]
            reports.append(_report(state, modules, warned[state.name]))
    notes = [note for note in reading.notes if note not in told]
    if opened is not None and not any(module.base_norm for report in reports for module in report.modules):
        notes.append(f"the base '{opened.path}' has none of these modules")
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    return FileReport(str(path), found.format.name, f"{found.format.title}: {found.evidence}", size, notes, reports, None, None)


def _natural(path: str) -> list[tuple[int, str]]:
    """To sort paths by: block 10 after block 9."""
    return [(int(part), "") if part.isascii() and part.isdecimal() and len(part) < 10 else (-1, part) for part in path.split(".")]


def _report(state: AdapterState, modules: list[ModuleReport], warned: list[str]) -> AdapterReport:
    total = sum(module.parameters for module in modules)
    return AdapterReport(
        state.name, total, state.fingerprint, state.version, state.config, state.metadata, scale_lines(state), warned, modules
    )  # fmt: skip


def _arrays(path: Path, registry: Registry, error: FormatError) -> FileReport | None:
    """A file of plain arrays; None where no store reads it."""
    try:
        store = find_store(path, registry.stores)
        with store.open(path) as reader:
            half: frozenset[str] = getattr(reader, "bfloat16", frozenset())
            infos = ((name, *reader.info(name)) for name in sorted(reader.names()))
            arrays = [ArrayReport(name, list(shape), "bfloat16" if name in half else dtype.name) for name, shape, dtype in infos]
            strings = dict(reader.strings)
    except LoratkError:
        return None
    return FileReport(str(path), store.name, f"no adapters: {error}", path.stat().st_size, [], None, arrays, strings)


def _module(exact: Exact, name: str, base: Base | None, spectra: bool) -> ModuleReport:
    record, held = exact.state.modules[name], exact.held[name]
    finite = all(np.isfinite(tensor).all() for tensor in held.values() if tensor.dtype.kind == "f")
    norms = {key: frobenius(tensor) for key, tensor in held.items()}
    weight = _weight(base, name)
    factors = as_factors(exact.state, name, None if weight is None else base) if finite else (record, held)
    pairs = update_pairs(*factors) if "lora_A" in factors[1] else None
    delta = seen = None
    if pairs is not None and finite and "magnitude" not in held:
        seen = spectrum(pairs) if spectra else None
        delta = norm(pairs) if seen is None else math.hypot(*seen.values)
    elif record["method"] == "diff":
        delta = norms.get("weight")
    elif finite and weight is not None and name in exact.modules:
        delta = _dense_norm(exact, name)
    elif finite:
        delta = exact.norm(name)
    return ModuleReport(
        name,
        record["method"],
        **{key: record.get(key) for key in ("layer_type", "shape", "rank", "alpha", "alpha_source", "scaling")},
        dtype=dtypes_of(record, held),
        parameters=sum(tensor.size for tensor in held.values()),
        finite=finite,
        norms=norms,
        delta_norm=delta,
        base_norm=None if weight is None else frobenius(weight),
        spectrum=seen,
    )


def _dense_norm(exact: Exact, name: str) -> float | None:
    """The norm of an update without factors, or that depends on the weight; it is as large as that, so there is room for it."""
    with suppress(LoratkError):  # it is for a weight of another shape, or changes none
        _, update = exact.update(name)
        return frobenius(update) if isinstance(update, np.ndarray) else norm(update)
    return None


def _weight(base: Base | None, module: str) -> np.ndarray | None:
    try:
        return None if base is None else base.weight(module)
    except (UnknownNameError, FormatError):  # a base without this module is no reason not to show the adapter
        return None
