"""Exact search over a bias for each class, on the step functions that accuracies are.

Adding ``s`` to the biases of a *set* of classes changes the prediction of an example at most once: where ``s`` passes
``d = best score outside the set - best score inside it``. So along any such line every count is a step function whose
steps, sorted, give the exact best ``s``; the search moves along single classes, pairs and larger sets until none helps.

The best and second best score of every example are kept up to date, so that a line along one class costs one look at each
example, however many classes there are.
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
def _tally(best, y, c, gain, price, group, groups):  # pragma: no cover - compiled
    """Counts at the current predictions: (correct by class, false calls, in groups, [total, value])."""
    count, false, in_group, whole = np.zeros(c), np.zeros(c), np.zeros(groups), np.zeros(2)
    for k in range(len(y)):
        p = best[k]
        whole[1] -= price[y[k], p]
        if p == y[k]:
            count[p] += 1
            whole[0] += 1
            whole[1] += gain[k]
            if group[k] >= 0:
                in_group[group[k]] += 1
        else:
            false[p] += 1
    return count, false, in_group, whole


@nb.njit(cache=True)
def _walk(at, who, new, old, events, window, mu, y, state, rules):  # pragma: no cover - compiled
    """Pass the first ``events`` flips in order of ``at`` (0..window): best (step, merit, width), and the merit before any."""
    gain, price, need, unit, need_all, unit_all, group, need_group, unit_group, most_false, unit_false = rules
    count, false, in_group, whole = state[0].copy(), state[1].copy(), state[2].copy(), state[3]
    total, value = whole[0], whole[1]
    short = max(0.0, need_all - total) * unit_all
    for j in range(len(need)):
        short += max(0.0, need[j] - count[j]) * unit[j] + max(0.0, false[j] - most_false[j]) * unit_false[j]
    for g in range(len(need_group)):
        short += max(0.0, need_group[g] - in_group[g]) * unit_group[g]
    here = value - mu * short
    best, best_at, best_gap = here, 0.0, 0.0
    order = np.argsort(at[:events])
    previous = 0.0
    for e in range(events + 1):
        now = at[order[e]] if e < events else window
        if now > previous:  # the open interval (previous, now) has the present merit
            merit, gap = value - mu * short, now - previous
            if e > 0 and (merit > best + 1e-12 or (merit > best - 1e-12 and best_at != 0.0 and gap > 2 * best_gap)):
                best, best_gap, best_at = merit, gap, 0.5 * (previous + now)
            previous = now
        if e == events:
            break
        k, a, o = who[order[e]], new[order[e]], old[order[e]]
        value += price[y[k], o] - price[y[k], a]
        if y[k] == a or y[k] == o:
            sign = 1.0 if y[k] == a else -1.0
            j, g = y[k], group[k]
            short -= max(0.0, need[j] - count[j]) * unit[j] + max(0.0, need_all - total) * unit_all
            count[j] += sign
            total += sign
            value += sign * gain[k]
            short += max(0.0, need[j] - count[j]) * unit[j] + max(0.0, need_all - total) * unit_all
            if g >= 0:
                short -= max(0.0, need_group[g] - in_group[g]) * unit_group[g]
                in_group[g] += sign
                short += max(0.0, need_group[g] - in_group[g]) * unit_group[g]
        if y[k] != a:
            short -= max(0.0, false[a] - most_false[a]) * unit_false[a]
            false[a] += 1
            short += max(0.0, false[a] - most_false[a]) * unit_false[a]
        if y[k] != o:
            short -= max(0.0, false[o] - most_false[o]) * unit_false[o]
            false[o] -= 1
            short += max(0.0, false[o] - most_false[o]) * unit_false[o]
    return best_at, best, best_gap, here


@nb.njit(cache=True)
def _rank(st, best, second, k):  # pragma: no cover - compiled
    """Best and second best class of example ``k``; ties to the lowest index."""
    first, other = 0, -1
    for j in range(1, st.shape[0]):
        if st[j, k] > st[first, k]:
            first, other = j, first
        elif other < 0 or st[j, k] > st[other, k]:
            other = j
    best[k], second[k] = first, other


@nb.njit(cache=True)
def _sweep(st, y, bias, best, second, members, window, mu, rules):  # pragma: no cover - compiled
    """One pass over the moves; ``st`` (c, n) scores, ``bias``, ``best`` and ``second`` are changed. True if something was won."""
    gain, price, group, need_group, most_false = rules[0], rules[1], rules[6], rules[7], rules[9]
    c, n = st.shape
    up_at, up_who, up_new, up_old = np.empty(n), np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.int32)
    dn_at, dn_who, dn_new, dn_old = np.empty(n), np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.int32)
    state = _tally(best, y, c, gain, price, group, len(need_group))
    gained = False
    for m in range(len(members)):
        member = members[m]
        single = -1
        size = 0
        for j in range(c):
            if member[j]:
                size += 1
                single = j
        up = dn = 0
        for k in range(n):
            if size == 1:
                pi = single
                po = second[k] if best[k] == single else best[k]
            else:
                pi = po = -1
                for j in range(c):
                    if member[j]:
                        if pi < 0 or st[j, k] > st[pi, k]:
                            pi = j
                    elif po < 0 or st[j, k] > st[po, k]:
                        po = j
            d = st[po, k] - st[pi, k]
            if d > window or d < -window:
                continue
            if not (y[k] == pi or y[k] == po or price[y[k], pi] != price[y[k], po]
                    or most_false[pi] < n or most_false[po] < n):  # fmt: skip
                continue  # no rule sees this flip
            if best[k] == po:
                up_at[up], up_who[up], up_new[up], up_old[up] = d, k, pi, po
                up += 1
            else:
                dn_at[dn], dn_who[dn], dn_new[dn], dn_old[dn] = -d, k, po, pi
                dn += 1
        s_up, merit_up, gap_up, here = _walk(up_at, up_who, up_new, up_old, up, window, mu, y, state, rules)
        s_dn, merit_dn, gap_dn, here = _walk(dn_at, dn_who, dn_new, dn_old, dn, window, mu, y, state, rules)
        step = 0.0
        if merit_up > here + 1e-12 and (merit_up > merit_dn or (merit_up == merit_dn and gap_up >= gap_dn)):
            step = s_up
        elif merit_dn > here + 1e-12:
            step = -s_dn
        if step == 0.0:
            continue
        gained = True
        for j in range(c):
            if member[j]:
                bias[j] += step
                for k in range(n):
                    st[j, k] += step
        for k in range(n):
            if size == 1:
                j = single
                if best[k] == j or second[k] == j:
                    if step > 0 and best[k] == j:
                        continue
                    _rank(st, best, second, k)
                elif st[j, k] >= st[second[k], k]:
                    _rank(st, best, second, k)
            else:
                _rank(st, best, second, k)
        state = _tally(best, y, c, gain, price, group, len(need_group))
    return gained


class Search:
    """Moves over biases for fixed logits ``z`` (n, c), labels ``y`` (n,) and :class:`Rules`."""

    def __init__(self, z: np.ndarray, y: np.ndarray, rules: Rules):
        self.z = np.ascontiguousarray(z, dtype=np.float64)
        self.y = np.ascontiguousarray(y, dtype=np.int64)
        self.rules = rules
        self.n, self.c = self.z.shape
        self._zt = np.ascontiguousarray(self.z.T)

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

    def climb(self, bias: np.ndarray, moves: np.ndarray, window: float, mu: float, sweeps: int) -> np.ndarray:
        """Sweep over ``moves`` (m, c) booleans, taking the exact best step within ``window`` of each, until none gains.

        Merit is value - ``mu`` * shortfall: a small ``mu`` may pass through infeasible points, a large one ends feasible.
        """
        bias = np.array(bias, dtype=np.float64)
        st = self._zt + bias[:, None]
        best, second = np.empty(self.n, np.int64), np.empty(self.n, np.int64)
        _rank_all(st, best, second)
        r = self.rules
        rules = (r.gain, r.price, r.need, r.unit, r.need_all, r.unit_all, r.group, r.need_group, r.unit_group,
                 r.most_false, r.unit_false)  # fmt: skip
        for _ in range(sweeps):
            if not _sweep(st, self.y, bias, best, second, moves, window, mu, rules):
                break
        return bias


@nb.njit(cache=True)
def _rank_all(st, best, second):  # pragma: no cover - compiled
    for k in range(st.shape[1]):
        _rank(st, best, second, k)


@nb.njit(cache=True)
def nearest_flips(z, bias):  # pragma: no cover - compiled
    """For each class the smallest step up (c,), and down (c,), of its own bias at which some prediction flips; infinite if none."""
    n, c = z.shape
    up, down = np.full(c, np.inf), np.full(c, -np.inf)
    for k in range(n):
        best, second, at = -np.inf, -np.inf, -1
        for j in range(c):
            s = z[k, j] + bias[j]
            if s > best:
                second, best, at = best, s, j
            elif s > second:
                second = s
        for j in range(c):
            away = (second if j == at else best) - (z[k, j] + bias[j])
            if away > 0:
                up[j] = min(up[j], away)
            elif away < 0:
                down[j] = max(down[j], away)
    return up, down
