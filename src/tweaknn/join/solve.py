"""The best biases under given rules: candidates from several starts, centred on their plateaus, counted plainly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tweaknn.join.contest import Contest
from tweaknn.join.counting import TargetSet
from tweaknn.join.lattice import Lattice
from tweaknn.join.search import Rules, Search, nearest_flips
from tweaknn.join.starts import Effort, moves_of, starts_of

NEAR = 0.005
"""How far behind the best a climb may be after two sweeps and still be carried on."""

BACK, ROUND = 0.006, 40
"""How far a kick may lead back at first, and after how many of them the search returns to the best point."""

CENTRE = 0.5
"""How far on either side the end of a plateau is looked for."""


def solve(
    z: np.ndarray, y: np.ndarray, rules: Rules, sets: list[TargetSet], effort: Effort, starts: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Best biases (c,) float32 found for logits ``z`` (n, c), and by how much they miss the rules."""
    order = np.lexsort((*z.T[:3], rules.gain, rules.group, y))  # examples of another order give the very same bits
    rules = replace(rules, gain=rules.gain[order], group=rules.group[order])
    search = Search(z[order], y[order], rules)
    best, best_key = np.zeros(search.c, dtype=np.float32), (-np.inf, -np.inf, -np.inf)

    def offer(candidate: np.ndarray) -> None:
        nonlocal best, best_key
        value, short = search.evaluate(candidate)
        if (-round(short, 12), round(value, 12)) < best_key[:2]:
            return  # centring changes no prediction, so it cannot help
        candidate = _settle(search, candidate)
        value, short = search.evaluate(candidate)
        key = (-round(short, 12), round(value, 12), -float(np.abs(candidate).sum()))
        if key > best_key:
            best, best_key = candidate, key

    floors, proven = _floors(search, sets, offer)
    if proven:
        return best, -best_key[0]
    large = search.n * search.c > effort.large
    moves, pairs = moves_of(search.c, sets, effort)
    for start in starts_of(search, starts, effort, large):
        offer(start)
        if floors is None or not large:
            found = start
            for window, mu in effort.stages[-2:] if large else effort.stages:
                found, _ = search.climb(found, moves, window * search.unit, mu, 2 if large else effort.sweeps)
            offer(found)
    room = int(effort.work / (search.n * search.c))
    if floors is not None:
        offer(_descend(search, floors, best.astype(np.float64), effort, min(effort.kicks, room)))
    if effort.kicks:
        kicks = min(effort.kicks, room if floors is None or not large else 0)
        offer(_shaken(search, best.astype(np.float64), moves, pairs, effort, kicks))
        if floors is not None:
            offer(_descend(search, floors, best.astype(np.float64), replace(effort, steps=effort.steps[-3:]), 0))
    return best, -best_key[0]


def shortfall(z: np.ndarray, y: np.ndarray, rules: Rules, bias: np.ndarray) -> float:
    """By how much ``bias`` misses the rules, counted on the sums that the delta will compute."""
    return Search(z, y, rules).evaluate(bias.astype(np.float32))[1]


def _floors(search: Search, sets: list[TargetSet], offer: Callable[[np.ndarray], None]) -> tuple[Lattice | None, bool]:
    """Where floors are all that is asked and the others' can be met: their least biases; and whether those offered are the optimum,
    as they are for one target."""
    offer(np.zeros(search.c))
    r = search.rules
    if np.isfinite(r.need_all) or np.isfinite(r.most_false).any() or r.price.any():
        return None, False
    fixed = np.isin(np.arange(search.c), [j for t in sets for j in t.positions])
    lattice = Lattice(search.z, search.y, r.need, fixed, r.gain, r.unit)
    exact = lattice.least(np.zeros(search.c))
    offer(exact.bias)
    bound = r.need[~fixed & np.isin(np.arange(search.c), search.y)] > 0
    proven = exact.possible and search.evaluate(exact.bias)[1] <= 0  # the climb from below may have met its cap
    proven = proven and fixed.sum() == 1 and sets[0].position is not None and bool(bound.all())
    return (lattice if exact.possible and not fixed.all() else None), proven


def _shaken(
    search: Search, best: np.ndarray, moves: np.ndarray, pairs: np.ndarray, effort: Effort, kicks: int
) -> np.ndarray:
    """Random kicks at a few biases, each followed by a short climb; what is better is kept. The lots are the same every time."""
    rng = np.random.default_rng(0)
    window, mu = effort.stages[-1]
    window *= search.unit
    search.settle_here()
    best, key = here, level = search.climb(best, moves, window, mu, effort.sweeps)
    for kick in range(kicks):
        b = here.copy()
        some = rng.choice(search.c, min(search.c - 1, int(rng.integers(1, 4))), replace=False)
        blow, near = effort.blows[int(rng.integers(len(effort.blows)))]
        b[some] += rng.normal(size=len(some)) * search.unit * blow
        near *= search.unit
        if kick % 2:  # a few rules may be broken on the way
            b, _ = search.climb(b, moves, near, effort.stages[kick % 4 // 2][1], 1)
        found, new = search.climb(b, moves, near, mu, 2)
        if new > (key[0] - NEAR, key[1] - NEAR):
            found, new = search.climb(found, moves, near, mu, 4)
        if new > key:
            best, key = found, new
            search.settle_here()
        if new >= (level[0], level[1] - BACK * (1 - kick / kicks)):
            here, level = found, new
        if kick % ROUND == ROUND - 1:
            here, level = best, key
    return search.climb(best, pairs, window, mu, effort.sweeps)[0]


def _descend(search: Search, lattice: Lattice, bias: np.ndarray, effort: Effort, lots: int) -> np.ndarray:
    """Several targets: pattern search over *their* biases, the other classes' being the exact least ones for each trial.

    Steps along each target's bias, then in ``lots`` directions drawn by lot. With large steps the others' answer is guessed from who
    outbids whom, and climbs from there to a point that keeps the floors; with small ones, and at the end of each size, it is the
    least one.
    """
    targets = np.flatnonzero(lattice.fixed)
    t, groups = len(targets), len(search.rules.need_group) > 0
    rng = np.random.default_rng(1)
    exact = lattice.least(bias).bias
    best, (value, short) = exact, search.evaluate(exact)
    key = (-round(short, 12), value)
    for size in np.array(effort.steps) * search.unit:
        near, guess = lattice.focus(best, 3 * size), size > effort.steps[-1] * search.unit * 3
        answer = near.response(best)[:, targets] if guess else None
        turns = [sign * row for row in np.eye(t) for sign in (size, -size)]
        turns += list(rng.normal(size=(lots // len(effort.steps), t)) * size) if t > 1 else []
        since, at = 0, 0
        while since < len(turns) and at < effort.trials + lots:
            turn = turns[at % len(turns)]
            at, since = at + 1, since + 1
            b = best.copy()
            b[targets] += turn
            below = best + min(0.0, float(turn.min()))
            if answer is not None:
                below = np.maximum(below, best + answer @ turn - 0.03 * size)
            found = near.least(b, below, (-key[0], key[1]))
            if not found.inside:
                near = lattice.focus(best, 3 * max(size, float(np.abs(turn).max())))
                found = near.least(b, below, (-key[0], key[1]))
                if not found.inside:
                    found = lattice.least(b, below, (-key[0], key[1]))
            if not found.possible:
                continue
            short, value = found.key
            if groups:
                value, short = search.evaluate(found.bias)
            if (-round(short, 12), value - 1e-12) > key:
                key, best, since = (-round(short, 12), value), found.bias, 0
        if guess:
            down = float((exact - best)[targets].max())
            found = lattice.least(best, exact - max(down, 0.0))
            value, short = search.evaluate(found.bias)
            if (-round(short, 12), value) >= key:
                key, best, exact = (-round(short, 12), value), found.bias, found.bias
    return best


def _settle(search: Search, bias: np.ndarray) -> np.ndarray:
    """Centre each bias between the nearest flips on either side (no prediction changes), median 0, float32."""
    bias = bias.astype(np.float64)
    contest = Contest.around(search.z, bias, 2 * CENTRE)
    for _ in range(2):
        up, down = nearest_flips(contest, bias)
        # Moving all classes at once must keep every prediction: half of the half is always safe for pairs.
        one = np.isfinite(up) | np.isfinite(down)
        step = np.where(one, np.minimum(up, CENTRE) + np.maximum(down, -CENTRE), 0.0) / 4
        if np.abs(step).max() < 1e-9:
            break
        bias = bias + step
    return (bias - np.median(bias)).astype(np.float32)
