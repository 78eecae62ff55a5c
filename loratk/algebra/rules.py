"""The contract of a merge rule: how the updates that several adapters make to one weight become one.

A rule sees true deltas: what each adapter adds to a weight (d, k), its scaling applied, in float64. It never sees the factors of two
adapters mixed, so it cannot make cross terms. Which modules, weights and files there are, and how the result becomes LoRA again, is not
its business. A rule that works on the factors costs O((d + k) r) numbers; one that needs the entries is given them some columns at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError, choices, faults
from ..exchange.factors import Pair
from ..io.store import Option

Options = Mapping[str, Any]
Passes = Callable[[], Iterator[np.ndarray]]
"""Starts one pass over a delta: its columns from the first to the last, (d, some) at a time."""
YES_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class MergeRule(ABC):
    """What all rules have. Derive from FactorRule or DenseRule, and give the class variables; options are checked before all else."""

    name: ClassVar[str]
    """Its key among the registered rules: what `--rule` says."""
    title: ClassVar[str]
    """What it does, in a line."""
    options: ClassVar[Mapping[str, Option]] = {}
    """Its own options by name, with defaults; the type of a default (number, yes or no, text) is that of the option."""
    exact: ClassVar[bool] = True
    """Whether its result stays as it is where no rank, energy or error is asked for; else the least rank that loses nothing is taken."""

    def option_faults(self, options: Options) -> Iterator[str]:
        """What is wrong with the values of all its options, which have the right types, a line each."""
        return iter(())

    def weight_faults(self, weights: Sequence[float], options: Options) -> Iterator[str]:
        """What is wrong with the adapters' weights of one module, a line each. They are finite."""
        return iter(())

    def settled(self, given: Options) -> dict[str, Any]:
        """All options, those not given by their defaults, text from a command line as what it means.

        Raises ConfigError that lists every one that is unknown, of the wrong type, or out of its bounds.
        """
        found = [f"there is no option {name!r}; its options: {choices(self.options)}" for name in given if name not in self.options]
        values = {name: option.default for name, option in self.options.items()}
        for name in self.options.keys() & given.keys():
            try:
                values[name] = _typed(given[name], values[name])
            except ValueError as error:
                found.append(f"{name} must be {error}, found {given[name]!r}")
        if found := found or list(self.option_faults(values)):
            raise ConfigError(faults(f"The merge rule {self.name!r} cannot work with these options:", sorted(found)))
        return values


class FactorRule(MergeRule):
    """A rule on factors: no delta is ever formed."""

    @abstractmethod
    def merge(self, pairs: Sequence[Pair], weights: Sequence[float], options: Options) -> Pair:
        """Factors of the merged delta from those of each adapter's, (d, r_i), (r_i, k), and the adapters' weights; exact.

        An adapter that does not have the module comes with zeros. Do not change what is given.
        """


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of one adapter's delta, from column `start` on.

    values: (d, width), float64; not to be changed. prepared: what the rule's `prepare` said of this delta. draw: uniform numbers in
    [0, 1), one for each entry, (d, width): the same for the same entry however often and in whatever order they are drawn.
    """

    values: np.ndarray
    start: int
    prepared: Any
    draw: Callable[[], np.ndarray]


class DenseRule(MergeRule):
    """A rule on entries."""

    def prepare(self, passes: Passes, shape: tuple[int, int], options: Options) -> Any:
        """What must be known of an adapter's whole delta (d, k) first, such as a threshold; handed on in `Columns.prepared`.

        Each call of `passes` goes over all columns once.
        """
        return None

    @abstractmethod
    def merge(self, columns: Sequence[Columns], weights: Sequence[float], options: Options) -> np.ndarray:
        """The merged delta's columns (d, width) from the same ones of each adapter, and the adapters' weights.

        An adapter that does not have the module comes with zeros. The result must not depend on how the columns are cut up.
        """


def weight_sum_faults(weights: Sequence[float], options: Options) -> Iterator[str]:
    """For rules with `normalize`: weights whose sum is 0."""
    if options["normalize"] and not abs(sum(weights)) > 1e-9 * sum(map(abs, weights)):
        yield f"the weights {', '.join(f'{weight:g}' for weight in weights)} have the sum 0, so nothing can be divided by it (normalize)"


def _typed(value: Any, default: Any) -> Any:
    """A value as the type of the default. Raises ValueError that says what is wanted."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in YES_NO:
            return YES_NO[value.lower()]
        raise ValueError("yes or no")
    if isinstance(default, int | float):
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number) or (isinstance(default, int) and number != int(number)):
            raise ValueError("a whole number" if isinstance(default, int) else "a finite number")
        return type(default)(number)
    if not isinstance(value, str):
        raise ValueError("a word")
    return value
