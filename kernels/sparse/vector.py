"""Vector kernels for numba: one row of a sparse product, kept in registers, and the transposition of a square of floats.

numba has no vector types (see ``kernels.obs.vector``). LLVM compiles these kernels for the processor at hand, with AVX2 or AVX-512
registers, so no compiler needs to be installed.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.registers import FUSED, REGISTER_BITS

LANES = REGISTER_BITS // 32  # float32 numbers in a vector register
MOST_VECTORS = 8  # of a tile: they fit into the sixteen registers of AVX2 beside a weight and the inputs

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


def _data(context, builder, signature, position, value):
    return context.make_array(signature.args[position])(context, builder, value).data


def _vector_at(builder, pointer, start):
    """Returns the address of the vector ``start`` floats after a pointer."""
    offset = ir.Constant(_INT, start) if isinstance(start, int) else start
    return builder.bitcast(builder.gep(pointer, [offset], source_etype=_FLOAT), _VECTOR.as_pointer())


def _spread(builder, number):
    single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(single, ir.Constant(_VECTOR, ir.Undefined), lanes)


def row_product(index, packed: bool):
    """Returns an intrinsic that multiplies one sparse row by 1 to ``MOST_VECTORS`` registers of positions.

    ``index`` is the type of the places of inputs. If they are ``packed``, an input is followed by the next one; else places are in floats.
    """
    place_type = ir.IntType(index.bitwidth)

    @intrinsic
    def multiply_row(typing, vectors, out, out_at, bias, values, places, start, stop, inputs, inputs_at):
        """Computes ``out[out_at + t] = bias + sum_n values[n] * inputs[inputs_at + places[n] * distance + t]`` for ``start <= n < stop``.

        There are ``vectors * LANES`` positions t; ``distance`` is as many floats if the inputs are packed, else 1. All arrays are
        contiguous, of float32, and of ``index``. Nothing is checked.
        """
        intp = types.intp
        signature = types.void(intp, out, intp, types.float32, values, places, intp, intp, inputs, intp)

        def generate(context, builder, signature, arguments):
            vectors, out, out_at, bias, values, places, start, stop, inputs, inputs_at = arguments
            value_data, place_data = _data(context, builder, signature, 4, values), _data(context, builder, signature, 5, places)
            origin = builder.gep(_data(context, builder, signature, 8, inputs), [inputs_at], source_etype=_FLOAT)
            target = builder.gep(_data(context, builder, signature, 1, out), [out_at], source_etype=_FLOAT)
            first = _spread(builder, bias)

            def multiply(count):
                """Appends the product with ``count`` registers of sums."""
                distance = ir.Constant(_INT, count * LANES if packed else 1)
                sums = [cgutils.alloca_once(builder, _VECTOR) for _ in range(count)]
                for total in sums:
                    builder.store(first, total)
                with cgutils.for_range_slice(builder, start, stop, ir.Constant(_INT, 1), _INT) as (n, _):
                    place = builder.zext(builder.load(builder.gep(place_data, [n], source_etype=place_type), typ=place_type), _INT)
                    line = builder.gep(origin, [builder.mul(place, distance)], source_etype=_FLOAT)
                    weight = _spread(builder, builder.load(builder.gep(value_data, [n], source_etype=_FLOAT), typ=_FLOAT))
                    for v, total in enumerate(sums):
                        values_v = builder.load(_vector_at(builder, line, v * LANES), align=4, typ=_VECTOR)
                        product = builder.fmul(weight, values_v, flags=FUSED)
                        builder.store(builder.fadd(builder.load(total, typ=_VECTOR), product, flags=FUSED), total)
                for v, total in enumerate(sums):
                    builder.store(builder.load(total, typ=_VECTOR), _vector_at(builder, target, v * LANES), align=4)

            cases = [builder.append_basic_block(f"vectors_{count}") for count in range(1, MOST_VECTORS + 1)]
            end = builder.append_basic_block("end")
            choice = builder.switch(vectors, end)
            for count, case in enumerate(cases, start=1):
                choice.add_case(ir.Constant(_INT, count), case)
                builder.position_at_end(case)
                multiply(count)
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return signature, generate

    return multiply_row


def transposition():
    """Returns an intrinsic that transposes a square of ``LANES`` by ``LANES`` floats."""

    @intrinsic
    def transpose_square(typing, out, out_at, out_width, source, source_at, source_width):
        """Copies a square of ``LANES`` by ``LANES`` floats, transposed.

            out[out_at + j * out_width + i] = source[source_at + i * source_width + j]

        Both arrays are contiguous. Nothing is checked.
        """
        intp = types.intp
        signature = types.void(out, intp, intp, source, intp, intp)

        def generate(context, builder, signature, arguments):
            out, out_at, out_width, source, source_at, source_width = arguments
            origin = builder.gep(_data(context, builder, signature, 3, source), [source_at], source_etype=_FLOAT)
            target = builder.gep(_data(context, builder, signature, 0, out), [out_at], source_etype=_FLOAT)

            def line(pointer, number, width):
                return _vector_at(builder, pointer, builder.mul(ir.Constant(_INT, number), width))

            rows = [builder.load(line(origin, i, source_width), align=4, typ=_VECTOR) for i in range(LANES)]
            step = LANES // 2
            while step:  # swaps the off-diagonal squares of size ``step``
                for i in range(LANES):
                    if not i & step:
                        upper, lower = rows[i], rows[i + step]
                        kept = [j if not j & step else LANES + j - step for j in range(LANES)]
                        moved = [j + step if not j & step else LANES + j for j in range(LANES)]
                        rows[i] = builder.shuffle_vector(upper, lower, _indices(kept))
                        rows[i + step] = builder.shuffle_vector(upper, lower, _indices(moved))
                step //= 2
            for j, row in enumerate(rows):
                builder.store(row, line(target, j, out_width), align=4)
            return context.get_dummy_value()

        return signature, generate

    def _indices(numbers):
        return ir.Constant(ir.VectorType(ir.IntType(32), LANES), numbers)

    return transpose_square
