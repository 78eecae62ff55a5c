"""The register tile of a convolution: a block of a product whose left factor is read where it lies, in lines of an image.

It is the tile of matrix products (`tile.py`) without packing: rows of the left factor lie any distance apart, and the
depth is walked in runs with a jump between them, such as from one line of an image to the next.
"""

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..runtime import vector_bytes

VECTOR_BYTES, REGISTERS = vector_bytes()
TALL = 8 if REGISTERS >= 32 else 4


def lanes(dtype):
    """How many entries a vector has for that dtype."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def _plain_tile(vectors, rows):
    def tile(a, a_at, a_row, a_step, a_jump, runs, b, b_at, b_step, depth, c, c_at, c_step, accumulate):
        run, p, i, j = np.ogrid[:runs, :depth, :rows, : vectors * lanes(c.dtype)]
        left = a[(a_at + run * a_jump + p * a_step + i * a_row).reshape(runs * depth, rows)]
        right = b[(b_at + (run * depth + p) * b_step + j).reshape(runs * depth, j.size)]
        spots = (c_at + i * c_step + j).reshape(rows, j.size)
        c[spots] = left.T @ right + (c[spots] if accumulate else 0)

    return tile


def _vector_tile(vectors, rows):
    @intrinsic
    def tile(typingctx, a, a_at, a_row, a_step, a_jump, runs, b, b_at, b_step, depth, c, c_at, c_step, accumulate):
        dtype = a.dtype
        width = VECTOR_BYTES // (dtype.bitwidth // 8)

        def codegen(context, builder, signature, args):
            _, a_at, a_row, a_step, a_jump, runs, _, b_at, b_step, depth, _, c_at, c_step, accumulate = args
            scalar = ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()
            i32, i64 = ir.IntType(32), ir.IntType(64)
            vec = ir.VectorType(scalar, width)
            name = f"llvm.fma.v{width}f{dtype.bitwidth}"
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vec, [vec] * 3), name)
            splat = ir.Constant(ir.VectorType(i32, width), [0] * width)
            zero = ir.Constant(vec, [0.0] * width)
            blank = ir.Constant(vec, ir.Undefined)

            def const(n):
                return ir.Constant(i64, n)

            def data(index, at):
                array = context.make_array(signature.args[index])(context, builder, args[index])
                return builder.gep(array.data, [at])

            def load(kind, pointer):
                value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
                value.align = dtype.bitwidth // 8
                return value

            pa0, pb0, pc = data(0, a_at), data(6, b_at), data(10, c_at)
            steps = [builder.mul(a_row, const(i)) for i in range(rows)]
            before = builder.block
            outer, inner, latch, after = (builder.append_basic_block(f"window.{part}") for part in ("run", "step", "next", "after"))
            builder.branch(outer)

            builder.position_at_end(outer)  # once a run
            run, first, pb_run = builder.phi(i64), builder.phi(pa0.type), builder.phi(pb0.type)
            sums_run = [[builder.phi(vec) for _ in range(vectors)] for _ in range(rows)]
            for phi, start in ((run, const(0)), (first, pa0), (pb_run, pb0)):
                phi.add_incoming(start, before)
            for phi in (phi for row in sums_run for phi in row):
                phi.add_incoming(zero, before)
            builder.branch(inner)

            builder.position_at_end(inner)  # once a step of the depth
            p, pa, pb = builder.phi(i64), builder.phi(pa0.type), builder.phi(pb0.type)
            sums = [[builder.phi(vec) for _ in range(vectors)] for _ in range(rows)]
            for phi, start in ((p, const(0)), (pa, first), (pb, pb_run)):
                phi.add_incoming(start, outer)
            w = [load(vec, builder.gep(pb, [const(width * j)])) for j in range(vectors)]
            new = []
            for i in range(rows):
                x = builder.insert_element(blank, load(scalar, builder.gep(pa, [steps[i]])), ir.Constant(i32, 0))
                x = builder.shuffle_vector(x, blank, splat)
                new.append([builder.call(fma, [x, w[j], sums[i][j]]) for j in range(vectors)])
            following, pb_next = builder.add(p, const(1)), builder.gep(pb, [b_step])
            p.add_incoming(following, inner)
            pa.add_incoming(builder.gep(pa, [a_step]), inner)
            pb.add_incoming(pb_next, inner)
            for i in range(rows):
                for j in range(vectors):
                    sums[i][j].add_incoming(sums_run[i][j], outer)
                    sums[i][j].add_incoming(new[i][j], inner)
            builder.cbranch(builder.icmp_signed("<", following, depth), inner, latch)

            builder.position_at_end(latch)
            run_next = builder.add(run, const(1))
            run.add_incoming(run_next, latch)
            first.add_incoming(builder.gep(first, [a_jump]), latch)
            pb_run.add_incoming(pb_next, latch)
            for i in range(rows):
                for j in range(vectors):
                    sums_run[i][j].add_incoming(new[i][j], latch)
            builder.cbranch(builder.icmp_signed("<", run_next, runs), outer, after)

            builder.position_at_end(after)
            places = [(i, j) for i in range(rows) for j in range(vectors)]
            spots = [builder.gep(pc, [builder.add(builder.mul(c_step, const(i)), const(width * j))]) for i, j in places]

            def store(value, pointer):
                builder.store(value, builder.bitcast(pointer, vec.as_pointer())).align = dtype.bitwidth // 8

            with builder.if_else(builder.icmp_signed("!=", accumulate, const(0))) as (add, overwrite):
                with add:
                    for (i, j), spot in zip(places, spots, strict=True):
                        store(builder.fadd(new[i][j], load(vec, spot)), spot)
                with overwrite:
                    for (i, j), spot in zip(places, spots, strict=True):
                        store(new[i][j], spot)
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, n, n, n, n, b, n, n, n, c, n, n, n), codegen

    return tile


_make = _plain_tile if config.DISABLE_JIT else _vector_tile
tile = _make(2, TALL)
"""tile(a, a_at, a_row, a_step, a_jump, runs, b, b_at, b_step, depth, c, c_at, c_step, accumulate): TALL rows of C, two vectors wide.

c = a b, or += if `accumulate` is not 0; all arrays are one-dimensional. The depth is `runs` runs of `depth` steps, both at
least 1: entry (i, run, p) of a is at a[a_at + run * a_jump + p * a_step + i * a_row], (run, p, j) of b at
b[b_at + (run * depth + p) * b_step + j], (i, j) of c at c[c_at + i * c_step + j].
"""
narrow_tile = _make(1, TALL)
"""The same, one vector wide."""
pair_tile = _make(2, 2)
"""The same as `tile` with two rows."""
