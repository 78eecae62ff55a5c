"""Splits, batches, toy data and metrics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratk.errors import ConfigError, DtypeError, ShapeError
from loratk.train import Metric, accuracy, batches, mae, r2, sine, spiral, split
from loratk.train.metrics import Totals, as_metrics


@given(rows=st.integers(10, 200), seed=st.integers(0, 2**32))
def test_a_split_puts_every_row_into_one_part(rows, seed):
    x, y = np.arange(rows), np.arange(rows) * 2
    parts = split(x, y, (0.5, 0.3, 0.2), seed=seed)
    assert sorted(np.concatenate([part for part, _ in parts])) == list(range(rows))
    assert all((b == 2 * a).all() for a, b in parts)
    assert [len(a) for a, _ in parts] == pytest.approx([rows * 0.5, rows * 0.3, rows * 0.2], abs=1)


def test_a_split_depends_on_the_seed_alone():
    x = np.arange(50)
    assert all((a == b).all() for (a, _), (b, _) in zip(split(x, x, seed=1), split(x, x, seed=1), strict=True))
    assert not (split(x, x, seed=1)[0][0] == split(x, x, seed=2)[0][0]).all()
    for shares in ((0.5, 0.4), (1.5, -0.5), ()):
        with pytest.raises(ConfigError, match="sum to 1"):
            split(x, x, shares, seed=0)
    with pytest.raises(ConfigError, match=r"3 rows are too few .* \[2, 1, 0\]"):
        split(x[:3], x[:3], seed=0)


def test_batches_keep_the_last_partial_one():
    x = np.arange(10)
    assert [a.tolist() for a, _ in batches(x, x, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    rng = np.random.default_rng(0)
    first, second = ([a.tolist() for a, _ in batches(x, x, 4, rng=rng)] for _ in range(2))
    assert sorted(np.concatenate(first)) == sorted(np.concatenate(second)) == list(range(10))
    assert first != second
    with pytest.raises(DtypeError, match="numbers"):
        list(batches(np.array(["a"]), x[:1], 4))
    with pytest.raises(ShapeError, match="rows"):
        list(batches(np.array(1.0), x, 4))


def test_toy_data():
    x, y = spiral(301, classes=4, rng=0)
    assert (x.shape, x.dtype, y.dtype) == ((301, 2), np.float32, np.int64)
    assert sorted(np.bincount(y)) == [75, 75, 75, 76]
    clean, labels = spiral(300, noise=0.0, rng=0)
    radius = np.hypot(*clean.T)
    np.testing.assert_allclose(clean[:, 0], radius * np.sin(4 * radius + 2 * np.pi * labels / 3), atol=1e-5)
    x, y = sine(100, noise=0.0, rng=0)
    np.testing.assert_allclose(y, np.sin(2 * np.pi * x), atol=1e-6)
    assert y.shape == (100, 1)


def totals(metrics, outputs, targets, sizes):
    gathered = Totals(as_metrics(metrics))
    for rows in np.split(np.arange(len(targets)), np.cumsum(sizes)[:-1]):
        gathered.add(1.0, len(rows), len(rows), gathered.measure(outputs[rows], targets[rows]))
    return gathered.values()


def test_metrics_do_not_depend_on_the_batches():
    rng = np.random.default_rng(0)
    y, t = rng.standard_normal((40, 2)), rng.standard_normal((40, 2)) + 3
    want = {"loss": 1.0, "mae": np.abs(y - t).mean(), "r2": 1 - ((y - t) ** 2).sum() / ((t - t.mean()) ** 2).sum()}
    for sizes in ([40], [1, 30, 9]):
        assert totals([mae, r2], y, t, sizes) == pytest.approx(want, rel=1e-12)
    logits, labels = rng.standard_normal((40, 5)), rng.integers(0, 5, 40)
    labels[:10] = -100
    got = totals([accuracy], logits, labels, [25, 15])
    assert got["accuracy"] == np.mean(logits[10:].argmax(1) == labels[10:])
    assert np.isnan(totals([r2], y, np.ones_like(y), [40])["r2"])


def test_metrics_of_ones_own():
    def zero_one(outputs, targets):
        return float((outputs.argmax(-1) != targets).sum()), len(targets)

    rmse = Metric("rmse", lambda y, t: (float(((y - t) ** 2).sum()), t.size), lambda total, count: (total / count) ** 0.5)
    assert [metric.name for metric in as_metrics([zero_one, rmse])] == ["zero_one", "rmse"]
    y = np.array([[1.0], [3.0]])
    assert totals([rmse], y, y * 0, [1, 1])["rmse"] == pytest.approx(5**0.5)
    assert totals({"wrong": zero_one}, np.eye(4), np.array([0, 1, 2, 0]), [3, 1])["wrong"] == 0.25


def test_metrics_that_make_no_sense():
    for name in ("loss", "val_x", "seconds"):
        with pytest.raises(ConfigError, match=f"cannot be called '{name}'"):
            as_metrics({name: accuracy})
    with pytest.raises(ConfigError, match="Pass a mapping"):
        as_metrics([lambda y, t: (0, 1)])
    with pytest.raises(ConfigError, match="'accuracy'"):
        as_metrics([accuracy, accuracy])
    with pytest.raises(ConfigError, match="must be a function"):
        as_metrics(["accuracy"])
    with pytest.raises(ConfigError, match="pair"):
        totals({"half": lambda y, t: 0.5}, np.eye(2), np.arange(2), [2])
    with pytest.raises(ShapeError, match="one shape"):
        mae(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(ShapeError, match="labels"):
        accuracy(np.zeros((3, 4)), np.zeros((3, 1)))
