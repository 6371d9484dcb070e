"""Exact search over a bias for each class, on the step functions that accuracies are.

Adding ``s`` to the biases of a *set* of classes changes the prediction of an example at most once: where ``s`` passes
``d = best score outside the set - best score inside it``. So along any such line every count is a step function whose
steps, sorted, give the exact best ``s``; the search moves along single classes, pairs and larger sets until none helps.

Scores more than ``reach`` below an example's best cannot become its prediction within the search window; they are left out,
which makes a line cost a few microseconds for 50,000 examples and 100 classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np


@dataclass(frozen=True)
class Rules:
    """Constraints and objective as counts. ``n`` examples, ``c`` classes, ``g`` extra groups (sub-classes).

    ``gain`` (n,): what a correct prediction of the example is worth; ``price`` (c, c): cost of a prediction by true class, per
    example; ``need`` (c,): correct predictions each class must keep; ``need_all``: in all; ``group`` (n,): extra group or -1 with
    ``need_group`` (g,); ``most_false`` (c,): false calls of a class allowed; the ``_unit`` arrays turn counts into accuracy.
    """

    gain: np.ndarray
    price: np.ndarray
    need: np.ndarray
    unit: np.ndarray
    need_all: float
    unit_all: float
    group: np.ndarray
    need_group: np.ndarray
    unit_group: np.ndarray
    most_false: np.ndarray
    unit_false: np.ndarray


@nb.njit(cache=True)
def _candidates(z, b, reach):  # pragma: no cover - compiled
    n, c = z.shape
    ptr = np.zeros(n + 1, np.int64)
    for k in range(n):
        top = -np.inf
        for j in range(c):
            top = max(top, z[k, j] + b[j])
        for j in range(c):
            if z[k, j] + b[j] >= top - reach:
                ptr[k + 1] += 1
        ptr[k + 1] += ptr[k]
    cls = np.empty(ptr[n], np.int32)
    val = np.empty(ptr[n], np.float64)
    e = 0
    for k in range(n):
        top = -np.inf
        for j in range(c):
            top = max(top, z[k, j] + b[j])
        for j in range(c):
            if z[k, j] + b[j] >= top - reach:
                cls[e] = j
                val[e] = z[k, j]
                e += 1
    return ptr, cls, val


@nb.njit(cache=True)
def _shortfall(count, false, total, in_group, need, unit, need_all, unit_all, need_group, unit_group, most_false, unit_false):
    s = max(0.0, need_all - total) * unit_all  # pragma: no cover - compiled
    for j in range(len(need)):
        s += max(0.0, need[j] - count[j]) * unit[j] + max(0.0, false[j] - most_false[j]) * unit_false[j]
    for g in range(len(need_group)):
        s += max(0.0, need_group[g] - in_group[g]) * unit_group[g]
    return s


@nb.njit(cache=True)
def _line(ptr, cls, val, y, b, member, window, mu, gain, price, need, unit, need_all, unit_all, group, need_group,
          unit_group, most_false, unit_false):  # fmt: skip  # pragma: no cover - compiled
    """Best step ``s`` in [-window, window] for the classes in ``member``; returns (s, merit there, merit at 0, gap)."""
    n, c = len(y), len(b)
    count = np.zeros(c)
    false = np.zeros(c)
    in_group = np.zeros(len(need_group))
    total = 0.0
    value = 0.0
    where = np.empty(n, np.float64)
    who = np.empty(n, np.int64)
    inside = np.empty(n, np.int32)
    outside = np.empty(n, np.int32)
    events = 0
    for k in range(n):
        ti, to, pi, po = -np.inf, -np.inf, -1, -1
        for e in range(ptr[k], ptr[k + 1]):
            j = cls[e]
            v = val[e] + b[j]
            if member[j]:
                if v > ti:
                    ti, pi = v, j
            elif v > to:
                to, po = v, j
        if pi < 0:
            p = po
        elif po < 0:
            p = pi
        else:
            d = to - ti
            if d < -window:
                p = pi
            else:
                p = po
                # A row counts only if the change is seen by some rule.
                if d <= window and (y[k] == pi or y[k] == po or price[y[k], pi] != price[y[k], po]
                                    or most_false[pi] < n or most_false[po] < n):  # fmt: skip
                    where[events] = d
                    who[events] = k
                    inside[events] = pi
                    outside[events] = po
                    events += 1
        value -= price[y[k], p]
        if p == y[k]:
            count[p] += 1
            total += 1
            value += gain[k]
            if group[k] >= 0:
                in_group[group[k]] += 1
        else:
            false[p] += 1
    short = _shortfall(count, false, total, in_group, need, unit, need_all, unit_all, need_group, unit_group,
                       most_false, unit_false)  # fmt: skip
    order = np.argsort(where[:events])
    best, best_s, best_gap, here = -np.inf, 0.0, 0.0, -np.inf
    previous = -window
    for e in range(events + 1):
        at = where[order[e]] if e < events else window
        if at > previous:  # the open interval (previous, at) has the current merit
            merit = value - mu * short
            if previous < 0.0 <= at:
                here = merit
            gap = at - previous
            inside_now = previous < 0.0 < at
            if merit > best + 1e-12 or (merit > best - 1e-12 and (gap > best_gap * 1.5 + 1e-12)):
                best, best_gap = merit, gap
                best_s = 0.5 * (previous + at) if not inside_now else 0.0
            previous = at
        if e == events:
            break
        k = who[order[e]]
        a, o = inside[order[e]], outside[order[e]]
        value += price[y[k], o] - price[y[k], a]
        if y[k] == a:
            short -= max(0.0, need[a] - count[a]) * unit[a] + max(0.0, need_all - total) * unit_all
            count[a] += 1
            total += 1
            value += gain[k]
            short += max(0.0, need[a] - count[a]) * unit[a] + max(0.0, need_all - total) * unit_all
            if group[k] >= 0:
                g = group[k]
                short -= max(0.0, need_group[g] - in_group[g]) * unit_group[g]
                in_group[g] += 1
                short += max(0.0, need_group[g] - in_group[g]) * unit_group[g]
        else:
            short -= max(0.0, false[a] - most_false[a]) * unit_false[a]
            false[a] += 1
            short += max(0.0, false[a] - most_false[a]) * unit_false[a]
        if y[k] == o:
            short -= max(0.0, need[o] - count[o]) * unit[o] + max(0.0, need_all - total) * unit_all
            count[o] -= 1
            total -= 1
            value -= gain[k]
            short += max(0.0, need[o] - count[o]) * unit[o] + max(0.0, need_all - total) * unit_all
            if group[k] >= 0:
                g = group[k]
                short -= max(0.0, need_group[g] - in_group[g]) * unit_group[g]
                in_group[g] -= 1
                short += max(0.0, need_group[g] - in_group[g]) * unit_group[g]
        else:
            short -= max(0.0, false[o] - most_false[o]) * unit_false[o]
            false[o] -= 1
            short += max(0.0, false[o] - most_false[o]) * unit_false[o]
    return best_s, best, here, best_gap


class Search:
    """Moves over biases for fixed logits ``z`` (n, c), labels ``y`` (n,) and :class:`Rules`."""

    def __init__(self, z: np.ndarray, y: np.ndarray, rules: Rules):
        self.z = np.ascontiguousarray(z, dtype=np.float64)
        self.y = np.ascontiguousarray(y, dtype=np.int64)
        self.rules = rules
        self.n, self.c = self.z.shape
        self.large = self.n * self.c > 500_000
        self._origin: np.ndarray | None = None

    # -- exact evaluation -----------------------------------------------------------------------------

    def evaluate(self, bias: np.ndarray) -> tuple[float, float]:
        """(value, shortfall) of ``bias`` by plain counting; shortfall 0 means feasible. Ties as ``torch.argmax``."""
        p = (self.z + bias).argmax(1)
        r = self.rules
        right = p == self.y
        count = np.bincount(self.y[right], minlength=self.c)
        false = np.bincount(p[~right], minlength=self.c)
        groups = len(r.need_group)
        in_group = np.bincount(r.group[right & (r.group >= 0)], minlength=groups)[:groups] if groups else np.zeros(0)
        short = max(0.0, r.need_all - right.sum()) * r.unit_all
        short += float((np.maximum(0, r.need - count) * r.unit).sum())
        short += float((np.maximum(0, false - r.most_false) * r.unit_false).sum())
        short += float((np.maximum(0, r.need_group - in_group) * r.unit_group).sum())
        return float(r.gain[right].sum() - r.price[self.y, p].sum()), short

    # -- moves ----------------------------------------------------------------------------------------

    def _rows(self, bias: np.ndarray, reach: float):
        return _candidates(self.z, bias, reach)

    def line(self, rows, bias: np.ndarray, member: np.ndarray, window: float, mu: float):
        """Exact best step along ``member`` (c,) booleans: (step, merit, merit at 0, width of the step's plateau)."""
        r = self.rules
        return _line(*rows, self.y, bias, member, window, mu, r.gain, r.price, r.need, r.unit, r.need_all, r.unit_all,
                     r.group, r.need_group, r.unit_group, r.most_false, r.unit_false)  # fmt: skip

    def climb(self, bias: np.ndarray, moves: np.ndarray, window: float, mu: float, sweeps: int) -> np.ndarray:
        """Sweep over ``moves`` (m, c) booleans, taking the exact best step of each, until a sweep gains nothing."""
        bias = bias.copy()
        reach = 2 * window if self.large else np.inf
        for _ in range(sweeps):
            rows = self._rows(bias, reach)
            drift = np.zeros(self.c)
            gained = False
            for member in moves:
                step, merit, now, _ = self.line(rows, bias, member, window, mu)
                if step != 0.0 and merit > now + 1e-12:
                    bias[member] += step
                    drift[member] += step
                    gained = True
                    if np.ptp(drift) > window:  # left-out scores could matter now: take them in again
                        rows, drift = self._rows(bias, reach), np.zeros(self.c)
            if not gained:
                break
        return bias
