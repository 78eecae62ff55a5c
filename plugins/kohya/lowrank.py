"""LoHa, LoKr and Tucker-decomposed updates as plain low-rank factors, exactly: no dense matrix is made.

An update is left @ right, (k, R), (R, d), with d counted as (channels, window), as torch lays a weight out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from loratk.errors import ConfigError

Parameters = Mapping[str, np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]
LIMIT = 1 << 28
"""Numbers in the factors of one module, above which they are not made."""


def factors(method: str, held: Parameters, weight: np.ndarray | None = None) -> Pair:
    """left (k, R), right (R, d) of an update without its scaling, float64. `weight` (k, c) is the base's, which GLoRA needs.

    LoHa: R = r^2, the column-wise and row-wise Khatri-Rao products of its sides. LoKr: R the product of the ranks of its two
    factors, where a full one has its smaller side. LoCon with a core: R = r. GLoRA: R = 2 r. Raises ConfigError above LIMIT.
    """
    held = {name: array.astype(np.float64) for name, array in held.items() if array.dtype.kind == "f"}
    if method == "loha":
        (u1, v1), (u2, v2) = (_side(held[f"hada_w{n}_a"], held[f"hada_w{n}_b"], held.get(f"hada_t{n}")) for n in (1, 2))
        _check(len(u1) + v1.shape[1], u1.shape[1] * u2.shape[1])
        return (u1[:, :, None] * u2[:, None, :]).reshape(len(u1), -1), (v1[:, None] * v2[None]).reshape(-1, v1.shape[1])
    if method == "lokr":
        (u1, v1), (u2, v2) = kron_parts(held)
        _check(len(u1) * len(u2) + v1.shape[1] * v2.shape[1], u1.shape[1] * u2.shape[1])
        return np.kron(u1, u2), np.kron(v1, v2)
    if method == "glora":
        a1, a2, b1, b2 = (held[name].reshape(held[name].shape[:2]) for name in ("a1", "a2", "b1", "b2"))
        assert weight is not None
        return np.hstack([b1, weight.astype(np.float64) @ a1]), np.vstack([b2, a2])
    up, down = (held[name].reshape(held[name].shape[0], -1) for name in ("lora_up", "lora_down"))
    return up, _contracted(held["lora_mid"], down)


def truncated(left: np.ndarray, right: np.ndarray, rank: int) -> tuple[Pair, float]:
    """The best pair of a rank for left @ right, and the share of its norm that is lost: by QR of both and the SVD of what is between."""
    (q, s), (p, t) = np.linalg.qr(left), np.linalg.qr(right.T)
    u, values, v = np.linalg.svd(s @ t.T)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    whole = float(np.linalg.norm(values))
    return (q @ (u[:, :kept] * root), (root[:, None] * v[:kept]) @ p.T), float(np.linalg.norm(values[kept:])) / whole if whole else 0.0


def kron_truncated(held: Parameters, rank: int) -> tuple[Pair, float]:
    """The best pair of a rank for a LoKr update, and the share lost: the singular values of a Kronecker product are those products."""
    held = {name: array.astype(np.float64) for name, array in held.items() if array.dtype.kind == "f"}
    p1, p2 = (truncated(*part, part[0].shape[1])[0] for part in kron_parts(held))
    norms = [np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=1) for left, right in (p1, p2)]
    products = np.outer(*norms).ravel()
    chosen = np.argsort(-products, kind="stable")[:rank]
    first, second = np.unravel_index(chosen, (len(norms[0]), len(norms[1])))
    _check(len(p1[0]) * len(p2[0]) + p1[1].shape[1] * p2[1].shape[1], len(chosen))
    left = (p1[0][:, None, first] * p2[0][None, :, second]).reshape(-1, len(chosen))
    right = (p1[1][first][:, :, None] * p2[1][second][:, None, :]).reshape(len(chosen), -1)
    whole = float(np.linalg.norm(products))
    lost = float(np.linalg.norm(np.delete(products, chosen)))
    return (left, right), lost / whole if whole else 0.0


def kron_parts(held: Parameters) -> tuple[Pair, Pair]:
    """The two factors of a LoKr update, each as a low-rank pair; a full one is itself times the identity on its smaller side."""
    first = _split(held["lokr_w1"]) if "lokr_w1" in held else (held["lokr_w1_a"], held["lokr_w1_b"])
    if "lokr_w2" in held:
        return first, _split(held["lokr_w2"].reshape(len(held["lokr_w2"]), -1))
    return first, _side(held["lokr_w2_a"], held["lokr_w2_b"], held.get("lokr_t2"))


def _side(a: np.ndarray, b: np.ndarray, core: np.ndarray | None) -> Pair:
    """a @ b as it is, and with a core (r, r, *window) of factors a (r, k), b (r, c): a^T @ (core b)."""
    if core is None:
        return a, b
    return a.T, _contracted(core, b)


def _contracted(core: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A core (r, r, *window) times b (r, c): (r, d)."""
    _check(b.shape[1] * math.prod(core.shape[2:]), len(core))
    return np.asarray(np.einsum("mn...,nc->mc...", core, b)).reshape(len(core), -1)


def _split(full: np.ndarray) -> Pair:
    rows, columns = full.shape
    _check(rows + columns, min(rows, columns))
    return (np.eye(rows), full) if rows <= columns else (full, np.eye(columns))


def _check(sides: int, rank: int) -> None:
    if sides * rank > LIMIT:
        raise ConfigError(f"its exact LoRA has rank {rank} and {sides * rank} numbers, above {LIMIT}; give factor=RANK for a smaller one")
