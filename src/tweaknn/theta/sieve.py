"""Folding that leaves out what cannot raise a maximum: the same bits as the whole product for a fraction of its work.

After a few hundred examples hardly any example raises the running maximum of a neuron: those that do have small margins.
So the rows of a micro-batch are walked by falling inverse margin, a class and a strip of neurons at a time, and the walk
ends as soon as not even the strip's largest values could raise a maximum with the margin it has come to. Rounding is
monotone, ``a <= b`` gives ``fl(a * g) <= fl(b * g)``, so what is left out would not have changed a bit.

A strip's values are first packed side by side: rows of a layer lie a power of two apart, where only a few of them fit the
first-level cache at a time. One number a (strip, class), a lower bound of ``peak * scale`` over the strip, tells beforehand
that no row can raise anything, without reading the maxima, which for many classes do not fit any cache.
"""

from __future__ import annotations

import numba
import numpy as np

from tweaknn.theta.relations import Relations
from tweaknn.theta.strips import STRIP, pack_plain, pack_signed, walk

FIRM = np.float32(1 - 1e-5)
"""Taken off the lower bounds, far above the rounding of the three products that lead to them."""
_TINY, _HUGE, _LEAST = np.float32(1e-18), np.float32(1e18), np.float32(1e-30)
_ZERO, _ONE = np.float32(0), np.float32(1)

jit = numba.njit(nogil=True, cache=True, error_model="numpy")


class Sieve:
    """What a block's folding remembers between micro-batches besides its maxima; can be thrown away at any time.

    scale: ``(v,)`` float32, one over a value the neuron has had, 0 while it has been silent; floors: one array a sign,
    ``(strips, c)`` float32: at most ``peak * scale`` of all neurons of the strip that have not been silent.
    """

    def __init__(self, c: int, v: int, sides: int) -> None:
        strips = -(-v // STRIP)
        self.scale = np.zeros(v, np.float32)
        self.floors = tuple(np.zeros((strips, c), np.float32) for _ in range(sides))

    def fold(self, peaks: tuple[np.ndarray, ...], values: np.ndarray, offset: int, r: Relations) -> None:
        """Fold a batch into running maxima ``(c, v)``, one array a sign of the weight, in place."""
        if not len(r.used):
            return
        ladders = r.ladders
        if len(peaks) == 1:
            ladder = ladders[0]
            sift_plain(values, offset, r.used, ladder.inverse, ladder.order, peaks[0], self.scale, self.floors[0])
        else:
            correct, own = ladders
            sift_signed(
                values, offset, r.used, correct.inverse, correct.order, own.inverse, own.order,
                peaks[0], peaks[1], self.scale, self.floors[0], self.floors[1],
            )  # fmt: skip


@jit
def sift_plain(values, offset, used, inverse, order, peak, scale, floor):  # type: ignore[no-untyped-def]
    """peak[j, i] = max(peak[j, i], |values[used[k], offset + i]| * inverse of (j, k))."""
    v, u = peak.shape[1], len(used)
    packed, largest = np.empty((u, STRIP), np.float32), np.empty(STRIP, np.float32)
    top = inverse[:, 0].copy()
    for s in range(0, v - v % STRIP, STRIP):
        pack_plain(values.ctypes.data + 4 * (offset + s), values.strides[0], used.ctypes.data, u,
                   packed.ctypes.data, largest.ctypes.data)  # fmt: skip
        reach = _reach(largest, scale[s : s + STRIP], floor[s // STRIP], floor[s // STRIP])
        _strip(packed, largest, reach, top, inverse, order, peak, s, scale, floor[s // STRIP])
    for j in range(peak.shape[0]):
        for n in range(u):
            k, g = used[order[j, n]], inverse[j, n]
            for i in range(v - v % STRIP, v):
                _raise(peak, j, i, abs(values[k, offset + i]), g)


@jit
def sift_signed(
    values, offset, used, correct, correct_order, own, own_order, plus, minus, scale, floor_plus, floor_minus
):  # type: ignore[no-untyped-def]
    """The same for both signs: D_c bounds w > 0 where V > 0 and w < 0 where V < 0, D_t the other way round."""
    v, u = plus.shape[1], len(used)
    packed, largest = np.empty((2, u, STRIP), np.float32), np.empty((2, STRIP), np.float32)
    both, top, own_top = np.empty(STRIP, np.float32), correct[:, 0].copy(), own[:, 0].copy()
    for s in range(0, v - v % STRIP, STRIP):
        pack_signed(values.ctypes.data + 4 * (offset + s), values.strides[0], used.ctypes.data, u,
                    packed.ctypes.data, largest.ctypes.data)  # fmt: skip
        size, p, m = scale[s : s + STRIP], floor_plus[s // STRIP], floor_minus[s // STRIP]
        for t in range(STRIP):
            both[t] = largest[1, t] if not largest[1, t] <= largest[0, t] else largest[0, t]
        _reach(both, size, p, m)
        up, down = _span(largest[0], size), _span(largest[1], size)
        _strip(packed[0], largest[0], up, top, correct, correct_order, plus, s, scale, p)
        _strip(packed[0], largest[0], up, own_top, own, own_order, minus, s, scale, m)
        _strip(packed[1], largest[1], down, own_top, own, own_order, plus, s, scale, p)
        _strip(packed[1], largest[1], down, top, correct, correct_order, minus, s, scale, m)
    for j in range(plus.shape[0]):
        for n in range(correct.shape[1]):
            k, g = used[correct_order[j, n]], correct[j, n]
            for i in range(v - v % STRIP, v):
                _raise(plus, j, i, values[k, offset + i], g)
                _raise(minus, j, i, -values[k, offset + i], g)
        for n in range(own.shape[1]):
            k, g = used[own_order[j, n]], own[j, n]
            for i in range(v - v % STRIP, v):
                _raise(plus, j, i, -values[k, offset + i], g)
                _raise(minus, j, i, values[k, offset + i], g)


@jit
def _raise(peak, j, i, x, g):  # type: ignore[no-untyped-def]
    r, p = x * g, peak[j, i]
    peak[j, i] = p if g == 0 or r <= p or p != p else r


@jit
def _strip(packed, largest, reach, top, inverse, order, peak, s, scale, floor):  # type: ignore[no-untyped-def]
    """All classes of one strip."""
    if reach <= 0:
        return
    for j in range(len(floor)):
        if reach * top[j] < floor[j] or top[j] == 0:
            continue
        least = walk(  # type: ignore[call-arg, var-annotated]
            packed.ctypes.data, largest.ctypes.data, inverse.ctypes.data + j * inverse.strides[0],
                     order.ctypes.data + j * order.strides[0], inverse.shape[1],
                     peak.ctypes.data + j * peak.strides[0] + 4 * s, scale.ctypes.data + 4 * s,
                     peak.ctypes.data + min(j + 2, len(floor) - 1) * peak.strides[0] + 4 * s)  # fmt: skip
        floor[j] = least * FIRM if least > _LEAST else _ZERO


@jit
def _span(largest, scale):  # type: ignore[no-untyped-def]
    """Largest of ``largest * scale`` over a strip: NaN if one is, 0 only if all values are 0."""
    product = np.empty(STRIP, np.float32)
    for t in range(STRIP):
        product[t] = largest[t] * scale[t]
    most, loudest, bits, values = np.int32(0), np.int32(0), product.view(np.int32), largest.view(np.int32)
    for t in range(STRIP):
        most, loudest = max(most, bits[t]), max(loudest, values[t])
    if loudest > 0x7F800000:
        return np.float32(np.nan)
    product.view(np.int32)[0] = most
    return max(product[0], _LEAST) if loudest > 0 else _ZERO


@jit
def _reach(largest, scale, plus, minus):  # type: ignore[no-untyped-def]
    """:func:`_span`, after neurons that speak for the first time, or far louder than before, got another scale."""
    new = np.int32(0)
    for t in range(STRIP):
        new |= np.int32(scale[t] == 0) & np.int32(largest[t] > 0)
    reach = _span(largest, scale)
    if new == 0 and not reach > 4:
        return reach
    sink = _ONE
    for t in range(STRIP):
        x = largest[t]
        if x * scale[t] > 4 or (scale[t] == 0 and x > 0):
            fitting = _ONE / max(min(x, _HUGE), _TINY)
            sink = min(sink, fitting / scale[t] * FIRM) if scale[t] > 0 else _ZERO
            scale[t] = fitting
    for j in range(len(plus)):
        plus[j] = plus[j] * sink if sink > 0 else _ZERO
        minus[j] = minus[j] * sink if sink > 0 else _ZERO
    return _span(largest, scale)
