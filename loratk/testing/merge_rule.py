"""The contract of a merge rule: options that are checked, nothing changed, and a result that the deltas alone decide."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..algebra.rules import Columns, DenseRule, FactorRule, MergeRule
from ..errors import ConfigError

SIZES = ((7, 9), (8, 1), (1, 6))
"""Weights (d, k) to merge: also a bias, which is a weight of one output."""
RANKS = (2, 3, 1)
WEIGHTS = (0.5, 1.0, 2.0)
TOLERANCE = 1e-9


def check_merge_rule(rule: MergeRule, *, options: Mapping[str, Any] | None = None, weights: Sequence[float] = WEIGHTS) -> None:
    """Raise AssertionError with the first promise of `MergeRule` that is broken, with these options and weights of three adapters.

    The result must be the same whatever factors a delta has, so a rule on factors that mixes those of two adapters fails; it must be the
    same whatever columns come together; and adapters that add nothing must make nothing.
    """
    assert isinstance(rule, FactorRule | DenseRule), f"A merge rule must be a FactorRule or a DenseRule, found {type(rule).__name__}."
    for key in ("name", "title"):
        assert isinstance(getattr(rule, key, None), str), f"A merge rule needs a {key}, found {getattr(rule, key, None)!r}."
    assert len(weights) == len(RANKS), f"The check needs {len(RANKS)} weights, found {len(weights)}."
    settled = _check_options(rule, dict(options or {}))
    found = list(rule.weight_faults(weights, settled))
    assert not found, f"weight_faults() must accept the weights {tuple(weights)}, found {found}."
    for size in SIZES:
        case = _Case(rule, settled, weights, size)
        if isinstance(rule, FactorRule):
            case.check_factors(rule)
        else:
            case.check_columns(rule)


def _check_options(rule: MergeRule, options: dict[str, Any]) -> dict[str, Any]:
    """All options; unknown ones are refused, and text means what the value does."""
    try:
        rule.settled({})
        settled = rule.settled(options)
        again = rule.settled({name: str(value) for name, value in settled.items()})
    except ConfigError as error:
        raise AssertionError(f"settled() must accept the defaults, {options}, and both as text: {error}") from error
    assert again == settled, f"settled() must make the same of text, found {again} and {settled}."
    try:
        rule.settled({"no such option": 1})
    except ConfigError:
        return settled
    raise AssertionError("settled() must refuse an option that the rule does not have.")


@contextmanager
def _unchanged() -> Iterator[None]:
    """While it runs, writing into an array that is given is an AssertionError."""
    try:
        yield
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise AssertionError("merge() must not change what it is given; copy it first.") from error


class _Case:
    """Three adapters on one weight, by factors and dense, and the same numbers drawn for each entry."""

    def __init__(self, rule: MergeRule, options: dict[str, Any], weights: Sequence[float], size: tuple[int, int]) -> None:
        rng = np.random.default_rng(0)
        self.rule, self.options, self.weights, (self.d, self.k) = rule, options, weights, size
        self.pairs = [(rng.standard_normal((self.d, rank)), rng.standard_normal((rank, self.k))) for rank in RANKS]
        self.numbers = [rng.random(size) for _ in RANKS]
        self.deltas = [a @ b for a, b in self.pairs]

    def check_factors(self, rule: FactorRule) -> None:
        """Shapes, inputs, and that factors of the same deltas give the same."""
        got = self._factors(rule, self.pairs)
        self._check(got)
        rng = np.random.default_rng(1)
        turned = []
        for a, b in self.pairs:
            mix = rng.standard_normal((len(b), len(b))) + 3 * np.eye(len(b))
            turned.append((a @ mix, np.linalg.solve(mix, b)))
        self._close(self._factors(rule, turned), got, "The merged delta must not depend on how a delta is made of factors")
        zeros = [(np.zeros_like(a), b) for a, b in self.pairs]
        self._close(self._factors(rule, zeros), np.zeros_like(got), "Adapters that add nothing must make nothing")

    def _factors(self, rule: FactorRule, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        for pair in pairs:
            for factor in pair:
                factor.setflags(write=False)
        with _unchanged():
            a, b = rule.merge(pairs, self.weights, self.options)
        assert (len(a), b.shape[1], a.shape[1]) == (self.d, self.k, len(b)), (
            f"merge() must give factors ({self.d}, r) and (r, {self.k}), found {a.shape} and {b.shape}."
        )
        return np.asarray(a @ b)

    def check_columns(self, rule: DenseRule) -> None:
        """Shapes, inputs, and that any cut of the columns gives the same."""
        got = self._columns(rule, self.deltas, self.k)
        self._check(got)
        for width in (1, 4):
            self._close(
                self._columns(rule, self.deltas, width), got, f"The merged delta must not depend on the columns given at once ({width})"
            )
        zeros = [np.zeros_like(delta) for delta in self.deltas]
        self._close(self._columns(rule, zeros, self.k), np.zeros_like(got), "Adapters that add nothing must make nothing")

    def _columns(self, rule: DenseRule, deltas: Sequence[np.ndarray], width: int) -> np.ndarray:
        starts = range(0, self.k, width)
        for delta in deltas:
            delta.setflags(write=False)
        prepared = [
            rule.prepare(lambda delta=delta: (delta[:, s : s + width] for s in starts), delta.shape, self.options)  # type: ignore[misc]
            for delta in deltas
        ]
        blocks = []
        for start in starts:
            columns = [
                Columns(delta[:, start : start + width], start, known, lambda numbers=numbers, s=start: numbers[:, s : s + width])  # type: ignore[misc]
                for delta, known, numbers in zip(deltas, prepared, self.numbers, strict=True)
            ]
            with _unchanged():
                blocks.append(rule.merge(columns, self.weights, self.options))
            want = columns[0].values.shape
            assert blocks[-1].shape == want, f"merge() must give columns of the shape {want}, found {blocks[-1].shape}."
        return np.hstack(blocks)

    def _check(self, got: np.ndarray) -> None:
        assert np.isfinite(got).all(), "The merged delta must be finite."

    def _close(self, got: np.ndarray, want: np.ndarray, what: str) -> None:
        apart = float(np.abs(got - want).max())
        assert apart <= TOLERANCE * max(1.0, float(np.abs(want).max())), f"{what}; they differ by up to {apart:.3g}."
