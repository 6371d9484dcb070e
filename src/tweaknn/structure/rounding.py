"""From ``theta`` to gates of 0 and 1 that meet a budget."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .analyse import keep_working
from .plan import Plan

UNDECIDED = (0.05, 0.95)


def undecided_share(theta: np.ndarray) -> float:
    """Share of gates with ``theta`` strictly between 0.05 and 0.95."""
    return float(((theta > UNDECIDED[0]) & (theta < UNDECIDED[1])).mean()) if theta.size else 0.0


def settle(
    plan: Plan, theta: np.ndarray, worth: np.ndarray, possible: np.ndarray, *, target: float | None,
    measure: Callable[[np.ndarray], float], tolerance: float,
) -> np.ndarray:  # fmt: skip
    """Gates to keep (bool, ``(n_gates,)``): ``theta >= 1/2``, corrected to a budget where there is one.

    ``possible`` marks gates not pruned already; ``measure`` gives the budgeted fraction of a set of gates; ``worth``
    (loss saved per price) orders gates of equal ``theta``. The correction flips the gates closest to ½ first.
    """
    alive = keep_working(plan, (theta >= 0.5) & possible, possible, theta)
    if target is None or abs(measure(alive) / target - 1) <= 0.5 * tolerance:
        return alive
    span = np.ptp(worth) or 1.0
    score = theta + 1e-3 * (worth - worth.min()) / span
    order = np.argsort(-np.where(possible, score, -np.inf), kind="stable")
    n = int(possible.sum())

    def prefix(k: int) -> np.ndarray:
        chosen = np.zeros(len(theta), dtype=bool)
        chosen[order[:k]] = True
        return keep_working(plan, chosen & possible, possible, score)

    low, high = 0, n
    while low < high:  # the fraction grows with k but for the rare repair of an empty layer
        mid = (low + high + 1) // 2
        if measure(prefix(mid)) <= target:
            low = mid
        else:
            high = mid - 1
    alive = prefix(low)
    return _fill(plan, alive, score, possible, target, measure, tolerance)


def _fill(
    plan: Plan, alive: np.ndarray, score: np.ndarray, possible: np.ndarray, target: float,
    measure: Callable[[np.ndarray], float], tolerance: float,
) -> np.ndarray:  # fmt: skip
    """Add single units, best first, as long as the budget allows: a branch just over it leaves a gap."""
    units = np.zeros(len(alive), dtype=bool)
    units[: plan.n_units] = True
    now = measure(alive)
    for i in np.flatnonzero(possible & ~alive & units)[np.argsort(-score[possible & ~alive & units])]:
        if now >= target * (1 - 0.25 * tolerance):
            break
        trial = alive.copy()
        trial[i] = True
        value = measure(trial)
        if value <= target * (1 + 0.5 * tolerance):
            alive, now = trial, value
    for i in np.flatnonzero(alive & units)[np.argsort(score[alive & units])]:
        if now <= target * (1 + 0.5 * tolerance):
            break
        trial = alive.copy()
        trial[i] = False
        trial = keep_working(plan, trial, possible, score)
        value = measure(trial)
        if value < now:
            alive, now = trial, value
    if abs(now / target - 1) <= 0.5 * tolerance:
        return alive
    return _from_above(plan, alive, score, possible, target, measure, tolerance)


def _from_above(
    plan: Plan, alive: np.ndarray, score: np.ndarray, possible: np.ndarray, target: float,
    measure: Callable[[np.ndarray], float], tolerance: float,
) -> np.ndarray:  # fmt: skip
    """A coarse network: put the smallest unit back that overshoots, and take small ones out until it is nearest."""
    units = np.flatnonzero(possible[: plan.n_units])
    best, now = alive, measure(alive)
    extra = [(measure(_flip(alive, i)), i) for i in units if not alive[i]]
    over = [(value, i) for value, i in extra if value >= target]
    if not over:
        return best
    trial = _flip(alive, min(over)[1])
    for i in units[np.argsort(score[units])]:
        if not trial[i]:
            continue
        fewer = keep_working(plan, _flip(trial, i), possible, score)
        value = measure(fewer)
        if value >= target * (1 - 0.5 * tolerance):
            trial = fewer
    return trial if abs(measure(trial) - target) < abs(now - target) else best


def _flip(alive: np.ndarray, i: int | np.integer) -> np.ndarray:
    changed = alive.copy()
    changed[i] = not changed[i]
    return changed


def smallest(plan: Plan) -> np.ndarray:
    """The smallest working network: every gate closed but one unit of every layer that has to stay."""
    return keep_working(plan, np.zeros(plan.n_gates, dtype=bool))
