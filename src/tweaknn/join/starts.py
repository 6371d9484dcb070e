"""Where the search of an operating point begins, which classes it moves together, and how hard it tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import minimize

from tweaknn.join.counting import TargetSet
from tweaknn.join.search import Search


@dataclass(frozen=True)
class Effort:
    """How hard to search; the defaults take well under a second for 50,000 examples of 100 classes."""

    windows: tuple[float, ...] = (4.0, 1.5, 0.5)
    penalties: tuple[float, ...] = (2.0, 10.0, 1000.0)
    sweeps: int = 12
    pairs: int = 60
    steps: tuple[float, ...] = (0.4, 0.2, 0.1, 0.05)
    trials: int = 60
    smooth_rows: int = 4000
    large: int = 1_000_000
    temperatures: tuple[float, ...] = (0.15, 0.05)


QUICK = Effort(windows=(1.0, 0.3), penalties=(1000.0,), sweeps=4, pairs=0, steps=(0.1,), trials=12, temperatures=())
"""From one operating point to a neighbouring one, whose biases are among the starts."""


def moves_of(c: int, sets: list[TargetSet], effort: Effort) -> np.ndarray:
    """Sets of classes to move together: each alone, pairs (all of them for few classes), the targets as one."""
    moves = [np.arange(c) == j for j in range(c)]
    together = np.isin(np.arange(c), [t.position for t in sets if t.position is not None])
    if 1 < together.sum() < c:
        moves.append(together)
    if c * (c - 1) // 2 <= effort.pairs:
        moves += [np.isin(np.arange(c), pair) for pair in combinations(range(c), 2)] if c > 2 else []
    return np.array(moves)


def starts_of(search: Search, given: Sequence[np.ndarray], effort: Effort, large: bool) -> list[np.ndarray]:
    starts = [np.zeros(search.c), *(np.asarray(b, dtype=np.float64) for b in given)]
    if not effort.temperatures:
        return starts
    top = np.partition(search.z, -2, axis=1)[:, -2:]
    unit = float(np.median(top[:, 1] - top[:, 0])) or 1.0
    bias = np.zeros(search.c)
    for t in effort.temperatures:
        bias = smooth_point(search, t * unit, effort.smooth_rows if not large else effort.smooth_rows // 2, bias)
        starts.append(bias.copy())
    return [*starts[1:-2], starts[-1]] if large else starts


def smooth_point(search: Search, temperature: float, most_rows: int, start: np.ndarray) -> np.ndarray:
    """Minimiser of the smoothed problem: predictions become a softmax of ``temperature``, rules a squared penalty."""
    r, y = search.rules, search.y
    rows = np.arange(search.n)
    if search.n > most_rows:
        rows = np.linspace(0, search.n - 1, most_rows).astype(np.int64)
    ys = y[rows]
    share = np.bincount(y, minlength=search.c) / np.maximum(np.bincount(ys, minlength=search.c), 1)
    lift = share[ys]  # each sampled row stands for so many of its class
    z = search.z[rows] / temperature
    onehot = np.zeros((len(rows), search.c))
    onehot[np.arange(len(rows)), ys] = 1
    gain = onehot * (r.gain[rows] * lift)[:, None] - r.price[ys] * lift[:, None]
    need = np.where(np.isfinite(r.need), r.need, 0.0)
    member = np.zeros((len(rows), len(r.need_group)))
    inside = r.group[rows] >= 0
    member[inside, r.group[rows][inside]] = 1

    def objective(b: np.ndarray, mu: float):
        s = z + b / temperature
        s -= s.max(1, keepdims=True)
        p = np.exp(s)
        p /= p.sum(1, keepdims=True)
        hit = (p * onehot).sum(1) * lift
        count = np.bincount(ys, weights=hit, minlength=search.c)
        lack = np.maximum(0, need - count) * r.unit
        value = (gain * p).sum() - mu * (lack**2).sum()
        slope = gain + onehot * (2 * mu * lack * r.unit)[ys][:, None] * lift[:, None]
        if np.isfinite(r.need_all):
            short = max(0.0, r.need_all - hit.sum()) * r.unit_all
            value -= mu * short**2
            slope = slope + onehot * (2 * mu * short * r.unit_all) * lift[:, None]
        if len(r.need_group):
            lacking = np.maximum(0, r.need_group - member.T @ hit) * r.unit_group
            value -= mu * (lacking**2).sum()
            slope = slope + onehot * (member @ (2 * mu * lacking * r.unit_group) * lift)[:, None]
        finite = np.isfinite(r.most_false)
        if finite.any():
            wrong = (p * (1 - onehot) * lift[:, None]).sum(0)
            over = np.where(finite, np.maximum(0, wrong - np.where(finite, r.most_false, 0)) * r.unit_false, 0)
            value -= mu * (over**2).sum()
            slope = slope - (1 - onehot) * (2 * mu * over * r.unit_false) * lift[:, None]
        inner = (slope * p).sum(1, keepdims=True)
        return -value, -(p * (slope - inner)).sum(0) / temperature

    b = start
    for mu in (10.0, 100.0, 1000.0):
        b = minimize(objective, b, args=(mu,), jac=True, method="L-BFGS-B", options={"maxiter": 20}).x
    return b - np.median(b)
