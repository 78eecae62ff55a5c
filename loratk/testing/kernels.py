"""The contract of a kernel: on every example it gives what the reference gives, and touches nothing else."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..kernels import Backend, get_backend
from . import grouped_examples as grouped_examples
from .kernel_examples import EXAMPLES, Example, Frozen

__all__ = ["EXACT", "EXAMPLES", "Frozen", "check_example", "check_kernel"]

# Kernels that compute nothing, or that IEEE 754 leaves no choice: equal to the last bit.
EXACT = frozenset(
    [
        "absolute",
        "argmax",
        "broadcast_to",
        "clip",
        "concat",
        "freeze_weight",
        "gather_rows",
        "getitem",
        "getitem_grad",
        "im2col",
        "max_over",
        "maximum",
        "minimum",
        "neg",
        "relu",
        "relu_grad",
        "reshape",
        "transpose",
        "where",
    ]
)
# Arguments that the optimiser updates change.
IN_PLACE = {"adam_step": (0, 2, 3), "sgd_step": (0, 2)}
# For each result, the terms larger than itself that the definition adds up on the way and no change of the inputs shows.
INNER: dict[str, Callable[..., tuple[Any, ...]]] = {
    "gelu": lambda x, **_: (np.abs(x),),
    "gelu_grad": lambda g, x, **_: (np.abs(g) * (1 + np.abs(x)),),
    "silu_grad": lambda g, x: (np.abs(g) * (1 + np.abs(x)),),
    "log_softmax": lambda x: (1,),  # the logarithm of a sum whose largest term is 1
    "cross_entropy": lambda logits, labels, **_: (1, 1),
    "layer_norm_grad": lambda g, x, w, mean, rstd: (np.abs(g * w) * rstd[:, None], 0, 0),
}
TRIALS = 8
STEP = 1e-8  # the least relative change of an input that float64 resolves well


def check_kernel(backend: Backend | str, name: str, dtype: Any = np.float32, *, rows: Sequence[int] = (7, 1, 0), seed: int = 0) -> None:
    """Compare one kernel of a backend with the reference on all its examples. Raises AssertionError naming the first that differs.

    The result must have the reference's shape and dtype, and NaN and infinity where it has them. Each other value may
    be off by a few roundings of itself and of the inputs: the reference in float64 shows what these amount to.
    """
    if name not in EXAMPLES:
        raise AssertionError(f"The kernel {name!r} has no example; enter one in loratk.testing.kernels.EXAMPLES.")
    kind = np.dtype(dtype).type
    for count in rows:
        for number in range(len(_examples(name, kind, count, seed))):
            check_example(backend, name, partial(_example, name, kind, count, seed, number))


def _examples(name: str, kind: Any, rows: int, seed: int) -> list[Example]:
    return EXAMPLES[name](np.random.default_rng(seed), kind, rows)


def _example(name: str, kind: Any, rows: int, seed: int, number: int) -> Example:
    return _examples(name, kind, rows, seed)[number]


def check_example(backend: Backend | str, name: str, make: Callable[[], Example]) -> None:
    """Compare one kernel with the reference on what `make()` gives; it is called more than once and must give equal arrays."""
    backend, reference = get_backend(backend), get_backend("reference")
    args, kwargs = make()
    where = f"{name}({', '.join(map(_describe, args))}, {kwargs}) on {backend.name!r}"
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        want = _results(reference, name, *make())
        got = _results(backend, name, args, kwargs)
        assert len(got) == len(want), f"{where}: wanted {len(want)} results, found {len(got)}."
        allowed = [None] * len(want) if name in EXACT else _allowed(name, make)
        for i, (g, w, bound) in enumerate(zip(got, want, allowed, strict=True)):
            _compare(g, w, bound, f"{where}, result {i}")


def _describe(arg: Any) -> str:
    if isinstance(arg, Frozen):
        return f"Frozen({_describe(arg.array)})"
    if arg is None:
        return "None"
    return f"{arg.dtype}{list(arg.shape)} strides {list(arg.strides)}"


def _results(backend: Backend, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[np.ndarray | None]:
    """What the kernel gives, as NumPy arrays: its results, or, of an optimiser update, the arguments it changes."""
    given = [_given(backend, arg) for arg in args]
    before = [None if arg is None or isinstance(arg, Frozen) else np.array(arg) for arg in args]
    result = backend.kernels[name](*given, **kwargs)
    changed = IN_PLACE.get(name, ())
    for i, (arg, old) in enumerate(zip(given, before, strict=True)):
        if old is not None and i not in changed:
            np.testing.assert_array_equal(backend.numpy(arg), old, f"{name} on {backend.name!r} changed its argument {i}.")
    if changed:
        assert result is None, f"{name} on {backend.name!r} must change its arguments and return None."
        return [backend.numpy(given[i]) for i in changed if i < len(given)]
    results = result if isinstance(result, tuple) else (result,)
    return [_as_numpy(backend, each) for each in results]


def _given(backend: Backend, arg: Any) -> Any:
    if arg is None:
        return None
    return backend.freeze_weight(backend.asarray(arg.array)) if isinstance(arg, Frozen) else backend.asarray(arg)


def _as_numpy(backend: Backend, result: Any) -> np.ndarray | None:
    if result is None:
        return None
    if isinstance(result, float):
        return np.asarray(result)
    if hasattr(result, "matmul_t"):  # a handle
        assert (*result.shape, result.dtype) == (*result.numpy().shape, result.numpy().dtype)
        return result.numpy()
    return np.asarray(backend.numpy(result))


def _allowed(name: str, make: Callable[[], Example]) -> list[Any]:
    """For each result, its value in float64 and how far from it a float result may lie."""
    reference, rng = get_backend("reference"), np.random.default_rng(0)
    args, kwargs = make()
    eps, tiny = _precision(args)
    step = max(eps, STEP)
    exact = _results(reference, name, tuple(_map(_wide, arg) for arg in args), kwargs)
    squares = [0.0 if value is None else np.zeros(value.shape) for value in exact]
    if name != "max_grad":  # there, a changed input is no longer a maximum
        for _ in range(TRIALS):
            moved = tuple(_map(lambda x: _moved(_wide(x), rng, step), arg) for arg in make()[0])
            for i, value in enumerate(_results(reference, name, moved, kwargs)):
                if value is not None:
                    squares[i] = squares[i] + np.square((value - exact[i]) * (eps / step))
    inner = INNER[name](*args, **kwargs) if name in INNER else (0,) * len(exact)
    return [
        None if value is None else (value, tiny + 4 * eps * (np.abs(value) + terms) + 8 * np.sqrt(spread))
        for value, terms, spread in zip(exact, inner, squares, strict=True)
    ]


def _precision(args: tuple[Any, ...]) -> tuple[float, float]:
    arrays = (arg.array if isinstance(arg, Frozen) else arg for arg in args)
    info = np.finfo(next(array.dtype for array in arrays if array is not None and array.dtype.kind == "f"))
    return float(info.eps), float(info.tiny)


def _map(function: Callable[[np.ndarray], np.ndarray], arg: Any) -> Any:
    if arg is None:
        return None
    return Frozen(function(arg.array)) if isinstance(arg, Frozen) else function(arg)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def _moved(x: np.ndarray, rng: np.random.Generator, step: float) -> np.ndarray:
    return x * (1 + rng.uniform(-step, step, x.shape)) if x.dtype.kind == "f" else x


def _compare(got: np.ndarray | None, want: np.ndarray | None, allowed: Any, where: str) -> None:
    if want is None or got is None:
        assert got is want, f"{where}: wanted {want}, found {got}."
        return
    assert got.shape == want.shape, f"{where}: wanted the shape {want.shape}, found {got.shape}."
    assert got.dtype == want.dtype, f"{where}: wanted the dtype {want.dtype}, found {got.dtype}."
    if allowed is None or want.dtype.kind != "f":
        np.testing.assert_array_equal(got, want, where)
        return
    exact, bound = allowed
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite], where)
    off = np.abs(got.astype(np.float64) - exact)
    wrong = finite & ~(off <= bound)
    if np.any(wrong):
        i = np.unravel_index(np.argmax(np.where(wrong, off - bound, -np.inf)), wrong.shape)
        at = f"{np.sum(wrong)} of {wrong.size} values differ, the worst at {tuple(map(int, i))}"
        raise AssertionError(f"{where}: {at}: wanted {exact[i]}, found {got[i]}, off by {off[i]:.3g}, allowed {bound[i]:.3g}.")
