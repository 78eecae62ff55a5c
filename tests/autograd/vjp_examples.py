"""Arguments for every op, away from kinks: what the walk over the table of derivatives runs.

An example is (arguments, options), or (arguments, options, places of the arguments to differentiate).
"""

import numpy as np

from loratk.autograd import ops
from loratk.kernels import get_backend

_rng = np.random.default_rng(7)


def real(*shape):
    """Standard normal numbers."""
    return np.asarray(_rng.standard_normal(shape))


def apart(*shape):
    """Numbers at least 0.1 from each other and from every multiple of 0.5, in random order: no kink, no tie."""
    size = int(np.prod(shape))
    return _rng.permutation(np.arange(size) * 0.1 - 0.05 * size + 0.025).reshape(shape)


def positive(*shape):
    """Numbers from 0.5 to 2."""
    return np.asarray(_rng.uniform(0.5, 2, shape))


def whole(high, *shape):
    return _rng.integers(0, high, shape)


def mask(*shape):
    return _rng.random(shape) > 0.4


def frozen(*shape):
    return get_backend("reference").freeze_weight(real(*shape))


def dropout(x, p):
    return ops.dropout(x, p, np.random.default_rng(0))


def concat(*tensors, axis=-1):
    return ops.concat(tensors, axis)


def _unary(make, *options):
    return [((make(*shape),), option) for shape in [(3, 5), (), (0, 4), (2, 1, 3)] for option in (options or [{}])]


_pairs = [((3, 5), (3, 5)), ((3, 5), (5,)), ((), (2, 3)), ((4, 1), (1, 3)), ((2, 1, 3), (4, 1)), ((0, 3), (3,)), ((1,), (1, 1))]


def _binary(first=real, second=real):
    return [((first(*a), second(*b)), {}) for a, b in _pairs]


_no_tie = [
    ((x := apart(3, 4), x[::-1] + 0.03), {}),
    ((apart(3, 1) + 0.02, apart(4)), {}),
    ((apart(5), 0.3), {}),
    ((real(0, 3), real(3)), {}),
]
_reductions = [((apart(2, 3, 4),), {"axis": axis, "keepdims": keep}) for axis in (None, 0, -1, (0, 2)) for keep in (False, True)]
_pools = [((apart(2, 5, 6, 2), 2), {}), ((apart(1, 5, 4, 3), (3, 2)), {"stride": (2, 1)})]
_windows = [
    ((real(2, 5, 4, 3),), {"kernel": 3}),
    ((real(1, 6, 5, 2),), {"kernel": (2, 3), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}),
    ((real(0, 4, 4, 1),), {"kernel": 2, "stride": 2}),
]

EXAMPLES = {
    "absolute": _unary(apart),
    "add": _binary(),
    "avg_pool2d": _pools,
    "binary_cross_entropy": [
        ((apart(3, 4), _rng.random((3, 4))), {}),
        ((np.zeros((2, 2)), whole(2, 2, 2) * 1.0), {}),
        ((apart(5), mask(5) * 1.0), {}),
    ],
    "broadcast_to": [((real(3, 1),), {"shape": (2, 3, 4)}), ((real(),), {"shape": (2,)}), ((real(1, 3),), {"shape": (0, 3)})],
    "clip": [((apart(4, 5),), {"low": low, "high": high}) for low, high in [(-0.5, 0.5), (None, 0.0), (0.0, None), (-0.5, -0.5)]],
    "concat": [((real(2, 3), real(2, 1), real(2, 0)), {}), ((real(1, 3), real(4, 3)), {"axis": 0}), ((real(2, 2, 3),), {"axis": -2})],
    "conv2d": [((x, real(int(np.prod(np.broadcast_to(o["kernel"], 2))) * x.shape[3], 4)), o) for (x,), o in _windows],
    "cos": _unary(real),
    "cross_entropy": [
        ((real(4, 5), whole(5, 4)), {}),
        ((real(2, 3, 4), whole(4, 2, 3)), {"label_smoothing": 0.1}),
        ((real(4, 5), np.array([1, -1, -1, 4])), {"ignore_index": -1, "label_smoothing": 0.3}),
        ((real(1, 1), whole(1, 1)), {}),
    ],
    "div": _binary(real, positive),
    "dropout": [((real(4, 5),), {"p": p}) for p in (0.0, 0.5)],
    "exp": _unary(real),
    "frozen_matmul": [((real(3, 4), frozen(4, 5)), {}), ((real(2, 0, 4), frozen(4, 2)), {}), ((real(2, 3, 4), frozen(4, 1)), {})],
    "sparse_matmul": [((real(3, 4), real(5), np.array([0, 3, 7, 8, 11])), {"k": 3}), ((real(2, 2), real(0), whole(1, 0)), {"k": 3})],
    "scatter": [((real(4), np.array([2, 0, 6, 5])), {"size": 7}), ((real(0), whole(1, 0)), {"size": 3})],
    "gather_rows": [((real(4, 3), whole(4, 2, 5)), {}), ((real(1, 1), whole(1, 3)), {}), ((real(3, 2), whole(3, 0)), {})],
    "gelu": _unary(real, {"tanh": False}, {"tanh": True}),
    "getitem": [
        ((real(4, 3, 2),), {"index": index})
        for index in [0, -1, slice(1, 3), (slice(None, None, 2), 1), (..., None, 0), (slice(None), slice(2, None, -1)), slice(4, None)]
    ],
    "grouped_lora": [
        (
            (
                *(real(5, 6), real(5, 4), np.array([1, 0, -1, 1, 2]), None, None),
                *(real(4, 2), real(2, 6), None, None, real(4, 3), real(3, 6), positive(6), real(6), None, None, real(6), None),
            ),
            {"scalings": (0.5, 2.0, 1.0)},
        ),
        (
            (*(real(3, 2), real(3, 3), np.array([0, 0, -1]), mask(3, 3) / 0.6, real(2)), *(real(3, 1), real(1, 2), None, real(2))),
            {"scalings": (1.5,)},
            [0, 1, 4, 5, 6, 8],
        ),
    ],
    "im2col": _windows,
    "layer_norm": [((x, real(x.shape[-1]), real(x.shape[-1])), {"eps": 1e-2}) for x in (real(3, 5), real(2, 3, 4), real(4), real(0, 3))],
    "linear": [
        ((real(3, 4), real(4, 5), real(5)), {}),
        ((real(2, 3, 4), real(4, 2)), {}),
        ((real(4), real(4, 3), real(3)), {}),
        ((real(4), frozen(4, 3)), {}),
        ((real(0, 4), real(4, 2), real(2)), {}),
        ((real(2, 4), frozen(4, 3), real(3)), {}),
    ],
    "log": _unary(positive),
    "log_softmax": [((real(*shape),), {}) for shape in [(3, 5), (2, 2, 4), (6,), (3, 1), (0, 3)]],
    "lora_conv2d": [
        ((real(2, 4, 3, 2), frozen(18, 3), real(18, 2), real(2, 3)), {"scaling": 0.5, "kernel": 3, "padding": 1}),
        (
            (real(1, 6, 5, 2), frozen(12, 3), real(12, 1), real(1, 3), mask(1, 6, 5, 2) / 0.6, real(3)),
            {"scaling": 2.0, "kernel": (2, 3), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)},
            [0, 2, 3, 5],
        ),
    ],
    "dora_linear": [
        ((real(3, 4), frozen(4, 5), real(4, 2), real(2, 5), positive(5)), {"scaling": 0.5}, [0, 4]),
        ((real(3, 4), frozen(4, 5), real(4, 2), real(2, 5), positive(5), real(5)), {"scaling": 2.0}, [0, 4, 5]),
    ],
    "lora_chain": [
        ((real(3, 4), frozen(4, 5), real(5), real(4, 2), real(2, 5)), {"scalings": (0.5,), "relus": (True,)}, [0, 3, 4]),
        (
            (
                real(9, 4),
                *(frozen(4, 5), None, real(4, 2), real(2, 5)),
                *(frozen(5, 6), real(6), None, None),
                *(frozen(6, 3), None, real(6, 1), real(1, 3)),
            ),
            {"scalings": (2.0, 0.0, 0.5), "relus": (True, False, False)},
            [0, 3, 4, 11, 12],
        ),
    ],
    "lora_linear": [
        ((real(3, 4), frozen(4, 5), real(4, 2), real(2, 5)), {"scaling": 0.5}),
        ((real(3, 4), frozen(4, 5), real(4, 2), real(2, 5), mask(3, 4) / 0.6), {"scaling": 2.0}, [0, 2, 3]),
        ((real(0, 4), frozen(4, 1), real(4, 1), real(1, 1)), {"scaling": 1.0}),
        ((real(3, 4), frozen(4, 5), real(4, 2), real(2, 5), mask(3, 4) / 0.6, real(5)), {"scaling": 0.5}, [0, 2, 3, 5]),
    ],
    "matmul": [
        ((real(*a), real(*b)), {})
        for a, b in [
            ((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2)), ((0, 3), (3, 2)), ((3, 0), (0, 2)),
        ]
    ],
    "max_over": _reductions,
    "max_pool2d": _pools,
    "maximum": _no_tie,
    "mean": _reductions,
    "min_over": _reductions,
    "minimum": _no_tie,
    "mse": [((real(*shape), real(*shape)), {}) for shape in [(3, 4), (1,), ()]],
    "mul": _binary(),
    "neg": _unary(real),
    "power": [*_unary(positive, {"exponent": -1.5}, {"exponent": 0}), ((real(4),), {"exponent": 3})],
    "relu": _unary(apart),
    "reshape": [((real(2, 6),), {"shape": (3, -1)}), ((real(1),), {"shape": ()}), ((real(0, 3),), {"shape": (3, 0, 2)})],
    "rms_norm": [((x, real(x.shape[-1])), {"eps": 1e-2}) for x in (real(3, 5), real(2, 3, 4), real(4), real(0, 3))],
    "sigmoid": _unary(real),
    "silu": _unary(real),
    "sin": _unary(real),
    "softmax": [((real(*shape),), {}) for shape in [(3, 5), (2, 2, 4), (6,), (3, 1), (0, 3)]],
    "sqrt": _unary(positive),
    "square": _unary(real),
    "sub": _binary(),
    "sum_over": _reductions,
    "sum_to": [((real(2, 3, 4),), {"shape": (3, 1)}), ((real(2, 3),), {"shape": ()}), ((real(0, 3),), {"shape": (3,)})],
    "tanh": _unary(real),
    "transpose": [((real(2, 3, 4),), {"axes": axes}) for axes in [(2, 0, 1), (0, -1, 1)]] + [((real(),), {"axes": ()})],
    "where": [((mask(3, 4), real(3, 4), real(4)), {}), ((mask(4), real(2, 1), 0.0), {}), ((mask(2, 3), real(), real(2, 3)), {})],
}  # fmt: skip

CALLS = {"dropout": dropout, "concat": concat}


def call(name):
    """The function that takes an example of that name."""
    return CALLS.get(name) or getattr(ops, name, None) or name
