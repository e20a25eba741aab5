"""A vector kernel for numba: a small tile of ``C + alpha X^T Y``, kept in registers.

numba has no vector types, and its loop vectoriser fails on a register tile (too many arrays that might overlap), which is ten times slower.
Everything cubic in ``kernels.obs.cpu`` uses this kernel.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.registers import FUSED, REGISTER_BITS

LANES = REGISTER_BITS // 64  # float64 numbers in a vector register


def tile(rows: int, vectors: int, element: types.Float = types.float64):
    """Returns an intrinsic for tiles of ``rows`` by ``vectors`` registers of ``element``."""
    lane_count = REGISTER_BITS // element.bitwidth
    scalar, align = (ir.DoubleType(), 8) if element.bitwidth == 64 else (ir.FloatType(), 4)

    @intrinsic
    def add_tile(typing, c, row, column, alpha, x, x_column, y, first, last):
        """Computes ``c[row + r, column + v] += alpha * sum_p x[p, x_column + r] * y[p, column + v]`` for ``first <= p < last``.

        All arrays must be C-contiguous matrices of ``element`` that reach at least to the end of the tile. Nothing is checked.
        """
        signature = types.void(c, types.intp, types.intp, element, x, types.intp, y, types.intp, types.intp)

        def generate(context, builder, signature, arguments):
            c, row, column, alpha, x, x_column, y, first, last = arguments
            vector = ir.VectorType(scalar, lane_count)
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), lane_count), [0] * lane_count)

            def matrix(position, value):
                array = context.make_array(signature.args[position])(context, builder, value)
                return array.data, cgutils.unpack_tuple(builder, array.shape, 2)[1]

            def address(base, width, i, j):
                return builder.gep(base, [builder.add(builder.mul(i, width), j)], source_etype=scalar)

            def vector_at(pointer, number):
                start = builder.gep(pointer, [ir.Constant(ir.IntType(64), number * lane_count)], source_etype=scalar)
                return builder.bitcast(start, vector.as_pointer())

            def spread(number):
                single = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
                return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), lanes)

            (c_data, c_width), (x_data, x_width), (y_data, y_width) = matrix(0, c), matrix(4, x), matrix(6, y)
            zero = ir.Constant(vector, [0.0] * lane_count)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(rows)]
            for line in sums:
                for total in line:
                    builder.store(zero, total)
            with cgutils.for_range_slice(builder, first, last, ir.Constant(first.type, 1), first.type) as (p, _):
                y_row = address(y_data, y_width, p, column)
                ys = [builder.load(vector_at(y_row, v), align=align, typ=vector) for v in range(vectors)]
                x_row = address(x_data, x_width, p, x_column)
                for r in range(rows):
                    pointer = builder.gep(x_row, [ir.Constant(ir.IntType(64), r)], source_etype=scalar)
                    factor = spread(builder.load(pointer, typ=scalar))
                    for v in range(vectors):
                        product = builder.fmul(factor, ys[v], flags=FUSED)
                        builder.store(builder.fadd(builder.load(sums[r][v]), product, flags=FUSED), sums[r][v])
            scale = spread(alpha)
            for r in range(rows):
                c_row = address(c_data, c_width, builder.add(row, ir.Constant(row.type, r)), column)
                for v in range(vectors):
                    target = vector_at(c_row, v)
                    added = builder.fmul(scale, builder.load(sums[r][v]), flags=FUSED)
                    builder.store(builder.fadd(builder.load(target, align=align, typ=vector), added, flags=FUSED), target, align=align)
            return context.get_dummy_value()

        return signature, generate

    return add_tile


TILE_ROWS, TILE_COLUMNS = 8, 2 * LANES
add_tile = tile(TILE_ROWS, 2)
LINE_COLUMNS = 4 * LANES
add_line = tile(1, 4)
