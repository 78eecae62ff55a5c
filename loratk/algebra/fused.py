"""The deltas of several adapters made one by a dense rule, some columns at a time, with random numbers that belong to the entries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .deltas import Delta, cuts
from .rules import Columns, DenseRule, Options

HELD = 1 << 25
"""Entries up to which a merged delta is kept (256 MiB); a larger one is made anew, some columns at a time, in each pass over it."""


@dataclass(frozen=True)
class Draws:
    """Where random numbers come from: a stream for each name, whatever is drawn from others and in which order."""

    seed: int
    names: tuple[str, ...] = ()

    def of(self, *names: str) -> Draws:
        """Those of something within."""
        return Draws(self.seed, self.names + names)

    def generator(self, skip: int = 0) -> np.random.Generator:
        """A generator of this stream, `skip` numbers on."""
        digest = hashlib.sha256("\0".join(self.names).encode("utf-8", "surrogatepass")).digest()
        bits = np.random.PCG64([self.seed, *np.frombuffer(digest, "<u4").tolist()])
        return np.random.Generator(bits.advance(skip))


class Fused:
    """What a rule makes of the deltas of one weight (d, k)."""

    def __init__(
        self,
        rule: DenseRule,
        deltas: Sequence[Delta],
        weights: Sequence[float],
        options: Options,
        draws: Sequence[Draws],
        held: int = HELD,
    ) -> None:
        """`draws`: those of each adapter for this weight. `held`: the entries up to which the result is kept in memory."""
        self.d, self.k = deltas[0].d, deltas[0].k
        self._rule, self._deltas, self._weights, self._options, self._draws = rule, deltas, weights, options, draws
        self._prepared = [rule.prepare(delta.passes, (self.d, self.k), options) for delta in deltas]
        self._matrix = self._filled() if self.d * self.k <= held else None

    @property
    def held(self) -> bool:
        """Whether it is kept in memory."""
        return self._matrix is not None

    def columns(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All columns from the first to the last, some at a time, and where they belong."""
        if self._matrix is None:
            yield from self._made()
            return
        for start, stop in cuts(self.d, self.k):
            yield slice(start, stop), self._matrix[:, start:stop]

    def matrix(self) -> np.ndarray:
        """All of it, (d, k)."""
        return self._matrix if self._matrix is not None else self._filled()

    def _filled(self) -> np.ndarray:
        matrix = np.empty((self.d, self.k))
        for place, block in self._made():
            matrix[:, place] = block
        return matrix

    def _made(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start, stop in cuts(self.d, self.k):
            given = []
            for delta, prepared, draws in zip(self._deltas, self._prepared, self._draws, strict=True):

                def draw(draws: Draws = draws, start: int = start, stop: int = stop) -> np.ndarray:
                    return draws.generator(start * self.d).random((stop - start, self.d)).T

                given.append(Columns(delta.columns(start, stop), start, prepared, draw))
            block = np.asarray(self._rule.merge(given, self._weights, self._options), np.float64)
            if block.shape != (self.d, stop - start):
                raise ConfigError(f"the merge rule {self._rule.name!r} must give {(self.d, stop - start)} columns, found {block.shape}")
            yield slice(start, stop), block
