"""Adapters on 2-D convolutions: the kernel (kh, kw, c, k) acts as the matrix (kh*kw*c, k)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from loratk import LayerType, Tensor, hookimpl, ops
from loratk.nn import Conv2d


def _lora(module: Conv2d, x: Tensor, adapter: Any, scaling: float, mask: Any, bias: Any) -> Tensor:
    """The patches are taken once, for the base and for A; so is their dropout, which is that of the image's entries."""
    place = {"kernel": module.kernel, "stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    patches = ops.im2col(x, **place)
    rows = patches.reshape(math.prod(patches.shape[:-1]), patches.shape[-1])
    flat = None if mask is None else ops.im2col(Tensor(mask, backend=x.backend), **place).reshape(rows.shape)
    y = ops.lora_linear(rows, module.weight.handle(), adapter.lora_A, adapter.lora_B, flat, bias, scaling=scaling)
    return y.reshape(*patches.shape[:-1], y.shape[-1])


class Conv2dType(LayerType[Conv2d]):
    """`Conv2d`: the convolution with a matrix in place of its kernel, a column an output channel."""

    name, module = "conv2d", Conv2d
    fused: ClassVar[Mapping[str, Callable[..., Tensor]]] = {"lora": _lora}

    def apply(self, module: Conv2d, x: Any, m: Any) -> Tensor:
        """(n, h, w, c), (kh*kw*c, k') -> (n, oh, ow, k')."""
        return module.apply_matrix(x, m)


@hookimpl
def register_layer_types() -> list[LayerType[Any]]:
    """Conv2d."""
    return [Conv2dType()]
