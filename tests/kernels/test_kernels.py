"""Every kernel of every backend against the reference, and its independence of the number of threads."""

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratk.kernels import get_backend, runtime
from loratk.kernels.cpu import chain, grouped_loops, optim
from loratk.testing.kernels import EXAMPLES, IN_PLACE, Frozen, check_example, check_kernel

pytestmark = pytest.mark.kernels

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
REFERENCE, CPU = get_backend("reference"), get_backend("cpu")
DTYPES = ("float32", "float64")


def no_gpu():
    """Why the cuda backend cannot be tested here, or None."""
    if SIMULATED:
        return None
    from numba import cuda

    return None if cuda.is_available() else "no GPU here; NUMBA_ENABLE_CUDASIM=1 runs the cuda kernels on Numba's simulator"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REFERENCE.kernels)
def test_cpu_kernel_is_its_reference(name, dtype):
    check_kernel(CPU, name, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REFERENCE.kernels)
def test_reference_kernel_keeps_to_its_own_contract(name, dtype):
    check_kernel(REFERENCE, name, dtype)


@pytest.mark.skipif(no_gpu() is not None, reason=no_gpu() or "")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REFERENCE.kernels)
def test_cuda_kernel_is_its_reference(name, dtype):
    rows = (7, 1, 0, 1000)
    if SIMULATED:  # slow
        rows = (3, 0) if dtype == "float32" else (1,)
    check_kernel("cuda", name, dtype, rows=rows)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(no_gpu() is not None, reason=no_gpu() or ""))])
def test_backends_have_the_same_kernels(backend):
    assert sorted(get_backend(backend).kernels) == sorted(REFERENCE.kernels)


def test_every_example_is_of_a_kernel():
    assert sorted(EXAMPLES) == sorted(REFERENCE.kernels)


def test_kernel_without_example_fails():
    with pytest.raises(AssertionError, match="'unheard_of' has no example"):
        check_kernel(CPU, "unheard_of")


def results(name, threads):
    """The bits of everything a kernel gives on large examples, and how many launches were cut into parts."""
    cuts, run = [], runtime._pool.run

    def spy(calls):
        cuts.append(len(calls))
        run(calls)

    def spied(share):
        return lambda *args: cuts.append(share(*args))

    made = EXAMPLES[name](np.random.default_rng(0), np.float32, 3001)
    found = []
    with pytest.MonkeyPatch.context() as patch, runtime.num_threads(threads), np.errstate(all="ignore"):
        patch.setattr(runtime._pool, "run", spy)
        patch.setattr("loratk.kernels.cpu.gemm.ALONE", 1 << 16)  # so that these products too are shared out
        patch.setattr("loratk.kernels.cpu.thin.GRAIN", 1 << 16)
        patch.setattr("loratk.kernels.cpu.split.ARITHMETIC", 1 << 15)
        patch.setattr("loratk.kernels.cpu.sparse.GRAIN", 1 << 12)
        patch.setattr("loratk.kernels.cpu.dora.ALONE", 1 << 12)
        patch.setattr("loratk.kernels.cpu.dora.GRAIN", 1 << 13)
        patch.setattr(chain, "_share_forward", spied(chain._share_forward))
        patch.setattr(chain, "_share_backward", spied(chain._share_backward))
        patch.setattr(optim, "_share_adam", spied(optim._share_adam))
        patch.setattr(grouped_loops, "share_forward", spied(grouped_loops.share_forward))
        patch.setattr("loratk.kernels.cpu.chain.PATIENT", 1.0)  # and wait for the workers
        patch.setattr("loratk.kernels.cpu.optim.PATIENT", 0.1)
        patch.setattr("loratk.kernels.cpu.grouped.PATIENT", 1.0)
        for args, kwargs in made:
            given = [CPU.freeze_weight(arg.array) if isinstance(arg, Frozen) else arg for arg in args]
            result = CPU.kernels[name](*given, **kwargs)
            if name in IN_PLACE:
                result = tuple(given[i] for i in IN_PLACE[name] if i < len(given))
            found += result if isinstance(result, tuple) else (result,)
    return [each.numpy() if hasattr(each, "matmul_t") else each for each in found if each is not None], cuts


@pytest.mark.skipif(not COMPILED, reason="large inputs need compiled loops")
@pytest.mark.parametrize("name", [name for name in REFERENCE.kernels if CPU.kernels[name] is not REFERENCE.kernels[name]])
def test_threads_do_not_change_a_bit(name):
    want, _ = results(name, 1)
    for threads in (2, 3):
        cuts = []
        for _ in range(5):  # a worker that has gone to sleep, as while something was compiled, is not waited for without end
            got, more = results(name, threads)
            cuts += more
            for g, w in zip(got, want, strict=True):
                np.testing.assert_array_equal(np.asarray(g), np.asarray(w))
            if name == "freeze_weight" or threads in cuts:
                break
        if name != "freeze_weight":
            assert threads in cuts, f"no example of {name} is large enough for {threads} threads"


SIZES = st.integers(0, 70)


@settings(deadline=None, max_examples=40)
@given(n=SIZES, k=SIZES.filter(bool), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "gelu", "silu", "sum_squares"])
def test_any_shape_of_rows(name, n, k, seed):
    check_example(CPU, name, lambda: ((np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32),), {}))


@settings(deadline=None, max_examples=40)
@given(
    image=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 10)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_any_convolution(image, kernel, stride, padding, dilation):
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    if any((k - 1) * d + 1 > size + 2 * p for k, d, size, p in zip(kernel, dilation, image[1:3], padding, strict=True)):
        return  # the window does not fit even once
    x = np.random.default_rng(0).standard_normal(image).astype(np.float32)
    check_example(CPU, "im2col", lambda: ((x.copy(),), options))
    g = REFERENCE.im2col(x, **options)
    check_example(CPU, "col2im", lambda: ((g.copy(),), {"shape": image, **options}))


@pytest.mark.parametrize("name", ["gather_rows", "scatter_add_rows"])
def test_row_index_out_of_range(name):
    x = np.ones((70_000, 2), np.float32)
    index = np.zeros(70_000, np.int64)
    index[-1] = 70_000
    options = {"rows": 70_000} if name == "scatter_add_rows" else {}
    with pytest.raises(IndexError):
        CPU.kernels[name](x, index, **options)


def test_places_out_of_range():
    x, values = np.ones((3, 2), np.float32), np.ones(2, np.float32)
    for index in (np.array([1, 4]), np.array([-1, 1])):
        with pytest.raises(IndexError, match=r"Places in a \(2, 2\) matrix must lie in \[0, 4\), found"):
            CPU.sparse_matmul(x, values, index, k=2)
        with pytest.raises(IndexError):
            CPU.sparse_matmul_t(x, values, index, d=2)
        with pytest.raises(IndexError):
            CPU.sparse_values_grad(x, x, index)


def test_label_out_of_range():
    logp = REFERENCE.log_softmax(np.ones((4, 3), np.float32))
    with pytest.raises(IndexError):
        CPU.cross_entropy(logp, np.array([0, 1, 2, 3]))
    with pytest.raises(IndexError, match=r"\[0, 3\), found 0 to 3"):
        CPU.cross_entropy_grad(np.float32(1), logp, np.array([0, 1, 2, 3]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_activations_in_the_tails(dtype, sign):
    """Far from zero, where 1 + erf would have lost every digit, the relative error still is a few roundings of x^2."""
    x = sign * np.linspace(0.01, 12, 997).astype(dtype)
    wide, eps = x.astype(np.float64), np.finfo(dtype).eps
    phi = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in wide])
    np.testing.assert_array_less(np.abs(CPU.gelu(x) - wide * phi), (8 + 2 * wide**2) * eps * np.abs(wide * phi) + np.finfo(dtype).tiny)
    want = 1 / (1 + np.exp(-wide))
    np.testing.assert_array_less(np.abs(CPU.sigmoid(x) - want), (4 + np.abs(wide)) * eps * want)


def test_exponential_over_its_whole_range():
    """The rows' own exponential, through softmax of (0, x): from the smallest denormal to where it rounds to nothing."""
    x = np.linspace(-105, 0, 4001).astype(np.float32)
    got = CPU.softmax(np.stack([np.zeros_like(x), x], axis=1))[:, 1]
    wide = np.exp(x.astype(np.float64))
    want = wide / (1 + wide)
    assert np.all(np.abs(got - want) <= 4 * np.finfo(np.float32).eps * want + 2 * np.finfo(np.float32).smallest_subnormal)
