"""EVA: the directions in which a layer's inputs vary most, and ranks where they vary in many."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ...errors import ConfigError
from ..settings import is_number
from .base import Gatherer, Init, Seen, Start, Started, started
from .gatherers import Principal


class Eva(Init):
    """A = the first r principal components of the layer's inputs, B = 0. Paischer et al. 2024 (EVA), section 3 and algorithm 1.

    `rho`: a layer's rank may grow to rho times the config's; over all layers the sum of ranks stays, and goes to the components that
    explain the largest shares of their layers' variance. 1 leaves the ranks as they are. A layer may end up without an adapter. The
    scaling stays what it was; the new ranks and alphas are in the config. `whiten`: components divided by the root of their singular value.
    """

    name, needs = "eva", "inputs"
    options: ClassVar[Mapping[str, Any]] = {"rho": 2.0, "whiten": False}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """An unknown one, a rho below 1, or a whiten that is no flag."""
        yield from super().option_faults(options)
        rho, whiten = (options.get(name, default) for name, default in self.options.items())
        if not is_number(rho) or not 1 <= rho < 1e6:
            yield f"rho of the init 'eva' must be a number from 1 up, found {rho!r}"
        if not isinstance(whiten, bool):
            yield f"whiten of the init 'eva' must be True or False, found {whiten!r}"

    def gather(self, d: int, k: int, rank: int, options: Mapping[str, Any]) -> Gatherer:
        """Principal components, as many as the rank may grow to."""
        return Principal(d, _most(d, k, rank, options))

    def ranks(self, seen: Mapping[str, Seen], options: Mapping[str, Any]) -> Mapping[str, int]:
        """Of all components those with the largest shares, as many as the ranks sum up to; equal ones in the layers' order, in turn.

        Raises ConfigError where there are not as many.
        """
        if options["rho"] == 1:
            return {}
        shares: list[tuple[float, int, int, str]] = []
        for place, (name, layer) in enumerate(seen.items()):
            ratios = layer.evidence.components()[2][: _most(*layer.shape, layer.rank, options)]
            shares += [(-float(ratio), number, place, name) for number, ratio in enumerate(ratios)]
        budget = sum(layer.rank for layer in seen.values())
        if len(shares) < budget:
            rows = next(iter(seen.values())).evidence.seen
            raise ConfigError(
                f"The init 'eva' needs inputs that vary in as many directions as there are ranks, {budget}; those of the layers, {rows} "
                f"rows of data in {next(iter(seen))!r}, vary in {len(shares)}. Give more data, or lower ranks."
            )
        kept = [name for *_, name in sorted(shares)[:budget]]
        return {name: kept.count(name) for name in seen}

    def start(self, start: Start) -> Started:
        """lora_A (d, r) of orthonormal columns, lora_B (r, k) zero. Raises ConfigError where the inputs span less."""
        directions, values, _ = start.evidence.components()
        if len(values) < start.rank:
            raise ConfigError(
                f"the init 'eva' at rank {start.rank} needs inputs that vary in as many directions; the {start.evidence.seen} rows of data "
                f"vary in {len(values)}. Give more data, or a lower rank"
            )
        a = directions[: start.rank].T
        return started(start, a / values[: start.rank] ** 0.5 if start.options["whiten"] else a)


def _most(d: int, k: int, rank: int, options: Mapping[str, Any]) -> int:
    """The rank that a layer may get at most."""
    return min(max(rank, round(rank * options["rho"])), d, k)
