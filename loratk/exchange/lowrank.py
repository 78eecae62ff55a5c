"""Updates of other methods that are products of small matrices, as plain low-rank factors, exactly: no dense matrix is made.

An update is left @ right, (k, R), (R, d), float64, without its scaling, with d counted as (channels, window), as torch lays a weight out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..errors import ConfigError

Parameters = Mapping[str, np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]
LIMIT = 1 << 28
"""Numbers in the factors of one module, above which they are not made."""


def loha(held: Parameters) -> Pair:
    """R = r^2: the column-wise and row-wise Khatri-Rao products of the two sides; the smaller side of the weight where that is less."""
    (u1, v1), (u2, v2) = (_side(held[f"hada_w{n}_a"], held[f"hada_w{n}_b"], held.get(f"hada_t{n}")) for n in (1, 2))
    k, d, rank = len(u1), v1.shape[1], u1.shape[1] * u2.shape[1]
    check_size(k + d, min(rank, k, d))
    if rank > min(k, d):
        return _split((u1 @ v1) * (u2 @ v2))
    return (u1[:, :, None] * u2[:, None, :]).reshape(k, -1), (v1[:, None] * v2[None]).reshape(-1, d)


def lokr(held: Parameters) -> Pair:
    """R the product of the ranks of the two factors, where a full one has its smaller side."""
    (u1, v1), (u2, v2) = kron_parts(held)
    check_size(len(u1) * len(u2) + v1.shape[1] * v2.shape[1], u1.shape[1] * u2.shape[1])
    return np.kron(u1, u2), np.kron(v1, v2)


def locon(held: Parameters) -> Pair:
    """R = r, also with a core."""
    up, down = (held[name].reshape(held[name].shape[0], -1) for name in ("lora_up", "lora_down"))
    return up, _contracted(held["lora_mid"], down) if "lora_mid" in held else down


def glora(held: Parameters, weight: np.ndarray) -> Pair:
    """R = 2 r, of a linear layer whose weight is (k, d): b1 b2 + W a1 a2."""
    a1, a2, b1, b2 = (held[name].reshape(held[name].shape[:2]) for name in ("a1", "a2", "b1", "b2"))
    return np.hstack([b1, weight @ a1]), np.vstack([b2, a2])


def adalora(held: Parameters) -> Pair:
    """R = r: the singular values lora_E, (r, 1), go to the rows of lora_A. Zhang et al. 2023, eq. 3."""
    return held["adalora_B"], held["adalora_A"] * held["adalora_E"]


def vera(held: Parameters, k: int, d: int) -> Pair:
    """R = r: the corner (k, r), (r, d) of the two shared matrices, with a factor for each row. Kopiczko et al. 2024, eq. 2."""
    check_vera(held, k, d)
    outer, inner, b, a = (held[name] for name in ("vera_lambda_b", "vera_lambda_d", "vera_B", "vera_A"))
    return outer[:, None] * b[:k], inner[:, None] * a[:, :d]


def check_vera(held: Parameters, k: int, d: int) -> None:
    """Raises ConfigError where the shared matrices are not there, or have no such corner."""
    if "vera_A" not in held or "vera_B" not in held:
        raise ConfigError("VeRA's shared matrices are not there; save the adapter with save_projection=True")
    outer, inner, b, a = (held[name] for name in ("vera_lambda_b", "vera_lambda_d", "vera_B", "vera_A"))
    r = len(inner)
    if len(outer) != k:
        raise ConfigError(f"it has {len(outer)} factors for {k} outputs")
    if k > len(b) or d > a.shape[1] or not r == len(a) == b.shape[1]:
        raise ConfigError(f"it needs the corners ({k}, {r}) and ({r}, {d}) of VeRA's shared matrices, which are {b.shape} and {a.shape}")


def smallest(left: np.ndarray, right: np.ndarray) -> Pair:
    """A pair as it is, or of the rank that its product can have at most: the smaller of k and d."""
    return _split(left @ right) if left.shape[1] > min(len(left), right.shape[1]) else (left, right)


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
    p1, p2 = (truncated(*part, part[0].shape[1])[0] for part in kron_parts(held))
    norms = [np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=1) for left, right in (p1, p2)]
    products = np.outer(*norms).ravel()
    chosen = np.argsort(-products, kind="stable")[:rank]
    first, second = np.unravel_index(chosen, (len(norms[0]), len(norms[1])))
    check_size(len(p1[0]) * len(p2[0]) + p1[1].shape[1] * p2[1].shape[1], len(chosen))
    left = (p1[0][:, None, first] * p2[0][None, :, second]).reshape(-1, len(chosen))
    right = (p1[1][first][:, :, None] * p2[1][second][:, None, :]).reshape(len(chosen), -1)
    whole = float(np.linalg.norm(products))
    lost = float(np.linalg.norm(np.delete(products, chosen)))
    return (left, right), lost / whole if whole else 0.0


def kron_parts(held: Parameters) -> tuple[Pair, Pair]:
    """The two factors of a LoKr update, each as a low-rank pair; a full one is itself times the identity on its smaller side."""
    first = _split(held["lokr_w1"]) if "lokr_w1" in held else smallest(held["lokr_w1_a"], held["lokr_w1_b"])
    if "lokr_w2" in held:
        return first, _split(held["lokr_w2"].reshape(len(held["lokr_w2"]), -1))
    return first, smallest(*_side(held["lokr_w2_a"], held["lokr_w2_b"], held.get("lokr_t2")))


def _side(a: np.ndarray, b: np.ndarray, core: np.ndarray | None) -> Pair:
    """a @ b as it is, and with a core (r, r, *window) of factors a (r, k), b (r, c): a^T @ (core b)."""
    if core is None:
        return a, b
    return a.T, _contracted(core, b)


def _contracted(core: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A core (r, r, *window) times b (r, c): (r, d)."""
    check_size(b.shape[1] * math.prod(core.shape[2:]), len(core))
    return np.asarray(np.einsum("mn...,nc->mc...", core, b)).reshape(len(core), -1)


def _split(full: np.ndarray) -> Pair:
    rows, columns = full.shape
    check_size(rows + columns, min(rows, columns))
    return (np.eye(rows), full) if rows <= columns else (full, np.eye(columns))


def check_size(sides: int, rank: int) -> None:
    """Raises ConfigError where factors of a rank would have more than LIMIT numbers."""
    if sides * rank > LIMIT:
        raise ConfigError(f"its exact LoRA has rank {rank} and {sides * rank} numbers, above {LIMIT}; ask for a smaller rank")
