"""Multi-head attention: over a sequence itself, causal or not, or over another sequence."""

from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ConfigError, DtypeError, ShapeError
from ..kernels import Backend
from .dropout import Dropout, offspring
from .linear import Affine, Linear, bounded, positive, weight_array
from .module import Module, float_dtype, generator


def check_heads(width: int, heads: int, kv_heads: int | None, what: str = "d") -> int:
    """The number of key-value heads, `heads` if None. Raises ConfigError for numbers that do not divide one another."""
    kv_heads = heads if kv_heads is None else kv_heads
    positive(heads=heads, kv_heads=kv_heads)
    if width % heads:
        raise ConfigError(f"{what} must be a multiple of heads, found {width} and {heads}.")
    if heads % kv_heads:
        raise ConfigError(f"heads must be a multiple of kv_heads, found {heads} and {kv_heads}.")
    return kv_heads


class QKVProjection(Affine):
    """Queries, keys and values in one product: (..., d) -> (..., (heads + 2 kv_heads) d/heads).

    The column blocks of `weight` (d, (heads + 2 kv_heads) d/heads) and of `bias` are q, k and v, in this order; see
    `blocks`. Fewer key-value heads than heads: Ainslie et al. 2023 (grouped queries). Drawn uniformly from +-1/sqrt(d).
    """

    def __init__(
        self,
        d: int,
        *,
        heads: int,
        kv_heads: int | None = None,
        bias: bool = True,
        rng: np.random.Generator | int,
        dtype: Any = np.float32,
    ) -> None:
        positive(d=d)
        self.heads, self.kv_heads = heads, check_heads(d, heads, kv_heads)
        rng, dtype, k = generator(rng), float_dtype(dtype), (heads + 2 * self.kv_heads) * (d // heads)
        self.weight = bounded(rng, d**-0.5, (d, k), dtype)
        self.bias = bounded(rng, d**-0.5, (k,), dtype) if bias else None

    @classmethod
    def from_arrays(
        cls, weight: Any, bias: Any = None, *, heads: int, kv_heads: int | None = None, backend: str | Backend = "cpu"
    ) -> "QKVProjection":
        """A projection with copies of a fused weight and, unless None, a bias. Raises ConfigError, ShapeError or DtypeError."""
        weight = weight_array(weight, ("d", "k"))
        d, k = weight.shape
        self = cls.__new__(cls)
        self.heads, self.kv_heads = heads, check_heads(d, heads, kv_heads, "the weight's first axis")
        want = (heads + 2 * self.kv_heads) * (d // heads)
        if k != want:
            raise ShapeError(f"weight must be ({d}, {want}) for heads={heads}, kv_heads={self.kv_heads}, found shape {weight.shape}.")
        self._hold(weight, bias, backend)
        return self

    @property
    def blocks(self) -> dict[str, tuple[int, int]]:
        """First column and the one after the last of each part, by its name 'q', 'k', 'v'."""
        size = self.weight.shape[0] // self.heads
        q, kv = self.heads * size, self.kv_heads * size
        return {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}

    def apply_matrix(self, x: Tensor, m: Any) -> Tensor:
        """x m: (..., d), (d, k') -> (..., k')."""
        return ops.linear(x, m)

    def describe(self) -> str:
        """The shape and the heads, for the repr."""
        d, k = self.weight.shape
        return f"{d}, {k}, heads={self.heads}, kv_heads={self.kv_heads}, bias={self.bias is not None}"


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: np.ndarray | None = None, dropout: Module | None = None) -> Tensor:
    """softmax(q k^T / sqrt(e)) v for every head: (n, t, h, e), (n, s, g, e) twice -> (n, t, h, e). Vaswani et al. 2017, eq. 1.

    g divides h: each key-value head serves h/g heads in a row. `allowed`, booleans that broadcast to (n, h, t, s), says
    which query sees which key; a query that sees none gets zeros.
    """
    (n, t, h, e), (_, s, g, _) = q.shape, k.shape
    rows = (h // g) * t
    q = q.reshape(n, t, g, h // g, e).transpose(0, 2, 3, 1, 4).reshape(n, g, rows, e)
    scores = (q * e**-0.5) @ k.transpose(0, 2, 3, 1)
    scores = scores.reshape(n, h, t, s)
    if allowed is not None:
        # Half the lowest number: finite, and it stays so when softmax subtracts the maximum.
        scores = ops.where(allowed, scores, float(np.finfo(q.dtype).min / 2))
    weights = ops.softmax(scores)
    if allowed is not None and not allowed.any(-1).all():
        weights = ops.where(allowed, weights, 0.0)
    if dropout is not None:
        weights = dropout(weights)
    y = weights.reshape(n, g, rows, s) @ v.transpose(0, 2, 1, 3)
    return y.reshape(n, g, h // g, t, e).transpose(0, 3, 1, 2, 4).reshape(n, t, h, e)


class MultiHeadAttention(Module):
    """Heads that each attend in d/heads dimensions, joined by a projection: (n, t, d) -> (n, t, d). Vaswani et al. 2017, 3.2.2.

    Over the sequence itself, with one fused projection `qkv` (QKVProjection); or with `cross` over a memory (n, s, d),
    such as an encoder's output, with the projections `q` and `kv` (Linear; the columns of kv are k, then v). Then `out`
    (Linear). With `causal` no position sees a later one. `dropout` falls on the attention weights.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        causal: bool = False,
        cross: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        rng: np.random.Generator | int,
        dtype: Any = np.float32,
    ) -> None:
        positive(d=d)
        if causal and cross:
            raise ConfigError("Attention over a memory has no order of time to keep: choose causal or cross, not both.")
        self.d, self.heads, self.kv_heads, self.causal, self.cross = d, heads, check_heads(d, heads, kv_heads), causal, cross
        rng, size = generator(rng), d // heads
        if cross:
            self.q = Linear(d, d, bias=bias, rng=rng, dtype=dtype)
            self.kv = Linear(d, 2 * self.kv_heads * size, bias=bias, rng=rng, dtype=dtype)
        else:
            self.qkv = QKVProjection(d, heads=heads, kv_heads=self.kv_heads, bias=bias, rng=rng, dtype=dtype)
        self.out = Linear(d, d, bias=bias, rng=rng, dtype=dtype)
        self.dropout = Dropout(dropout, offspring(rng))

    def forward(self, x: Any, memory: Any = None, *, padding: Any = None) -> Tensor:
        """(n, t, d), memory (n, s, d) with `cross`, padding (n, s) -> (n, t, d).

        `padding` is True at keys that nobody may see (s = t without a memory). A query that sees no key gets `out.bias`.
        """
        x = self._sequence("x", x)
        q, k, v = self._parts(x, memory)
        allowed = self._allowed(x.shape[0], x.shape[1], k.shape[1], padding)
        y = attend(q, k, v, allowed, self.dropout)
        return self.out(y.reshape(*x.shape))

    def _sequence(self, name: str, x: Any) -> Tensor:
        x = self.input(x)
        if x.ndim != 3 or x.shape[2] != self.d:
            raise ShapeError(f"{name} must be (batch, time, {self.d}), found shape {x.shape}.")
        return x

    def _parts(self, x: Tensor, memory: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by head: (n, t, h, e), (n, s, g, e) twice."""
        if not self.cross:
            if memory is not None:
                raise ShapeError("This attention is over x itself and takes no memory; build it with cross=True to attend to one.")
            return self._split(self.qkv(x), self.heads, self.kv_heads, self.kv_heads)
        if memory is None:
            raise ShapeError(f"This attention is over a memory (batch, time, {self.d}), found none; pass one, or build it without cross.")
        memory = self._sequence("memory", memory)
        if memory.shape[0] != x.shape[0]:
            raise ShapeError(f"x and memory must have one batch size, found shapes {x.shape} and {memory.shape}.")
        return *self._split(self.q(x), self.heads), *self._split(self.kv(memory), self.kv_heads, self.kv_heads)

    def _split(self, y: Tensor, *heads: int) -> tuple[Any, ...]:
        n, t, _ = y.shape
        size, cuts = self.d // self.heads, [0, *accumulate(heads)]
        return tuple(y[..., a * size : b * size].reshape(n, t, b - a, size) for a, b in pairwise(cuts))

    def _allowed(self, n: int, t: int, s: int, padding: Any) -> np.ndarray | None:
        """Which query sees which key, to be broadcast to (n, heads, t, s); None if all see all."""
        allowed = np.tri(t, dtype=bool)[None, None] if self.causal else None
        if padding is None:
            return allowed
        padding = padding.numpy() if isinstance(padding, Tensor) else np.asarray(padding)
        if padding.shape != (n, s):
            raise ShapeError(f"padding must have the shape {(n, s)} of the keys, True where nobody may look, found {padding.shape}.")
        if padding.dtype != np.bool_:
            raise DtypeError(f"padding must be boolean, True where nobody may look, found dtype {padding.dtype}.")
        seen = ~padding[:, None, None, :]
        return seen if allowed is None else allowed & seen

    def describe(self) -> str:
        """Width, heads and kind, for the repr."""
        kind = ", causal=True" if self.causal else ", cross=True" if self.cross else ""
        return f"{self.d}, heads={self.heads}, kv_heads={self.kv_heads}{kind}"
