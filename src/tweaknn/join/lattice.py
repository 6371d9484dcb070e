"""The exact optimum under floors: a least fixed point.

Fix the biases of the targets. The accuracy of a class rises with its own bias and falls with every other. So if two bias vectors
keep all floors of the other classes, their componentwise minimum does too (each class keeps its own bias from one of the two, and
meets competitors no stronger than there): the feasible points form a lattice with a least element, and since a target's accuracy
falls with every other bias, *the least element is the best feasible point for the targets*. It is reached from below by raising
one bias at a time to the smallest value that meets that class's floor (Tarski; Gauss-Seidel order).

For a single target nothing else is free, so this is the global optimum of ``floors``, and "infeasible" is a proof.

Three things make it fast. Of an example only the rivals near the best of them are looked at, and the whole row only where those
cannot be shown to hold the best (:class:`Lattice`). The climb may begin at any point known to lie below the least one, such as the
least point of lower targets. And since it comes from below, the targets' accuracy on the way is never less than at its end: a climb
that has fallen behind the best point known is given up.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numba as nb
import numpy as np

from tweaknn.join.outbid import NEVER, outbid

NEAR = 6
"""Rivals of an example that are looked at first, more or less."""

MANY = 4000
"""Examples above which those that cannot flip any more are put aside on the way, :data:`FAR` times the last rise from doing so."""
FAR = 8.0

PATIENCE = 60
"""Sweeps after which it is asked whether there is an end to them."""

AROUND = 8
"""Examples on either side of a floor's last one, from which it is seen who outbids a class there."""

DONE, ABOVE, BEHIND, TIRED, CAPPED = 0, 1, 2, 3, 4


@nb.njit(cache=True)
def _widths(z, y, rows, bias, near, out):  # pragma: no cover - compiled
    """Gap between the best and the ``near``-th best rival of some ``rows``."""
    c = z.shape[1]
    s = np.empty(c)
    for i in range(len(rows)):
        k = rows[i]
        for j in range(c):
            s[j] = z[k, j] + bias[j] if j != y[k] else -np.inf
        s.sort()
        out[i] = s[c - 1] - s[c - near]


@nb.njit(cache=True)
def _rivals(z, y, rows, bias, width, always):  # pragma: no cover - compiled
    """Rivals within ``width`` of the best, and those ``always`` kept: (start, classes, scores, limit of what is left out)."""
    m, c = len(rows), z.shape[1]
    start, limit = np.zeros(m + 1, np.int64), np.full(m, -np.inf)
    most = 16 * m + c
    classes, scores = np.empty(most, np.int32), np.empty(most)
    s = np.empty(c)
    e = 0
    for r in range(m):
        k = rows[r]
        if e + c > most:
            most = 2 * most + c
            larger, higher = np.empty(most, np.int32), np.empty(most)
            larger[:e], higher[:e] = classes[:e], scores[:e]
            classes, scores = larger, higher
        best = -np.inf
        for j in range(c):
            s[j] = z[k, j] + bias[j]
            if j != y[k]:
                best = max(best, s[j])
        out = -np.inf
        for j in range(c):
            if j == y[k]:
                continue
            if always[j] or s[j] >= best - width:
                classes[e], scores[e] = j, z[k, j]
                e += 1
            else:
                out = max(out, s[j])
        start[r + 1], limit[r] = e, out
    return start, classes[:e].copy(), scores[:e].copy(), limit


@nb.njit(cache=True)
def _top(z, y, k, r, b, start, classes, scores, limit, lift):  # pragma: no cover - compiled
    """Best score of a rival of example ``k`` at biases ``b``, and whether the whole row had to be read."""
    top = -np.inf
    for e in range(start[r], start[r + 1]):
        top = max(top, scores[e] + b[classes[e]])
    if top >= limit[r] + lift:
        return top, False
    for i in range(z.shape[1]):
        if i != y[k]:
            top = max(top, z[k, i] + b[i])
    return top, True


@nb.njit(cache=True)
def _raise(z, y, rows, first, own, near, centre, always, free, follow, need, unit, gain, fixed, b, ceiling, eps, sweeps, key,
           sure, cap):  # pragma: no cover - compiled
    """Raise ``b`` in place to the least fixed point, at most ``sweeps`` times: (state, whole rows read, shortfall, value).

    Given up (``BEHIND``) when the targets' shortfall and value, which only get worse on the way, do not beat ``key``.
    """
    start, classes, scores, limit = near
    c = z.shape[1]
    missed = 0
    short = value = 0.0
    d = np.empty(len(rows))
    for sweep in range(sweeps + 1):
        lift = -np.inf
        for j in range(c):
            if not always[j]:
                lift = max(lift, b[j] - centre[j])
        short, value = 0.0, sure
        for j in range(c):
            if fixed[j]:
                count = 0
                for r in range(first[j], first[j + 1]):
                    top, whole = _top(z, y, rows[r], r, b, start, classes, scores, limit, lift)
                    missed += whole
                    if own[r] + b[j] >= top:
                        count += 1
                        value += gain[rows[r]]
                short += max(0.0, need[j] - count) * unit[j]
        if short > key[0] + 1e-12 or (short > key[0] - 1e-12 and value <= key[1] + 1e-12):
            return BEHIND, missed, short, value
        if sweep == sweeps:
            break
        changed = capped = False
        for j in range(c):
            if not free[j]:
                continue
            size, kept, wanted = first[j + 1] - first[j], 0, int(need[j])
            for i in range(size):
                r = first[j] + i
                top, whole = _top(z, y, rows[r], r, b, start, classes, scores, limit, lift)
                missed += whole
                d[i] = top - own[r]
                if d[i] + 0.5 * eps <= b[j]:  # half of it: not to chase the last bit of a sum
                    kept += 1
            if kept >= wanted:
                continue
            if wanted > size:
                if cap == np.inf:
                    return ABOVE, missed, short, value
                b[j] = centre[j] + cap
                capped = changed = True
                continue
            b[j] = np.partition(d[:size], wanted - 1)[wanted - 1] + eps
            if b[j] > centre[j] + cap:
                b[j] = centre[j] + cap
                capped = True
            changed = True
            if b[j] > ceiling:
                return ABOVE, missed, short, value
            if not always[j]:
                lift = max(lift, b[j] - centre[j])
        low = np.inf
        for j in range(c):
            if free[j]:
                low = min(low, b[j])
        if low < np.inf:
            for j in range(c):
                if follow[j] and low > b[j]:
                    b[j] = low
                    changed = True
        if capped:
            return CAPPED, missed, short, value
        if not changed:
            return DONE, missed, short, value
    return TIRED, missed, short, value


@nb.njit(cache=True)
def _certain(z, y, rows, own, near, b, centre, always, reach, gain, need):  # pragma: no cover - compiled
    """Which rows may flip while biases' differences from ``b`` spread by at most ``reach``; ``need`` is lessened by those that stay
    right. Returns them and what the latter are worth."""
    start, classes, scores, limit = near
    lift = -np.inf
    for j in range(len(b)):
        if not always[j]:
            lift = max(lift, b[j] - centre[j])
    open_, sure = np.zeros(len(rows), np.bool_), 0.0
    for r in range(len(rows)):
        j = y[rows[r]]
        margin = own[r] + b[j] - _top(z, y, rows[r], r, b, start, classes, scores, limit, lift)[0]
        if margin > reach:
            need[j] -= 1
            sure += gain[rows[r]]
        elif margin >= -reach:
            open_[r] = True
    return open_, sure


@nb.njit(cache=True)
def _passes_on(y, rows, first, own, near, b, free, need, around, out):  # pragma: no cover - compiled
    """(c, c) how much of a rise of each class (column) every free class (row) has to follow, near its least bias."""
    start, classes, scores, limit = near
    for j in range(len(b)):
        size, wanted = first[j + 1] - first[j], int(need[j])
        if not free[j] or wanted < 1 or wanted > size:
            continue
        d, who = np.empty(size), np.empty(size, np.int64)
        for i in range(size):
            r = first[j] + i
            top = -np.inf
            for e in range(start[r], start[r + 1]):
                s = scores[e] + b[classes[e]]
                if s > top:
                    top, who[i] = s, classes[e]
            d[i] = top - own[r]
        order = np.argsort(d)
        low, high = max(0, wanted - 1 - around), min(size, wanted + around)
        for i in range(low, high):
            out[j, who[order[i]]] += 1.0 / (high - low)


@dataclass(frozen=True)
class Least:
    """Biases of all classes, whether the floors of the free ones can be met, the targets' (shortfall, value), see :meth:`Lattice.focus`
    for ``inside``."""

    bias: np.ndarray
    possible: bool
    key: tuple[float, float]
    inside: bool = True


class Lattice:
    """Least biases of the classes not ``fixed`` that meet ``need``, for any biases of the ``fixed`` ones.

    Args:
        z: (n, c) float32 logits; ``y`` (n,) labels.
        need: (c,) correct predictions each class must keep (at most its number of examples). A free class that needs none, or has
            no examples, follows the smallest of the others, so that no class is silenced unseen.
        fixed: (c,) booleans, at least one True.
        gain: (n,) worth of a correct prediction; ``unit`` (c,) what a missing one of a fixed class counts.
    """

    def __init__(self, z, y, need, fixed, gain=None, unit=None):
        n, c = z.shape
        self.z, self.y = np.ascontiguousarray(z), y
        self.need = np.array(need, dtype=np.float64)
        self.fixed = np.ascontiguousarray(fixed)
        counts = np.bincount(y, minlength=c)
        self.free = ~self.fixed & (self.need > 0) & (counts > 0)
        self.follow = ~self.fixed & ~self.free
        self.hopeless = bool((self.need[self.free] > counts[self.free]).any())
        self.gain = np.zeros(n) if gain is None else gain
        self.unit = np.zeros(c) if unit is None else unit
        self.sure = 0.0
        self.span = float(z.max()) - float(z.min())
        self.eps = 1e-6 * max(1.0, self.span / 100)
        # many targets would be kept everywhere: then they are rivals like any other
        self.always = self.fixed if self.fixed.sum() <= NEAR else np.zeros(c, dtype=bool)
        self.most = max(400, 30_000_000 // max(z.size, 1))
        self.box: float | None = None
        self._hold(np.argsort(y, kind="stable"))
        self._collect(np.zeros(c), self._width(np.zeros(c)))

    def _hold(self, rows: np.ndarray) -> None:
        """The examples that are looked at, in order of class."""
        self.rows = rows
        labels = self.y[rows]
        self.first = np.searchsorted(labels, np.arange(len(self.need) + 1)).astype(np.int64)
        self.own = self.z[rows, labels].astype(np.float64)

    def _width(self, centre: np.ndarray) -> float:
        if len(centre) <= 2 * NEAR:
            return np.inf
        some = self.rows[:: max(1, len(self.rows) // 200)]
        gaps = np.empty(len(some))
        _widths(self.z, self.y, some, centre, NEAR, gaps)
        return float(np.median(gaps))

    def _collect(self, centre: np.ndarray, width: float) -> None:
        self.centre = centre
        self.scale = min(width, self.span)
        self.near = _rivals(self.z, self.y, self.rows, centre, width, self.always)

    def focus(self, bias: np.ndarray, reach: float) -> Lattice:
        """The same problem while biases stay near ``bias``: examples that cannot flip there are counted and put aside.

        Near means that no two differences from ``bias`` are more than ``reach`` apart; a least point that is not has ``inside`` False
        and says nothing.
        """
        small = copy.copy(self)
        small.need = self.need.copy()
        open_, sure = _certain(
            self.z, self.y, self.rows, self.own, self.near, bias, self.centre, self.always, reach, self.gain, small.need
        )
        small.sure = self.sure + sure
        small.box = reach
        small._hold(self.rows[open_])
        small._collect(bias.copy(), reach)
        return small

    def response(self, bias: np.ndarray) -> np.ndarray:
        """(c, c) by how much the least biases of all classes rise, nearly, with those of the fixed ones (columns)."""
        c = len(bias)
        share = np.zeros((c, c))
        _passes_on(self.y, self.rows, self.first, self.own, self.near, bias, self.free, self.need, AROUND, share)
        moving = share.sum(1) > 0
        out = np.eye(c) * self.fixed
        own = np.eye(int(moving.sum())) - 0.999 * share[np.ix_(moving, moving)]
        out[moving] = np.linalg.solve(own, share[moving] * self.fixed)
        return out

    def least(
        self,
        bias: np.ndarray,
        below: np.ndarray | None = None,
        key: tuple[float, float] = (np.inf, -np.inf),
        most: int | None = None,
    ) -> Least:
        """The least point for the biases of the fixed classes; other entries of ``bias`` (c,) are ignored.

        Args:
            below: (c,) biases known not to lie above the least point.
            key: a (shortfall, value) of the targets to be beaten; where it is not, ``possible`` is False.
            most: a cap on the sweeps. It is reached only where two classes outbid each other by tiny steps; the point is then
                infeasible by a few examples.
        """
        b = np.where(self.fixed, bias, NEVER if below is None else below).astype(np.float64)
        if self.hopeless:
            return Least(np.where(b == NEVER, 0.0, b), False, (np.inf, -np.inf))
        ceiling = float(b[self.fixed].max()) + (len(b) + 1) * self.span + 1.0
        left = self.most if most is None else most
        beat = np.array(key, dtype=np.float64)
        here, taken, asked = self, 0, self.box is not None
        while True:
            cap = np.inf
            if here.box is not None:
                moved = b - here.centre
                cap = here.box + float(moved.min())
                if moved.max() > cap:
                    state, short, value = CAPPED, 0.0, 0.0
                    break
            spell, before = min(left, 2), b.copy()
            state, missed, short, value = _raise(
                here.z, here.y, here.rows, here.first, here.own, here.near, here.centre, here.always, here.free, here.follow,
                here.need, here.unit, here.gain, here.fixed, b, ceiling, here.eps, spell, beat, here.sure, cap,
            )  # fmt: skip
            left -= spell
            taken += spell
            if here is self and taken >= PATIENCE and not asked and self.free.sum() > 1 and outbid(
                self.z, self.y, self.rows, self.first, self.own, self.need, self.free, b, 16, self.eps
            ):  # fmt: skip
                state = ABOVE
            asked |= taken >= PATIENCE
            if state not in (TIRED, CAPPED) or left <= 0 or (state == CAPPED and here is self):
                break
            risen = float((b - before).max())
            if here is self and missed > len(self.rows) // 8 and risen < self.span:
                self._collect(b.copy(), self._width(b))
            if state == CAPPED:
                assert here.box is not None
                here = self.focus(b, 4 * here.box)
            elif self.box is None and len(self.rows) > MANY and FAR * risen < here.scale / 4:
                here = self.focus(b, max(FAR * risen, here.scale / 64))
        b[b <= NEVER] = b[self.fixed].min()
        return Least(b, state in (DONE, TIRED), (short, value), state != CAPPED)


def least_biases(z: np.ndarray, y: np.ndarray, need: np.ndarray, bias: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, bool]:
    """One least point, see :class:`Lattice`: biases (c,), and whether the floors of the free classes can be met at all (False: even
    silencing the fixed classes does not help)."""
    found = Lattice(z, y, need, fixed).least(bias)
    return found.bias, found.possible
