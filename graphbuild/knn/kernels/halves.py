"""Vector instructions that numba cannot spell: inner products of float16 vectors, and the comparison of upper bounds.

Over loops that numba compiles (benchmarks/RESULTS.md, `python -m benchmarks kernels`): inner products are 3.6 times as fast as its
sums in float64, bounds 1.3 times, listing the bits of a mask 3.0 times.

Shape letters: R rows and C columns of a tile, D vector width.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 32
"""Numbers handled at once; tile widths are multiples of this."""

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FAST = ("contract",)
_UNSHIFT = 2.0**112
"""What a float16 lacks when its exponent and fraction are read in a float32's place."""
_CONVERTS = binding.get_host_cpu_features().get("f16c", False) or "aarch64" in binding.get_default_triple()
"""Whether the processor converts float16; without, LLVM calls a library function that may be absent."""


def _load(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    element = context.get_value_type(array_type.dtype)
    pointer = builder.gep(context.make_array(array_type)(context, builder, array).data, [index])
    lanes = builder.bitcast(pointer, ir.VectorType(element, LANES).as_pointer())
    return builder.load(lanes, align=array_type.dtype.bitwidth // 8)


def _spread(builder: Any, value: Any, kind: Any) -> Any:
    lanes = ir.VectorType(kind, LANES)
    start = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(start, ir.Constant(lanes, ir.Undefined), ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES))


def _widen(builder: Any, bits: Any) -> Any:
    """float16 in 16-bit integers, as float32, exactly."""
    if _CONVERTS:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), LANES)), ir.VectorType(_FLOAT, LANES))
    wide = builder.sext(bits, ir.VectorType(_INT, LANES))
    fraction = builder.shl(
        builder.and_(wide, _spread(builder, ir.Constant(_INT, 0x7FFF), _INT)), _spread(builder, ir.Constant(_INT, 13), _INT)
    )
    sign = builder.and_(wide, _spread(builder, ir.Constant(_INT, -(2**31)), _INT))
    read = builder.bitcast(builder.or_(fraction, sign), ir.VectorType(_FLOAT, LANES))
    return builder.fmul(read, _spread(builder, ir.Constant(_FLOAT, _UNSHIFT), _FLOAT))


def _inner_typing(_context: Any, bits: Any, one: Any, others: Any, other: Any, lines: Any) -> Any:
    """Inner product, in float32, of the first `lines * LANES` coordinates of a row of each of two float16 matrices, as int16.

    The order of summation is fixed: each of the lanes adds up its own products, and the lanes are then added in turn.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows = []
        for at in (0, 2):
            array = context.make_array(signature.args[at])(context, builder, arguments[at])
            stride = builder.sdiv(builder.extract_value(array.strides, 0), ir.Constant(ir.IntType(64), 2))
            rows.append(builder.gep(array.data, [builder.mul(arguments[at + 1], stride)]))
        lanes = ir.VectorType(_FLOAT, LANES)
        total: Any = cgutils.alloca_once_value(builder, ir.Constant(lanes, [0.0] * LANES))  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, arguments[4]) as loop:
            offset = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
            halves = ir.VectorType(ir.IntType(16), LANES).as_pointer()
            one, other = (
                _widen(builder, builder.load(builder.bitcast(builder.gep(row, [offset]), halves), align=2)) for row in rows
            )
            builder.store(builder.fadd(builder.fmul(one, other, flags=_FAST), builder.load(total), flags=_FAST), total)
        value = builder.load(total)
        width = LANES
        while width > 1:
            width //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            halved = [
                builder.shuffle_vector(value, undefined, ir.Constant(ir.VectorType(_INT, width), list(range(first, first + width))))
                for first in (0, width)
            ]
            value = builder.fadd(*halved)
        return builder.extract_element(value, ir.Constant(_INT, 0))

    return types.float32(bits, types.intp, others, types.intp, types.intp), generate


def _hits_typing(
    _context: Any,
    scores: Any,
    at: Any,
    scales: Any,
    rests: Any,
    errors: Any,
    limits: Any,
    first: Any,
    scale: Any,
    rest: Any,
    error: Any,
    limit: Any,
) -> Any:
    """Bit l is set if the upper bound of pair l exceeds the lower of its two limits.

    The bound is `scale * scales[l] * score[l] + rest * rests[l] + error + errors[l]`, in float32.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        score, at = arguments[:2]
        values = _load(context, builder, kinds[0], score, at)
        lanes = ir.VectorType(_FLOAT, LANES)
        if isinstance(kinds[0].dtype, types.Integer):
            values = builder.sitofp(values, lanes)
        first = arguments[6]
        scales, rests, errors, limits = (_load(context, builder, kinds[i], arguments[i], first) for i in range(2, 6))
        scale, rest, error, limit = (_spread(builder, value, _FLOAT) for value in arguments[7:11])
        bound = builder.fadd(builder.fmul(rest, rests, flags=_FAST), errors, flags=_FAST)
        bound = builder.fadd(builder.fmul(builder.fmul(values, scales), scale, flags=_FAST), bound, flags=_FAST)
        lower = builder.select(builder.fcmp_ordered("<", limits, limit), limits, limit)
        return builder.bitcast(builder.fcmp_ordered(">", bound, builder.fsub(lower, error)), ir.IntType(LANES))

    floats = (types.float32,) * 4
    return types.uint32(scores, types.intp, scales, rests, errors, limits, types.intp, *floats), generate


def _lowest_bit_typing(_context: Any, mask: Any) -> Any:
    """Position of the lowest set bit of a mask that is not 0."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint32(types.uint32), generate


# Calls of an intrinsic leave out the typing context; Any, because its type does not say so.
inner_lines: Any = intrinsic(_inner_typing)
hits: Any = intrinsic(_hits_typing)
lowest_bit: Any = intrinsic(_lowest_bit_typing)
