"""Kernels in which one block of LANES threads owns a row, or a sum: its lanes stride over it and then join as a tree.

The order of every sum is fixed by the sizes. All of them live in this file because Numba's simulator can only run
`cuda.syncthreads` in a function of the file the kernel is in.
"""

from numba import cuda

from . import device
from .device import LANES
from .geometry import offset

exp, log, sqrt = device.exp, device.log, device.sqrt


@cuda.jit(device=True)
def _sum(value, shared):
    """The sum of the lanes' values, to every lane."""
    lane = cuda.threadIdx.x
    shared[lane] = value
    cuda.syncthreads()
    width = LANES // 2
    while width > 0:
        if lane < width:
            shared[lane] += shared[lane + width]
        cuda.syncthreads()
        width //= 2
    total = shared[0]
    cuda.syncthreads()  # `shared` may be used again at once
    return total


@cuda.jit(device=True)
def _max(value, shared):
    """The largest of the lanes' values, to every lane; NaN wins."""
    lane = cuda.threadIdx.x
    shared[lane] = value
    cuda.syncthreads()
    width = LANES // 2
    while width > 0:
        if lane < width:
            other = shared[lane + width]
            if other > shared[lane] or other != other:
                shared[lane] = other
        cuda.syncthreads()
        width //= 2
    largest = shared[0]
    cuda.syncthreads()
    return largest


def summing(load):
    """A kernel that sums load(real, x) over some axes of x, times `scale`.

    The `count` elements of an output are cut into `parts` of at most `chunk`, one a block: part p of output o is out[o * parts + p].
    """
    load = cuda.jit(device=True)(load)

    @cuda.jit
    def _sum_parts(x, out, count, chunk, parts, scale, kept, kept_steps, reduced, reduced_steps):
        real = out.dtype.type
        shared = cuda.shared.array(LANES, out.dtype)
        base = offset(cuda.blockIdx.x // parts, kept, kept_steps)
        i = cuda.blockIdx.x % parts * chunk
        stop = i + chunk if i + chunk < count else count
        i += cuda.threadIdx.x
        total = real(0)
        while i < stop:
            total += load(real, x[base + offset(i, reduced, reduced_steps)])
            i += LANES
        total = _sum(total, shared)
        if cuda.threadIdx.x == 0:
            out[cuda.blockIdx.x] = total * scale

    return _sum_parts


@cuda.jit
def max_parts(x, out, count, chunk, parts, kept, kept_steps, reduced, reduced_steps):
    """The largest element over some axes of x, NaN if there is one, cut into parts as for a sum; count > 0."""
    shared = cuda.shared.array(LANES, out.dtype)
    base = offset(cuda.blockIdx.x // parts, kept, kept_steps)
    i = cuda.blockIdx.x % parts * chunk
    stop = i + chunk if i + chunk < count else count
    largest = x[base + offset(i, reduced, reduced_steps)]
    i += cuda.threadIdx.x
    while i < stop:
        value = x[base + offset(i, reduced, reduced_steps)]
        if value > largest or value != value:
            largest = value
        i += LANES
    largest = _max(largest, shared)
    if cuda.threadIdx.x == 0:
        out[cuda.blockIdx.x] = largest


@cuda.jit
def softmax(x, out, k, logarithm):
    """A row a block: e^x / sum e^x, shifted by the maximum, or its logarithm."""
    real = out.dtype.type
    shared = cuda.shared.array(LANES, out.dtype)
    row, lane = cuda.blockIdx.x * k, cuda.threadIdx.x
    top = x[row]
    for j in range(lane, k, LANES):
        value = x[row + j]
        if value > top or value != value:
            top = value
    top = _max(top, shared)
    total = real(0)
    for j in range(lane, k, LANES):
        total += exp(x[row + j] - top)
    total = _sum(total, shared)
    if logarithm:
        shift = log(total)
        for j in range(lane, k, LANES):
            out[row + j] = x[row + j] - top - shift
    else:
        for j in range(lane, k, LANES):
            out[row + j] = exp(x[row + j] - top) / total


@cuda.jit
def softmax_grad(g, y, out, k, logarithm):
    """A row a block: y (g - sum(g y)), or g - e^y sum(g) for the logarithm."""
    real = out.dtype.type
    shared = cuda.shared.array(LANES, out.dtype)
    row, lane = cuda.blockIdx.x * k, cuda.threadIdx.x
    total = real(0)
    for j in range(lane, k, LANES):
        total += g[row + j] if logarithm else g[row + j] * y[row + j]
    total = _sum(total, shared)
    for j in range(lane, k, LANES):
        if logarithm:
            out[row + j] = g[row + j] - exp(y[row + j]) * total
        else:
            out[row + j] = y[row + j] * (g[row + j] - total)


@cuda.jit
def count_kept(labels, out, ignore_index):
    """How many labels are not `ignore_index`, by one block."""
    real = out.dtype.type
    shared = cuda.shared.array(LANES, out.dtype)
    lane = cuda.threadIdx.x
    kept = real(0)
    for i in range(lane, labels.size, LANES):
        if labels[i] != ignore_index:
            kept += real(1)
    kept = _sum(kept, shared)
    if lane == 0:
        out[0] = kept


@cuda.jit
def cross_entropy(logp, row_sums, labels, kept, out, k, ignore_index, smoothing):
    """The mean loss over the rows kept, by one block; `row_sums` of logp are read if smoothing is not 0."""
    real = out.dtype.type
    shared = cuda.shared.array(LANES, out.dtype)
    lane = cuda.threadIdx.x
    total = real(0)
    for i in range(lane, labels.size, LANES):
        if labels[i] != ignore_index:
            total -= (real(1) - smoothing) * logp[i * k + labels[i]]
            if smoothing != real(0):
                total -= smoothing * row_sums[i] / real(k)
    total = _sum(total, shared)
    if lane == 0:
        out[0] = total / kept[0]


@cuda.jit
def layer_norm(x, w, b, out, mean, rstd, k, eps):
    """A row a block: (x - mean) rstd w + b, its mean and its rstd."""
    real = out.dtype.type
    shared = cuda.shared.array(LANES, out.dtype)
    row, lane = cuda.blockIdx.x * k, cuda.threadIdx.x
    total = real(0)
    for j in range(lane, k, LANES):
        total += x[row + j]
    middle = _sum(total, shared) / real(k)
    total = real(0)
    for j in range(lane, k, LANES):
        total += (x[row + j] - middle) * (x[row + j] - middle)
    factor = real(1) / sqrt(_sum(total, shared) / real(k) + eps)
    for j in range(lane, k, LANES):
        out[row + j] = (x[row + j] - middle) * factor * w[j] + b[j]
    if lane == 0:
        mean[cuda.blockIdx.x] = middle
        rstd[cuda.blockIdx.x] = factor


@cuda.jit
def rms_norm(x, w, out, rstd, k, eps):
    """A row a block: x rstd w, and its rstd."""
    real = out.dtype.type
    shared = cuda.shared.array(LANES, out.dtype)
    row, lane = cuda.blockIdx.x * k, cuda.threadIdx.x
    total = real(0)
    for j in range(lane, k, LANES):
        total += x[row + j] * x[row + j]
    factor = real(1) / sqrt(_sum(total, shared) / real(k) + eps)
    for j in range(lane, k, LANES):
        out[row + j] = x[row + j] * factor * w[j]
    if lane == 0:
        rstd[cuda.blockIdx.x] = factor


@cuda.jit
def norm_grad(g, normal, w, rstd, out, k, centred):
    """A row a block: rstd (g w - normal mean(g w normal)), and less rstd mean(g w) for the norm that takes off the mean."""
    real = out.dtype.type
    shared = cuda.shared.array(LANES, out.dtype)
    row, lane = cuda.blockIdx.x * k, cuda.threadIdx.x
    along, total = real(0), real(0)
    for j in range(lane, k, LANES):
        along += g[row + j] * w[j] * normal[row + j]
        total += g[row + j] * w[j]
    along = _sum(along, shared) / real(k)
    total = _sum(total, shared) / real(k) if centred else real(0)
    for j in range(lane, k, LANES):
        out[row + j] = rstd[cuda.blockIdx.x] * (g[row + j] * w[j] - total - normal[row + j] * along)
