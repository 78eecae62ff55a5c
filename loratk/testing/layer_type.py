"""The contract of a layer type: its module uses a matrix as it says, and every method works on it."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..lora import LayerType, LoraConfig, LoraLayer, Method
from ..nn import Module
from ..plugins import Registry, default_registry
from .vjp import check_vjp

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}  # of sums of some hundred products, taken in another order


def check_layer_type(
    layer_type: LayerType[Any],
    make_module: Callable[[Any], Module],
    make_input: Callable[[Any], np.ndarray],
    *,
    methods: Iterable[str] | None = None,
    backend: str = "cpu",
    registry: Registry | None = None,
) -> None:
    """Raise AssertionError with the first promise of `LayerType` that is broken.

    `make_module(dtype)` makes a module of float32 or float64, with a bias if the class can have one; `make_input(dtype)`
    an array that it takes, of that dtype or of integers, with more than one row. Keep both small: some ten inputs and outputs.
    Checked alone, and under each of `methods` (all that are registered), frozen and not, with dropout and without.
    """
    registry = registry or default_registry()
    assert isinstance(layer_type.name, str), f"A layer type needs a name, found {layer_type.name!r}."
    for dtype in (np.float32, np.float64):
        module, x = make_module(dtype).to(backend), make_input(dtype)
        _check_matrix(layer_type, module)
        for freeze in (False, True):
            (module.freeze if freeze else module.unfreeze)()
            _check_apply(layer_type, module, x)
        for name in registry.methods if methods is None else methods:
            check_pair(layer_type, registry.method(name), module, x, registry)
    _check_derivative(layer_type, {np.dtype(t): make_module(t).to(backend) for t in (np.float32, np.float64)}, make_input, backend)


def check_pair(layer_type: LayerType[Any], method: Method, module: Module, x: np.ndarray, registry: Registry | None = None) -> None:
    """Raise AssertionError unless a method works on a layer: no effect at first, merged as adapted, fused as generic."""
    what = f"{method.name!r} on {layer_type.name!r}"
    config = LoraConfig(rank=1, alpha=2.0, method=method.name)
    layer = LoraLayer(module.freeze(), layer_type, name="layer", registry=registry)
    layer.add("a", config, bias=layer_type.bias(module) is not None)
    base = layer(x).numpy()
    layer.activate("a")
    _close(layer(x), base, f"{what}: an adapter that has just been made must not change the output")
    for name, dropout in (("plain", 0.0), ("dropped", 0.5)):
        layer.add(name, config.replace(dropout=dropout))
        layer.activate(name)
        randomize(layer.adapters, 2)
        _check_fused(layer, x, f"{what}, dropout {dropout}: the fused and the generic path")
        _check_dropout(layer, x, f"{what}, dropout {dropout}: the update, and delta() applied to what dropout leaves of the input")
    layer.activate("a")
    for freeze in (True, False):
        (module.freeze if freeze else module.unfreeze)()
        adapted = layer(x).numpy()
        assert not np.allclose(adapted, base, rtol=1e-3), f"{what}: the adapter changes nothing; the input may be too plain."
        layer.merge()
        _close(layer(x), adapted, f"{what}: merged and adapted output")
        layer.unmerge()


def randomize(module: Module, seed: int) -> None:
    """Move every parameter of a module away from its value, by a seeded draw from N(0, 1/4)."""
    rng = np.random.default_rng(seed)
    for parameter in module.parameters():
        noise = 0.5 * rng.standard_normal(parameter.shape)
        parameter.assign((parameter.numpy() + noise).astype(parameter.dtype))


def _check_matrix(layer_type: LayerType[Any], module: Module) -> None:
    """The weight read as a matrix, written back, and cut into column blocks."""
    assert isinstance(module, layer_type.module), f"make_module must make a {layer_type.module.__name__}, found {type(module).__name__}."
    weight, (d, k) = layer_type.weight(module), layer_type.shape(module)
    before = np.array(weight.numpy())
    matrix = np.array(layer_type.read(module))
    assert matrix.shape == (d, k), f"read() must give shape() = {(d, k)}, found {matrix.shape}."
    assert matrix.dtype == weight.dtype, f"read() must keep the weight's dtype {weight.dtype}, found {matrix.dtype}."
    other = np.random.default_rng(0).standard_normal((d, k)).astype(matrix.dtype)
    layer_type.write(module, other)
    assert np.array_equal(layer_type.read(module), other), "read() after write(m) must give m, to the last bit."
    layer_type.write(module, matrix)
    assert np.array_equal(weight.numpy(), before), "write(read()) must leave the weight as it was, to the last bit."
    at = 0
    for name, (start, stop) in layer_type.blocks(module).items():
        assert start == at < stop, f"blocks() must tile the columns in order: {name!r} is {start, stop} and should start at {at}."
        at = stop
    assert at == k, f"blocks() must tile all {k} columns, found the end at {at}."


def _check_apply(layer_type: LayerType[Any], module: Module, x: Any) -> None:
    """`apply`: the module's own product, any number of columns, linear in the matrix."""
    _, k = layer_type.shape(module)
    given = module.input(x)
    product = layer_type.apply(module, given, layer_type.own_matrix(module))
    bias = layer_type.bias(module)
    _close(product if bias is None else product + bias, module(x).numpy(), "apply(own_matrix) plus the bias, and forward()")
    rng = np.random.default_rng(1)
    d, dtype = layer_type.shape(module)[0], layer_type.weight(module).dtype

    def apply(m: np.ndarray) -> np.ndarray:
        return layer_type.apply(module, given, Tensor(m.astype(dtype), backend=module.backend)).numpy()

    _close(apply(np.array(layer_type.read(module))), product.numpy(), "apply() with the weight as a tensor, and with own_matrix()")
    rows = layer_type.rows(module, given)
    _close(rows @ layer_type.read(module), product.numpy().reshape(-1, k), "rows() @ W, and apply()")
    for columns in {1, 3, k + 1}:
        a, b = rng.standard_normal((2, d, columns))
        got, want = apply(a).shape, (*product.shape[:-1], columns)
        assert got == want, f"apply() with a matrix of {columns} columns must give shape {want}, found {got}."
        _close(
            apply(2 * a - 3 * b), 2 * apply(a) - 3 * apply(b), "apply() linear in the matrix: apply(2a - 3b) and 2 apply(a) - 3 apply(b)"
        )


def _check_derivative(layer_type: LayerType[Any], modules: dict[Any, Module], make_input: Any, backend: str) -> None:
    """`apply`'s derivative for the matrix, and for the input if that is no integer."""
    x = make_input(np.float64)
    d, _ = layer_type.shape(modules[np.dtype(np.float64)])
    m = np.random.default_rng(2).standard_normal((d, 2))
    if x.dtype.kind == "f":
        check_vjp(lambda x, m: layer_type.apply(modules[m.dtype], x, m), [x, m], backend=backend)
    else:
        check_vjp(lambda m: layer_type.apply(modules[m.dtype], Tensor(x, backend=backend), m), [m], backend=backend)


def _check_fused(layer: LoraLayer, x: np.ndarray, what: str) -> None:
    """Output and all gradients, with and without the layer type's own path; a copy draws the same dropout."""
    other = copy.deepcopy(layer)
    other.use_fused = False
    results = []
    for each in (layer, other):
        given = Tensor(np.array(x), requires_grad=x.dtype.kind == "f", backend=each.base.backend)
        y = each(given)
        weights = np.random.default_rng(3).standard_normal(y.shape).astype(y.dtype)
        (y * weights).sum().backward()
        active = each.adapter(next(iter(each.active))).tensors()
        grads = {name: each.backend.numpy(p.grad) for name, p in active.items() if p.requires_grad}
        if given.requires_grad:
            grads["x"] = each.backend.numpy(given.grad)
        results.append((y.numpy(), grads))
    (got, got_grads), (want, want_grads) = results
    _close(got, want, what)
    for name, grad in want_grads.items():
        _close(got_grads[name], grad, f"{what}, gradient of {name}")


def _check_dropout(layer: LoraLayer, x: np.ndarray, what: str) -> None:
    """In training, the update is that of the input after dropout: for integers, which pick rows, of the picked rows."""
    kind, base, other = layer.layer_type, layer.base, copy.deepcopy(layer)
    assert kind is not None
    other.activate([])
    want, matrix = np.array(other(x).numpy()), kind.read(base)
    given = base.input(x)
    for block, adapter in other.adapter(next(iter(layer.active))).blocks().items():
        start, stop = kind.blocks(base)[block]
        mask, delta = adapter.mask(given), adapter.delta(np.ascontiguousarray(matrix[:, start:stop]))
        update = Tensor(delta, backend=base.backend)
        if mask is not None and x.dtype.kind == "f":
            want[..., start:stop] += kind.apply(base, base.input(x * mask), update).numpy()
        else:
            want[..., start:stop] += kind.apply(base, given, update).numpy() * (1 if mask is None else mask[..., None])
        own = kind.bias(base)
        if own is not None and (change := adapter.bias_delta(own.numpy()[start:stop])) is not None:
            want[..., start:stop] += change
    _close(layer(x), want, what)


def _close(got: Any, want: np.ndarray, what: str) -> None:
    got = got.numpy() if isinstance(got, Tensor) else got
    assert (got.shape, got.dtype) == (want.shape, want.dtype), f"{what}: got {got.dtype} {got.shape}, want {want.dtype} {want.shape}."
    size = max(1.0, float(np.abs(want).max(initial=0)))
    off = float(np.abs(got - want).max(initial=0)) / size
    assert off <= TOLERANCE[want.dtype.name], f"{what} differ by {off:.3g} of the largest entry (allowed {TOLERANCE[want.dtype.name]:g})."
