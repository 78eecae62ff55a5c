"""One weight of several adapters made one by a rule: exactly, then as factors of the rank that is asked for, with how near these are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..exchange.factors import Pair
from .certificate import Entry, measured
from .deltas import Delta, cuts, vector
from .fused import HELD, Draws, Fused
from .nearest import nearest
from .ranks import Rule
from .rounding import concatenated, svd
from .rules import DenseRule, FactorRule, MergeRule, Options
from .truncation import best

Deltas = Sequence[Delta]
Weights = Sequence[float]


@dataclass(frozen=True)
class Fusing:
    """A rule with its options, the streams of random numbers of each adapter, and the rank of results."""

    rule: MergeRule
    options: Options
    draws: Sequence[Draws]
    cut: Rule

    def exactly(self, deltas: Deltas, weights: Weights, parts: int, names: tuple[str, ...], held: int = HELD) -> list[Pair] | Fused:
        """What the rule makes of the deltas of one weight: a pair for each part of its columns, or what gives its columns.

        `names` say which weight it is. `held`: the entries up to which a dense result is kept in memory.
        """
        if isinstance(self.rule, DenseRule):
            return Fused(self.rule, deltas, weights, self.options, [draws.of(*names) for draws in self.draws], held)
        if not isinstance(self.rule, FactorRule):
            raise ConfigError(f"the merge rule {self.rule.name!r} must be a FactorRule or a DenseRule, found {type(self.rule).__name__}")
        columns = zip(*(delta.parts(parts) for delta in deltas), strict=True)
        return [self._pair(list(pairs), weights) for pairs in columns]

    def array(self, arrays: Sequence[np.ndarray | None], weights: Weights, names: tuple[str, ...]) -> np.ndarray:
        """What the rule makes of arrays of one shape, as those of a weight with one output; None counts as zeros."""
        like = next(array for array in arrays if array is not None)
        deltas = [vector(np.zeros_like(like) if array is None else array) for array in arrays]
        return matrix_of(self.exactly(deltas, weights, 1, names)).reshape(like.shape)

    def factors(self, results: Sequence[list[Pair] | Fused], parts: int, limit: int, names: tuple[str, ...]) -> list[Pair]:
        """Factors of results, for a stack of experts of each, all of one rank: the part's of the first, then of the second, and so on.

        limit: the rank of dense results where no rule for ranks is given, of all parts of one together.
        """
        fused = [result for result in results if isinstance(result, Fused)]
        if not fused:
            exact = _pairs(results)
            if self.cut == Rule() and self.rule.exact:
                return _level([_possible(pair) for pair in exact])
            return best(exact, self.cut, parts)[0]
        cut = self.cut if self.cut != Rule() else Rule(rank=max(limit, parts))
        return nearest(fused, cut, Draws(self.draws[0].seed, ("sketch", *names)).generator(), parts)

    def _pair(self, pairs: Sequence[Pair], weights: Weights) -> Pair:
        assert isinstance(self.rule, FactorRule)
        a, b = self.rule.merge(pairs, weights, self.options)
        want = len(pairs[0][0]), pairs[0][1].shape[1]
        if (len(a), b.shape[1]) != want or a.shape[1] != len(b):
            raise ConfigError(f"the merge rule {self.rule.name!r} must give factors of a {want} matrix, found {a.shape} and {b.shape}")
        return a, b


def entry(results: Sequence[list[Pair] | Fused], got: Sequence[Pair], parts: int, rank: int) -> Entry:
    """How near factors are to what a rule exactly gives: from the factors, or of a dense result from its columns."""
    fused = [result for result in results if isinstance(result, Fused)]
    if not fused:
        return measured(_pairs(results), got, rank)
    norms = [0.0, 0.0, 0.0]
    for place, result in enumerate(fused):
        mine = _delta(got[place * parts : (place + 1) * parts])
        for columns, exact in result.columns():
            norms = _grown(norms, exact, mine.columns(columns.start, columns.stop))
    return _entry(norms, rank)


def sum_entry(deltas: Sequence[Deltas], weights: Weights, got: Sequence[Pair], parts: int, rank: int) -> Entry:
    """How near factors are to the weighted sum of the deltas, for each expert: from the factors where all deltas have some."""
    if all(delta.matrix is None for each in deltas for delta in each):
        exact = [concatenated(list(pairs), weights) for each in deltas for pairs in zip(*(one.pairs for one in each), strict=True)]
        return measured(exact, got, rank)
    norms = [0.0, 0.0, 0.0]
    for place, each in enumerate(deltas):
        mine = _delta(got[place * parts : (place + 1) * parts])
        for start, stop in cuts(mine.d, mine.k):
            norms = _grown(norms, sum_of(each, weights, start, stop), mine.columns(start, stop))
    return _entry(norms, rank)


def sum_of(deltas: Deltas, weights: Weights, start: int, stop: int) -> np.ndarray:
    """Some columns of the weighted sum."""
    return np.asarray(sum(weight * delta.columns(start, stop) for delta, weight in zip(deltas, weights, strict=True)))


def matrix_of(result: list[Pair] | Fused) -> np.ndarray:
    """What a rule made of one weight, as a matrix (d, k)."""
    return result.matrix() if isinstance(result, Fused) else np.hstack([a @ b for a, b in result])


def _pairs(results: Sequence[list[Pair] | Fused]) -> list[Pair]:
    return [pair for result in results if not isinstance(result, Fused) for pair in result]


def _delta(pairs: Sequence[Pair]) -> Delta:
    return Delta(len(pairs[0][0]), sum(b.shape[1] for _, b in pairs), pairs)


def _possible(pair: Pair) -> Pair:
    """A pair as it is, or of the rank that its product can have at most."""
    most = min(len(pair[0]), pair[1].shape[1])
    return svd(pair).pair(most) if pair[0].shape[1] > most else pair


def _level(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs filled up with zeros to one rank."""
    rank = max(len(b) for _, b in pairs)
    return [(np.pad(a, ((0, 0), (0, rank - len(b)))), np.pad(b, ((0, rank - len(b)), (0, 0)))) for a, b in pairs]


def _grown(norms: Sequence[float], exact: np.ndarray, got: np.ndarray) -> list[float]:
    """The norms of what is exact, of what is there, and of their difference, with some more columns."""
    return [math.hypot(norm, float(np.linalg.norm(block))) for norm, block in zip(norms, (exact, got, got - exact), strict=True)]


def _entry(norms: Sequence[float], rank: int) -> Entry:
    exact, got, apart = norms
    error = apart / exact if exact else math.inf if apart else 0.0
    return Entry(rank, error, (got / exact) ** 2 if exact else 1.0, exact)
