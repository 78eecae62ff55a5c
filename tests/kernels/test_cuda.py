"""The CUDA backend: on a GPU or, where NUMBA_ENABLE_CUDASIM=1 is set, on Numba's simulator; and what holds without either."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loratk.errors import BackendError, ConfigError, DtypeError, ShapeError
from loratk.kernels import get_backend

pytestmark = pytest.mark.kernels

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cuda():
    try:
        return get_backend("cuda")
    except BackendError as error:
        pytest.skip(str(error))


def without_simulator(*command):
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    return subprocess.run(
        [sys.executable, *command],
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_without_a_gpu_there_is_one_clear_error():
    code = (
        "from loratk.kernels import get_backend\n"
        "for attempt in range(2):\n"
        "    try:\n"
        "        get_backend('cuda')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    lines = without_simulator("-c", code).stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("BackendError The backend 'cuda' found no usable NVIDIA GPU")
        assert "Use the backend 'cpu'; or install a driver" in line
        assert "NUMBA_ENABLE_CUDASIM=1" in line


def test_every_kernel_compiles_for_a_gpu_and_computes_in_its_own_precision():
    """Types, which the simulator does not check: needs Numba's compiler for CUDA (NVVM), but no GPU."""
    done = without_simulator(str(HERE / "compile_for_cuda.py"))
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "host",
    [
        np.float32(3.5),
        np.zeros((3, 0, 2)),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(10)[::-3],
        np.broadcast_to(np.float32([1, 2]), (1, 2)),
        np.arange(6.0).reshape(2, 3)[..., None],
        np.array([[True, False]]),
        np.array([1, 2], ">i4"),
    ],
    ids=lambda host: f"{np.asarray(host).dtype}{np.shape(host)}",
)
def test_arrays_come_back_from_the_device_as_they_went(cuda, host):
    device = cuda.asarray(host)
    assert tuple(device.shape) == np.shape(host)
    assert cuda.asarray(device) is device
    got = cuda.numpy(device)
    assert got.shape == np.shape(host)
    assert got.dtype == host.dtype.newbyteorder("=")
    np.testing.assert_array_equal(got, host)


def test_dtypes_the_device_does_not_hold_are_refused(cuda):
    for dtype in (np.float16, np.complex64, "U3", object):
        with pytest.raises(DtypeError, match="booleans, integers, float32 and float64, found an array of"):
            cuda.asarray(np.zeros(2, dtype))


def test_a_device_array_that_is_not_contiguous_is_refused(cuda):
    with pytest.raises(BackendError, match=r"C-contiguous.*\(3, 2\)"):
        cuda.neg(cuda.asarray(np.zeros((2, 3))).T if os.environ.get("NUMBA_ENABLE_CUDASIM") else fortran(cuda))


def fortran(cuda):
    from numba import cuda as numba_cuda

    return numba_cuda.to_device(np.asfortranarray(np.zeros((3, 2))))


def test_numpy_arguments_are_moved_to_the_device(cuda):
    got = cuda.add(np.float32([1, 2]), np.float32(3) * np.ones((), np.float32))
    assert not isinstance(got, np.ndarray)
    np.testing.assert_array_equal(cuda.numpy(got), np.float32([4, 5]))


def test_what_changes_in_place_must_be_on_the_device(cuda):
    with pytest.raises(BackendError, match="'p' is changed in place, so it must be on the device, found ndarray"):
        cuda.sgd_step(np.zeros(2), cuda.asarray(np.zeros(2)), lr=0.1)


def test_a_long_sum_is_taken_in_parts_with_the_same_bits_every_time(cuda):
    x = np.random.default_rng(0).standard_normal((2, 9001)).astype(np.float32)
    device = cuda.asarray(x)
    for axis in (None, 1):
        got = [cuda.numpy(cuda.sum_over(device, axis=axis)) for _ in range(2)]
        np.testing.assert_allclose(got[0], np.sum(x, axis=axis, dtype=np.float64), rtol=1e-4)
        np.testing.assert_array_equal(got[0], got[1])
    assert cuda.sum_squares(device) == pytest.approx(np.sum(np.square(x, dtype=np.float64)), rel=1e-12)
    np.testing.assert_allclose(cuda.numpy(cuda.mse(x, np.zeros_like(x))), np.mean(np.square(x, dtype=np.float64)), rtol=1e-5)
    np.testing.assert_array_equal(cuda.numpy(cuda.max_over(device, axis=1)), np.max(x, axis=1))


def test_scattered_rows_are_added_in_their_order(cuda):
    g = np.float32([[1e8], [5], [1], [-1e8], [7]])
    got = cuda.numpy(cuda.scatter_add_rows(g, np.array([2, 0, 2, 2, 0]), rows=3))
    np.testing.assert_array_equal(got, np.float32([[12], [0], [0]]))  # (1e8 + 1) - 1e8 is 0 in float32; another order gives 1


def test_argmax_takes_the_first_nan_and_the_first_maximum(cuda):
    x = np.array([[1, 3, 3], [np.nan, 5, np.nan], [np.inf, np.nan, np.nan]])
    np.testing.assert_array_equal(cuda.numpy(cuda.argmax(x)), [1, 0, 1])
    assert cuda.numpy(cuda.argmax(x[:1], axis=None)) == 1


@pytest.mark.parametrize("lead", [((), ()), ((2,), (2,)), ((2, 1), (3,)), ((), (2,))])
@pytest.mark.parametrize(("a_t", "b_t"), [(False, True), (True, False), (True, True)])
def test_products_read_transposes_where_they_lie(cuda, lead, a_t, b_t):
    from loratk.kernels.cuda.gemm import product

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((*lead[0], 5, 6)), rng.standard_normal((*lead[1], 6, 3))
    want = 0.5 * np.matmul(a, b)
    got = product(a.swapaxes(-1, -2) if a_t else a, b.swapaxes(-1, -2) if b_t else b, a_t=a_t, b_t=b_t, scale=0.5)
    np.testing.assert_allclose(cuda.numpy(got), want, rtol=1e-12, atol=1e-12)


def test_a_frozen_weight_shares_the_array_it_was_made_from(cuda):
    w = np.arange(6.0).reshape(2, 3)
    shared, moved = cuda.freeze_weight(cuda.asarray(w)), cuda.freeze_weight(w)
    assert (shared.nbytes, moved.nbytes) == (0, w.nbytes)
    np.testing.assert_array_equal(cuda.numpy(shared.matmul(np.ones(2))), [3, 5, 7])
    np.testing.assert_array_equal(cuda.numpy(shared.matmul_t(np.ones(3))), [3, 12])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: k.add(np.zeros((2, 3)), np.zeros(2)), r"broadcast together are needed, found \(2, 3\) and \(2,\)"),
        (lambda k: k.matmul(np.zeros((2, 3)), np.zeros((2, 3))), r"\(2, 3\) and \(2, 3\): 3 columns meet 2 rows"),
        (lambda k: k.matmul(np.zeros(3), np.zeros((3, 2))), "at least 2 axes"),
        (
            lambda k: k.freeze_weight(np.zeros((2, 3))).matmul(np.zeros((4, 3))),
            r"\(2, 3\) takes rows of 2 here, found an array of shape \(4, 3\)",
        ),
        (lambda k: k.freeze_weight(np.zeros((2, 3))).matmul_t(np.zeros((4, 2))), "takes rows of 3 here"),
        (lambda k: k.freeze_weight(np.zeros(3)), r"a matrix \(d, k\), found the shape \(3,\)"),
        (lambda k: k.sum_over(np.zeros((2, 3)), axis=2), "an array with 2 axes is needed, found 2"),
        (lambda k: k.sum_over(np.zeros((2, 3)), axis=(0, -2)), r"different ones, .* found \(0, -2\)"),
        (lambda k: k.max_over(np.zeros((2, 0)), axis=1), r"at least one element along the axes \(1,\)"),
        (lambda k: k.argmax(np.zeros((0, 2)), axis=0), "argmax needs at least one element"),
        (lambda k: k.concat(np.zeros((2, 3)), np.zeros((3, 3)), axis=1), r"found the shapes \(2, 3\), \(3, 3\)"),
        (
            lambda k: k.im2col(np.zeros((1, 2, 2, 1)), kernel=(4, 4), stride=(1, 1), padding=(0, 0), dilation=(1, 1)),
            "does not fit an image of",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(cuda, call, message):
    with pytest.raises(ShapeError, match=message):
        call(cuda)


@pytest.mark.parametrize("index", [np.array([0, 1]), True, [0, 1], 1.0])
def test_only_basic_indexing_is_there(cuda, index):
    with pytest.raises(ConfigError, match=r"made of integers, slices, '\.\.\.' and None, found"):
        cuda.getitem(np.zeros((2, 3)), index=index)


@pytest.mark.parametrize(
    "call",
    [
        lambda k: k.gather_rows(np.zeros((4, 2)), np.array([1, 4])),
        lambda k: k.gather_rows(np.zeros((4, 2)), np.array([1, -1])),
        lambda k: k.scatter_add_rows(np.zeros((2, 3)), np.array([1, 4]), rows=4),
        lambda k: k.scatter(np.zeros(2), np.array([1, 4]), size=4),
        lambda k: k.sparse_matmul(np.zeros((3, 2)), np.zeros(2), np.array([1, 4]), k=2),
        lambda k: k.sparse_values_grad(np.zeros((3, 2)), np.zeros((3, 2)), np.array([1, 4])),
        lambda k: k.cross_entropy(np.zeros((2, 4)), np.array([-100, 4])),
        lambda k: k.cross_entropy_grad(np.array(1.0), np.zeros((2, 4)), np.array([1, 4])),
    ],
)
def test_row_numbers_and_labels_outside_are_refused(cuda, call):
    with pytest.raises(IndexError, match=r"needs integers in \[0, 4\), found (1 to 4|-1 to 1|4 to 4)"):
        call(cuda)
