"""A proof that floors cannot be met: some classes outbid each other for ever."""

from __future__ import annotations

import numba as nb
import numpy as np

NEVER = -1e30


@nb.njit(cache=True)
def _wants(z, y, rows, first, own, need, b, inside, j, d):  # pragma: no cover - compiled
    """The bias that class ``j`` needs when only classes ``inside`` are its rivals."""
    size, wanted = first[j + 1] - first[j], int(need[j])
    for i in range(size):
        k = rows[first[j] + i]
        top = NEVER
        for e in range(len(b)):
            if inside[e] and e != j:
                top = max(top, z[k, e] + b[e])
        d[i] = top - own[first[j] + i]
    return np.partition(d[:size], wanted - 1)[wanted - 1]


@nb.njit(cache=True)
def outbid(z, y, rows, first, own, need, free, start, turns, eps):  # pragma: no cover - compiled
    """Whether some classes outbid each other for ever: a proof that no biases meet their floors.

    At biases where every class of a set is below its floor with only the others of the set as rivals, none can be saved: at any other
    biases, that class of the set which rose least has rivals at least as strong, and fails. Such biases are looked for by damped steps.
    """
    b, c = start.copy(), len(start)
    d = np.empty(len(rows))
    wants = b.copy()
    for turn in range(turns):
        inside = free.copy()
        left = True
        while left:
            left = False
            for j in range(c):
                if inside[j]:
                    wants[j] = _wants(z, y, rows, first, own, need, b, inside, j, d)
            keep = inside.copy()
            for j in range(c):
                if inside[j] and wants[j] <= b[j] + eps:
                    keep[j] = False
                    left = True
            inside = keep
            if turn % 4 != 3:
                break  # the whole proof is tried now and then
        if turn % 4 == 3 and inside.any():
            return True
        for j in range(c):
            if free[j] and turn % 4 != 3:
                b[j] = 0.5 * (b[j] + wants[j])
    return False
