"""2-D convolution with an adapter, channels last, without laying out patches.

In memory that has its channels last, the taps of one line of a window are one run of kw*c numbers, and the window next to
it begins stride*c numbers further on. So the register tile reads the image itself, from lines that were copied beside each
other with their padding: kh runs a window, and a tile of windows side by side. The gradient of A reads the same lines
crosswise; the gradient of x is a convolution of the gradient with the turned kernel.
"""

import math
import weakref

import numpy as np

from ..memory import empty
from ..reference.conv import out_size
from ..runtime import jit, parallel_for
from .conv import col2im
from .gemm import product
from .window import TALL, lanes, narrow_tile, tile

__all__ = ["lora_conv2d", "lora_conv2d_dx", "lora_conv2d_grad"]

STORE = 1 << 15  # entries of an image's lines that are held beside each other: what stays in the level-2 cache
ALONE = 1 << 22  # multiplications a thread must get for its waking to pay


@jit
def _pack(b, d, k, s0, s1, out, nr):
    """A matrix (d, k), read at b[p * s0 + j * s1], as [panel of nr columns][row][nr], zero beyond the edge."""
    for j in range(0, k, nr):
        panel = out[j * d : (j + nr) * d]
        wide = min(nr, k - j)
        for p in range(d):
            for q in range(wide):
                panel[p * nr + q] = b[p * s0 + (j + q) * s1]
            for q in range(wide, nr):
                panel[p * nr + q] = 0


def pack(b):
    """A matrix (d, k) as the tiles read it."""
    (d, k), nr = b.shape, 2 * lanes(b.dtype)
    out = np.empty(d * -(-k // nr) * nr, b.dtype)
    _pack(np.ascontiguousarray(b).reshape(-1), d, k, k, 1, out, nr)
    return out


@jit(inline=True)
def _lines(x, image, top, count, h, w, c, left, pitch, store):
    """Lines top to top + count of an image, `pitch` numbers apart, with `left` places of padding before each and some behind."""
    for line in range(count):
        target = store[line * pitch : (line + 1) * pitch]
        y = top + line
        if y < 0 or y >= h:
            target[:] = 0
        else:
            source = x[(image * h + y) * w * c : (image * h + y + 1) * w * c]
            inside = min(w * c, pitch - left * c)
            target[: left * c] = 0
            for i in range(inside):
                target[left * c + i] = source[i]
            target[left * c + inside :] = 0


@jit(inline=True)
def _block(a, a_at, a_row, a_step, a_jump, runs, b, b_at, b_step, depth, c, c_at, c_step, tall, wide, accumulate, edge, half):
    """One tile, or what of it lies inside C: `tall` rows, `wide` columns; `half` is the width of one vector."""
    if tall >= TALL and wide == 2 * half:
        tile(a, a_at, a_row, a_step, a_jump, runs, b, b_at, b_step, depth, c, c_at, c_step, accumulate)
    elif tall >= TALL and wide == half:
        narrow_tile(a, a_at, a_row, a_step, a_jump, runs, b, b_at, b_step, depth, c, c_at, c_step, accumulate)
    else:
        if wide <= half:
            narrow_tile(a, a_at, a_row, a_step, a_jump, runs, b, b_at, b_step, depth, edge, 0, 2 * half, 0)
        else:
            tile(a, a_at, a_row, a_step, a_jump, runs, b, b_at, b_step, depth, edge, 0, 2 * half, 0)
        for q in range(min(TALL, tall)):
            for t in range(wide):
                old = c[c_at + q * c_step + t] if accumulate else edge.dtype.type(0)
                c[c_at + q * c_step + t] = old + edge[q * 2 * half + t]


@jit
def _convolve(start, stop, x, b, low, low_b, r, bias, out, accumulate, count, form, place, walk, half):
    """Blocks start to stop of `count` lines of windows: x by a packed matrix, plus low by low_b packed, if r > 0, plus a bias, if any."""
    h, w, c, oh, ow, k = form
    left, above, stride, pitch, held = place
    step, groups, group_jump, runs, jump, run = walk
    store, edge = np.zeros(held * pitch + TALL * step, x.dtype), np.empty(TALL * 2 * half, x.dtype)
    nr, d, blocks = 2 * half, groups * runs * run, (oh + count - 1) // count
    for block in range(start, stop):
        image, line = block // blocks, block % blocks * count
        lines = min(count, oh - line)
        _lines(x, image, line * stride - above, held - (count - lines) * stride, h, w, c, left, pitch, store)
        for j in range(0, k, nr):
            wide = min(nr, k - j)
            for i in range(lines):
                first = (image * oh + line + i) * ow
                for at in range(0, ow, TALL):
                    here = (first + at) * k + j
                    for group in range(groups):
                        a_at, b_at = i * stride * pitch + at * step + group * group_jump, j * d + group * runs * run * nr
                        add = 1 if accumulate or group > 0 else 0
                        _block(store, a_at, step, 1, jump, runs, b, b_at, nr, run, out, here, k, ow - at, wide, add, edge, half)
                    if r > 0 and (first + at + TALL) * r > low.size:  # a tile would read past the end
                        for q in range(min(TALL, ow - at)):
                            for t in range(wide):
                                for p in range(r):
                                    out[here + q * k + t] += low[(first + at + q) * r + p] * low_b[j * r + p * nr + t]
                    elif r > 0:
                        _block(low, (first + at) * r, r, 1, 0, 1, low_b, j * r, nr, r, out, here, k, ow - at, wide, 1, edge, half)
        if bias.size:
            for at in range((image * oh + line) * ow, (image * oh + line + lines) * ow):
                row = out[at * k : (at + 1) * k]
                for j in range(k):
                    row[j] += bias[j]


@jit
def _gather(start, stop, x, g, out, n, count, form, place, walk, half):
    """Panels start to stop of TALL entries of the windows: the windows, transposed, times g, all lines of all images."""
    h, w, c, oh, ow, r = form
    left, above, stride, pitch, held = place
    step, _, group_jump, runs, jump, run = walk
    store, edge = np.zeros(held * pitch + TALL * (step + 1), x.dtype), np.empty(TALL * 2 * half, x.dtype)
    panels, nr = (run + TALL - 1) // TALL, 2 * half
    for image in range(n):
        for line in range(0, oh, count):
            lines = min(count, oh - line)
            _lines(x, image, line * stride - above, held - (count - lines) * stride, h, w, c, left, pitch, store)
            add, first = 1 if image > 0 or line > 0 else 0, (image * oh + line) * ow
            for panel in range(start, stop):
                part, entry = panel // panels, panel % panels * TALL
                a_at = part // runs * group_jump + part % runs * jump + entry
                for j in range(0, r, nr):
                    wide, here = min(nr, r - j), (part * run + entry) * r + j
                    b_at, tall = first * r + j, run - entry
                    _block(store, a_at, 1, step, stride * pitch, lines, g, b_at, r, ow, out, here, r, tall, wide, add, edge, half)


class Windows:
    """Where the windows of a convolution lie in an image, as the loops take it."""

    def __init__(self, shape, kernel, stride, padding, dilation):
        n, h, w, c = shape
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
        oh, ow = (out_size(*axis) for axis in zip((h, w), kernel, stride, padding, dilation, strict=True))
        pitch = max(0, (ow - 1) * sw + (kw - 1) * dw + 1) * c
        reach = (kh - 1) * dh + 1
        most = max(1, min(oh, (STORE // max(pitch, 1) - reach) // sh + 1))
        blocks = -(-oh // most)
        self.n, self.places, self.size, self.blocks = n, n * oh * ow, kh * kw * c, n * blocks
        self.count = -(-oh // max(blocks, 1))
        self.form, self.place = (h, w, c, oh, ow), (pw, ph, sh, pitch, (self.count - 1) * sh + reach)
        # Line by line of the window into C, not in one go: a shorter chain of sums rounds less, and costs nothing that shows.
        runs = (kh, dh * pitch, 1, 0, kw * c) if dw == 1 else (kh, dh * pitch, kw, dw * c, c)
        self.walk = (sw * c, *runs)

    def shape(self, k):
        """The shape of a convolution's value."""
        return self.n, *self.form[3:], k

    def convolve(self, x, b, k, *, low=None, bias=None, out=None):
        """x by a packed matrix (size, k), plus a product of (places, r) and (r, k), plus a bias (k,), added to `out` if that is given."""
        y = empty(self.shape(k), x.dtype) if out is None else out
        flat = np.ascontiguousarray(x).reshape(-1)
        left, right, r = (flat[:0], b[:0], 0) if low is None else (low[0].reshape(-1), pack(low[1]), low[1].shape[0])
        grain = max(1, ALONE * self.blocks // max(1, self.places * self.size * k))
        shift = flat[:0] if bias is None else np.ascontiguousarray(bias)
        args = (
            flat,
            b,
            left,
            right,
            r,
            shift,
            y.reshape(-1),
            out is not None,
            self.count,
            (*self.form, k),
            self.place,
            self.walk,
            lanes(x.dtype),
        )
        parallel_for(_convolve, self.blocks, *args, grain=grain)
        return y

    def gather(self, x, g):
        """The windows, transposed, times g: (places, r) -> (size, r)."""
        r, half = g.shape[1], lanes(x.dtype)
        if r % half:  # the tile reads whole vectors
            g = np.concatenate([g, np.zeros((len(g), -r % half), g.dtype)], axis=1)
        out = np.empty((self.size, g.shape[1]), x.dtype) if self.places else np.zeros((self.size, g.shape[1]), x.dtype)
        _, groups, _, runs, _, run = self.walk
        panels = groups * runs * -(-run // TALL)
        grain = max(1, ALONE * panels // max(1, self.places * out.size))
        args = (np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(g).reshape(-1), out.reshape(-1), self.n, self.count)
        if self.places:
            parallel_for(_gather, panels, *args, (*self.form, g.shape[1]), self.place, self.walk, half, grain=grain)
        return np.ascontiguousarray(out[:, :r])


_kept = weakref.WeakKeyDictionary()  # by handle: the weight packed for the way forward and, turned, for the way back


def _packed(w, kernel, turned):
    kept = _kept.setdefault(w, {})
    if turned not in kept:
        kept[turned] = pack(_turned(w.numpy(), kernel) if turned else w.numpy())
    return kept[turned]


def _turned(w, kernel):
    """The matrix of the convolution back from the value to the image: (kh*kw*c, k) -> (kh*kw*k, c), last tap first."""
    d, k = w.shape
    taps = w.reshape(*kernel, d // math.prod(kernel), k)[::-1, ::-1]
    return np.ascontiguousarray(np.swapaxes(taps, 2, 3)).reshape(math.prod(kernel) * k, -1)


def lora_conv2d(x, w, a, b, mask=None, bias=None, *, scaling, kernel, stride, padding, dilation):
    """A convolution with W + scaling A B, plus bias, and that with A: (n, h, w, c), handle (d, k), (d, r), (r, k) -> (.., k), (.., r)."""
    windows = Windows(x.shape, kernel, stride, padding, dilation)
    r, k = b.shape
    xa = windows.convolve(x if mask is None else x * mask, pack(a), r)
    return windows.convolve(x, _packed(w, kernel, False), k, low=(xa, b * b.dtype.type(scaling)), bias=bias), xa


def lora_conv2d_grad(g, x, xa, w, a, b, mask=None, *, scaling, kernel, stride, padding, dilation, need_x=True):
    """Gradients of `lora_conv2d` for x, A and B: (n, oh, ow, k) -> (n, h, w, c) or None, (d, r), (r, k)."""
    (r, k), windows = b.shape, Windows(x.shape, kernel, stride, padding, dilation)
    rows, scaled = np.ascontiguousarray(g).reshape(-1, k), b * b.dtype.type(scaling)
    gb = product(rows, scaled.T)
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    da = windows.gather(x if mask is None else x * mask, gb)
    db = product(xa.reshape(-1, r).T * g.dtype.type(scaling), rows)
    return _back(g, gb, w, a, mask, x.shape, **options) if need_x else None, da, db


def lora_conv2d_dx(g, w, a, b, mask=None, *, shape, scaling, **options):
    """The gradient of `lora_conv2d` for x, which has this shape (n, h, w, c), alone: (n, oh, ow, k) -> (n, h, w, c)."""
    rows = np.ascontiguousarray(g).reshape(-1, g.shape[3])
    return _back(g, product(rows, b.T * b.dtype.type(scaling)), w, a, mask, shape, **options)


def _back(g, gb, w, a, mask, shape, kernel, stride, padding, dilation):
    """g by W, and gb = scaling g B^T, (places, r), by A, back to the image."""
    r = a.shape[1]
    back = tuple(d * (taps - 1) - p for d, taps, p in zip(dilation, kernel, padding, strict=True))
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    if stride != (1, 1) or min(back) < 0:  # no convolution of g: patches
        patches = (*g.shape[:3], len(a))
        rows = np.ascontiguousarray(g).reshape(-1, g.shape[3])
        dx = col2im(w.matmul_t(rows).reshape(patches), shape=shape, **options)
        low = col2im(product(gb, a.T).reshape(patches), shape=shape, **options)
        return dx + (low if mask is None else low * mask)
    options |= {"padding": back}
    wide = Windows(g.shape, **options)
    dx = wide.convolve(g, _packed(w, kernel, True), shape[3])
    narrow, turned = Windows((*g.shape[:3], r), **options), pack(_turned(a, kernel))
    if mask is None:
        return narrow.convolve(gb, turned, shape[3], out=dx)
    return dx + narrow.convolve(gb, turned, shape[3]) * mask
