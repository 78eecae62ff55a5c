"""2-D convolution and pooling, channels last, and the way from images to rows."""

from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..autograd.ops.convolution import Pair, pair
from ..errors import ShapeError
from ..kernels import Backend
from .linear import Affine, bounded, positive, weight_array
from .module import Module, float_dtype, generator


class Conv2d(Affine):
    """Cross-correlation plus bias: (n, h, w, c) -> (n, oh, ow, k), with `weight` (kh, kw, c, k) and `bias` (k,) or None.

    The weight acts as a matrix (kh*kw*c, k) on the patches of the image, oh = (h + 2 padding - dilation (kh - 1) - 1) //
    stride + 1 and ow alike (Dumoulin & Visin 2016, relationship 15). `kernel`, `stride`, `padding` and `dilation` are a
    number, or a pair (vertical, horizontal). Drawn uniformly from +-1/sqrt(kh*kw*c).
    """

    def __init__(
        self,
        c: int,
        k: int,
        kernel: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        bias: bool = True,
        rng: np.random.Generator | int,
        dtype: Any = np.float32,
    ) -> None:
        positive(c=c, k=k)
        kh, kw = pair(kernel, "kernel", 1)
        self._place(stride, padding, dilation)
        rng, dtype, bound = generator(rng), float_dtype(dtype), (kh * kw * c) ** -0.5
        self.weight = bounded(rng, bound, (kh, kw, c, k), dtype)
        self.bias = bounded(rng, bound, (k,), dtype) if bias else None

    @classmethod
    def from_arrays(
        cls,
        weight: Any,
        bias: Any = None,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        backend: str | Backend = "cpu",
    ) -> "Conv2d":
        """A layer with copies of a weight (kh, kw, c, k) and, unless None, a bias (k,). Raises ShapeError or DtypeError."""
        self = cls.__new__(cls)
        self._place(stride, padding, dilation)
        self._hold(weight_array(weight, ("kh", "kw", "c", "k")), bias, backend)
        return self

    def _place(self, stride: Pair, padding: Pair, dilation: Pair) -> None:
        self.stride, self.padding, self.dilation = pair(stride, "stride", 1), pair(padding, "padding", 0), pair(dilation, "dilation", 1)

    @property
    def kernel(self) -> tuple[int, int]:
        """The window (kh, kw)."""
        kh, kw, _, _ = self.weight.shape
        return kh, kw

    def apply_matrix(self, x: Tensor, m: Any) -> Tensor:
        """The convolution with m in place of the weight: (n, h, w, c), (kh*kw*c, k') -> (n, oh, ow, k')."""
        c = self.weight.shape[2]
        if x.ndim != 4 or x.shape[3] != c:
            raise ShapeError(f"Conv2d needs x (n, height, width, {c}), channels last, found shape {x.shape}.")
        return ops.conv2d(x, m, kernel=self.kernel, stride=self.stride, padding=self.padding, dilation=self.dilation)

    def describe(self) -> str:
        """Sizes and placement, for the repr."""
        _, _, c, k = self.weight.shape
        usual = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
        options = [f"{name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value]
        return ", ".join([f"{c}, {k}", f"kernel={self.kernel}", *options, f"bias={self.bias is not None}"])


class _Pool2d(Module):
    def __init__(self, kernel: Pair, *, stride: Pair | None = None) -> None:
        self.kernel = pair(kernel, "kernel", 1)
        self.stride = self.kernel if stride is None else pair(stride, "stride", 1)

    def describe(self) -> str:
        """The window and the stride, for the repr."""
        return f"kernel={self.kernel}, stride={self.stride}"


class MaxPool2d(_Pool2d):
    """The maximum of each window: (n, h, w, c) -> (n, oh, ow, c). The stride is the window if not given."""

    def forward(self, x: Any) -> Tensor:
        """(n, h, w, c) -> (n, oh, ow, c)."""
        return ops.max_pool2d(self.input(x), self.kernel, stride=self.stride)


class AvgPool2d(_Pool2d):
    """The mean of each window: (n, h, w, c) -> (n, oh, ow, c). The stride is the window if not given."""

    def forward(self, x: Any) -> Tensor:
        """(n, h, w, c) -> (n, oh, ow, c)."""
        return ops.avg_pool2d(self.input(x), self.kernel, stride=self.stride)


class Flatten(Module):
    """All axes but the first as one, such as an image as a row: (n, ...) -> (n, d)."""

    def forward(self, x: Any) -> Tensor:
        """(n, ...) -> (n, d)."""
        x = self.input(x)
        if not x.ndim:
            raise ShapeError("Flatten needs at least one axis, found a single number.")
        return x.reshape(x.shape[0], int(np.prod(x.shape[1:], dtype=np.int64)))
