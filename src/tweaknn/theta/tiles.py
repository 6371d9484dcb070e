"""Register tiles of the (max, x) product, written as LLVM vectors.

A tile holds the running maxima of a few classes for a few vectors of neurons in registers while it walks over the
examples of a micro-batch: each value is loaded once for all classes of the tile, each maximum loaded and stored once a
micro-batch. The vector width follows the processor; LLVM splits what is too wide.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
VECTORS = 4 if LANES == 16 else 2
WIDTH = LANES * VECTORS
"""Neurons of a tile."""
CLASSES = 5
"""Classes of a tile in the plain form: 20 accumulators, 4 values, 1 factor of 32 registers; 2 in the signed form."""

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VF, _VI = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


def make_tile(vectors: int, classes: int, signed: bool) -> Any:
    """An intrinsic folding ``classes`` rows of ``vectors * LANES`` maxima over a list of examples.

    Its arguments are addresses and strides in bytes: values, their stride, the list of examples (int32) and its
    length, inverse margins (a row an example of the list) and their stride, the maxima and their stride, and the
    maxima for negative weights (ignored in the plain form).
    """

    @intrinsic
    def tile(context, values, stride, used, n, inverse, inverse_stride, plus, peak_stride, minus):  # type: ignore[no-untyped-def]
        signature = types.void(*[types.int64] * 9)

        def generate(context: Any, b: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
            values, stride, used, n, inverse, inverse_stride, plus, peak_stride, minus = args
            sides = (plus, minus) if signed else (plus,)
            slots = {}
            for key, address in _places(b, sides, peak_stride, vectors, classes):
                slots[key] = cgutils.alloca_once(b, _VI)
                b.store(_load(b, address, _VI), slots[key])
            absolute = ir.Constant(_VI, [0x7FFFFFFF] * LANES)
            minus_sign = ir.Constant(_VI, [-0x80000000] * LANES)
            with cgutils.for_range(b, n) as loop:
                example = b.sext(_load(b, b.add(used, b.mul(loop.index, _int(4))), _I32), _I64)
                row = b.add(values, b.mul(example, stride))
                factors = b.add(inverse, b.mul(loop.index, inverse_stride))
                vector = []
                for t in range(vectors):
                    bits = _load(b, b.add(row, _int(4 * t * LANES)), _VI)
                    vector.append(b.bitcast(bits if signed else b.and_(bits, absolute), _VF))
                for j in range(classes):
                    factor = _spread(b, _load(b, b.add(factors, _int(4 * j)), _F32))
                    for t in range(vectors):
                        ratio = b.bitcast(b.fmul(vector[t], factor), _VI)
                        for side in range(len(sides)):
                            slot = slots[side, j, t]
                            bits = b.xor(ratio, minus_sign) if side else ratio
                            # Non-negative floats are ordered like their bits; a negative one never exceeds the peak.
                            largest = b.load(slot)
                            b.store(b.select(b.icmp_signed(">", bits, largest), bits, largest), slot)
            for key, address in _places(b, sides, peak_stride, vectors, classes):
                b.store(b.load(slots[key]), b.inttoptr(address, _VI.as_pointer())).align = 4
            return context.get_dummy_value()

        return signature, generate

    return tile


def _places(b: ir.IRBuilder, sides: tuple, stride: ir.Value, vectors: int, classes: int) -> Any:
    for side, base in enumerate(sides):
        for j in range(classes):
            row = b.add(base, b.mul(stride, _int(j)))
            for t in range(vectors):
                yield (side, j, t), b.add(row, _int(4 * t * LANES))


def _int(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _load(b: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 4
    return value


def _spread(b: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    nothing = ir.Constant(_VF, ir.Undefined)
    first = b.insert_element(nothing, scalar, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, nothing, ir.Constant(_VI, [0] * LANES))


PLAIN = {u: make_tile(VECTORS, u, False) for u in range(1, CLASSES + 1)}
SIGNED = {u: make_tile(VECTORS, u, True) for u in (1, 2)}
