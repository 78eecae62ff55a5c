"""Singular vectors that fine-tuning brought in."""

import numpy as np
import pytest
from algebra_states import Base, module, state

from loratk.algebra.interference import compare
from loratk.algebra.intruders import Pretrained
from loratk.algebra.rounding import svd
from loratk.errors import AnomalyError, ConfigError


def weight(d=40, k=30, seed=0):
    """A weight with well separated singular values 40, 39, ..., and its singular vectors of outputs as rows."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, min(d, k))))[0] for size in (d, k))
    return (u * np.arange(40.0, 40 - min(d, k), -1)) @ v.T, v.T


def update(value, out, d=40, seed=1):
    """A rank-one update that writes to a direction of the outputs."""
    into = np.random.default_rng(seed).standard_normal(d)
    return svd((value * into[:, None] / np.linalg.norm(into), out[None] / np.linalg.norm(out)))


def oracle(w, delta, leading=10, threshold=0.5):
    """PEFT's own lines (peft/tuners/lora/intruders.py), for a weight (out, in)."""
    own, tuned = (np.linalg.svd(matrix.T, full_matrices=False)[0] for matrix in (w, w + delta))
    cosines = np.abs(tuned.T @ own).max(axis=1)[:leading]
    return (np.flatnonzero(cosines < threshold) + 1).tolist(), cosines


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (30, 30)])
def test_a_planted_direction_is_found_at_its_place(shape):
    w, v = weight(*shape)
    spread = v.sum(axis=0)  # as near to each singular vector of the weight as to any other
    found = Pretrained(w).intruders(update(200.0, spread, d=shape[0]))
    assert 1 in found.positions
    assert found.cosines[0] < 0.35
    delta = update(200.0, spread, d=shape[0])
    want, cosines = oracle(w, (delta.u * delta.s) @ delta.v)
    assert found.positions == want
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-9)


def test_no_update_and_one_along_the_weight_bring_none():
    w, v = weight()
    for value, out in ((0.0, v[0]), (5.0, v[0])):
        found = Pretrained(w).intruders(update(value, out))
        assert (found.count, len(found.cosines)) == (0, 10)
        assert min(found.cosines) > 0.9


def test_how_many_are_looked_at_and_which_count():
    w, v = weight()
    delta = update(60.0, v[:4].sum(axis=0))  # its cosine with four of them is a half, or a little more
    assert Pretrained(w).intruders(delta, leading=3, threshold=0.9).positions == oracle(w, (delta.u * delta.s) @ delta.v, 3, 0.9)[0]
    assert len(Pretrained(w).intruders(delta, leading=3).cosines) == 3
    assert len(Pretrained(w).intruders(delta, leading=99).cosines) == 30
    with pytest.raises(ConfigError, match="leading"):
        Pretrained(w).intruders(delta, leading=0)
    with pytest.raises(AnomalyError, match="not finite"):
        Pretrained(w * np.nan)


@pytest.mark.parametrize("shape", [(30, 40), (40, 30), (25, 25)])
@pytest.mark.parametrize("rank", [3, 12, 25])
def test_weights_without_full_rank(shape, rank):
    """Squares of singular values below 1e-8 of the largest are rounding, so these cases need the decomposition itself."""
    rng = np.random.default_rng(rank)
    u, v = (np.linalg.qr(rng.standard_normal((size, rank)))[0] for size in shape)
    for values in (np.arange(rank, 0.0, -1), np.geomspace(1, 1e-9, rank)):
        w = (u * values) @ v.T + 1e-9 * rng.standard_normal(shape)
        delta = svd((rng.standard_normal((shape[0], 2)) * 0.3, rng.standard_normal((2, shape[1])) * 0.3))
        found = Pretrained(w).intruders(delta, leading=rank)
        want, cosines = oracle(w, (delta.u * delta.s) @ delta.v, rank)
        np.testing.assert_allclose(found.cosines, cosines, atol=1e-5)
        assert found.positions == want


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_weights_of_any_size(factor):
    w, v = weight()
    delta = update(200.0, v.sum(axis=0))
    scaled = update(200.0 * factor, v.sum(axis=0))
    assert Pretrained(w * factor).intruders(scaled).positions == Pretrained(w).intruders(delta).positions == [1]
    assert Pretrained(np.zeros((4, 3))).intruders(svd((np.ones((4, 1)), np.ones((1, 3))))).count >= 0


def test_the_report_has_them_and_names_what_it_could_not_look_at():
    w, v = weight(20, 15)
    planted = module(d=20, k=15, rank=1)
    planted[1]["lora_B"][:] = v.sum(axis=0) * 10
    states = [state({"m": planted, "e": module(experts=2), "wrong": module()}, "a"), state({"m": module(3, d=20, k=15)}, "b")]
    report = compare(states, base=Base(m=w, e=np.zeros((6, 4)), wrong=np.ones((9, 9))))
    a, b = report.adapters
    assert 1 in a.layers[0].intruders.positions
    assert a.intruders == a.layers[0].intruders.count
    assert a.no_intruders["e"] == "its weight is several matrices"
    assert "acts as (9, 9) in the base, and the adapter is for (6, 4)" in a.no_intruders["wrong"]
    assert b.no_intruders == {}
    assert compare(states).adapters[0].intruders is None


def test_methods_that_need_the_base():
    """DoRA's update is that of its definition, W' - W."""
    w, _ = weight(6, 4)
    record, held = module()
    magnitude = np.linalg.norm(w, axis=0) * 1.5
    dora = {"m": (record | {"method": "dora"}, held | {"magnitude": magnitude})}
    moved = w + record["scaling"] * held["lora_A"] @ held["lora_B"]
    want = moved * magnitude / np.linalg.norm(moved, axis=0) - w
    plain = np.linalg.svd(want)
    lora = module(rank=4, alpha=4.0)
    lora[1].update(lora_A=plain[0][:, :4] * plain[1], lora_B=plain[2])
    states = [state(dora, "a"), state({"m": lora}, "b")]
    (found,) = compare(states, base=Base(m=w)).pairs
    assert found.sum.cosine == pytest.approx(1)
    assert found.sum.norms == pytest.approx((np.linalg.norm(want),) * 2)
    (found,) = compare(states).pairs
    assert found.not_compared == {"m": ["a: it depends on the base's weight; give the base (--base)"]}
