"""Adapters on 2-D convolutions: the kernel (kh, kw, c, k) acts as the matrix (kh*kw*c, k)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from loratk import LayerType, Tensor, hookimpl, ops
from loratk.nn import Conv2d


def _lora(module: Conv2d, w: Any, x: Tensor, adapter: Any, scaling: float, mask: Any, bias: Any) -> Tensor:
    """One op, which makes no patches; dropout is that of the image's entries."""
    place = {"kernel": module.kernel, "stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    return ops.lora_conv2d(x, w, adapter.lora_A, adapter.lora_B, mask, bias, scaling=scaling, **place)


class Conv2dType(LayerType[Conv2d]):
    """`Conv2d`: the convolution with a matrix in place of its kernel, a column an output channel."""

    name, module = "conv2d", Conv2d
    fused: ClassVar[Mapping[str, Callable[..., Tensor]]] = {"lora": _lora}

    def window(self, module: Conv2d) -> tuple[int, ...]:
        """(kh, kw)."""
        return module.kernel

    def apply(self, module: Conv2d, x: Any, m: Any) -> Tensor:
        """(n, h, w, c), (kh*kw*c, k') -> (n, oh, ow, k')."""
        return module.apply_matrix(x, m)


@hookimpl
def register_layer_types() -> list[LayerType[Any]]:
    """Conv2d."""
    return [Conv2dType()]
