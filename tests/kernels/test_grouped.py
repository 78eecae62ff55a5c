"""Grouped updates: a row's bits are its own, whatever stands beside it, and factors are read where they lie."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratk.errors import ShapeError
from loratk.kernels import get_backend, runtime
from loratk.testing.kernels import check_example

pytestmark = pytest.mark.kernels

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
REFERENCE, CPU = get_backend("reference"), get_backend("cpu")


def adapters(rng, d, k, ranks, dtype=np.float32, extras=True):
    made = []
    for at, r in enumerate(ranks):
        made += [rng.standard_normal((d, r)).astype(dtype), rng.standard_normal((r, k)).astype(dtype)]
        made += [
            rng.standard_normal(k).astype(dtype) if extras and at % 2 else None,
            rng.standard_normal(k).astype(dtype) if extras else None,
        ]
    return made


@pytest.mark.skipif(not COMPILED, reason="the bits are those of compiled loops")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("d", "k"), [(70, 45), (5, 3), (128, 64)])
def test_a_row_has_the_bits_it_has_alone(d, k, dtype):
    rng, ranks, n = np.random.default_rng(0), (3, 17, 64, 8), 61
    factors, scalings = adapters(rng, d, k, ranks, dtype), (0.5, 1.5, 2.0, 1.0)
    product, x, bias = (
        rng.standard_normal((n, k)).astype(dtype),
        rng.standard_normal((n, d)).astype(dtype),
        rng.standard_normal(k).astype(dtype),
    )
    index = np.concatenate([np.full(37, 2), rng.integers(-1, 4, n - 37)])
    y, xa, z = CPU.grouped_lora(product, x, index, None, bias, *factors, scalings=scalings)
    g = rng.standard_normal((n, k)).astype(dtype)
    gz, dx, *_ = CPU.grouped_lora_grad(g, x, xa, z, index, None, *factors, scalings=scalings)
    for i in range(n):
        mine = slice(i, i + 1)
        alone = CPU.grouped_lora(product[mine], x[mine], index[mine], None, bias, *factors, scalings=scalings)
        np.testing.assert_array_equal(alone[0], y[mine])
        back = CPU.grouped_lora_grad(g[mine], x[mine], alone[1], alone[2], index[mine], None, *factors, scalings=scalings)
        np.testing.assert_array_equal(back[0], gz[mine])
        np.testing.assert_array_equal(back[1], dx[mine])


@pytest.mark.skipif(not COMPILED, reason="the bits are those of compiled loops")
@pytest.mark.parametrize("n", [9, 40, 700])
def test_an_adapters_gradients_have_the_bits_of_its_rows_alone(n):
    rng, ranks, d, k = np.random.default_rng(1), (5, 16, 33), 96, 80
    factors, scalings = adapters(rng, d, k, ranks), (0.5, 1.5, 2.0)
    product, x, g = (rng.standard_normal((n, size), np.float32) for size in (k, d, k))
    index, mask = rng.integers(-1, 3, n), ((rng.random((n, d)) > 0.2) * 1.25).astype(np.float32)
    _, xa, z = CPU.grouped_lora(product, x, index, mask, None, *factors, scalings=scalings)
    got = iter(CPU.grouped_lora_grad(g, x, xa, z, index, mask, *factors, scalings=scalings)[2:])
    for at in range(3):
        rows, own = index == at, factors[4 * at : 4 * at + 4]
        zero = np.zeros(rows.sum(), np.int64)
        _, xa, z = CPU.grouped_lora(product[rows], x[rows], zero, mask[rows], None, *own, scalings=scalings[at : at + 1])
        want = CPU.grouped_lora_grad(g[rows], x[rows], xa, z, zero, mask[rows], *own, scalings=scalings[at : at + 1])[2:]
        for each in want:
            np.testing.assert_array_equal(next(got), each)


@pytest.mark.parametrize("count", [1, 30, 300])
def test_threads_share_out_rows_of_one_adapter_and_adapters_of_few_rows(count):
    rng, (n, d, k) = np.random.default_rng(2), (600, 77, 45)
    ranks = rng.integers(1, 40, count)
    factors, product, x = adapters(rng, d, k, ranks), *(rng.standard_normal((n, size), np.float32) for size in (k, d))
    index, scalings, found = rng.integers(0, count, n), tuple(2.0 for _ in ranks), []
    for threads in (1, 2, 3):
        with runtime.num_threads(threads):
            y, xa, z = CPU.grouped_lora(product, x, index, None, None, *factors, scalings=scalings)
            found.append([y, *CPU.grouped_lora_grad(product, x, xa, z, index, None, *factors, scalings=scalings)])
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(got, want)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(0, 40), st.integers(1, 70), st.integers(1, 70)),
    ranks=st.lists(st.integers(1, 70), max_size=4),
    seed=st.integers(0, 99),
    extras=st.booleans(),
)
def test_any_sizes(sizes, ranks, seed, extras):
    (n, d, k), scalings = sizes, tuple(range(1, len(ranks) + 1))

    def make(backward=False):
        rng = np.random.default_rng(seed)
        factors, product, x = adapters(rng, d, k, ranks, extras=extras), *(rng.standard_normal((n, size), np.float32) for size in (k, d))
        given = x, rng.integers(-1, len(ranks), n)
        if not backward:
            return (product, *given, None, None, *factors), {"scalings": scalings}
        _, xa, z = REFERENCE.grouped_lora(product, *given, None, None, *factors, scalings=scalings)
        return (product, x, xa, z, given[1], None, *factors), {"scalings": scalings}

    check_example(CPU, "grouped_lora", make)
    check_example(CPU, "grouped_lora_grad", lambda: make(backward=True))


def test_factors_changed_in_place_count_at_once():
    rng = np.random.default_rng(3)
    factors, product, x, index = (
        adapters(rng, 12, 9, (4, 2)),
        np.zeros((3, 9), np.float32),
        np.ones((3, 12), np.float32),
        np.array([0, 1, 0]),
    )
    before = CPU.grouped_lora(product, x, index, None, None, *factors, scalings=(1.0, 1.0))[0]
    factors[0] *= 2
    factors[3][:] = 0
    want = REFERENCE.grouped_lora(product, x, index, None, None, *factors, scalings=(1.0, 1.0))[0]
    got = CPU.grouped_lora(product, x, index, None, None, *factors, scalings=(1.0, 1.0))[0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert not np.array_equal(got, before)


def test_memory_of_factors_that_are_gone_is_not_read():
    """Plans are kept by the identity of arrays, which others may have later."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        factors, product, x = adapters(rng, 6, 5, (2,), extras=False), np.zeros((2, 5), np.float32), np.ones((2, 6), np.float32)
        got = CPU.grouped_lora(product, x, np.zeros(2, int), None, None, *factors, scalings=(1.0,))[0]
        np.testing.assert_allclose(got, x @ factors[0] @ factors[1], rtol=1e-5, atol=1e-5)


def test_values_that_are_not_finite_stay_with_their_rows():
    rng = np.random.default_rng(4)
    factors, product, x = adapters(rng, 20, 36, (6, 3), extras=False), *(rng.standard_normal((5, size), np.float32) for size in (36, 20))
    factors[0][3, 5], factors[1][5, 0] = np.inf, np.nan
    y = CPU.grouped_lora(product, x, np.array([0, 1, 0, 1, -1]), None, None, *factors, scalings=(1.0, 1.0))[0]
    assert not np.isfinite(y[[0, 2]]).any()
    assert np.isfinite(y[[1, 3, 4]]).all()


@pytest.mark.parametrize("backend", [REFERENCE, CPU])
def test_what_does_not_fit_is_refused(backend):
    rng = np.random.default_rng(5)
    factors, product, x = adapters(rng, 4, 3, (2,)), np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(ShapeError, match=r"Adapter 0 of a group needs A \(5, r\)"):
        backend.grouped_lora(product, np.zeros((2, 5), np.float32), np.zeros(2, int), None, None, *factors, scalings=(1.0,))
    with pytest.raises(ShapeError, match=r"an index \(n,\)"):
        backend.grouped_lora(product, x, np.zeros(3, int), None, None, *factors, scalings=(1.0,))
    with pytest.raises(IndexError, match="adapters 0 to 0, or -1 for none, found -1 to 1"):
        backend.grouped_lora(product, x, np.array([-1, 1]), None, None, *factors, scalings=(1.0,))
    with pytest.raises(ShapeError, match="four arrays each"):
        backend.grouped_lora(product, x, np.zeros(2, int), None, None, *factors[:3], scalings=(1.0,))
