"""Mathematical functions that compiled loops call, as straight-line arithmetic so that such loops vectorise.

Only float32 has vector versions: their relative error stays below 4 units in the last place. float64, which serves
gradient checks more than training, calls the C library.
"""

import math

import numpy as np

from ..runtime import specialise

F = np.float32
LOG2_E, LN2_HIGH, LN2_LOW = F(1 / math.log(2)), F(0.693359375), F(math.log(2) - 0.693359375)  # high part: 9 bits, n * high is exact
EXP_LOW, EXP_HIGH = F(-104), F(89)  # beyond these e^x is 0 or infinity
EXP_TAYLOR = tuple(F(1 / math.factorial(n)) for n in range(8))
ZERO, ONE, SQRT_HALF, SQRT_2PI = F(0), F(1), math.sqrt(0.5), math.sqrt(2 * math.pi)

# Phi(-a) = e^(-a^2 / 2) t (c0 + c1 t + ... + c8 t^8), t = 1 / (1 + 0.345 a): least squares on 0 <= a <= 15 over Chebyshev
# nodes in t, reweighted until the relative error is level (2.6e-8); the form is Abramowitz & Stegun 7.1.26.
TAIL_SCALE = F(0.345)
TAIL = tuple(map(F, (0.13762087, 0.13799068, 0.117478006, 0.110766165, -0.034947146, 0.1830227, -0.26723602, 0.14323828, -0.027933512)))
HALF, PDF_SCALE = F(0.5), F(1 / math.sqrt(2 * math.pi))

SIGN_BITS32, SIGN_BITS64 = np.int32(31), np.int64(63)
MAGNITUDE32, MAGNITUDE64 = np.int32(0x7FFFFFFF), np.int64(0x7FFFFFFFFFFFFFFF)
LEAST32, LEAST64 = np.int32(-0x80000000), np.int64(-0x8000000000000000)


def exp(x):
    """e ** x; infinity on overflow."""
    return np.exp(x)


def _exp32(x):
    held = x if x > EXP_LOW else EXP_LOW
    held = held if held < EXP_HIGH else EXP_HIGH
    n = np.rint(held * LOG2_E)
    r = (held - n * LN2_HIGH) - n * LN2_LOW  # x = n log 2 + r, |r| <= log(2) / 2
    p = EXP_TAYLOR[7]
    p = p * r + EXP_TAYLOR[6]
    p = p * r + EXP_TAYLOR[5]
    p = p * r + EXP_TAYLOR[4]
    p = p * r + EXP_TAYLOR[3]
    p = p * r + EXP_TAYLOR[2]
    p = p * r * r + r + ONE
    whole = np.int32(n)
    half = whole >> np.int32(1)  # 2^n in two factors: neither overflows, and small results round like any other
    first = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    second = np.int32((whole - half + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * first * second if x == x else x  # NaN stays NaN


def _exp64(x):
    return math.exp(x)


def normal(x):
    """The normal distribution at x: its distribution function Phi(x), and its density."""
    return x.dtype.type(0.5 * math.erfc(-SQRT_HALF * x)), np.exp(-x.dtype.type(0.5) * x * x) / x.dtype.type(SQRT_2PI)


def _normal32(x):
    e = exp(-HALF * x * x)
    t = ONE / (ONE + TAIL_SCALE * abs(x))
    p = TAIL[8]
    p = p * t + TAIL[7]
    p = p * t + TAIL[6]
    p = p * t + TAIL[5]
    p = p * t + TAIL[4]
    p = p * t + TAIL[3]
    p = p * t + TAIL[2]
    p = p * t + TAIL[1]
    p = p * t + TAIL[0]
    tail = p * t * e
    return ONE - tail if x > ZERO else tail, e * PDF_SCALE


def _normal64(x):
    return 0.5 * math.erfc(-SQRT_HALF * x), math.exp(-0.5 * x * x) / SQRT_2PI


def largest(x):
    """The largest entry of a contiguous, non-empty 1-D array; unspecified, but harmless, where there is a NaN.

    Floats are compared as integers of the same order: a maximum of integers vectorises, one of floats does not.
    """
    return x.max()


def _largest32(x):
    bits, most = x.view(np.int32), LEAST32
    for i in range(bits.size):  # `for b in bits` is eight times slower: it does not vectorise
        most = max(most, np.int32(bits[i] ^ ((bits[i] >> SIGN_BITS32) & MAGNITUDE32)))
    return np.int32(most ^ ((most >> SIGN_BITS32) & MAGNITUDE32)).view(np.float32)


def _largest64(x):
    bits, most = x.view(np.int64), LEAST64
    for i in range(bits.size):
        most = max(most, bits[i] ^ ((bits[i] >> SIGN_BITS64) & MAGNITUDE64))
    return np.int64(most ^ ((most >> SIGN_BITS64) & MAGNITUDE64)).view(np.float64)


specialise(exp, float32=_exp32, float64=_exp64)
specialise(normal, float32=_normal32, float64=_normal64)
specialise(largest, float32=_largest32, float64=_largest64)
