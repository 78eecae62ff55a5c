"""The contract of a method: parameters as announced, no effect at first, one update in two forms, and its gradient."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..kernels import Backend, get_backend
from ..lora import Call, Method
from .vjp import check_vjp

Arrays = Mapping[str, np.ndarray]
Held = Callable[[np.ndarray, np.ndarray, Arrays, Arrays, float], np.ndarray]
SCALING = 0.75
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def check_method(
    method: Method,
    *,
    options: Mapping[str, Any] | None = None,
    backends: tuple[str, ...] = ("reference", "cpu"),
    sizes: tuple[int, int, int] = (6, 5, 2),
    held: Held | None = None,
) -> None:
    """Raise AssertionError with the first promise of `Method` that is broken, for a plain product x W with W (d, k).

    `options`: those of the method to check with. `sizes`: d, k and rank. `held`: for a method that takes something as a
    constant in its backward pass, as DoRA takes the norm, `held(x, weight, parameters, at, scaling)` is its update in NumPy
    with that something computed from the parameters `at`; gradients are then compared to the difference quotients of this
    function with `at` held. Otherwise they are compared to those of the update itself.
    """
    options = dict(options or {})
    assert isinstance(method.name, str), f"A method needs a name, found {method.name!r}."
    assert not list(method.option_faults(dict(method.options))), "option_faults() must accept the method's own defaults."
    assert not list(method.option_faults(options)), f"option_faults() must accept {options}."
    assert list(method.option_faults({"no such option": 1})), "option_faults() must name an option that the method does not have."
    for dtype in (np.float32, np.float64):
        case = _Case(method, options, sizes, dtype)
        case.check_initial()
        for backend in backends:
            case.check_update(get_backend(backend))
    for backend in backends:
        case.check_gradients(backend, held)


class _Case:
    """A method on a random product of one dtype, with its first parameters and with random ones."""

    def __init__(self, method: Method, options: dict[str, Any], sizes: tuple[int, int, int], dtype: Any) -> None:
        self.method, self.options, self.dtype = method, options, np.dtype(dtype)
        self.d, self.k, self.rank = sizes
        rng = np.random.default_rng(0)
        self.weight, self.x = (rng.standard_normal(shape).astype(dtype) for shape in ((self.d, self.k), (4, self.d)))
        self.first = self._initial(1)
        moved = {name: p + 0.5 * rng.standard_normal(p.shape) for name, p in self.first.items() if p.dtype.kind == "f"}
        self.random = self.first | {name: p.astype(dtype) for name, p in moved.items()}

    def _initial(self, seed: int) -> dict[str, np.ndarray]:
        return self.method.initial(self.weight, self.rank, np.random.default_rng(seed), self.options)

    def _call(self, x: Tensor, K: Backend) -> Call:
        handle = K.freeze_weight(K.asarray(self.weight.astype(x.dtype)))
        product = ops.linear(x, handle)
        matrix = Tensor(self.weight.astype(x.dtype), backend=K)
        return Call(product, lambda m: ops.linear(x, m), lambda: product, lambda: handle, matrix=lambda: matrix)

    def update(self, x: Tensor, parameters: Mapping[str, Any], K: Backend) -> Tensor:
        """The method's update of the plain product; arrays among the parameters become constants."""
        tensors = {name: p if isinstance(p, Tensor) else Tensor(p, backend=K) for name, p in parameters.items()}
        return self.method.update(self._call(x, K), tensors, SCALING)

    def check_initial(self) -> None:
        """Names, shapes, dtype and seed of the first parameters."""
        before = self.weight.copy()
        if not self.options:
            want = {name: tuple(shape) for name, shape in self.method.shapes(self.d, self.k, self.rank).items()}
            got = {name: p.shape for name, p in self.first.items()}
            assert got == want, f"initial() must have the shapes that shapes() says, {want}, found {got}."
        found = list(self.method.parameter_faults(self.first, self.d, self.k, self.rank))
        assert not found, f"parameter_faults() must accept what initial() gives, found {found}."
        for name, p in self.first.items():
            whole = p.dtype.kind in "iu"
            assert whole or p.dtype == self.dtype, f"initial() must have the weight's dtype {self.dtype}, found {p.dtype} for {name!r}."
            assert np.array_equal(p, self._initial(1)[name]), f"initial() must give the same {name!r} for the same seed, to the last bit."
            assert not np.shares_memory(p, self.weight), f"initial() must copy what it takes from the weight: {name!r} is part of it."
        assert np.array_equal(self.weight, before), "initial() must not change the weight."

    def check_update(self, K: Backend) -> None:
        """Nothing at first; and the same update in the forward pass and as a change of the weight."""
        x = Tensor(self.x, backend=K)
        self._close(self.update(x, self.first, K).numpy(), np.zeros((4, self.k), self.dtype), f"the first update on {K.name!r}, and 0")
        arrays = {name: K.asarray(p) for name, p in self.random.items()}
        delta = K.numpy(self.method.delta(K, K.asarray(self.weight), arrays, SCALING))
        assert delta.shape == (self.d, self.k), f"delta() must have the weight's shape {(self.d, self.k)}, found {delta.shape}."
        assert np.abs(delta).max() > 1e-3, "delta() must not be 0 for random parameters."
        want = (self.x.astype(np.float64) @ delta.astype(np.float64)).astype(delta.dtype)
        self._close(self.update(x, self.random, K).numpy(), want, f"update(x) and x @ delta on {K.name!r}")

    def check_gradients(self, backend: str, held: Held | None) -> None:
        """The gradient of every parameter that trains, and the input's, against difference quotients."""
        frozen = self.method.frozen(self.options)
        assert frozen <= self.random.keys(), f"frozen() must name parameters, found {sorted(frozen)}."
        trains = {name: p for name, p in self.random.items() if name not in frozen and p.dtype.kind == "f"}
        K, names, arrays = get_backend(backend), list(trains), list(trains.values())

        def update(x: Tensor, *parameters: Tensor) -> Tensor:
            held = {name: p.astype(x.dtype) if p.dtype.kind == "f" else p for name, p in self.random.items()}
            return self.update(x, held | dict(zip(names, parameters, strict=True)), K)

        x = self.x
        tensors = [Tensor(np.array(array), requires_grad=True, backend=K) for array in (x, *arrays)]
        out = update(*tensors)
        cotangent = np.random.default_rng(3).standard_normal(out.shape)
        out.backward(Tensor(cotangent, backend=K))
        for name, tensor in zip(["x", *names], tensors, strict=True):
            assert tensor.grad is not None, f"update() gives {name!r} no gradient on {K.name!r}."
        if held is None:
            check_vjp(update, [x, *arrays], backend=backend)
            return
        self._close(held(x, self.weight, self.random, self.random, SCALING), out.numpy(), "held() with `at` = the parameters, and update()")
        for place, (name, tensor) in enumerate(zip(["x", *names], tensors, strict=True)):
            want = np.empty(tensor.shape)
            for index in np.ndindex(*tensor.shape):
                ends = []
                for step in (1e-6, -1e-6):
                    moved = [np.array(array) for array in (x, *arrays)]
                    moved[place][index] += step
                    ends.append(held(moved[0], self.weight, self.random | dict(zip(names, moved[1:], strict=True)), self.random, SCALING))
                want[index] = np.sum(cotangent * (ends[0] - ends[1])) / 2e-6
            self._close(K.numpy(tensor.grad), want, f"the gradient of {name!r} on {K.name!r} and its difference quotient", 1e-7)

    def _close(self, got: np.ndarray, want: np.ndarray, what: str, tolerance: float | None = None) -> None:
        assert (got.shape, got.dtype) == (want.shape, want.dtype), f"{what}: got {got.dtype} {got.shape}, want {want.dtype} {want.shape}."
        off, allowed = float(np.abs(got - want).max()) / max(1.0, float(np.abs(want).max())), tolerance or TOLERANCE[self.dtype.name]
        assert off <= allowed, f"{what} differ by {off:.3g} of the largest entry (allowed {allowed:g})."
