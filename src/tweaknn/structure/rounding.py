"""From ``theta`` to gates of 0 and 1 that meet a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .analyse import keep_working
from .plan import Plan

UNDECIDED = (0.05, 0.95)
LAST_OPENS = (True, True)  # rank of a branch that is the last on its stream and opens a stage


def undecided_share(theta: np.ndarray) -> float:
    """Share of gates with ``theta`` strictly between 0.05 and 0.95."""
    return float(((theta > UNDECIDED[0]) & (theta < UNDECIDED[1])).mean()) if theta.size else 0.0


def settle(
    plan: Plan, theta: np.ndarray, worth: np.ndarray, possible: np.ndarray, *, target: float | None,
    measure: Callable[[np.ndarray], float], tolerance: float, may: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Gates to keep (bool, ``(n_gates,)``): ``theta >= 1/2``, corrected to a budget where there is one.

    ``possible`` marks gates not pruned already, ``may`` those a correction may touch (``beta`` leaves the others alone);
    ``measure`` gives the budgeted fraction of a set of gates; ``worth``
    (loss saved per price) orders gates of equal ``theta``. The correction takes out the lowest gates (or takes the
    highest in), one that would go past the target being passed over.
    """
    alive = keep_working(plan, (theta >= 0.5) & possible, possible, theta)
    if target is None or abs(measure(alive) / target - 1) <= 0.5 * tolerance:
        return alive
    span = np.ptp(worth) or 1.0
    score = theta + 1e-2 * (worth - worth.min()) / span
    shrink = measure(alive) > target
    free = np.ones(len(theta), dtype=bool) if may is None else may
    candidates = np.flatnonzero((alive if shrink else possible & ~alive) & free)
    candidates = candidates[np.argsort(score[candidates] if shrink else -score[candidates], kind="stable")]
    low, high = target * (1 - 0.5 * tolerance), target * (1 + 0.5 * tolerance)

    def flipped(base: np.ndarray, gates: np.ndarray) -> np.ndarray:
        changed = base.copy()
        changed[gates] = not shrink
        return keep_working(plan, changed, possible, score)

    for _ in range(200):
        if low <= measure(alive) <= high or not len(candidates):
            break
        first, last = 0, len(candidates)
        while first < last:  # how many of the next ones fit; the fraction is monotone in their number
            middle = (first + last + 1) // 2
            value = measure(flipped(alive, candidates[:middle]))
            if (value >= low) if shrink else (value <= high):
                first = middle
            else:
                last = middle - 1
        alive = flipped(alive, candidates[:first])
        candidates = candidates[first + 1 :]  # the next one does not fit: pass it over
        candidates = candidates[alive[candidates] == shrink]
    if low <= measure(alive) <= high:
        return alive
    return _from_above(plan, alive, score, possible & free, target, measure, tolerance)


def streams(plan: Plan) -> np.ndarray:
    """The residual stream every branch adds to, shape ``(n_branches,)``: branches whose outputs share gates share it.

    Streams without gates (under a layer norm) are told apart by their width.
    """
    families = plan.families()
    found: list[tuple[str, int]] = []
    for block in plan.blocks:
        last = [o for o in plan.ops if block.holds(o.module)]
        out = next((o.out_map for o in reversed(last) if o.module == block.name), last[-1].out_map if last else np.zeros(0, int))
        gates = out[out >= 0]
        found.append(("family", int(families[gates[0]])) if len(gates) else ("width", len(out)))
    return np.array([found.index(f) for f in found], dtype=np.int64)


def opens(plan: Plan) -> np.ndarray:
    """Branches (bool, ``(n_branches,)``) beside a shortcut that computes: they open a stage, with a stride or a new width."""
    found = np.zeros(len(plan.blocks), dtype=bool)
    for i, block in enumerate(plan.blocks):
        inside = block.owner + "." if block.owner else ""
        found[i] = any(
            o.module.startswith(inside) and o.kind != "norm" and not any(b.holds(o.module) for b in plan.blocks)
            for o in plan.ops
        )
    return found


def settle_branches(
    plan: Plan, theta: np.ndarray, worth: np.ndarray, possible: np.ndarray, *, aim: float, floor: float,
    measure: Callable[[np.ndarray], float],
) -> np.ndarray:  # fmt: skip
    """Branches to keep (with every unit in them) so that ``measure`` comes nearest to ``aim`` (in logarithms).

    Branches close in the order of ``theta``: first those whose shortcut passes everything on, then those that open a
    stage beside a thin, often subsampling map, and the last one on a residual stream after all that have company:
    branches on one stream can stand in for each other, the last is all that computes at its width and resolution, which
    estimates taken while the others were still there do not show. The last one on its stream that also opens a stage
    stays while units have a part of the way to go (``aim`` above ``floor``): beside it there is a thin map and nothing
    else, where the last one whose shortcut passes everything on leaves what came before. One that would take the
    network below ``floor``, the budget itself, or further from ``aim`` is passed over, unless units could not reach the
    budget without it.
    """
    alive, stream, first = possible.copy(), streams(plan), opens(plan)
    left = [int(i) for i in np.flatnonzero(possible[plan.n_units :])]

    def off(value: float) -> float:
        return abs(np.log(max(value, 1e-12) / aim))

    def lowest(gates: np.ndarray) -> float:
        only = gates.copy()
        only[: plan.n_units] = False
        return measure(keep_working(replace(plan, branches_go=False), only, possible, theta))

    passed: tuple[bool, bool] | None = None
    while left:
        b, rank = _next(plan, alive, left, theta, worth, stream, first)
        left.remove(b)
        fewer = _flip(alive, plan.n_units + b)
        value = measure(fewer)
        # Where one of a kind was passed over, none of a kind that should outlive it goes to come a little nearer.
        spared = rank == LAST_OPENS and aim > floor
        nearer = not spared and (passed is None or rank <= passed) and value >= floor and off(value) <= off(measure(alive))
        stuck = lowest(alive) > 0.8 * floor and value > 0.8 * floor
        if nearer or stuck:
            alive = fewer
        elif passed is None:
            passed = rank
    return alive


def _next(
    plan: Plan, alive: np.ndarray, left: list[int], theta: np.ndarray, worth: np.ndarray, stream: np.ndarray, first: np.ndarray
) -> tuple[int, tuple[bool, bool]]:
    """The branch of ``left`` that goes next, and its rank: whether it is the last on its stream, and whether it opens a stage."""
    company = np.bincount(stream[np.flatnonzero(alive[plan.n_units :])], minlength=len(stream))
    rank = {i: (bool(company[stream[i]] < 2), bool(first[i])) for i in left}
    b = min(left, key=lambda i: (rank[i], round(theta[plan.n_units + i], 3), worth[plan.n_units + i]))
    return b, rank[b]


def order_of_branches(plan: Plan, theta: np.ndarray, worth: np.ndarray, possible: np.ndarray) -> tuple[list[int], int]:
    """All branches in the order in which :func:`settle_branches` would close them, and how many come before those it spares."""
    alive, stream, first = possible.copy(), streams(plan), opens(plan)
    left = [int(i) for i in np.flatnonzero(possible[plan.n_units :])]
    order: list[int] = []
    before = 0
    while left:
        b, rank = _next(plan, alive, left, theta, worth, stream, first)
        left.remove(b)
        alive[plan.n_units + b] = False
        order.append(b)
        before += rank != LAST_OPENS
    return order, before


def _from_above(
    plan: Plan, alive: np.ndarray, score: np.ndarray, possible: np.ndarray, target: float,
    measure: Callable[[np.ndarray], float], tolerance: float,
) -> np.ndarray:  # fmt: skip
    """A coarse network: put the smallest gate back that overshoots, and take units out until it is nearest."""
    units = np.flatnonzero(possible[: plan.n_units])
    units = units[np.argsort(score[units])][:500]
    best, now = alive, measure(alive)
    branches = plan.n_units + np.flatnonzero(possible[plan.n_units :])
    extra = [(measure(_flip(alive, i)), i) for i in (*units, *branches) if not alive[i]]
    over = [(value, i) for value, i in extra if value >= target]
    if not over:
        return best
    trial = _flip(alive, min(over)[1])
    for i in units:
        if not trial[i]:
            continue
        fewer = keep_working(plan, _flip(trial, i), possible | trial, score)
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
