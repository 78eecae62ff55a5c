"""What users call: each op is a function of tensors, and its derivative stands right under it.

An operand beside a tensor may be a number or a NumPy array; it is then a constant.
"""

from .activations import gelu, log_softmax, relu, sigmoid, silu, softmax, tanh
from .arithmetic import absolute, add, clip, cos, div, exp, log, maximum, minimum, mul, neg, power, sin, sqrt, square, sub, where
from .convolution import avg_pool2d, conv2d, im2col, lora_conv2d, max_pool2d
from .grouped import grouped_lora
from .lora import dora_linear, lora_chain, lora_linear
from .losses import binary_cross_entropy, cross_entropy, mse
from .norms import layer_norm, rms_norm
from .products import frozen_matmul, linear, matmul
from .random import dropout
from .reductions import broadcast_to, max_over, mean, min_over, sum_over, sum_to
from .shapes import concat, gather_rows, getitem, reshape, scatter, transpose
from .sparse import sparse_matmul

__all__ = [
    "absolute", "add", "avg_pool2d", "binary_cross_entropy", "broadcast_to", "clip", "concat", "conv2d", "cos", "cross_entropy", "div",
    "dora_linear", "dropout", "exp", "frozen_matmul", "gather_rows", "gelu", "getitem", "grouped_lora", "im2col", "layer_norm", "linear",
    "log", "log_softmax", "lora_chain", "lora_conv2d", "lora_linear", "matmul", "max_over", "max_pool2d", "maximum", "mean", "min_over",
    "minimum", "mse", "mul", "neg", "power", "relu", "reshape", "rms_norm", "scatter", "sigmoid", "silu", "sin", "softmax",
    "sparse_matmul", "sqrt", "square", "sub", "sum_over", "sum_to", "tanh", "transpose", "where",
]  # fmt: skip
