"""The transformer: its feed-forward block, its layers, and the whole of them."""

from typing import Any

import numpy as np

from ..autograd import Tensor
from .attention import MultiHeadAttention
from .containers import Sequential, activation
from .dropout import Dropout, offspring
from .linear import Linear, positive
from .module import Module, generator
from .norms import LayerNorm


class FeedForward(Module):
    """down(dropout(activation(up(x)))), position by position: (..., d) -> (..., d). Vaswani et al. 2017, eq. 2."""

    def __init__(
        self,
        d: int,
        hidden: int,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
        rng: np.random.Generator | int,
        dtype: Any = np.float32,
    ) -> None:
        rng = generator(rng)
        self.up = Linear(d, hidden, bias=bias, rng=rng, dtype=dtype)
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout, offspring(rng))
        self.down = Linear(hidden, d, bias=bias, rng=rng, dtype=dtype)

    def forward(self, x: Any) -> Tensor:
        """(..., d) -> (..., d)."""
        return self.down(self.dropout(self.activation(self.up(x))))


def make_activation(name: str) -> Module:
    """An activation module of that name. Raises UnknownNameError."""
    return activation(name)()


class _Layer(Module):
    """What the layers share: around each part a residual connection, and a norm after it or before the part."""

    pre_norm: bool
    dropout: Dropout

    def _residual(self, x: Tensor, norm: Module, part: Any) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(part(norm(x)))
        return norm(x + self.dropout(part(x)))

    def describe(self) -> str:
        """Where the norms stand, for the repr."""
        return "pre_norm=True" if self.pre_norm else ""


class TransformerEncoderLayer(_Layer):
    """Self-attention and feed-forward, each with a residual connection and a norm: (n, t, d) -> (n, t, d).

    Vaswani et al. 2017, section 3.1: norm(x + part(x)); with `pre_norm` x + part(norm(x)) (Xiong et al. 2020, figure 1).
    With `causal` a layer of a decoder-only language model.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        hidden: int,
        *,
        kv_heads: int | None = None,
        causal: bool = False,
        pre_norm: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        rng: np.random.Generator | int,
        dtype: Any = np.float32,
    ) -> None:
        rng, self.pre_norm = generator(rng), pre_norm
        self.attention = MultiHeadAttention(d, heads, kv_heads=kv_heads, causal=causal, dropout=dropout, rng=rng, dtype=dtype)
        self.norm1 = LayerNorm(d, dtype=dtype)
        self.feed_forward = FeedForward(d, hidden, activation=activation, dropout=dropout, rng=rng, dtype=dtype)
        self.norm2 = LayerNorm(d, dtype=dtype)
        self.dropout = Dropout(dropout, offspring(rng))

    def forward(self, x: Any, *, padding: Any = None) -> Tensor:
        """(n, t, d), padding (n, t) or None, True at positions that nobody may see -> (n, t, d)."""
        x = self._residual(self.input(x), self.norm1, lambda y: self.attention(y, padding=padding))
        return self._residual(x, self.norm2, self.feed_forward)


class TransformerDecoderLayer(_Layer):
    """Causal self-attention, attention over a memory, and feed-forward: (n, t, d), (n, s, d) -> (n, t, d).

    Each with a residual connection and a norm, as in TransformerEncoderLayer. Vaswani et al. 2017, section 3.1.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        hidden: int,
        *,
        kv_heads: int | None = None,
        pre_norm: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        rng: np.random.Generator | int,
        dtype: Any = np.float32,
    ) -> None:
        rng, self.pre_norm = generator(rng), pre_norm
        options: dict[str, Any] = {"kv_heads": kv_heads, "dropout": dropout, "rng": rng, "dtype": dtype}
        self.attention = MultiHeadAttention(d, heads, causal=True, **options)
        self.norm1 = LayerNorm(d, dtype=dtype)
        self.cross_attention = MultiHeadAttention(d, heads, cross=True, **options)
        self.norm2 = LayerNorm(d, dtype=dtype)
        self.feed_forward = FeedForward(d, hidden, activation=activation, dropout=dropout, rng=rng, dtype=dtype)
        self.norm3 = LayerNorm(d, dtype=dtype)
        self.dropout = Dropout(dropout, offspring(rng))

    def forward(self, x: Any, memory: Any, *, padding: Any = None, memory_padding: Any = None) -> Tensor:
        """(n, t, d), memory (n, s, d), padding (n, t) and memory_padding (n, s) or None -> (n, t, d)."""
        x = self._residual(self.input(x), self.norm1, lambda y: self.attention(y, padding=padding))
        x = self._residual(x, self.norm2, lambda y: self.cross_attention(y, memory, padding=memory_padding))
        return self._residual(x, self.norm3, self.feed_forward)


class Transformer(Module):
    """An encoder and a decoder that attends to it: (n, s, d), (n, t, d) -> (n, t, d). Vaswani et al. 2017, figure 1.

    `encoder` and `decoder` hold `layers` layers each, named 0, 1, ...; with `pre_norm` there is a LayerNorm after each of
    the two, else None. Embeddings, positions and the output projection are left to the caller.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        hidden: int,
        *,
        layers: int,
        pre_norm: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        rng: np.random.Generator | int,
        dtype: Any = np.float32,
    ) -> None:
        positive(layers=layers)
        rng = generator(rng)
        options: dict[str, Any] = {"pre_norm": pre_norm, "activation": activation, "dropout": dropout, "rng": rng, "dtype": dtype}
        self.encoder = Sequential(*(TransformerEncoderLayer(d, heads, hidden, **options) for _ in range(layers)))
        self.encoder_norm = LayerNorm(d, dtype=dtype) if pre_norm else None
        self.decoder = Sequential(*(TransformerDecoderLayer(d, heads, hidden, **options) for _ in range(layers)))
        self.decoder_norm = LayerNorm(d, dtype=dtype) if pre_norm else None

    def encode(self, source: Any, *, padding: Any = None) -> Tensor:
        """The memory of a source: (n, s, d), padding (n, s) or None -> (n, s, d)."""
        x = self.input(source)
        for layer in self.encoder:
            x = layer(x, padding=padding)
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def decode(self, x: Any, memory: Any, *, padding: Any = None, memory_padding: Any = None) -> Tensor:
        """The output for a target so far: (n, t, d), memory (n, s, d) -> (n, t, d)."""
        x = self.input(x)
        for layer in self.decoder:
            x = layer(x, memory, padding=padding, memory_padding=memory_padding)
        return x if self.decoder_norm is None else self.decoder_norm(x)

    def forward(self, source: Any, target: Any, *, source_padding: Any = None, target_padding: Any = None) -> Tensor:
        """(n, s, d), (n, t, d), paddings (n, s) and (n, t) or None -> (n, t, d)."""
        memory = self.encode(source, padding=source_padding)
        return self.decode(target, memory, padding=target_padding, memory_padding=source_padding)
