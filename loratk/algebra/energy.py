"""Where an adapter's update is large: the energy, the squared norm, by layer, by kind of layer and by block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..exchange.spectrum import Spectrum
from .intruders import Intruders


@dataclass(frozen=True)
class LayerEnergy:
    """One module: the norm of its update, the share of the adapter's energy in it, and what its singular values say.

    kind: its path without the number of its block. spectrum.values are the singular values. intruders: None without a base that has the
    weight.
    """

    name: str
    kind: str
    block: str
    method: str
    shape: list[int]
    norm: float
    share: float
    spectrum: Spectrum
    intruders: Intruders | None = None

    @property
    def zero(self) -> bool:
        """Whether it adds nothing."""
        return self.norm == 0


@dataclass(frozen=True)
class AdapterEnergy:
    """One adapter: the norm of all updates together, the layers, and the shares of the energy by kind of layer and by block.

    not_measured: why, by module, nothing is known of an update. no_intruders: why, by module, no intruders were looked for, with a base.
    biases: modules that change a bias, which is no part of the report. path: the file it came from, "" for a state.
    """

    label: str
    name: str
    path: str
    fingerprint: str
    norm: float
    layers: list[LayerEnergy]
    kinds: dict[str, float]
    blocks: dict[str, float]
    not_measured: dict[str, str] = field(default_factory=dict)
    no_intruders: dict[str, str] = field(default_factory=dict)
    biases: list[str] = field(default_factory=list)

    @property
    def zero(self) -> list[str]:
        """The modules whose update is zero."""
        return [layer.name for layer in self.layers if layer.zero]

    @property
    def spikes(self) -> list[str]:
        """The modules whose update is nearly one direction, though its rank allows more."""
        return [layer.name for layer in self.layers if layer.spectrum.spike]

    @property
    def intruders(self) -> int | None:
        """How many intruders all layers have; None where none were looked for."""
        counts = [layer.intruders.count for layer in self.layers if layer.intruders is not None]
        return sum(counts) if counts else None


def kind_of(path: str) -> str:
    """A module's path without the number of its block: all layers of a kind have it in common. A path of numbers alone is its own kind."""
    return ".".join(part for part in path.split(".") if not part.isdecimal()) or path


def block_of(path: str) -> str:
    """A module's path up to the first number in it, such as "model.layers.3"; the whole path where there is none."""
    parts = path.split(".")
    ends = [place + 1 for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: ends[0]] if ends else parts)


def shares_by(layers: list[LayerEnergy], key: str) -> dict[str, float]:
    """The share of the energy by "kind" or "block", in the order of the layers."""
    found: dict[str, list[float]] = {}
    for layer in layers:
        found.setdefault(getattr(layer, key), []).append(layer.share)
    return {name: math.fsum(shares) for name, shares in found.items()}


def energy_shares(norms: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The norm of all together, and each one's share of the energy; 0 where all are zero."""
    whole = math.hypot(*norms.values())
    return whole, {name: (norm / whole) ** 2 if whole else 0.0 for name, norm in norms.items()}
