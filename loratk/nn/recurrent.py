"""Recurrent networks, batch first: simple, gated (GRU) and with long short-term memory (LSTM)."""

from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ShapeError, UnknownNameError, choices
from .linear import Linear, positive
from .module import Module, generator


def time_steps(x: Tensor) -> list[Tensor]:
    """The steps x[:, i] of a sequence: (n, t, d) -> t tensors (n, d).

    By halves: the gradient of a slice fills an array of what it was cut from, so t slices of the whole would cost t^2.
    """
    n, t, d = x.shape
    if t == 1:
        return [x.reshape(n, d)]
    return time_steps(x[:, : t // 2]) + time_steps(x[:, t // 2 :])


class _Recurrent(Module):
    """h_i from x_i and h_{i-1}, over time: (n, t, d) -> (n, t, h).

    `ih` (Linear, d to gates * h) acts on the inputs, `hh` (Linear, h to gates * h) on the state.
    """

    gates = 1
    state_bias = False  # beside the bias of `ih` one of `hh` would be the same parameter twice, except in a GRU

    def __init__(self, d: int, h: int, *, bias: bool = True, rng: np.random.Generator | int, dtype: Any = np.float32) -> None:
        positive(d=d, h=h)
        rng = generator(rng)
        self.d, self.h = d, h
        self.ih = Linear(d, self.gates * h, bias=bias, rng=rng, dtype=dtype)
        self.hh = Linear(h, self.gates * h, bias=bias and self.state_bias, rng=rng, dtype=dtype)

    def step(self, xi: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The next state, h first, from one step's share of `ih` (n, gates * h) and the state before it."""
        raise NotImplementedError(f"{type(self).__name__} defines no step()")

    def _run(self, x: Any, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = self.input(x)
        if x.ndim != 3 or x.shape[2] != self.d or not x.shape[1]:
            raise ShapeError(f"{type(self).__name__} needs x (batch, time of at least 1, {self.d}), found shape {x.shape}.")
        n = x.shape[0]
        now = tuple(self._state(part, n, x) for part in state)
        outputs = []
        for xi in time_steps(self.ih(x)):
            now = self.step(xi, now)
            outputs.append(now[0].reshape(n, 1, self.h))
        return ops.concat(outputs, axis=1), now

    def _state(self, part: Any, n: int, x: Tensor) -> Tensor:
        if part is None:
            return Tensor(np.zeros((n, self.h), x.dtype), backend=x.backend)
        part = self.input(part)
        if part.shape != (n, self.h):
            raise ShapeError(f"The state of this {type(self).__name__} must be {(n, self.h)}, found shape {part.shape}.")
        return part

    def _columns(self, z: Tensor) -> list[Tensor]:
        """The gates of (n, gates * h), each (n, h)."""
        return [z[:, i * self.h : (i + 1) * self.h] for i in range(z.shape[1] // self.h)]

    def describe(self) -> str:
        """The sizes, for the repr."""
        return f"{self.d}, {self.h}"


class RNN(_Recurrent):
    """h_i = tanh(x_i W + h_{i-1} U + b), or relu: (n, t, d) -> (n, t, h). Elman 1990.

    Called as `y, h = rnn(x, h)`; the state is zero if not given.
    """

    def __init__(
        self,
        d: int,
        h: int,
        *,
        activation: str = "tanh",
        bias: bool = True,
        rng: np.random.Generator | int,
        dtype: Any = np.float32,
    ) -> None:
        functions = {"tanh": ops.tanh, "relu": ops.relu}
        if activation not in functions:
            raise UnknownNameError(f"Unknown activation {activation!r} for an RNN. Activations: {choices(functions)}.")
        super().__init__(d, h, bias=bias, rng=rng, dtype=dtype)
        self.activation, self._function = activation, functions[activation]

    def step(self, xi: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(n, h), (h,) -> (h,)."""
        return (self._function(xi + self.hh(state[0])),)

    def forward(self, x: Any, state: Any = None) -> tuple[Tensor, Tensor]:
        """(n, t, d), the state (n, h) or None -> all states (n, t, h), the last (n, h)."""
        y, (h,) = self._run(x, (state,))
        return y, h

    def describe(self) -> str:
        """The sizes and the activation, for the repr."""
        return f"{super().describe()}, activation={self.activation!r}"


class GRU(_Recurrent):
    """Gated recurrent unit: (n, t, d) -> (n, t, h). Cho et al. 2014, eqs. 5-8, the reset gate after the product.

    r, z = sigmoid(x_i W + h_{i-1} U + b); c = tanh(x_i W_c + b_c + r (h_{i-1} U_c + b'_c)); h_i = (1 - z) c + z h_{i-1}.
    The columns of `ih` and `hh` are r, z, c. Called as `y, h = gru(x, h)`; the state is zero if not given.
    """

    gates = 3
    state_bias = True

    def step(self, xi: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(n, 3h), (h,) -> (h,)."""
        (h,) = state
        (xr, xz, xc), (hr, hz, hc) = self._columns(xi), self._columns(self.hh(h))
        r, z = ops.sigmoid(xr + hr), ops.sigmoid(xz + hz)
        c = ops.tanh(xc + r * hc)
        return (c + z * (h - c),)

    def forward(self, x: Any, state: Any = None) -> tuple[Tensor, Tensor]:
        """(n, t, d), the state (n, h) or None -> all states (n, t, h), the last (n, h)."""
        y, (h,) = self._run(x, (state,))
        return y, h


class LSTM(_Recurrent):
    """Long short-term memory: (n, t, d) -> (n, t, h). Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    i, f, o = sigmoid(...), g = tanh(...) of x_i W + h_{i-1} U + b; c_i = f c_{i-1} + i g; h_i = o tanh(c_i). The columns
    of `ih` and `hh` are i, f, g, o. Called as `y, (h, c) = lstm(x, (h, c))`; the state is zero if not given.
    """

    gates = 4

    def step(self, xi: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(n, 4h), (h, c) -> (h, c)."""
        h, c = state
        i, f, g, o = self._columns(xi + self.hh(h))
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
        return ops.sigmoid(o) * ops.tanh(c), c

    def forward(self, x: Any, state: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(n, t, d), the state (h, c), each (n, h), or None -> all h (n, t, h), the last (h, c)."""
        if state is not None and (not isinstance(state, (tuple, list)) or len(state) != 2):
            raise ShapeError(f"The state of an LSTM is a pair (h, c), found {type(state).__name__}.")
        y, (h, c) = self._run(x, (None, None) if state is None else tuple(state))
        return y, (h, c)
