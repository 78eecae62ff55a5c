"""Arguments to try each kernel on: odd, small, empty, strided and transposed arrays, and non-finite values where they have a meaning.

Every maker takes `(rng, dtype, rows)` and gives a list of `(args, kwargs)`; `rows` is the length of the long axis.
Arrays are NumPy arrays; one wrapped in `Frozen` becomes the backend's handle of a frozen weight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..kernels import get_backend

Example = tuple[tuple[Any, ...], dict[str, Any]]
Maker = Callable[[np.random.Generator, Any, int], list[Example]]

K = 33  # the other axis: odd, and no multiple of a vector
EDGES = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 30.0, -30.0, 100.0, -100.0, 1e-6, -1e-6)

EXAMPLES: dict[str, Maker] = {}


class Frozen(NamedTuple):
    """An argument that the backend is to prepare as a frozen weight."""

    array: np.ndarray


def examples(*names: str) -> Callable[[Maker], Maker]:
    """Enter a maker of examples for these kernels."""

    def enter(maker: Maker) -> Maker:
        EXAMPLES.update(dict.fromkeys(names, maker))
        return maker

    return enter


def draw(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    """A contiguous array of normal draws."""
    return rng.standard_normal(shape).astype(dtype)


def strided(x: np.ndarray) -> np.ndarray:
    """The same values, with a gap after each in memory."""
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def transposed(x: np.ndarray) -> np.ndarray:
    """The same values, in the memory order of the transpose."""
    return np.asarray(x, order="F")


def edges(dtype: Any) -> np.ndarray:
    """The values that break things: not finite, zero of either sign, saturating, tiny."""
    return np.array(EDGES, dtype)


@examples("absolute", "cos", "exp", "neg", "relu", "sigmoid", "silu", "sin", "square", "tanh")
def _unary(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x = draw(rng, dtype, rows, K)
    return [((y,), {}) for y in (x, strided(x), transposed(x), x.reshape(rows, 11, 3), edges(dtype), dtype(0.5) * np.ones((), dtype))]


@examples("log", "sqrt")
def _unary_of_positive(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    return [((np.abs(x),), {}) for (x,), _ in _unary(rng, dtype, rows)[:4]] + [((edges(dtype),), {})]


@examples("power")
def _power(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x = np.abs(draw(rng, dtype, rows, K)) + dtype(0.1)
    odd = [((edges(dtype),), {"exponent": exponent}) for exponent in (2.0, 0.5, -1.0)]
    return [((y,), {"exponent": exponent}) for y in (x, transposed(x)) for exponent in (3.0, 0.5, -1.5)] + odd


@examples("clip")
def _clip(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    limits: list[dict[str, Any]] = [{"low": -0.5, "high": 0.25}, {"low": None, "high": 0.0}, {"low": 1.0, "high": None}]
    return [(args, kwargs) for kwargs in limits for args, _ in _unary(rng, dtype, rows)]


@examples("gelu")
def _gelu(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    return [(args, {"tanh": tanh}) for tanh in (False, True) for args, _ in _unary(rng, dtype, rows)]


@examples("add", "sub", "mul", "div", "maximum", "minimum")
def _binary(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    a, b = draw(rng, dtype, rows, K), draw(rng, dtype, rows, K)
    row, column, number = draw(rng, dtype, K), draw(rng, dtype, rows, 1), draw(rng, dtype)
    deep = draw(rng, dtype, 2, rows, K)
    pairs = [
        (a, b),
        (a, row),
        (row, a),
        (a, column),
        (column, row),
        (a, number),
        (number, b),
        (a, deep),
        (strided(a), b),
        (a, transposed(b)),
    ]
    pairs.append(tuple(np.meshgrid(edges(dtype), edges(dtype))))
    return [(pair, {}) for pair in pairs]


@examples("relu_grad", "silu_grad")
def _activation_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    g, x = draw(rng, dtype, rows, K), draw(rng, dtype, rows, K)
    return [((g, x), {}), ((strided(g), transposed(x)), {}), ((np.ones(len(EDGES), dtype), edges(dtype)), {})]


@examples("gelu_grad")
def _gelu_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    return [(args, {"tanh": tanh}) for tanh in (False, True) for args, _ in _activation_grad(rng, dtype, rows)]


@examples("tanh_grad", "sigmoid_grad")
def _saturating_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    g, y = draw(rng, dtype, rows, K), rng.random((rows, K)).astype(dtype)
    return [((g, y), {}), ((strided(g), transposed(y)), {}), ((g[:1, 0], np.ones(min(rows, 1), dtype)), {})]


@examples("where")
def _where(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    condition, a, b = rng.random((rows, K)) < 0.5, draw(rng, dtype, rows, K), draw(rng, dtype, rows, K)
    return [((condition, a, b), {}), ((condition[:, :1], a, b[0] if rows else b), {}), ((transposed(condition), strided(a), b), {})]


@examples("dropout")
def _dropout(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x, mask = draw(rng, dtype, rows, K), rng.random((rows, K)) < 0.8
    return [(pair, {"scale": 1.25}) for pair in ((x, mask), (x, mask[:, :1]), (strided(x), transposed(mask)))]


@examples("sum_over")
def _sum_over(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x = draw(rng, dtype, rows, 11, 3)
    axes = [None, 0, 1, -1, (0, 2), (0, 1, 2)]
    return [((y,), {"axis": axis, "keepdims": keep}) for y in (x, transposed(x)) for axis in axes for keep in (False, True)]


@examples("max_over")
def _max_over(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    odd = np.tile(edges(dtype), (3, 1))
    return _sum_over(rng, dtype, max(rows, 1)) + [((odd,), {"axis": axis, "keepdims": False}) for axis in (0, 1, None)]


@examples("max_grad")
def _max_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x = np.round(draw(rng, dtype, max(rows, 1), K))  # rounded: some maxima are attained more than once
    tops = [(axis, np.max(x, axis=axis, keepdims=True)) for axis in (0, -1, (0, 1), None)]
    return [((draw(rng, dtype, *y.shape), x, y), {"axis": axis}) for axis, y in tops]


@examples("argmax")
def _argmax(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x = np.round(draw(rng, dtype, max(rows, 1), K))
    return [((y,), {"axis": axis}) for y in (x, transposed(x)) for axis in (0, 1, -1)]


@examples("sum_to")
def _sum_to(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x, deep = draw(rng, dtype, rows, K), draw(rng, dtype, 2, rows, K)
    shapes = [(rows, K), (K,), (1, K), (rows, 1), (1, 1), ()]
    return [((y,), {"shape": shape}) for y in (x, strided(x), deep) for shape in shapes]


@examples("broadcast_to")
def _broadcast_to(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    sources = (draw(rng, dtype, K), draw(rng, dtype, rows, 1), draw(rng, dtype), strided(draw(rng, dtype, rows, K)))
    return [((x,), {"shape": shape}) for x in sources for shape in ((rows, K), (2, rows, K))]


@examples("sum_squares")
def _sum_squares(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x = draw(rng, dtype, rows, K)
    return [((y,), {}) for y in (x, strided(x), transposed(x), draw(rng, dtype), dtype(1e25) * x)]


@examples("reshape")
def _reshape(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x = draw(rng, dtype, rows, K)
    return [((y,), {"shape": shape}) for y in (x, transposed(x)) for shape in ((rows * K,), (rows, 3, 11), (11, rows, 3))] + [
        ((draw(rng, dtype, 4, 6),), {"shape": (-1, 3)})
    ]


@examples("transpose")
def _transpose(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x = draw(rng, dtype, rows, 11, 3)
    return [((y,), {"axes": axes}) for y in (x, strided(x)) for axes in ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1))]


INDICES = ((slice(None), 3), (slice(None), slice(1, 20, 3)), (..., None, 2), (slice(None, None, -1),), (slice(0, 0),), (None, slice(None)))


@examples("getitem")
def _getitem(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x = draw(rng, dtype, rows, K)
    return [((y,), {"index": index}) for y in (x, strided(x)) for index in INDICES]


@examples("getitem_grad")
def _getitem_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    shape = (rows, K)
    return [((draw(rng, dtype, *np.empty(shape)[index].shape),), {"index": index, "shape": shape}) for index in INDICES]


@examples("concat")
def _concat(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    a, b, c = draw(rng, dtype, rows, K), draw(rng, dtype, rows, 2), draw(rng, dtype, 3, K)
    return [((a, b), {"axis": 1}), ((a, c, a), {"axis": 0}), ((a, strided(b), a), {"axis": -1}), ((a,), {"axis": 0})]


@examples("gather_rows")
def _gather_rows(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    w, index = draw(rng, dtype, 11, K), rng.integers(0, 11, rows)
    narrow = index.astype(np.int32).reshape(rows, 1)
    return [((w, index), {}), ((strided(w), index), {}), ((w, narrow), {}), ((transposed(w), index[::-1]), {})]


@examples("scatter_add_rows")
def _scatter_add_rows(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    g, index = draw(rng, dtype, rows, K), rng.integers(0, 5, rows)
    narrow = index.astype(np.int32).reshape(rows, 1)
    return [(pair, {"rows": 6}) for pair in ((g, index), (strided(g), index[::-1]), (g.reshape(rows, 1, K), narrow))]


@examples("scatter")
def _scatter(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x, index = draw(rng, dtype, rows), rng.permutation(2 * rows + 3)[:rows]
    return [((x, each), {"size": 2 * rows + 3}) for each in (index, np.sort(index).astype(np.int32), index[::-1])]


SPARSE = np.array([0, 5, K - 1, K, 3 * K + 2, 7 * K - 1, 9 * K, 11 * K - 1])


@examples("sparse_matmul")
def _sparse_matmul(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x, values = draw(rng, dtype, rows, 11), draw(rng, dtype, len(SPARSE))
    return [((y, values, index), {"k": K}) for y in (x, strided(x)) for index in (SPARSE, SPARSE.astype(np.int32))] + [
        ((x, values[:0], SPARSE[:0]), {"k": K})
    ]


@examples("sparse_matmul_t")
def _sparse_matmul_t(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    g, values = draw(rng, dtype, rows, K), draw(rng, dtype, len(SPARSE))
    return [((y, values, SPARSE), {"d": 11}) for y in (g, transposed(g), strided(g))]


@examples("sparse_values_grad")
def _sparse_values_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x, g = draw(rng, dtype, rows, 11), draw(rng, dtype, rows, K)
    return [((x, g, SPARSE), {}), ((strided(x), transposed(g), SPARSE.astype(np.int32)), {}), ((x, g, SPARSE[:0]), {})]


@examples("softmax", "log_softmax")
def _softmax(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x = draw(rng, dtype, rows, K)
    masked = np.where(rng.random((5, K)) < 0.5, draw(rng, dtype, 5, K), dtype(-np.inf))
    masked[:, 0] = (0, 100, -100, np.nan, np.inf)
    return [((y,), {}) for y in (x, strided(x), transposed(x), 50 * x, x.reshape(rows, 11, 3), x[:, :1], masked)]


@examples("softmax_grad", "log_softmax_grad")
def _softmax_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    g, x = draw(rng, dtype, rows, K), draw(rng, dtype, rows, K)
    y = np.exp(x) / np.sum(np.exp(x), axis=-1, keepdims=True)
    return [(pair, {}) for pair in ((g, y), (strided(g), transposed(y)), (g.reshape(rows, 11, 3), y.reshape(rows, 11, 3)))]


LOSSES: tuple[dict[str, Any], ...] = ({}, {"smoothing": 0.1}, {"ignore_index": 3}, {"ignore_index": 3, "smoothing": 0.1})


@examples("cross_entropy")
def _cross_entropy(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x, labels = draw(rng, dtype, rows, K), rng.integers(0, 5, rows)
    more: list[Example] = [((x, np.full(rows, -100)), {}), ((strided(x), labels.astype(np.int32)), {}), ((20 * x, labels), {})]
    barred = np.where(np.arange(K) < 30, x, dtype(-np.inf))
    return [((x, labels), kwargs) for kwargs in LOSSES] + more + [((barred, labels), {})]


@examples("cross_entropy_grad")
def _cross_entropy_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    log_softmax = get_backend("reference").log_softmax
    g = np.asarray(0.7, dtype)
    return [((g, log_softmax(x), labels), kwargs) for (x, labels), kwargs in _cross_entropy(rng, dtype, rows)]


@examples("mse")
def _mse(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x, target = draw(rng, dtype, max(rows, 1), K), draw(rng, dtype, max(rows, 1), K)
    return [((x, target), {}), ((strided(x), transposed(target)), {}), ((x[0], target[0]), {})]


@examples("mse_grad")
def _mse_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    return [((np.asarray(0.7, dtype), *pair), {}) for pair, _ in _mse(rng, dtype, rows)]


@examples("layer_norm", "rms_norm")
def _norm(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x, w, b = draw(rng, dtype, rows, K), draw(rng, dtype, K), draw(rng, dtype, K)
    return [((y, w, b), {"eps": 1e-5}) for y in (x, strided(x), transposed(x), dtype(1e-3) * x)] + [
        ((x[:, :1], w[:1], b[:1]), {"eps": 1e-2})
    ]


EXAMPLES["rms_norm"] = lambda rng, dtype, rows: [((x, w), kwargs) for (x, w, _), kwargs in _norm(rng, dtype, rows)]


@examples("layer_norm_grad")
def _layer_norm_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    layer_norm = get_backend("reference").layer_norm
    return [((draw(rng, dtype, *x.shape), x, w, *layer_norm(x, w, b, **eps)[1:]), {}) for (x, w, b), eps in _norm(rng, dtype, rows)]


@examples("rms_norm_grad")
def _rms_norm_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    rms_norm = get_backend("reference").rms_norm
    return [((draw(rng, dtype, *x.shape), x, w, rms_norm(x, w, **eps)[1]), {}) for (x, w, b), eps in _norm(rng, dtype, rows)]


CONVOLUTIONS = tuple(
    dict(zip(("kernel", "stride", "padding", "dilation"), pairs, strict=True))
    for pairs in (
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((1, 1), (1, 1), (0, 0), (1, 1)),
        ((3, 2), (2, 3), (1, 2), (1, 1)),
        ((2, 3), (1, 2), (4, 3), (2, 2)),
    )
)


@examples("im2col")
def _im2col(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    images = [draw(rng, dtype, -(-rows // 20), 5, 7, channels) for channels in (1, 3, 9)]
    images.append(np.swapaxes(draw(rng, dtype, 2, 7, 5, 2), 1, 2))
    return [((x,), options) for x in images for options in CONVOLUTIONS]


@examples("col2im")
def _col2im(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    im2col = get_backend("reference").im2col
    pairs = [(im2col(x, **options), {"shape": x.shape, **options}) for (x,), options in _im2col(rng, dtype, rows)]
    return [((draw(rng, dtype, *g.shape),), kwargs) for g, kwargs in pairs]


@examples("lora_conv2d")
def _lora_conv2d(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    made: list[Example] = []
    few = rows <= 3  # where threads are simulated one by one
    for i, ((x,), options) in enumerate(_im2col(rng, dtype, rows)[: 4 if few else None]):
        rank, k, order = ((2, 9, np.ascontiguousarray), (16, 40, transposed), (3, 33, strided))[0 if few else i % 3]
        d = options["kernel"][0] * options["kernel"][1] * x.shape[3]
        w, a, b = (order(draw(rng, dtype, *shape)) for shape in ((d, k), (d, rank), (rank, k)))
        mask, bias = (rng.random(x.shape) < 0.9).astype(dtype) / dtype(0.9), draw(rng, dtype, k)
        made += [((x, Frozen(w), a, b, *extra), {"scaling": 0.5, **options}) for extra in ((), (mask, bias))]
    return made


@examples("lora_conv2d_grad")
def _lora_conv2d_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    made: list[Example] = []
    K = get_backend("reference")
    for i, ((x, w, a, b, *extra), kwargs) in enumerate(_lora_conv2d(rng, dtype, rows)):
        y, xa = K.lora_conv2d(x, K.freeze_weight(w.array), a, b, *extra, **kwargs)
        made.append(((draw(rng, dtype, *y.shape), x, xa, w, a, b, *extra[:1]), {**kwargs, "need_x": i % 5 != 0}))
    return made


@examples("lora_conv2d_dx")
def _lora_conv2d_dx(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    return [
        ((g, *args[2:]), {**{key: kwargs[key] for key in kwargs if key != "need_x"}, "shape": args[0].shape})
        for (g, *args), kwargs in _lora_conv2d_grad(rng, dtype, rows)
    ]


@examples("sgd_step")
def _sgd_step(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    p, g, v = (draw(rng, dtype, rows, K) for _ in range(3))
    options = [{}, {"weight_decay": 0.1}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}]
    made = []
    for option in options:
        state = (v.copy(),) if option.get("momentum") else ()
        made.append(((p.copy(), g, *state), {"lr": 0.05, **option}))
        made.append(((strided(p), transposed(g), *state), {"lr": 0.05, **option}))
    return made


@examples("adam_step")
def _adam_step(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    p, g, m = (draw(rng, dtype, rows, K) for _ in range(3))
    v = np.square(draw(rng, dtype, rows, K))
    fixed = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    made = []
    for decay, decoupled, step in ((0.0, False, 1), (0.1, False, 7), (0.1, True, 1000)):
        options = {**fixed, "weight_decay": decay, "decoupled": decoupled, "step": step}
        made += [((p.copy(), g, m.copy(), v.copy()), options), ((strided(p), transposed(g), m.copy(), strided(v)), options)]
    return made


@examples("matmul")
def _matmul(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    a, b, batch = draw(rng, dtype, rows, K), draw(rng, dtype, K, 17), draw(rng, dtype, 3, rows, K)
    pairs = [(a, b), (strided(a), transposed(b)), (a, b[:, :1]), (a[:, :1], b[:1]), (a[:, :0], b[:0]), (batch, b)]
    return [(pair, {}) for pair in (*pairs, (batch, draw(rng, dtype, 3, K, 5)), (a, draw(rng, dtype, 2, 1, K, 5)))]


@examples("freeze_weight")
def _freeze_weight(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    w = draw(rng, dtype, rows, K)
    return [((x,), {}) for x in (w, strided(w), transposed(w), w[:, :1])]


@examples("frozen_matmul")
def _frozen_matmul(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    x, w, deep = draw(rng, dtype, rows, K), draw(rng, dtype, K, 17), draw(rng, dtype, 2, rows, K)
    pairs = ((x, w), (strided(x), transposed(w)), (deep, w), (x, w[:, :1]), (x[:, :1], w[:1]))
    return [((y, Frozen(m)), {}) for y, m in pairs]


@examples("frozen_matmul_t")
def _frozen_matmul_t(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    return [((x, Frozen(w.array.T)), {}) for (x, w), _ in _frozen_matmul(rng, dtype, rows)]


def _lora(rng: np.random.Generator, dtype: Any, rows: int) -> list[tuple[np.ndarray, ...]]:
    """x, w, A, B and mask of LoRA layers: several ranks and orders in memory."""
    made: list[tuple[np.ndarray, ...]] = []
    for rank, order in ((4, np.ascontiguousarray), (1, strided), (5, transposed)):
        shapes = ((rows, K), (K, 18), (K, rank), (rank, 18))
        x, w, a, b = (order(draw(rng, dtype, *shape)) for shape in shapes)
        made.append((x, w, a, b, (rng.random(x.shape) < 0.9).astype(dtype) / dtype(0.9)))
    return made


@examples("lora_linear")
def _lora_linear(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    sets = _lora(rng, dtype, rows)
    biases = [draw(rng, dtype, w.shape[1]) for _, w, *_ in sets]
    return [
        ((x, Frozen(w), a, b, *extra), {"scaling": 0.5})
        for (x, w, a, b, mask), bias in zip(sets, biases, strict=True)
        for extra in ((), (mask,), (None, bias), (mask, bias))
    ]


@examples("lora_linear_grad")
def _lora_linear_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    made: list[Example] = []
    for (x, w, a, b, *extra), kwargs in _lora_linear(rng, dtype, rows):
        if len(extra) > 1:
            continue  # the bias plays no part
        g, xa = draw(rng, dtype, rows, 18), (x * extra[0] if extra else x) @ a
        made += [((g, x, xa, w, a, b, *extra), {**kwargs, "need_x": need}) for need in (True, False)]
    return made


@examples("dora_linear")
def _dora_linear(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    made: list[Example] = []
    for x, w, a, b, _ in _lora(rng, dtype, rows):
        m, bias = np.abs(draw(rng, dtype, w.shape[1])), draw(rng, dtype, w.shape[1])
        made += [((x, Frozen(w), a, b, m, *extra), {"scaling": 0.5}) for extra in ((), (bias,))]
    return made


@examples("dora_linear_grad")
def _dora_linear_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    made: list[Example] = []
    for x, w, a, b, _ in _lora(rng, dtype, rows):
        k = w.shape[1]
        m, c = np.abs(draw(rng, dtype, k)), np.abs(draw(rng, dtype, k)) + dtype(0.5)
        given = draw(rng, dtype, rows, k), x, c, draw(rng, dtype, rows, k), x @ a, Frozen(w), a, b, m
        made += [(given, {"scaling": 0.5, "need_x": need}) for need in (True, False)]
    return made


@examples("lora_column_norm")
def _lora_column_norm(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    made: list[Example] = []
    for rank, order in ((4, np.ascontiguousarray), (1, strided), (5, transposed)):
        w, a, b = (order(draw(rng, dtype, *shape)) for shape in ((rows, 4 * K), (rows, rank), (rank, 4 * K)))
        made.append(((Frozen(w), a, b), {"scaling": 0.5}))
    return made


def _chains(rng: np.random.Generator, dtype: Any, rows: int) -> list[tuple[Any, ...]]:
    """Input, links and options of chains: one layer and several, ranks of all kinds, layers without bias or adapter."""
    made = []
    for sizes, ranks in (((5, 7), (3,)), ((K, 18, 70, 3), (5, 17, 2)), ((20, 33, 40), (None, 16)), ((12, 9), (None,))):
        links: list[Any] = []
        for i, (d, k, r) in enumerate(zip(sizes[:-1], sizes[1:], ranks, strict=True)):
            a, b = (None, None) if r is None else (draw(rng, dtype, d, r), draw(rng, dtype, r, k))
            bias = draw(rng, dtype, k) if i % 2 == 0 else None
            links += [Frozen(draw(rng, dtype, d, k)), bias, a if i or a is None else transposed(a), b]
        relus = tuple(i % 2 == 0 for i in range(len(ranks)))
        made.append((draw(rng, dtype, rows, sizes[0]), links, {"scalings": tuple(0.5 + i for i in range(len(ranks))), "relus": relus}))
    return made


@examples("lora_chain")
def _lora_chain(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    return [((x, *links), options) for x, links, options in _chains(rng, dtype, rows)]


@examples("lora_chain_grad")
def _lora_chain_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    made: list[Example] = []
    reference = get_backend("reference")
    for x, links, options in _chains(rng, dtype, rows):
        given = [reference.freeze_weight(link.array) if isinstance(link, Frozen) else link for link in links]
        y, kept = reference.lora_chain(x, *given, **options)
        g = draw(rng, dtype, *y.shape)
        made += [((g, x, y, kept, *links), {**options, "need_x": need}) for need in (True, False)]
    return made
