"""The register tile: the innermost loop of every matrix product, as vector instructions.

`tile` computes an MR x NR block of a product and keeps it in registers for the whole depth. It is emitted as LLVM
vector code, because the compiled loop that says the same does not stay in registers. MR x NR follows from the vectors
of the machine: with 16 vector registers 6 x 2 vectors (12 sums, 2 of B, 1 of A), with 32 registers 12 x 2 vectors.
"""

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..runtime import vector_bytes

VECTOR_BYTES, REGISTERS = vector_bytes()
MR = 12 if REGISTERS >= 32 else 6


def columns(dtype):
    """NR: how many columns a tile has for that dtype."""
    return 2 * VECTOR_BYTES // np.dtype(dtype).itemsize


def _plain_tile(a, a_at, b, b_at, depth, c, c_at, ldc, accumulate):
    nr = columns(a.dtype)
    product = a[a_at : a_at + depth * MR].reshape(depth, MR).T @ b[b_at : b_at + depth * nr].reshape(depth, nr)
    for i in range(MR):
        row = c[c_at + i * ldc : c_at + i * ldc + nr]
        row[:] = row + product[i] if accumulate else product[i]


@intrinsic
def _vector_tile(typingctx, a, a_at, b, b_at, depth, c, c_at, ldc, accumulate):
    dtype = a.dtype
    width = VECTOR_BYTES // (dtype.bitwidth // 8)

    def codegen(context, builder, signature, args):
        _, a_at, _, b_at, depth, _, c_at, ldc, accumulate = args
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

        pa0, pb0, pc = data(0, a_at), data(2, b_at), data(5, c_at)
        before = builder.block
        loop, after = builder.append_basic_block("tile.loop"), builder.append_basic_block("tile.after")
        builder.branch(loop)
        builder.position_at_end(loop)
        p, pa, pb = builder.phi(i64), builder.phi(pa0.type), builder.phi(pb0.type)
        for phi, start in ((p, const(0)), (pa, pa0), (pb, pb0)):
            phi.add_incoming(start, before)
        sums = [[builder.phi(vec) for _ in range(2)] for _ in range(MR)]
        for row in sums:
            for phi in row:
                phi.add_incoming(zero, before)
        w = [load(vec, builder.gep(pb, [const(width * j)])) for j in range(2)]
        new = []
        for i in range(MR):
            x = builder.insert_element(blank, load(scalar, builder.gep(pa, [const(i)])), ir.Constant(i32, 0))
            x = builder.shuffle_vector(x, blank, splat)
            new.append([builder.call(fma, [x, w[j], sums[i][j]]) for j in range(2)])
        following = builder.add(p, const(1))
        p.add_incoming(following, loop)
        pa.add_incoming(builder.gep(pa, [const(MR)]), loop)
        pb.add_incoming(builder.gep(pb, [const(2 * width)]), loop)
        for i in range(MR):
            for j in range(2):
                sums[i][j].add_incoming(new[i][j], loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

        builder.position_at_end(after)
        spots = [[builder.gep(pc, [builder.add(builder.mul(ldc, const(i)), const(width * j))]) for j in range(2)] for i in range(MR)]

        def store(value, pointer):
            builder.store(value, builder.bitcast(pointer, vec.as_pointer())).align = dtype.bitwidth // 8

        with builder.if_else(builder.icmp_signed("!=", accumulate, const(0))) as (add, overwrite):
            with add:
                for i in range(MR):
                    for j in range(2):
                        store(builder.fadd(new[i][j], load(vec, spots[i][j])), spots[i][j])
            with overwrite:
                for i in range(MR):
                    for j in range(2):
                        store(new[i][j], spots[i][j])
        return context.get_dummy_value()

    integer = types.intp
    return types.void(a, integer, b, integer, integer, c, integer, integer, integer), codegen


tile = _plain_tile if config.DISABLE_JIT else _vector_tile
"""tile(a, a_at, b, b_at, depth, c, c_at, ldc, accumulate): an MR x NR block of C, in place.

c[:MR, :NR] = a^T b, or += if `accumulate` is not 0, with a packed (depth, MR) from a[a_at], b packed (depth, NR) from
b[b_at] and rows of c `ldc` apart from c[c_at] on; all three are one-dimensional; depth is at least 1.
"""
