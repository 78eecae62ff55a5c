"""Initialisations by the weight alone: its singular vectors, or its QR decomposition. W is (d, k), input first."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from .base import Init, Start, Started, started
from .svd import halves, niter_faults, scaling_faults, svd


class Pissa(Init):
    """The principal part of the weight trains: scaling A B is the best approximation of W of rank r, and is taken off the base.

    With W = U S V^T: A = U_r sqrt(S_r / scaling), B = sqrt(S_r / scaling) V_r^T. Meng et al. 2024 (PiSSA), eq. 2 to 4. `niter`: None for
    the exact decomposition, else how often random projections are sharpened (section 3 there, "fast SVD").
    """

    name, moves_base = "pissa", True
    options: ClassVar[Mapping[str, Any]] = {"niter": None}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """An unknown one, or a niter that is no count."""
        yield from super().option_faults(options)
        yield from niter_faults(self.name, options.get("niter"))

    def layer_faults(self, d: int, k: int, rank: int, scaling: float, options: Mapping[str, Any]) -> Iterator[str]:
        """A scaling of 0."""
        yield from scaling_faults(self.name, scaling)

    def start(self, start: Start) -> Started:
        """lora_A (d, r), lora_B (r, k): the r largest singular values, half in each."""
        r = start.rank
        u, s, v = svd(start.weight, r, start.options["niter"], start.rng)
        return started(start, *halves(u[:, :r], s[:r], v[:r], start.scaling, s[0]))


class Olora(Init):
    """Orthonormal rows in B: with W^T = Q R, A = R_r^T and B = Q_r^T, and scaling A B is taken off. Buyukakyuz 2024 (OLoRA), section 3."""

    name, moves_base = "olora", True

    def start(self, start: Start) -> Started:
        """lora_A (d, r), lora_B (r, k): the first r directions of the QR decomposition."""
        q, r = np.linalg.qr(start.weight.astype(np.float64).T)
        return started(start, r[: start.rank].T, q[:, : start.rank].T)


class Mica(Init):
    """Only A trains, from 0, and writes into the directions that the weight uses least: B is the last r of V^T in W = U S V^T, frozen.

    MiCA (2026, arXiv 2604.01694), as PEFT 0.21 does it.
    """

    name = "mica"

    def start(self, start: Start) -> Started:
        """lora_A (d, r) zero, lora_B (r, k) the singular vectors of the smallest singular values."""
        _, _, v = svd(start.weight, start.rank)
        return started(start, np.zeros((len(start.weight), start.rank)), v[-start.rank :])

    def frozen(self, options: Mapping[str, Any]) -> frozenset[str]:
        """B."""
        return frozenset({"lora_B"})
