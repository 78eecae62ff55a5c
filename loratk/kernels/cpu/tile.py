"""The register tile: the innermost loop of every matrix product, as vector instructions.

A tile computes a block of a product, so many rows by two vectors, and keeps it in registers for the whole depth. It is
emitted as LLVM vector code, because the compiled loop that says the same does not stay in registers. Its height follows
from the machine: with 32 vector registers 12 rows (24 sums, 2 vectors of B, 1 entry of A), with 16 registers 6 rows. A
lower tile serves products with few rows, such as the gradients of A and B, whose height is the rank.
"""

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..runtime import vector_bytes

VECTOR_BYTES, REGISTERS = vector_bytes()
MR = 12 if REGISTERS >= 32 else 6
LOW = 8 if REGISTERS >= 32 else 4


def columns(dtype):
    """NR: how many columns a tile has for that dtype."""
    return 2 * VECTOR_BYTES // np.dtype(dtype).itemsize


def _plain_tile(rows):
    def tile(a, a_at, a_step, b, b_at, b_step, depth, low_a, low_a_at, low_b, low_b_at, low_b_step, rank, c, c_at, c_step, accumulate):
        nr, p, q = columns(a.dtype), np.arange(depth)[:, None], np.arange(rank)[:, None]
        product = a[a_at + p * a_step + np.arange(rows)].T @ b[b_at + p * b_step + np.arange(nr)]
        product += low_a[low_a_at + q * rows + np.arange(rows)].T @ low_b[low_b_at + q * low_b_step + np.arange(nr)]
        for i in range(rows):
            row = c[c_at + i * c_step : c_at + i * c_step + nr]
            row[:] = row + product[i] if accumulate else product[i]

    return tile


class _Emitter:
    """Emits the parts of a tile of so many rows by two vectors."""

    def __init__(self, builder, dtype, rows):
        self.builder, self.rows, self.align = builder, rows, dtype.bitwidth // 8
        self.width = VECTOR_BYTES // self.align
        self.scalar = ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.width)
        fma = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, fma, f"llvm.fma.v{self.width}f{dtype.bitwidth}")
        self.splat = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        self.blank = ir.Constant(self.vector, ir.Undefined)
        self.zeros = [[ir.Constant(self.vector, [0.0] * self.width)] * 2 for _ in range(rows)]

    def const(self, n):
        return ir.Constant(ir.IntType(64), n)

    def load(self, kind, pointer):
        value = self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()))
        value.align = self.align
        return value

    def store(self, value, pointer):
        self.builder.store(value, self.builder.bitcast(pointer, self.vector.as_pointer())).align = self.align

    def loop(self, sums, a, a_step, b, b_step, depth):
        """The sums after a loop over the depth, none if that is 0; the builder stands behind it."""
        builder = self.builder
        before, loop, after = builder.block, builder.append_basic_block("tile.loop"), builder.append_basic_block("tile.after")
        builder.cbranch(builder.icmp_signed(">", depth, self.const(0)), loop, after)
        builder.position_at_end(loop)
        p, pa, pb = builder.phi(depth.type), builder.phi(a.type), builder.phi(b.type)
        old = [[builder.phi(self.vector) for _ in range(2)] for _ in range(self.rows)]
        w = [self.load(self.vector, builder.gep(pb, [self.const(self.width * j)])) for j in range(2)]
        new = []
        for i in range(self.rows):
            entry = self.load(self.scalar, builder.gep(pa, [self.const(i)]))
            x = builder.shuffle_vector(builder.insert_element(self.blank, entry, ir.Constant(ir.IntType(32), 0)), self.blank, self.splat)
            new.append([builder.call(self.fma, [x, w[j], old[i][j]]) for j in range(2)])
        following = builder.add(p, self.const(1))
        steps = ((p, self.const(0), following), (pa, a, builder.gep(pa, [a_step])), (pb, b, builder.gep(pb, [b_step])))
        steps += tuple((old[i][j], sums[i][j], new[i][j]) for i in range(self.rows) for j in range(2))
        for phi, start, then in steps:
            phi.add_incoming(start, before)
            phi.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        ends = [[builder.phi(self.vector) for _ in range(2)] for _ in range(self.rows)]
        for i in range(self.rows):
            for j in range(2):
                ends[i][j].add_incoming(sums[i][j], before)
                ends[i][j].add_incoming(new[i][j], loop)
        return ends

    def put(self, sums, c, c_step, accumulate):
        """The sums stored to C, or added to it."""
        builder = self.builder
        starts = [builder.mul(c_step, self.const(i)) for i in range(self.rows)]
        spots = [[builder.gep(c, [builder.add(start, self.const(self.width * j))]) for j in range(2)] for start in starts]
        pairs = [(sums[i][j], spots[i][j]) for i in range(self.rows) for j in range(2)]
        with builder.if_else(builder.icmp_signed("!=", accumulate, self.const(0))) as (add, overwrite):
            with add:
                for value, spot in pairs:
                    self.store(builder.fadd(value, self.load(self.vector, spot)), spot)
            with overwrite:
                for value, spot in pairs:
                    self.store(value, spot)


def _vector_tile(rows):
    @intrinsic
    def tile(
        typingctx, a, a_at, a_step, b, b_at, b_step, depth, low_a, low_a_at, low_b, low_b_at, low_b_step, rank, c, c_at, c_step, accumulate
    ):
        def codegen(context, builder, signature, args):
            def data(index):
                array = context.make_array(signature.args[index])(context, builder, args[index])
                return builder.gep(array.data, [args[index + 1]])

            emit = _Emitter(builder, a.dtype, rows)
            sums = emit.loop(emit.zeros, data(0), args[2], data(3), args[5], args[6])
            sums = emit.loop(sums, data(7), emit.const(rows), data(9), args[11], args[12])
            emit.put(sums, data(13), args[15], args[16])
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, n, b, n, n, n, low_a, n, low_b, n, n, n, c, n, n, n), codegen

    return tile


_make = _plain_tile if config.DISABLE_JIT else _vector_tile
tile = _make(MR)
"""tile(a, a_at, a_step, b, b_at, b_step, depth, low_a, low_a_at, low_b, low_b_at, low_b_step, rank, c, c_at, c_step, accumulate)

A block of MR x NR of C, in place: c[:MR, :NR] = a^T b + low_a^T low_b, or += if `accumulate` is not 0. All arrays are one-dimensional.
Entry (p, i) of a is at a[a_at + p * a_step + i], (p, j) of b at b[b_at + p * b_step + j], (i, j) of c at c[c_at + i * c_step + j]; p goes
from 0 to depth, and for the low-rank factors, packed (rank, MR) and rows low_b_step apart, from 0 to rank. Both may be 0.
"""
low_tile = _make(LOW)
"""The same with LOW rows."""
pair_tile = _make(2)
"""The same with two rows."""
