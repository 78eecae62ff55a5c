"""Do adapters get in each other's way: the report behind `loratk compare`, from files alone and in factor space."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, LoratkError, choices
from ..exchange import AdapterState, Base
from ..exchange.base import opened_base
from ..exchange.spectrum import spectrum_of
from ..plugins import Registry, default_registry
from .energy import AdapterEnergy, LayerEnergy, block_of, energy_shares, kind_of, shares_by
from .exact import weight_of
from .intruders import LEADING, THRESHOLD, Intruders, Pretrained, check_leading
from .overlap import added, shared_spaces, shares_of_both
from .plan import Plan, planned
from .report import Interference, ModuleInterference, pair_of
from .signs import conflicts, sign_samples
from .sources import Source, gather
from .updates import Update, Updates, disagreements

Track = Callable[[Sequence[str], str], Iterable[str]]


def compare(
    adapters: Sequence[str | Path | AdapterState],
    *,
    names: Collection[str] = (),
    base: str | Path | Base | None = None,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
    intruders: bool = True,
    leading: int = LEADING,
    threshold: float = THRESHOLD,
    seed: int = 0,
    registry: Registry | None = None,
    track: Track = lambda items, what: items,
) -> Interference:
    """How two or more adapters, files of any format or states, lie to each other: module by module, in O((d + k) r^2).

    names: of the adapters that are wanted, where a file has several. base: the weights they were trained on, for methods whose update
    depends on them, and to look for `intruders` among the `leading` singular vectors of each weight, those with no cosine of at least
    `threshold`; this and those methods take decompositions of dense matrices, one at a time. format, options, rename: as `load_adapter`
    has them, for all files. seed: of the entries whose signs are looked at. track: is given module names and a few words, and yields the
    names: for a progress bar. What cannot be compared is named with the reason. Raises as `load_adapter` does, and ConfigError for fewer
    than two.
    """
    registry = registry or default_registry()
    check_leading(leading, threshold)
    with opened_base(base, registry.stores) as opened:
        sources, notes = _sources(adapters, registry, opened, names, format, options, rename)
        making = _Making(sources, registry, opened, intruders, leading, threshold, seed)
        for module in track(making.modules, "comparing"):
            making.add(module)
        return making.report(notes)


def plan(
    adapters: Sequence[str | Path | AdapterState],
    *,
    names: Collection[str] = (),
    base: str | Path | Base | None = None,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
    intruders: bool = True,
    registry: Registry | None = None,
) -> Plan:
    """What `compare` would compare; the arguments are its own."""
    registry = registry or default_registry()
    with opened_base(base, registry.stores) as opened:
        sources, notes = _sources(adapters, registry, opened, names, format, options, rename)
        return planned(sources, notes, registry, opened, intruders)


def _sources(
    adapters: Sequence[str | Path | AdapterState],
    registry: Registry,
    base: Base | None,
    names: Collection[str],
    format: str | None,
    options: Mapping[str, Any] | None,
    rename: Mapping[str, str] | None,
) -> tuple[list[Source], list[str]]:
    sources, notes = gather(adapters, registry, adapters=names, base=base, format=format, options=options, rename=rename)
    if len(sources) < 2:
        raise ConfigError(f"a comparison needs at least two adapters, found {choices(source.label for source in sources)}")
    return sources, [*notes, *_cautions(sources)]


def _cautions(sources: Sequence[Source]) -> list[str]:
    """Adapters that say of themselves that they are for different bases."""
    bases: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        if source.state.fingerprint:
            bases[source.state.fingerprint].append(source.label)
    if len(bases) < 2:
        return []
    told = "; ".join(f"{choices(labels)} for {fingerprint[:12]}..." for fingerprint, labels in bases.items())
    return [f"they were made for different bases ({told}): what they share may mean nothing"]


class _Making:
    """The report while it is made: one module of all adapters at a time, so that no more of them is in memory."""

    def __init__(
        self, sources: Sequence[Source], registry: Registry, base: Base | None, intruders: bool, leading: int, threshold: float, seed: int
    ) -> None:
        self.sources, self.base, self.leading, self.threshold, self.seed = sources, base, leading, threshold, seed
        self.intruders = intruders and base is not None
        self.updates = [Updates(source.state, registry, base) for source in sources]
        self.modules = list(dict.fromkeys(module for updates in self.updates for module in updates.modules))
        self.layers: list[list[LayerEnergy]] = [[] for _ in sources]
        self.reasons: list[dict[str, str]] = [{} for _ in sources]
        self.no_intruders: list[dict[str, str]] = [{} for _ in sources]
        self.pairs: dict[tuple[int, int], list[ModuleInterference]] = {pair: [] for pair in combinations(range(len(sources)), 2)}

    def add(self, module: str) -> None:
        """Measure a module of each adapter that has it, and compare each two."""
        found: dict[int, Update] = {}
        for number, updates in enumerate(self.updates):
            if module in updates:
                try:
                    found[number] = updates.of(module, d=self._inputs(module))
                except LoratkError as error:
                    self.reasons[number][module] = str(error)
        looked_for = self._intruders(module, found) if self.intruders else {}
        for number, update in found.items():
            self.layers[number].append(self._layer(number, module, update, looked_for.get(number)))
        signs = self._signs(module, found)
        for one, two in self.pairs:
            if module in self.updates[one] and module in self.updates[two]:
                self.pairs[one, two].append(self._pair(module, one, two, found, signs))

    def report(self, notes: list[str]) -> Interference:
        """What was found."""
        adapters = []
        for number, source in enumerate(self.sources):
            whole, shares = energy_shares({layer.name: layer.norm for layer in self.layers[number]})
            layers = [replace(layer, share=shares[layer.name]) for layer in self.layers[number]]
            adapters.append(
                AdapterEnergy(
                    source.label, source.state.name, source.path, source.state.fingerprint, whole, layers, shares_by(layers, "kind"),
                    shares_by(layers, "block"), self.reasons[number], self.no_intruders[number], self.updates[number].biases(),
                )
            )  # fmt: skip
        pairs = []
        for (one, two), modules in self.pairs.items():
            alone = [[name for name in mine.modules if name not in other]
                     for mine, other in ((self.updates[one], self.updates[two]), (self.updates[two], self.updates[one]))]  # fmt: skip
            pairs.append(pair_of(adapters[one], adapters[two], modules, alone[0], alone[1]))
        return Interference(adapters, pairs, notes)

    def _inputs(self, module: str) -> int:
        """d of a module by the first record that tells it."""
        shapes = (updates.state.modules[module].get("shape") for updates in self.updates if module in updates)
        return next((int(shape[0]) for shape in shapes if shape), 0)

    def _layer(self, number: int, module: str, update: Update, looked_for: Intruders | None) -> LayerEnergy:
        record = self.sources[number].state.modules[module]
        d, k = (sizes[0] for sizes in zip(*update.shapes, strict=True))
        shape = list(record.get("shape") or (d, k * (1 if "experts" in record else len(update.parts))))
        return LayerEnergy(
            module, kind_of(module), block_of(module), record["method"], shape, update.norm, 0.0, spectrum_of(update.values), looked_for
        )  # fmt: skip

    def _intruders(self, module: str, found: Mapping[int, Update]) -> dict[int, Intruders]:
        looked: dict[int, Intruders] = {}
        bases: dict[Any, Pretrained] = {}  # one for all adapters, unless they are for different columns of it
        for number, update in found.items():
            record = self.sources[number].state.modules[module]
            try:
                if len(update.parts) > 1:
                    raise ConfigError("its weight is several matrices")
                key = update.shapes[0], str(record.get("columns"))
                if key not in bases:
                    bases[key] = Pretrained(weight_of(self.base, module, record, update.shapes[0]))
                looked[number] = bases[key].intruders(update.parts[0], leading=self.leading, threshold=self.threshold)
            except LoratkError as error:
                self.no_intruders[number][module] = str(error)
        return looked

    def _signs(self, module: str, found: Mapping[int, Update]) -> dict[int, np.ndarray]:
        """The signs of the same entries, of those updates that have the shapes that most have."""
        groups: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for number, update in found.items():
            groups[tuple(update.shapes)].append(number)
        signs: dict[int, np.ndarray] = {}
        for numbers in groups.values():
            if len(numbers) > 1:
                signs |= dict(zip(numbers, sign_samples([found[number] for number in numbers], module, self.seed), strict=True))
        return signs

    def _pair(self, module: str, one: int, two: int, found: Mapping[int, Update], signs: Mapping[int, np.ndarray]) -> ModuleInterference:
        """A module of two adapters."""
        faults = [f"{self.sources[number].label}: {self.reasons[number][module]}" for number in (one, two) if number not in found]
        if faults:
            return ModuleInterference(module, faults)
        mine, other = found[one], found[two]
        faults = disagreements(*(self.sources[number].state.modules[module] for number in (one, two)))
        if not faults and mine.shapes != other.shapes:
            faults = [f"parts of shapes {_told(mine)} and {_told(other)}"]
        if faults:
            return ModuleInterference(module, faults)
        inputs, outputs = shared_spaces(mine, other)
        total = sum(math.prod(shape) for shape in mine.shapes)
        return ModuleInterference(
            module, [], added(mine, other), inputs, outputs, shares_of_both(mine, other), conflicts(signs[one], signs[two], total)
        )  # fmt: skip


def _told(update: Update) -> str:
    return " + ".join(f"{d}x{k}" for d, k in update.shapes[:4]) + (f" + {len(update.shapes) - 4} more" if len(update.shapes) > 4 else "")
