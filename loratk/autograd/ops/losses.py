"""Losses: a single number out of predictions and targets."""

from typing import Any

import numpy as np

from ...errors import ConfigError, DtypeError, ShapeError
from ..tensor import Tensor, apply
from ..vjps import defvjp
from .arithmetic import absolute, exp, log, maximum


def mse(x: Tensor, target: Any) -> Tensor:
    """Mean of (x - target)^2 over all entries; the shapes must be equal."""
    target = target if isinstance(target, Tensor) else np.asarray(target, x.dtype)
    if tuple(target.shape) != x.shape:
        raise ShapeError(f"mse needs predictions and targets of one shape, found {x.shape} and {tuple(target.shape)}.")
    if not x.size:
        raise ShapeError(f"mse has no entry to average over, found shape {x.shape}.")
    return apply("mse", x, target)


defvjp("mse", lambda K, out, x, t: lambda g: K.mse_grad(g, x, t), lambda K, out, x, t: lambda g: K.mse_grad(g, t, x))


def check_smoothing(share: float) -> float:
    """A share of the target that label smoothing can move: in [0, 1). Raises ConfigError."""
    if isinstance(share, (bool, str)) or not 0.0 <= share < 1.0:
        raise ConfigError(f"label_smoothing must be in [0, 1), found {share!r}.")
    return float(share)


def cross_entropy(logits: Tensor, labels: Any, *, ignore_index: int = -100, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy between softmax(logits) and integer labels: (..., k), (...,) -> ().

    Rows labelled `ignore_index` do not count. `label_smoothing` in [0, 1) moves that share of the target from the label
    to all k classes alike (Szegedy et al. 2016, section 7). Raises ShapeError for a label outside [0, k), and when no
    row is left to average over.
    """
    smoothing = check_smoothing(label_smoothing)
    numbers = labels.numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if numbers.dtype.kind not in "iu":
        raise DtypeError(f"cross_entropy needs integer labels, found dtype {numbers.dtype}.")
    shape = logits.shape
    if numbers.shape != shape[:-1] or len(shape) < 2:
        raise ShapeError(f"cross_entropy needs logits (..., k) and labels (...,), found {shape} and {numbers.shape}.")
    classes, numbers = shape[-1], np.array(numbers, np.int64, order="C")
    rows = logits if len(shape) == 2 else logits.reshape(-1, classes)
    on_host = isinstance(logits.data, np.ndarray)
    if not on_host:
        _check_labels(numbers, classes, ignore_index)
    try:
        loss = apply("cross_entropy", rows, numbers.reshape(-1), ignore_index=int(ignore_index), smoothing=smoothing)
    except ShapeError:
        _check_labels(numbers, classes, ignore_index)  # says what was found
        raise
    if on_host and loss.data != loss.data:  # NaN: of the logits, or because no row is left
        _check_labels(numbers, classes, ignore_index)
    return loss


def _check_labels(numbers: Any, classes: int, ignore_index: int) -> None:
    kept = numbers != ignore_index
    bad = kept & ((numbers < 0) | (numbers >= classes))
    if bad.any():
        raise ShapeError(
            f"cross_entropy needs labels from 0 to {classes - 1} (or ignore_index {ignore_index}), found {numbers[bad].flat[0]}."
        )
    if not kept.any():
        raise ShapeError(f"cross_entropy has no row to average over: all {numbers.size} labels are ignored.")


def _cross_entropy(K: Any, out: Any, logits: Any, labels: Any, ignore_index: int, smoothing: float) -> Any:
    logp = out[1]
    return lambda g: K.cross_entropy_grad(g, logp, labels, ignore_index=ignore_index, smoothing=smoothing)


defvjp("cross_entropy", _cross_entropy, None)


def binary_cross_entropy(logits: Tensor, target: Any) -> Tensor:
    """Mean of -t log s - (1 - t) log(1 - s), s = sigmoid(logits), over all entries; targets in [0, 1], shapes equal.

    Computed from the logits as max(x, 0) - x t + log(1 + e^-|x|), which does not overflow.
    """
    target = target if isinstance(target, Tensor) else np.asarray(target, logits.dtype)
    if tuple(target.shape) != logits.shape:
        raise ShapeError(f"binary_cross_entropy needs logits and targets of one shape, found {logits.shape} and {tuple(target.shape)}.")
    if not logits.size:
        raise ShapeError(f"binary_cross_entropy has no entry to average over, found shape {logits.shape}.")
    # not relu: at 0 the derivative is that of the loss, 1/2 - t, only if maximum's is 1/2 there
    return (maximum(logits, 0.0) - logits * target + log(exp(-absolute(logits)) + 1.0)).mean()
