"""The contract of a derivative: it equals the difference quotient, for each argument alone and for all together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..autograd import Tensor, apply
from ..errors import ConfigError
from ..kernels import Backend, get_backend

FULL = 4096  # entries of a Jacobian up to which all of it is compared
STEP = 6e-6  # about the cube root of float64's precision, where a central difference is best


def check_vjp(
    op: str | Callable[..., Tensor],
    args: Sequence[Any],
    options: Mapping[str, Any] | None = None,
    *,
    backend: str | Backend = "reference",
    wrt: Sequence[int] | None = None,
    tolerance: float = 1e-7,
) -> None:
    """Raise AssertionError unless every derivative of an op equals a central difference in float64.

    `op` is the name of an op or a function of tensors, called as `op(*args, **options)`. The float64 arrays among `args`,
    or those at the places `wrt`, are differentiated; everything else (row numbers, masks, handles of frozen weights) goes
    in as it is. Small Jacobians are compared as a whole, larger ones along random directions. Also checked: an argument
    has the same derivative alone as beside the others, of its own shape and dtype, float32 included, and no array that
    goes in is written to. Choose arguments away from kinks. `tolerance` is relative to the largest entry, or to 1.
    """
    K, options = get_backend(backend), dict(options or {})
    args = [np.array(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    floating = [i for i, arg in enumerate(args) if isinstance(arg, np.ndarray) and arg.dtype == np.float64]
    places = floating if wrt is None else list(wrt)
    if not places or not set(places) <= set(floating):
        raise ConfigError(f"check_vjp differentiates float64 arrays, found them at places {floating}, and was asked for {places}.")
    run = _Run(op, options, K)
    shape = run.forward(args, ())[0].shape
    for place in places:
        _compare(run, args, place, shape, tolerance)
    cotangent = _random(shape)
    together = run.pull(args, places, cotangent)
    for place, joint in zip(places, together, strict=True):
        (alone,) = run.pull(args, [place], cotangent)
        _equal(joint, alone, f"{run.name}, argument {place}: beside the others and alone", 1e-12)
    _check_float32(run, args, places, cotangent)


class _Run:
    """An op with its options and backend: run forward, and pulled back."""

    def __init__(self, op: str | Callable[..., Tensor], options: dict[str, Any], K: Backend) -> None:
        self.op, self.options, self.K = op, options, K
        self.name = repr(op) if isinstance(op, str) else getattr(op, "__name__", repr(op))

    def forward(self, args: Sequence[Any], places: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The op's result, and the tensors it was computed from at the places that need a gradient."""
        operands = [
            Tensor(np.array(arg), requires_grad=i in places, backend=self.K) if isinstance(arg, np.ndarray) else arg
            for i, arg in enumerate(args)
        ]
        out = apply(self.op, *operands, **self.options) if isinstance(self.op, str) else self.op(*operands, **self.options)
        for arg, operand in zip(args, operands, strict=True):
            if isinstance(arg, np.ndarray):
                assert np.array_equal(operand.numpy(), arg, equal_nan=arg.dtype.kind == "f"), f"{self.name} writes into its arguments."
        return out, [operands[i] for i in places]

    def pull(self, args: Sequence[Any], places: Sequence[int], cotangent: np.ndarray) -> list[np.ndarray]:
        """The gradients of sum(cotangent * op(*args)) for the arguments at these places."""
        out, leaves = self.forward(args, places)
        given = Tensor(np.array(cotangent), backend=self.K)
        out.backward(given)
        assert np.array_equal(given.numpy(), cotangent), f"The derivative of {self.name} writes into the gradient it is given."
        found = []
        for place, leaf in zip(places, leaves, strict=True):
            assert leaf.grad is not None, f"{self.name} gives argument {place} no gradient."
            got = self.K.numpy(leaf.grad)
            want = args[place]
            assert (got.shape, got.dtype) == (want.shape, want.dtype), (
                f"{self.name}, argument {place}: the gradient must be {want.dtype} {want.shape}, found {got.dtype} {got.shape}."
            )
            found.append(got)
        return found

    def slope(self, args: Sequence[Any], place: int, direction: np.ndarray) -> np.ndarray:
        """The difference quotient of op(*args) when one argument moves along a direction."""
        ends = []
        for sign in (1, -1):
            moved = [np.asarray(arg + sign * STEP * direction) if i == place else arg for i, arg in enumerate(args)]
            ends.append(self.forward(moved, ())[0].numpy())
        return (ends[0] - ends[1]) / (2 * STEP)


def _random(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 1.5, shape) * np.random.default_rng(1).choice([-1.0, 1.0], shape)


def _compare(run: _Run, args: Sequence[Any], place: int, shape: tuple[int, ...], tolerance: float) -> None:
    x, what = args[place], f"{run.name}, argument {place} {args[place].shape}: the derivative and the difference quotient"
    size = int(np.prod(shape, dtype=np.int64))
    if size * x.size > FULL:
        rng = np.random.default_rng(2)
        for _ in range(3):
            direction, cotangent = rng.standard_normal(x.shape) / np.sqrt(x.size), rng.standard_normal(shape) / np.sqrt(max(size, 1))
            want = np.sum(cotangent * run.slope(args, place, direction))
            got = np.sum(run.pull(args, [place], cotangent)[0] * direction)
            _equal(got, want, f"{what}, along random directions", tolerance)
        return
    units = np.eye(x.size).reshape(x.size, *x.shape)
    want = np.array([run.slope(args, place, unit).reshape(-1) for unit in units]).reshape(x.size, size)
    units = np.eye(size).reshape(size, *shape)
    got = np.array([run.pull(args, [place], unit)[0].reshape(-1) for unit in units]).reshape(size, x.size).T
    _equal(got, want, f"{what}, as Jacobians (in, out)", tolerance)


def _check_float32(run: _Run, args: Sequence[Any], places: Sequence[int], cotangent: np.ndarray) -> None:
    """Run once in float32, where the arguments allow it: a gradient that turns into float64 is refused by `pull`."""
    if all(isinstance(arg, np.ndarray) or not hasattr(arg, "dtype") for arg in args):
        small = [arg.astype(np.float32) if isinstance(arg, np.ndarray) and arg.dtype == np.float64 else arg for arg in args]
        run.pull(small, places, cotangent.astype(np.float32))


def _equal(got: Any, want: Any, what: str, tolerance: float) -> None:
    got, want = np.asarray(got), np.asarray(want)
    if not want.size:
        return
    off = np.abs(got - want)
    allowed = tolerance * max(1.0, float(np.max(np.abs(want))))
    if not np.all(off <= allowed):  # a NaN is off too
        at = np.unravel_index(int(np.argmax(np.where(np.isnan(off), np.inf, off))), off.shape)
        raise AssertionError(
            f"{what} differ by {off[at]:.3g} (allowed {allowed:.3g}) at {tuple(map(int, at))}: got {got[at]:.9g}, want {want[at]:.9g}."
        )
