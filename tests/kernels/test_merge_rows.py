"""The kernels of merging: compiled they give what NumPy does, to the last bit; rounding by chance has no bias."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratk.io.bfloat16 import to_bits, to_float32
from loratk.kernels.cpu import checksum as fast
from loratk.kernels.cpu import merge as cpu
from loratk.kernels.reference import checksum as plain
from loratk.kernels.reference import merge as reference

pytestmark = pytest.mark.kernels
KINDS = ["bfloat16", "float16", "float32", "float64"]
HALVES = ["bfloat16", "float16"]


def whole(rng, *shape):
    """Small whole numbers, whose products and sums are exact, so that only the rounding is compared."""
    return rng.integers(-3, 4, shape)


def case(kind, m, n, r, seed=0, by_chance=False):
    rng = np.random.default_rng(seed)
    dtype = reference.sums_dtype(kind, by_chance)
    w = rng.standard_normal((m, n)) * 2.0 ** rng.integers(-20, 12, (m, n))
    scale = 2.0 ** rng.integers(-9, -3)
    stored = reference.narrowed(w.astype(np.float32), kind) if kind != "float64" else w
    return stored, whole(rng, m, r).astype(dtype), (whole(rng, r, n) * scale).astype(dtype)


def same(kind, w, left, right, **options):
    want, told = reference.merge_rows(w, left, right, kind=kind, **options)
    got, measured = cpu.merge_rows(w, left, cpu.pack_right(right), kind=kind, **options)
    np.testing.assert_array_equal(got, want, strict=True)
    assert measured[:3] == told[:3]
    np.testing.assert_allclose(measured[3:], told[3:], rtol=1e-5)
    return got, told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(7, 13, 3), (1, 1, 1), (13, 1030, 16), (6, 512, 64), (5, 40, 0), (0, 8, 2), (3, 33, 1500)])
def test_compiled_is_the_reference(kind, sizes):
    same(kind, *case(kind, *sizes))


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("sizes", [(7, 13, 3), (9, 600, 8)])
def test_compiled_by_chance_is_the_reference(kind, sizes):
    same(kind, *case(kind, *sizes, by_chance=True), key=2**64 - 5, first=2**33)


@pytest.mark.parametrize("kind", HALVES)
def test_every_half_is_read_and_rounded_as_numpy_does(kind):
    """All 65536 of them, plus nothing, and plus half a step, which is a tie."""
    w = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    wide = to_float32(w) if kind == "bfloat16" else w.view(np.float16).astype(np.float32)
    finite = np.isfinite(wide)
    for step in (0.0, 2.0**-9, 2.0**-12, 1.0, -3e-8):
        got, _ = cpu.merge_rows(w, np.ones((256, 1), np.float32), cpu.pack_right(np.full((1, 256), step, np.float32)), kind=kind)
        with np.errstate(over="ignore", invalid="ignore"):
            total = wide + np.float32(step)
            want = to_bits(total) if kind == "bfloat16" else total.astype(np.float16).view(np.uint16)
        np.testing.assert_array_equal(got[finite], want[finite])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", [reference, cpu])
def test_what_is_not_finite_is_counted(kind, backend):
    dtype = reference.sums_dtype(kind)
    w = np.array([[1.0, np.inf, np.nan, -np.inf, 2.0, 1.0]])
    stored = to_bits(w.astype(np.float32)) if kind == "bfloat16" else w.astype(kind)
    stored = stored.view(np.uint16) if kind == "float16" else stored
    right = np.array([[0, 0, 0, 0, np.nan, np.finfo(kind).max if kind != "bfloat16" else 3e38]]).astype(dtype)
    left = np.full((1, 1), 2, dtype)
    with np.errstate(over="ignore"):
        _, told = backend.merge_rows(stored, left, cpu.pack_right(right) if backend is cpu else right, kind=kind)
    assert told.bad == 5


@settings(deadline=None, max_examples=50)
@given(kind=st.sampled_from(KINDS[:3]), number=st.floats(-1e30, 1e30, allow_subnormal=True), draw=st.integers(0, 2**32 - 1))
def test_by_chance_gives_a_neighbour_and_never_infinity(kind, number, draw):
    assert_neighbour(kind, number, draw)


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("draw", [0, 2**32 - 1])
def test_by_chance_at_the_largest_number(kind, draw):
    largest, edge = reference.LARGEST[kind], reference.EDGE[kind]
    for number in (largest, -largest, np.nextafter(largest, np.inf), np.nextafter(edge, 0), -np.nextafter(edge, 0)):
        got = reference.stochastic(np.array([number]), kind, np.array([draw], np.uint64))
        assert got == math.copysign(largest, number)
    assert reference.stochastic(np.array([edge]), kind, np.array([draw], np.uint64)) == edge  # which nearest makes infinite too


def assert_neighbour(kind, number, draw):
    if abs(number) >= reference.EDGE[kind]:
        return
    got = reference.stochastic(np.array([number]), kind, np.array([draw], np.uint64))
    with np.errstate(over="ignore", under="ignore"):
        single = got.astype(np.float32)
        back = to_float32(to_bits(single)) if kind == "bfloat16" else single.astype(kind)
    assert back == got  # it is one of the kind's numbers
    step = 2.0 ** (max(math.frexp(number)[1] - 1, reference.LEAST[kind]) - reference.DIGITS[kind])
    assert abs(got[0] - number) <= step
    if (number / step).is_integer():
        assert got == number


@pytest.mark.parametrize("kind", KINDS[:3])
def test_by_chance_the_mean_is_right(kind):
    """A tenth of a step is added one time in ten: the mean of many draws is the number, to five standard errors."""
    digits = reference.DIGITS[kind]
    for number in (1 + 0.1 * 2.0**-digits, -3.7 - 2.0**-30, 0.3 * 2.0 ** (reference.LEAST[kind] - digits)):
        count = 100_000
        got = reference.stochastic(np.full(count, number), kind, reference.uniform(7, 0, count))
        spread = got.std() / math.sqrt(count)
        assert abs(got.mean() - number) <= 5 * spread
        assert len(set(got)) == 2


def test_draws_are_a_function_of_key_and_place():
    whole = reference.uniform(3, 0, 1000)
    np.testing.assert_array_equal(whole[700:], reference.uniform(3, 700, 300))
    assert abs(whole.mean() / 2**32 - 0.5) < 0.05
    assert not np.array_equal(whole, reference.uniform(4, 0, 1000))
    assert reference.uniform(0, 0, 1)[0] == 0xE220A839  # SplitMix64 of the seed 0: E220A8397B1DCDAF


@settings(deadline=None, max_examples=60)
@given(count=st.integers(0, 5000), at=st.integers(0, 5000), seed=st.integers(0, 9))
def test_checksums_are_the_same_compiled_and_in_any_pieces(count, at, seed):
    words = np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)
    blocks = (at + count) // plain.PAIRS + 1
    want, got, pieces = (np.zeros((blocks, 2), np.uint64) for _ in range(3))
    plain.add_checksum(words, at, want)
    fast.add_checksum(words, at, got)
    cut = count // 3
    fast.add_checksum(words[cut:], at + cut, pieces)
    plain.add_checksum(words[:cut], at, pieces)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(pieces, want)


def test_a_checksum_is_nh_of_its_key():
    words = np.random.default_rng(0).integers(0, 2**64, 5, np.uint64)
    got = np.zeros((1, 2), np.uint64)
    fast.add_checksum(words, 0, got)
    for lane in range(2):
        pairs = zip(map(int, words), map(int, plain.KEY[2 * lane :]), strict=False)
        want = sum((((w & 0xFFFFFFFF) + (q & 0xFFFFFFFF)) % 2**32) * (((w >> 32) + (q >> 32)) % 2**32) for w, q in pairs)
        assert int(got[0, lane]) == want % 2**64


def test_any_flipped_bit_shows():
    words = np.random.default_rng(0).integers(0, 2**64, 300, np.uint64)
    want = np.zeros((1, 2), np.uint64)
    fast.add_checksum(words, 0, want)
    for place in range(0, 300, 7):
        for bit in range(64):
            words[place] ^= np.uint64(1 << bit)
            got = np.zeros((1, 2), np.uint64)
            fast.add_checksum(words, 0, got)
            words[place] ^= np.uint64(1 << bit)
            assert (got != want).all()
