"""EinsumDense: factors of a kernel of several axes to and from those of the plain linear layer that computes the same.

Keras factors such a kernel along its last axis, dK[..., h] = sum over r of A[..., r] B[r, h]. As a linear layer its inputs are the axes
that the equation sums over, its outputs the others, both in the kernel's order: "btd,ndh->btnh" has inputs d and outputs (n, h).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_EQUATION = re.compile(r"(?:\.\.\.)?([A-Za-z]+),([A-Za-z]+)->(?:\.\.\.)?([A-Za-z]+)")


@dataclass(frozen=True)
class Axes:
    """Which of a kernel's axes are inputs, and which outputs; the last is an output."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many axes the kernel has."""
        return len(self.inputs) + len(self.outputs)

    def sizes(self, kernel: Sequence[int]) -> tuple[int, int]:
        """Inputs d and outputs k of a kernel of that shape."""
        return math.prod(kernel[axis] for axis in self.inputs), math.prod(kernel[axis] for axis in self.outputs)


def axes_of(equation: str) -> Axes:
    """The axes of an equation such as "btd,ndh->btnh". Raises ValueError for what no linear layer computes."""
    found = _EQUATION.fullmatch(equation.replace(" ", ""))
    if found is None:
        raise ValueError(f"{equation!r} is no equation of an EinsumDense, such as 'btd,ndh->btnh'")
    given, kernel, result = found.groups()
    if any(len(set(letters)) != len(letters) for letters in found.groups()):
        raise ValueError(f"the equation {equation!r} has a letter twice in one of its parts")
    if odd := [letter for letter in kernel if (letter in given) == (letter in result)]:
        raise ValueError(f"the axis {odd[0]!r} of the kernel in {equation!r} is neither an input nor an output alone")
    axes = Axes(
        tuple(axis for axis, letter in enumerate(kernel) if letter in given),
        tuple(axis for axis, letter in enumerate(kernel) if letter in result),
    )
    if not axes.inputs or len(kernel) - 1 not in axes.outputs:
        raise ValueError(f"the kernel in {equation!r} must have an input, and an output as its last axis")
    return axes


def to_linear(axes: Axes, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A (*axes but the last, r), B (r, h) -> lora_A (d, n r), lora_B (n r, k), n the product of the other output axes. Exact."""
    rank, last = b.shape
    copies = math.prod(a.shape[axis] for axis in axes.outputs[:-1])
    lora_a = a.transpose(*axes.inputs, *axes.outputs[:-1], a.ndim - 1).reshape(-1, copies * rank)
    blocks = np.zeros((copies, rank, copies, last), b.dtype)
    blocks[range(copies), :, range(copies)] = b
    return np.ascontiguousarray(lora_a), blocks.reshape(copies * rank, copies * last)


def from_linear(
    axes: Axes, kernel: Sequence[int], lora_a: np.ndarray, lora_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """lora_A (d, R), lora_B (R, k) -> A (*axes but the last, r), B (r, h) for a kernel of that shape, and singular values.

    Where there is no output axis but the last, exact with r = R, and no values. Else all factors of dK as a matrix of h columns in float64,
    the largest singular value first: the first r of them are the nearest of rank r, and the values after say what they leave out.
    """
    inner = [kernel[axis] for axis in (*axes.inputs, *axes.outputs[:-1])]
    back = np.argsort([*axes.inputs, *axes.outputs[:-1]])
    copies = math.prod(kernel[axis] for axis in axes.outputs[:-1])
    if copies == 1:
        return _apart(lora_a, inner, back), lora_b, None
    q, small = np.linalg.qr(lora_a.astype(np.float64))  # of A alone, so that the (d, k) matrix is never formed
    core = (small @ lora_b.astype(np.float64)).reshape(len(small), copies, -1).swapaxes(0, 1).reshape(copies * len(small), -1)
    u, values, v = np.linalg.svd(core, full_matrices=False)
    root = np.sqrt(values)
    a = np.einsum("di,cir->dcr", q, (u * root).reshape(copies, len(small), -1))
    return _apart(a, inner, back), root[:, None] * v, values


def _apart(a: np.ndarray, inner: Sequence[int], back: np.ndarray) -> np.ndarray:
    """Rows of inputs, then outputs -> the kernel's own axes in their order."""
    return np.ascontiguousarray(a.reshape(*inner, a.shape[-1]).transpose(*back, len(inner)))
