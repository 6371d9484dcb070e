"""Compiled loops of Algorithm θ: the (max, x) semiring product of neuron values and inverse margins.

All kernels release the GIL, so that threads can share the neurons out. ``values`` is a layer's ``(n, size)`` float32,
C-contiguous; a block of ``v`` neurons begins at column ``offset``. Maxima are compared by their bits as integers: the
order of non-negative floats is the same, integer maxima have execution ports of their own, and a NaN, whose bits are
above those of infinity, cannot get lost.
"""

from __future__ import annotations

import numba
import numpy as np

from tweaknn.theta import tiles

jit = numba.njit(nogil=True, cache=True, error_model="numpy")

CHUNK = 64
"""Neurons looked at together where most chunks turn out to hold nothing of interest."""
_FLOAT_MAX = np.float64(np.finfo(np.float32).max)
STRIP = 4 * tiles.WIDTH
"""Neurons for which all classes are done before the next: a micro-batch's strip stays in the first-level cache."""

LONG = 2048
"""Neurons whose maxima stay in the first-level cache while the rows of a micro-batch pass by, and runs of memory that are still long:
a core reads short ones, one here and one there, several times more slowly."""

_W, _U = tiles.WIDTH, tiles.CLASSES
_s1, _s2 = tiles.SIGNED[1], tiles.SIGNED[2]
_p1, _p2, _p3, _p4, _p5 = (tiles.PLAIN[u] for u in range(1, 6))


@jit
def _fold_one(values, offset, used, inverse, peak):  # type: ignore[no-untyped-def]
    """One class: four examples at a time, so that the maxima are loaded and stored once for all of them."""
    n = len(used)
    for a in range(0, len(peak), LONG):
        some = peak[a : a + LONG]
        b, e = offset + a, offset + a + len(some)
        for k in range(0, n - n % 4, 4):
            x0, x1, x2, x3 = values[used[k], b:e], values[used[k + 1], b:e], values[used[k + 2], b:e], values[used[k + 3], b:e]
            g0, g1, g2, g3 = inverse[k, 0], inverse[k + 1, 0], inverse[k + 2, 0], inverse[k + 3, 0]
            for t in range(len(some)):
                top = some[t]
                r = abs(x0[t]) * g0
                top = top if r <= top or top != top else r  # a NaN stays
                r = abs(x1[t]) * g1
                top = top if r <= top or top != top else r
                r = abs(x2[t]) * g2
                top = top if r <= top or top != top else r
                r = abs(x3[t]) * g3
                some[t] = top if r <= top or top != top else r
        for k in range(n - n % 4, n):
            x, g = values[used[k], b:e], inverse[k, 0]
            for t in range(len(some)):
                r, top = abs(x[t]) * g, some[t]
                some[t] = top if r <= top or top != top else r


@jit
def fold_plain(values, offset, used, inverse, peak):  # type: ignore[no-untyped-def]
    """peak[j, i] = max(peak[j, i], |values[used[k], offset + i]| * inverse[k, j]) over all k."""
    c, v = peak.shape
    n = len(used)
    x, xs, u = values.ctypes.data + 4 * offset, values.strides[0], used.ctypes.data
    g, gs, p, ps = inverse.ctypes.data, inverse.strides[0], peak.ctypes.data, peak.strides[0]
    whole = v - v % _W
    if c == 1:
        _fold_one(values, offset, used, inverse, peak[0])
        return
    for a in range(0, whole, STRIP):
        b = min(a + STRIP, whole)
        for j in range(0, c, _U):
            rest = c - j
            for i in range(a, b, _W):
                xi, gj, pij = x + 4 * i, g + 4 * j, p + j * ps + 4 * i
                if rest >= 5:
                    _p5(xi, xs, u, n, gj, gs, pij, ps, 0)
                elif rest == 4:
                    _p4(xi, xs, u, n, gj, gs, pij, ps, 0)
                elif rest == 3:
                    _p3(xi, xs, u, n, gj, gs, pij, ps, 0)
                elif rest == 2:
                    _p2(xi, xs, u, n, gj, gs, pij, ps, 0)
                else:
                    _p1(xi, xs, u, n, gj, gs, pij, ps, 0)
    for j in range(c):
        for k in range(n):
            for i in range(whole, v):
                r = abs(values[used[k], offset + i]) * inverse[k, j]
                peak[j, i] = r if r > peak[j, i] or r != r else peak[j, i]


@jit
def fold_signed(values, offset, used, inverse, plus, minus):  # type: ignore[no-untyped-def]
    """The same for both signs of the weight: plus takes max(value * inverse), minus max(-value * inverse)."""
    c, v = plus.shape
    n = len(used)
    x, xs, u = values.ctypes.data + 4 * offset, values.strides[0], used.ctypes.data
    g, gs, ps = inverse.ctypes.data, inverse.strides[0], plus.strides[0]
    p, m = plus.ctypes.data, minus.ctypes.data
    whole = v - v % _W
    for a in range(0, whole, STRIP):
        b = min(a + STRIP, whole)
        for j in range(0, c, 2):
            for i in range(a, b, _W):
                at = j * ps + 4 * i
                if c - j >= 2:
                    _s2(x + 4 * i, xs, u, n, g + 4 * j, gs, p + at, ps, m + at)
                else:
                    _s1(x + 4 * i, xs, u, n, g + 4 * j, gs, p + at, ps, m + at)
    for j in range(c):
        for k in range(n):
            for i in range(whole, v):
                r = values[used[k], offset + i] * inverse[k, j]
                plus[j, i] = r if r > plus[j, i] or r != r else plus[j, i]
                minus[j, i] = -r if -r > minus[j, i] else minus[j, i]


@jit
def fold_levels(values, offset, used, inverse, side, plain, levels):  # type: ignore[no-untyped-def]
    """Keep the q largest ratios of every pair, largest first: levels is (q, c, v); side is the weight's sign."""
    q, c, v = levels.shape
    for j in range(c):
        for n in range(len(used)):
            k, g = used[n], inverse[n, j] * side
            if g == 0:
                continue
            for a in range(0, v, CHUNK):
                b = min(a + CHUNK, v)
                hits = 0
                for i in range(a, b):
                    x = values[k, offset + i]
                    r = abs(x) * g if plain else x * g
                    hits += 1 if r > levels[q - 1, j, i] or r != r else 0
                if hits == 0:
                    continue
                for i in range(a, b):
                    x = values[k, offset + i]
                    r = abs(x) * g if plain else x * g
                    p = q - 1
                    if r > levels[p, j, i] or r != r:
                        while p > 0 and (r > levels[p - 1, j, i] or r != r):
                            levels[p, j, i] = levels[p - 1, j, i]
                            p -= 1
                        levels[p, j, i] = r


@jit
def keep_wrong(
    values,
    offset,
    wrong,
    wrong_target,
    wrong_inverse,
    lowest_plus,
    lowest_minus,
    plain,
    first,
    room,
    out_row,
    out_neuron,
    out_ratio,
    filled,
):  # type: ignore[no-untyped-def]
    """Append (target, neuron, signed ratio) of mistakes that may still be counted, from mistake ``first`` on.

    A mistake's ratio |V|/m counts in the end only if it reaches the final maximum over D_c, which is at least the
    running one: whatever is below that can be forgotten now. Returns (next mistake, filled); the next mistake is not
    the last when the buffers had no room for a whole one.
    """
    v = lowest_plus.shape[1]
    for e in range(first, len(wrong)):
        k, row, g = wrong[e], wrong_target[e], wrong_inverse[e]
        begin = filled
        for a in range(0, v, CHUNK):
            b = min(a + CHUNK, v)
            # 32-bit lanes for the counts as for the floats, and slices instead of sums of indices: then it is vectors.
            hits, xs = np.int32(0), values[k, offset + a : offset + b]
            pluses, minuses = lowest_plus[row, a:b], lowest_minus[row, a:b]
            if plain:
                for t in range(len(xs)):
                    hits += np.int32(not abs(xs[t]) * g < pluses[t]) & np.int32(xs[t] != 0)
            else:
                for t in range(len(xs)):
                    limit = pluses[t] if xs[t] > 0 else minuses[t]
                    hits += np.int32(not abs(xs[t]) * g < limit) & np.int32(xs[t] != 0)
            if hits == 0:
                continue
            if filled + hits > room:
                return e, begin
            for i in range(a, b):
                x = values[k, offset + i]
                limit = lowest_plus[row, i] if plain or x > 0 else lowest_minus[row, i]
                if not (x == 0 or abs(x) * g < limit):
                    out_row[filled] = row
                    out_neuron[filled] = i
                    out_ratio[filled] = abs(x) * g if plain or x > 0 else -abs(x) * g
                    filled += 1
    return len(wrong), filled


@jit
def count_wrong(values, offset, wrong, wrong_target, wrong_inverse, need_plus, need_minus, plain, plus, minus):  # type: ignore[no-untyped-def]
    """Add to plus (and minus) the mistakes whose ratio reaches need: the second pass when they did not fit."""
    v = need_plus.shape[1]
    for e in range(len(wrong)):
        k, row, g = wrong[e], wrong_target[e], wrong_inverse[e]
        for i in range(v):
            x = values[k, offset + i]
            if x != 0:
                r = np.float64(np.float32(abs(x) * g))
                if plain or x > 0:
                    plus[row, i] += 1 if r >= need_plus[row, i] else 0
                else:
                    minus[row, i] += 1 if r >= need_minus[row, i] else 0


@jit
def prune(row, neuron, ratio, size, plus, minus):  # type: ignore[no-untyped-def]
    """Drop kept ratios that the running maximum has passed, in place; returns how many remain."""
    kept = 0
    for e in range(size):
        r = ratio[e]
        limit = plus[row[e], neuron[e]] if r > 0 else minus[row[e], neuron[e]]
        if not abs(r) < limit:
            row[kept], neuron[kept], ratio[kept] = row[e], neuron[e], r
            kept += 1
    return kept


@jit
def smallest_positive(peak, out):  # type: ignore[no-untyped-def]
    """out[j] = min(out[j], smallest positive peak[j, i]), by the bits less one, of which those of 0 are the largest."""
    one = np.uint32(1)
    for j in range(peak.shape[0]):
        bits = peak[j].view(np.uint32)
        least = np.uint32(out[j : j + 1].view(np.uint32)[0] - one)
        for i in range(len(bits)):
            least = min(least, np.uint32(bits[i] - one))
        out[j : j + 1].view(np.uint32)[0] = least + one


@jit
def count_kept(
    row, neuron, ratio, size, plus, minus, limits_plus, limits_minus, taken, absolute, counts_plus, counts_minus
):  # type: ignore[no-untyped-def]
    """Count kept ratios that reach 1/threshold, computed where it is needed only.

    limits: (c,) float64, 1/threshold of unbounded neurons, and inf for classes whose thresholds are all 0; taken,
    absolute: what is taken off the bound, as a fraction and as a number.
    """
    for e in range(size):
        r, j, i = np.float64(ratio[e]), row[e], neuron[e]
        positive = r > 0
        need = _need(
            plus[j, i] if positive else minus[j, i], limits_plus[j] if positive else limits_minus[j], taken, absolute
        )
        if abs(r) >= need and need < np.inf:
            if positive:
                counts_plus[j, i] += 1
            else:
                counts_minus[j, i] += 1


@jit
def tally(counts, found):  # type: ignore[no-untyped-def]
    """found[j, k] += how many neurons of class j have count k."""
    for j in range(counts.shape[0]):
        row = counts[j]
        for a in range(0, len(row), CHUNK):
            some = row[a : a + CHUNK]
            any_ = np.int32(0)
            for t in range(len(some)):
                any_ |= some[t]
            if any_ == 0:
                found[j, 0] += len(some)
                continue
            for t in range(len(some)):
                found[j, some[t]] += 1


@jit
def hopeful(counts, peak, least, cut):  # type: ignore[no-untyped-def]
    """Positions (int64, rising) of counts above ``least``, and of those level with it whose peak is at most ``cut``."""
    out = np.empty(len(counts), np.int64)
    filled = 0
    for a in range(0, len(counts), CHUNK):
        some, peaks = counts[a : a + CHUNK], peak[a : a + CHUNK]
        hits = np.int32(0)
        for t in range(len(some)):
            hits += np.int32(some[t] > least) | (np.int32(some[t] == least) & np.int32(peaks[t] <= cut))
        if hits:
            for t in range(len(some)):
                if some[t] > least or (some[t] == least and peaks[t] <= cut):
                    out[filled] = a + t
                    filled += 1
    return out[:filled].copy()


@jit
def corrects(row, neuron, ratio, size, plus, minus, limits_plus, limits_minus, taken, absolute, found):  # type: ignore[no-untyped-def]
    """found[j] = True where a kept ratio of class j reaches 1/threshold, i.e. some neuron's count is not 0."""
    for e in range(size):
        r, j, i = np.float64(ratio[e]), row[e], neuron[e]
        if found[j]:
            continue
        positive = r > 0
        need = _need(
            plus[j, i] if positive else minus[j, i], limits_plus[j] if positive else limits_minus[j], taken, absolute
        )
        found[j] = abs(r) >= need and need < np.inf


@jit
def _need(peak, of_unbounded, taken, absolute):  # type: ignore[no-untyped-def]
    p = np.float64(peak)
    if of_unbounded == np.inf or p >= _FLOAT_MAX:
        return np.inf
    if p == 0:
        return of_unbounded
    if absolute == 0:
        return p / (1 - taken)
    room = 1 / p - absolute
    return 1 / room if room > 0 else np.inf


@jit
def needs(peak, of_unbounded, taken, absolute, out):  # type: ignore[no-untyped-def]
    """1/threshold as float64 (c, v)."""
    for j in range(peak.shape[0]):
        for i in range(peak.shape[1]):
            out[j, i] = _need(peak[j, i], of_unbounded[j], taken, absolute)


@jit
def thresholds(peak, of_unbounded, taken, absolute, out):  # type: ignore[no-untyped-def]
    """Thresholds as float32: peak and out are (k,) of one class."""
    for i in range(len(peak)):
        out[i] = np.float32(1 / _need(peak[i], of_unbounded, taken, absolute))


@jit
def listen(values, offset, own, own_target, spoke, finished):  # type: ignore[no-untyped-def]
    """Note which neurons are not 0 somewhere on D_t; chunks whose neurons have all spoken are not looked at again.

    spoke: (c, v) uint8; finished: (c, chunks of CHUNK neurons) uint8.
    """
    v = spoke.shape[1]
    for e in range(len(own)):
        k, row = own[e], own_target[e]
        for chunk in range(finished.shape[1]):
            if finished[row, chunk]:
                continue
            a, b = chunk * CHUNK, min(chunk * CHUNK + CHUNK, v)
            xs, heard = values[k, offset + a : offset + b], spoke[row, a:b]
            all_heard = np.uint8(1)
            for t in range(len(xs)):
                heard[t] |= np.uint8(xs[t] != 0)
            for t in range(len(xs)):
                all_heard &= heard[t]
            finished[row, chunk] = all_heard


@jit
def lean(values, offset, own, own_target, total):  # type: ignore[no-untyped-def]
    """Sum of V over D_t in units of 2^-24: integers, so that the order of adding is no matter."""
    v = total.shape[1]
    for e in range(len(own)):
        k, row = own[e], own_target[e]
        for i in range(v):
            total[row, i] += np.int64(np.float64(values[k, offset + i]) * 16777216.0)
