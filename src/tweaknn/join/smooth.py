"""A smoothed operating point, from which the exact search starts: predictions become a softmax, rules a squared penalty."""

from __future__ import annotations

import numba as nb
import numpy as np
from scipy.optimize import minimize

from tweaknn.join.contest import Contest
from tweaknn.join.search import Search

REACH = 14.0
"""Temperatures below the best score at which a class's share of an example, under one in a million, is left out."""


def smooth_point(search: Search, temperature: float, most_rows: int, start: np.ndarray) -> np.ndarray:
    """Minimiser of the smoothed problem of ``temperature`` on at most ``most_rows`` examples, from biases ``start``."""
    r, y, c = search.rules, search.y, search.c
    rows = np.arange(search.n)
    if search.n > most_rows:
        rows = np.linspace(0, search.n - 1, most_rows).astype(np.int64)
    ys = y[rows]
    share = np.bincount(y, minlength=c) / np.maximum(np.bincount(ys, minlength=c), 1)
    lift = share[ys]  # each sampled row stands for so many of its class
    width = REACH * temperature if c > 16 else np.inf
    near = Contest.around(search.z[rows], start, width, everybody=True)
    need, most = np.where(np.isfinite(r.need), r.need, 0.0), np.where(np.isfinite(r.most_false), r.most_false, np.inf)
    rules = (need, r.unit, r.need_all, r.unit_all, r.group[rows], r.need_group, r.unit_group, most, r.unit_false)
    gain = r.gain[rows] * lift
    share_of = np.empty(len(near.classes))

    def objective(b: np.ndarray, mu: float) -> tuple[float, np.ndarray]:
        return _objective(near.start, near.classes, near.scores, ys, lift, gain, r.price, rules, b, mu, temperature, share_of)

    b = start
    for mu in (10.0, 100.0, 1000.0):
        b = minimize(objective, b, args=(mu,), jac=True, method="L-BFGS-B", options={"maxiter": 20}).x
    return b - np.median(b)


@nb.njit(cache=True)
def _objective(start, classes, scores, y, lift, gain, price, rules, b, mu, temperature, p):  # pragma: no cover - compiled
    """(-merit, its gradient); ``p`` is room for the share of every class of every example."""
    need, unit, need_all, unit_all, group, need_group, unit_group, most_false, unit_false = rules
    n, c = len(start) - 1, len(b)
    count, wrong, in_group = np.zeros(c), np.zeros(c), np.zeros(len(need_group))
    hits, value = 0.0, 0.0
    for k in range(n):
        top = -np.inf
        for e in range(start[k], start[k + 1]):
            p[e] = (scores[e] + b[classes[e]]) / temperature
            top = max(top, p[e])
        whole = 0.0
        for e in range(start[k], start[k + 1]):
            p[e] = np.exp(p[e] - top)
            whole += p[e]
        for e in range(start[k], start[k + 1]):
            p[e] /= whole
            j = classes[e]
            value -= p[e] * price[y[k], j] * lift[k]
            if j == y[k]:
                value += p[e] * gain[k]
                hit = p[e] * lift[k]
                count[j] += hit
                hits += hit
                if group[k] >= 0:
                    in_group[group[k]] += hit
            else:
                wrong[j] += p[e] * lift[k]
    for_class, against, for_group = np.zeros(c), np.zeros(c), np.zeros(len(need_group))
    for j in range(c):
        lack, over = max(0.0, need[j] - count[j]) * unit[j], max(0.0, wrong[j] - most_false[j]) * unit_false[j]
        value -= mu * (lack * lack + over * over)
        for_class[j], against[j] = 2 * mu * lack * unit[j], 2 * mu * over * unit_false[j]
    short = max(0.0, need_all - hits) * unit_all
    value -= mu * short * short
    for_all = 2 * mu * short * unit_all
    for g in range(len(need_group)):
        lack = max(0.0, need_group[g] - in_group[g]) * unit_group[g]
        value -= mu * lack * lack
        for_group[g] = 2 * mu * lack * unit_group[g]
    slope = np.zeros(c)
    for k in range(n):
        inner = 0.0
        for turn in range(2):  # the mean of the row's slopes, then each one less that mean
            for e in range(start[k], start[k + 1]):
                j = classes[e]
                one = -price[y[k], j] * lift[k]
                if j == y[k]:
                    one += gain[k] + (for_class[j] + for_all + (for_group[group[k]] if group[k] >= 0 else 0.0)) * lift[k]
                else:
                    one -= against[j] * lift[k]
                if turn == 0:
                    inner += one * p[e]
                else:
                    slope[j] -= p[e] * (one - inner) / temperature
    return -value, slope
