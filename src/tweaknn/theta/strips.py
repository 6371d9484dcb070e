"""Steps of the sieve on one strip of neurons, written as LLVM vectors; see :mod:`tweaknn.theta.sieve`.

Maxima are compared by their bits as integers: the order of non-negative floats is the same, and a NaN, whose bits are
above those of infinity, cannot get lost.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from tweaknn.theta.tiles import _F32, _I32, _I64, _VF, _VI, LANES, _int, _load, _spread

STRIP = 64
"""Neurons of a strip."""
VECTORS = STRIP // LANES


def _at(b: ir.IRBuilder, address: ir.Value, t: int) -> ir.Value:
    return b.add(address, _int(4 * t * LANES))


def _put(b: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    b.store(value, b.inttoptr(address, _VI.as_pointer())).align = 4


def _fetch(b: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for a strip ahead of its use; an address outside is no error."""
    byte, flag = ir.IntType(8).as_pointer(), _I32
    kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    prefetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    for line in range(0, 4 * STRIP, 64):
        where = b.inttoptr(b.add(address, _int(line)), byte)
        b.call(prefetch, [where, flag(0), flag(3), flag(1)])


AHEAD = 4 * STRIP * 2
"""How many bytes ahead of its packing a row is asked for: the next strip but one."""


def _pack(sides: int) -> Any:
    """``pack(values, stride, used, n, packed, largest)``: rows of a strip side by side, and their largest.

    Addresses and a stride in bytes. One side: ``|V|``; two: ``max(V, 0)`` and, ``n`` strips behind, ``max(-V, 0)``; the
    largest of the second side stand a strip behind those of the first.
    """

    @intrinsic
    def pack(context, values, stride, used, n, packed, largest):  # type: ignore[no-untyped-def]
        signature = types.void(*[types.int64] * 6)

        def generate(context: Any, b: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
            values, stride, used, n, packed, largest = args
            absolute, sign = ir.Constant(_VI, [0x7FFFFFFF] * LANES), ir.Constant(_VI, [31] * LANES)
            slots = [[cgutils.alloca_once(b, _VI) for _ in range(VECTORS)] for _ in range(sides)]
            for side in slots:
                for slot in side:
                    b.store(ir.Constant(_VI, [0] * LANES), slot)
            behind = b.mul(n, _int(4 * STRIP))
            with cgutils.for_range(b, n) as loop:
                example = b.sext(_load(b, b.add(used, b.mul(loop.index, _int(4))), _I32), _I64)
                row = b.add(values, b.mul(example, stride))
                _fetch(b, b.add(row, _int(AHEAD)))
                to = b.add(packed, b.mul(loop.index, _int(4 * STRIP)))
                for t in range(VECTORS):
                    bits = _load(b, _at(b, row, t), _VI)
                    magnitude = b.and_(bits, absolute)
                    if sides == 1:
                        parts = [magnitude]
                    else:
                        negative = b.ashr(bits, sign)
                        below = b.and_(magnitude, negative)
                        parts = [b.xor(magnitude, below), below]
                    for k, part in enumerate(parts):
                        _put(b, part, _at(b, b.add(to, behind) if k else to, t))
                        before = b.load(slots[k][t])
                        b.store(b.select(b.icmp_signed(">", part, before), part, before), slots[k][t])
            for k, some in enumerate(slots):
                for t, slot in enumerate(some):
                    _put(b, b.load(slot), _at(b, b.add(largest, _int(4 * STRIP * k)), t))
            return context.get_dummy_value()

        return signature, generate

    return pack


pack_plain, pack_signed = _pack(1), _pack(2)


@intrinsic
def walk(context, packed, largest, inverse, order, n, peak, scale, following):  # type: ignore[no-untyped-def]
    """``walk(packed, largest, inverse, order, n, peak, scale, following)``: fold rows by falling inverse margin into the maxima.

    Ends at a factor of 0, or when the strip's largest values times the factor exceed no maximum. Returns the least
    ``peak * scale`` of neurons whose scale is not 0 (infinity without one) as float32. following: address of maxima that
    are asked for ahead of their use.
    """
    signature = types.float32(*[types.int64] * 8)

    def generate(context: Any, b: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        packed, largest, inverse, order, n, peak, scale, following = args
        _fetch(b, following)
        changed = cgutils.alloca_once_value(b, ir.Constant(ir.IntType(1), 0))
        slots = [cgutils.alloca_once(b, _VI) for _ in range(VECTORS)]
        most = []
        for t in range(VECTORS):
            b.store(_load(b, _at(b, peak, t), _VI), slots[t])
            most.append(_load(b, _at(b, largest, t), _VF))
        with cgutils.for_range(b, n) as loop:
            factor = _load(b, b.add(inverse, b.mul(loop.index, _int(4))), _F32)
            with b.if_then(b.fcmp_unordered("<=", factor, ir.Constant(_F32, 0.0))):
                loop.do_break()
            spread = _spread(b, factor)
            raised = None
            for t in range(VECTORS):
                higher = b.icmp_signed(">", b.bitcast(b.fmul(most[t], spread), _VI), b.load(slots[t]))
                raised = higher if raised is None else b.or_(raised, higher)
            mask = b.bitcast(raised, ir.IntType(LANES))
            with b.if_then(b.icmp_unsigned("==", mask, ir.Constant(ir.IntType(LANES), 0))):
                loop.do_break()
            b.store(ir.Constant(ir.IntType(1), 1), changed)
            example = b.sext(_load(b, b.add(order, b.mul(loop.index, _int(4))), _I32), _I64)
            row = b.add(packed, b.mul(example, _int(4 * STRIP)))
            for t in range(VECTORS):
                ratio = b.bitcast(b.fmul(_load(b, _at(b, row, t), _VF), spread), _VI)
                before = b.load(slots[t])
                b.store(b.select(b.icmp_signed(">", ratio, before), ratio, before), slots[t])
        none = ir.Constant(_VI, [0x7F800000] * LANES)
        least = none
        for t in range(VECTORS):
            after, size = b.load(slots[t]), _load(b, _at(b, scale, t), _VF)
            bound = b.bitcast(b.fmul(b.bitcast(after, _VF), size), _VI)
            heard = b.icmp_signed("!=", b.bitcast(size, _VI), ir.Constant(_VI, [0] * LANES))
            bound = b.select(heard, bound, none)
            least = b.select(b.icmp_signed("<", bound, least), bound, least)
        with b.if_then(b.load(changed)):
            for t in range(VECTORS):
                _put(b, b.load(slots[t]), _at(b, peak, t))
        kind = ir.FunctionType(_I32, [_VI])
        reduce = cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.smin.v{LANES}i32")
        return b.bitcast(b.call(reduce, [least]), _F32)

    return signature, generate
