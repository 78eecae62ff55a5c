"""Two updates of one weight beside each other: what they add up to, and how much of their spaces they share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..exchange.factors import frobenius
from .angles import principal_angles, shared_energy
from .rounding import Svd
from .updates import Update

Bases = list[np.ndarray]


@dataclass(frozen=True)
class Sum:
    """Two updates and their sum. norms: Frobenius. cosine: of the angle between them as vectors, None where one is zero.

    norm: ||a + b||. interference: (||a + b||^2 - ||a||^2 - ||b||^2) / (||a||^2 + ||b||^2), from -1 (they cancel) over 0 (they do not touch)
    to 1 (they are the same, and their sum has twice the energy).
    """

    norms: tuple[float, float]
    cosine: float | None
    norm: float
    interference: float


@dataclass(frozen=True)
class SharedSpace:
    """The spaces that two updates read (of inputs) or write (of outputs), all parts of the updates together.

    dimensions: of both. angles: principal angles in radians, rising. phi: phi(n, n) of Hu et al. 2021, eq. 4, of the n leading directions
    of both, for n = 1, 2, ... similarity: phi of the whole spaces, from 0 (orthogonal) to 1 (one contains the other). shares: the share of
    the first's energy that lies in the space of the second, and the other way round.
    """

    dimensions: tuple[int, int]
    angles: list[float]
    phi: list[float]
    similarity: float
    shares: tuple[float, float]


def added(one: Update, two: Update) -> Sum:
    """What two updates with equal parts add up to, from their decompositions, in O((d + k) r^2) a part.

    b = U_b S_b V_b^T is taken apart into what lies within the spaces of a, P S_b Q^T with P = U_a^T U_b and Q = V_a^T V_b, and what does
    not, so that the norm of a sum that nearly cancels is as accurate as the factors.
    """
    scale = max(one.norm, two.norm)
    if not scale:
        return Sum((0.0, 0.0), None, 0.0, 0.0)
    inner, outside = [], []
    for a, b in zip(one.parts, two.parts, strict=True):
        p, q = a.u.T @ b.u, a.v @ b.v.T
        values, others = a.s / scale, b.s / scale
        within = (p * others) @ q.T
        inner.append(float(np.sum(values * np.diagonal(within))))
        outside += [
            frobenius(within + np.diag(values)), frobenius((p * others) @ (b.v.T - a.v.T @ q).T), frobenius((b.u - a.u @ p) * others),
        ]  # fmt: skip
    norms, product, total = (one.norm / scale, two.norm / scale), math.fsum(inner), math.hypot(*outside)
    cosine = None if not norms[0] or not norms[1] else max(-1.0, min(1.0, product / norms[0] / norms[1]))
    return Sum((one.norm, two.norm), cosine, total * scale, 2 * product / (norms[0] ** 2 + norms[1] ** 2))


def shared_spaces(one: Update, two: Update) -> tuple[SharedSpace, SharedSpace]:
    """What two updates with equal parts share of the inputs, and of the outputs."""
    sides = []
    for side in (0, 1):
        bases = [space[side] for space in one.spaces], [space[side] for space in two.spaces]
        shares = _share(one, bases[1], side), _share(two, bases[0], side)
        sides.append(_shared(*bases, shares))
    return sides[0], sides[1]


def shares_of_both(one: Update, two: Update) -> tuple[float, float]:
    """The share of each one's energy that lies in both of the other's spaces: what a matrix of the other's spaces could undo."""
    pairs = [(two.spaces, one), (one.spaces, two)]
    found = []
    for spaces, update in pairs:
        kept = [
            frobenius(((u.T @ part.u) * part.s) @ (part.v @ v)) for (u, v), part in zip(spaces, update.parts, strict=True)
        ]  # fmt: skip
        found.append(_square(math.hypot(*kept), update.norm))
    return found[0], found[1]


def _share(update: Update, bases: Bases, side: int) -> float:
    """The share of an update's energy that lies in spaces of inputs (side 0) or outputs (side 1)."""
    kept = [frobenius(basis.T @ _side(part, side) * part.s) for basis, part in zip(bases, update.parts, strict=True)]
    return _square(math.hypot(*kept), update.norm)


def _side(part: Svd, side: int) -> np.ndarray:
    return part.u if side == 0 else part.v.T


def _square(kept: float, whole: float) -> float:
    return min(1.0, (kept / whole) ** 2) if whole else 0.0


def _shared(left: Bases, right: Bases, shares: tuple[float, float]) -> SharedSpace:
    angles = np.sort(np.concatenate([principal_angles(a, b) for a, b in zip(left, right, strict=True)]))
    sizes = [(a.shape[1], b.shape[1]) for a, b in zip(left, right, strict=True)]
    energies = [shared_energy(a, b) for a, b in zip(left, right, strict=True)]
    phi = []
    for n in range(1, max(min(pair) for pair in sizes) + 1):
        parts = [(energy[min(n, i) - 1, min(n, j) - 1], min(n, i, j)) for energy, (i, j) in zip(energies, sizes, strict=True) if i and j]
        phi.append(float(sum(energy for energy, _ in parts) / sum(least for _, least in parts)))
    least = sum(min(pair) for pair in sizes)
    whole = sum(float(energy[-1, -1]) for energy in energies if energy.size)
    return SharedSpace(
        (sum(i for i, _ in sizes), sum(j for _, j in sizes)), angles.tolist(), [min(1.0, value) for value in phi],
        min(1.0, whole / least) if least else 0.0, shares,
    )  # fmt: skip
