"""The operating point: a bias for each class, chosen on validation logits so that a :class:`Promise` holds there.

Section 8 of the method: whatever a delta adds, *how far to go and at whose cost* is decided here. The objective is a step
function of the biases, so the search (:mod:`tweaknn.join.search`) is over its exact steps, from several starts, one of them the
solution of a smoothed problem; what is returned has been counted plainly, on the very float32 sums the delta will compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import minimize

from tweaknn.errors import InputError
from tweaknn.join.lattice import least_biases
from tweaknn.join.promise import Promise
from tweaknn.join.search import Rules, Search


@dataclass(frozen=True)
class OperatingPoint:
    """What was chosen, and what it does to the validation examples it was chosen on.

    Attributes:
        bias: (c,) float32, to be added to the logits; its median is 0.
        feasible: the promise holds on these examples.
        reason: empty, or one sentence saying which rule cannot be met and by how much.
        target: mean target accuracy with the bias; ``base_target`` of the base network.
        value: the promise's objective (weighted target accuracy less costs) and ``base_value``.
        overall, base_overall: accuracy over all examples.
        per_class, base_per_class: (c,) accuracies, NaN for classes without examples.
        thin: classes with so few examples that a floor on them says little (fewer than 30).
    """

    bias: np.ndarray
    feasible: bool
    reason: str
    target: float
    base_target: float
    value: float
    base_value: float
    overall: float
    base_overall: float
    per_class: np.ndarray
    base_per_class: np.ndarray
    thin: tuple[int, ...] = ()

    @property
    def gain(self) -> float:
        """Mean target accuracy won, a fraction."""
        return self.target - self.base_target

    def to_dict(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """Everything for JSON; accuracies of classes without examples are null."""
        names = [str(k) for k in (classes if classes is not None else range(len(self.bias)))]

        def by_class(values: np.ndarray) -> dict[str, float | None]:
            return {k: None if np.isnan(v) else float(v) for k, v in zip(names, values)}

        return {
            "bias": {k: float(v) for k, v in zip(names, self.bias)},
            "feasible": self.feasible,
            "reason": self.reason,
            "target": self.target,
            "base_target": self.base_target,
            "overall": self.overall,
            "base_overall": self.base_overall,
            "per_class": by_class(self.per_class),
            "base_per_class": by_class(self.base_per_class),
        }


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


def operate(
    base_logits,
    logits,
    labels,
    targets,
    promise: Promise | None = None,
    *,
    classes: Sequence[str] | None = None,
    margins: np.ndarray | None = None,
    starts: Sequence[np.ndarray] = (),
    effort: Effort | None = None,
) -> OperatingPoint:
    """The bias per class that makes the most of ``logits`` under ``promise``, judged against ``base_logits``.

    Args:
        base_logits: (n, c) of the untouched network on validation examples.
        logits: (n, c) with the delta added (or ``base_logits`` again: the constant-bias control).
        labels: (n,) integers.
        targets: classes, by position or name; a (n,) boolean mask makes one target of just those examples (a sub-class); a
            mapping name -> mask, several such.
        promise: defaults to ``Promise("floors")``.
        classes: names, to resolve targets and promise and for the reason's wording.
        margins: (c,) fractions added to every class's floor: caution beyond the letter of the promise.
        starts: further biases to start the search from.
        effort: search settings.

    Returns:
        The operating point; if none is feasible the least infeasible one, ``feasible`` False and the ``reason`` said. Between equally
        good points the one with the widest plateau is preferred, and the bias sits in the middle of it. Deterministic.

    Raises:
        InputError: shapes disagree, logits are not finite, an unknown or empty target.
    """
    effort = effort or Effort()
    base, z, y = _checked(base_logits, logits, labels)
    n, c = z.shape
    promise = (promise or Promise()).resolve(classes, c)
    sets = target_sets(targets, y, c, classes, promise)
    rules, words = _rules(base, y, sets, promise, c, classes, margins)
    search = Search(z, y, rules)
    best, best_key = np.zeros(c, dtype=np.float32), None
    for candidate in _candidates(search, sets, effort, starts):
        candidate = _settle(search, candidate)
        value, short = search.evaluate(candidate.astype(np.float64))
        key = (-round(short, 12), round(value, 12), -float(np.abs(candidate).sum()))
        if best_key is None or key > best_key:
            best, best_key = candidate, key
    assert best_key is not None
    return _point(base, z, y, best, sets, rules, words, -best_key[0])


def _candidates(search: Search, sets: list[TargetSet], effort: Effort, given: Sequence[np.ndarray]):
    """Bias vectors worth counting. With floors alone and one target the least fixed point is the optimum: nothing else is tried."""
    floors = _only_floors(search.rules)
    fixed = np.isin(np.arange(search.c), [j for t in sets for j in t.positions])
    yield np.zeros(search.c)
    if floors:
        exact, possible = least_biases(search.z, search.y, search.rules.need, np.zeros(search.c), fixed)
        yield exact
        bound = search.rules.need[~fixed & np.isin(np.arange(search.c), search.y)] > 0
        if fixed.sum() == 1 and possible and sets[0].position is not None and bound.all():
            return
    moves = _moves(search.c, sets, effort)
    large = search.n * search.c > effort.large
    for start in _starts(search, given, effort, large):
        found = start
        yield start
        for mu in effort.penalties[-1:] if large else effort.penalties:
            for window in effort.windows if mu == effort.penalties[0] else effort.windows[1:]:
                found = search.climb(found, moves, window, mu, 2 if large else effort.sweeps)
        yield found
        if floors:
            yield from _descend(search, found, fixed, effort)


def _only_floors(rules: Rules) -> bool:
    return not (np.isfinite(rules.need_all) or np.isfinite(rules.most_false).any() or rules.price.any())


def _descend(search: Search, bias: np.ndarray, fixed: np.ndarray, effort: Effort):
    """Several targets: pattern search over *their* biases, the other classes' being the exact least ones for each trial."""
    def trial(b: np.ndarray) -> tuple[tuple[float, float], np.ndarray]:
        found, _ = least_biases(search.z, search.y, search.rules.need, b, fixed)
        value, short = search.evaluate(found)
        return (-round(short, 12), value), found

    key, best = trial(bias)
    targets = np.flatnonzero(fixed)
    spent = 1
    for step in effort.steps:
        improved = True
        while improved and spent < effort.trials:
            improved = False
            for j in targets:
                for s in (step, -step):
                    b = best.copy()
                    b[j] += s
                    new_key, found = trial(b)
                    spent += 1
                    if new_key > key:
                        key, best, improved = new_key, found, True
    yield best


# -- the promise as counts ------------------------------------------------------------------------------


@dataclass(frozen=True)
class TargetSet:
    """One target: the examples it is made of, its weight, the class whose floor it replaces (None for a sub-class)."""

    name: str
    rows: np.ndarray
    weight: float
    position: int | None
    positions: tuple[int, ...] = field(default=())


def target_sets(targets, labels: np.ndarray, c: int, classes: Sequence[str] | None, promise: Promise) -> list[TargetSet]:
    """``targets`` in any of the forms of :func:`operate`, as example sets with weights.

    Raises:
        InputError: unknown class, a target without examples, a mask of another length, no targets at all.
    """
    from tweaknn.join.promise import class_position

    named: list[tuple[str, np.ndarray, int | None]] = []
    if isinstance(targets, Mapping):
        named = [(str(k), np.asarray(v), None) for k, v in targets.items()]
    elif isinstance(targets, np.ndarray) and targets.dtype == bool:
        named = [("target", targets, None)]
    else:
        for t in [targets] if isinstance(targets, (str, int, np.integer)) else list(targets):
            j = class_position(t, classes, c)
            named.append((str(classes[j]) if classes is not None else str(j), labels == j, j))
    if not named:
        raise InputError("Give at least one target class.")
    out = []
    for name, rows, position in named:
        if rows.shape != labels.shape or rows.dtype != bool:
            raise InputError(f"The mask of target {name!r} must be {len(labels)} booleans, got shape {rows.shape}.")
        if not rows.any():
            raise InputError(f"Target {name!r} has no example here; give validation data that holds some.")
        weight = promise.weights.get(position, 1.0) if position is not None else 1.0
        out.append(TargetSet(name, rows, weight, position, tuple(np.unique(labels[rows]).tolist())))
    if sum(t.weight for t in out) <= 0:
        raise InputError("All target weights are 0; at least one must be positive.")
    return out


def _rules(base, y, sets: list[TargetSet], promise: Promise, c: int, classes, margins):
    n = len(y)
    counts = np.bincount(y, minlength=c).astype(float)
    right = base.argmax(1) == y
    correct = np.bincount(y[right], minlength=c).astype(float)
    total_weight = sum(t.weight for t in sets)
    gain = np.zeros(n)
    group = np.full(n, -1, np.int64)
    need_group: list[float] = []
    unit_group: list[float] = []
    whole = {t.position for t in sets if t.position is not None}
    for t in sets:
        size = t.rows.sum()
        gain[t.rows] += t.weight / total_weight / size
        if t.position is None and promise.kind != "mixed":
            group[t.rows] = len(need_group)
            need_group.append(float((right & t.rows).sum()))
            unit_group.append(1.0 / size)
    need = np.full(c, -np.inf)
    if promise.kind == "floors":
        need = correct - promise.tolerance * counts
        for j in whole:
            need[j] = correct[j]
    elif promise.kind == "overall":
        for j in whole:
            need[j] = correct[j]
    if promise.max_drop is not None:
        need = np.maximum(need, correct - promise.max_drop * counts)
    if margins is not None:
        need = np.minimum(need + np.asarray(margins) * counts, np.maximum(need, counts))
    for j, floor in promise.floors.items():
        need[j] = max(need[j], floor * counts[j])
    need_all = -np.inf
    if promise.kind == "overall":
        need_all = right.sum() - promise.tolerance * n
    if promise.overall_drop is not None:
        need_all = max(need_all, right.sum() - promise.overall_drop * n)
    most_false = np.full(c, np.inf)
    for j, specificity in promise.specificity.items():
        most_false[j] = np.floor((1 - specificity) * (n - counts[j]) + 1e-9)
    # Counts are integers: 0.1 * 30 must not ask for a fourth example because of rounding.
    need, need_all = np.ceil(need - 1e-9), float(np.ceil(need_all - 1e-9))
    price = np.zeros((c, c)) if promise.costs is None else np.asarray(promise.costs, dtype=float) / n
    unit = 1 / np.maximum(counts, 1)
    rules = Rules(gain, np.ascontiguousarray(price), need, unit, need_all, c / n, group,
                  np.array(need_group, float), np.array(unit_group, float), most_false,
                  1 / np.maximum(n - counts, 1))  # fmt: skip
    words = [str(k) for k in (classes if classes is not None else range(c))]
    return rules, words


# -- starts and moves -------------------------------------------------------------------------------------


def _moves(c: int, sets: list[TargetSet], effort: Effort) -> np.ndarray:
    """Sets of classes to move together: each alone, pairs (all of them for few classes), the targets as one."""
    moves = [np.arange(c) == j for j in range(c)]
    together = np.isin(np.arange(c), [t.position for t in sets if t.position is not None])
    if 1 < together.sum() < c:
        moves.append(together)
    if c * (c - 1) // 2 <= effort.pairs:
        moves += [np.isin(np.arange(c), pair) for pair in combinations(range(c), 2)] if c > 2 else []
    return np.array(moves)


def _starts(search: Search, given: Sequence[np.ndarray], effort: Effort, large: bool) -> list[np.ndarray]:
    starts = [np.zeros(search.c), *(np.asarray(b, dtype=np.float64) for b in given)]
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


def _settle(search: Search, bias: np.ndarray) -> np.ndarray:
    """Centre each bias between the nearest flips on either side (no prediction changes), median 0, float32."""
    bias = bias.copy()
    for _ in range(2):
        s = search.z + bias
        order = np.argpartition(s, -2, axis=1)[:, -2:]
        two = np.take_along_axis(s, order, 1)
        best_at = np.where(two[:, 0] >= two[:, 1], order[:, 0], order[:, 1])
        best, second = two.max(1), two.min(1)
        own = np.arange(search.c) == best_at[:, None]
        away = np.where(own, second[:, None] - s, best[:, None] - s)  # step at which the row flips to or from the class
        up = np.where(away > 0, away, np.inf).min(0)
        down = np.where(away < 0, away, -np.inf).max(0)
        # Moving all classes at once must keep every prediction: half of the half is always safe for pairs.
        step = np.where(np.isfinite(up) & np.isfinite(down), (up + down) / 4, 0.0)
        if np.abs(step).max() < 1e-9:
            break
        bias = bias + step
    return (bias - np.median(bias)).astype(np.float32)


# -- the result --------------------------------------------------------------------------------------------


def _point(base, z, y, bias, sets, rules: Rules, words, short: float) -> OperatingPoint:
    c = z.shape[1]
    counts = np.bincount(y, minlength=c)

    def figures(scores: np.ndarray):
        p = scores.argmax(1)
        right = p == y
        with np.errstate(invalid="ignore"):
            per_class = np.bincount(y[right], minlength=c) / np.where(counts, counts, np.nan)
        weight = sum(t.weight for t in sets)
        target = float(np.mean([right[t.rows].mean() for t in sets]))
        value = sum(t.weight * right[t.rows].mean() for t in sets) / weight - float(rules.price[y, p].sum())
        return target, float(value), float(right.mean()), per_class, p

    target, value, overall, per_class, p = figures(z.astype(np.float32) + bias.astype(np.float32))
    base_target, base_value, base_overall, base_per_class, _ = figures(base)
    reason = "" if short <= 0 else _why(p, y, rules, sets, words)
    return OperatingPoint(
        bias=bias,
        feasible=not reason,
        reason=reason,
        target=target,
        base_target=base_target,
        value=value,
        base_value=base_value,
        overall=overall,
        base_overall=base_overall,
        per_class=per_class,
        base_per_class=base_per_class,
        thin=tuple(int(j) for j in np.flatnonzero((counts > 0) & (counts < 30))),
    )


def _why(p: np.ndarray, y: np.ndarray, rules: Rules, sets: list[TargetSet], words: list[str]) -> str:
    """One sentence on the rule that the best point found misses by most."""
    right = p == y
    c = len(rules.need)
    counts = np.bincount(y, minlength=c)
    got = np.bincount(y[right], minlength=c)
    impossible = np.flatnonzero((rules.need > counts) & (counts > 0))
    if len(impossible):
        j = int(impossible[0])
        return f"No feasible point: {words[j]} would have to get {rules.need[j]:.0f} of its {counts[j]} examples right."
    misses = [(max(0.0, rules.need[j] - got[j]) * rules.unit[j], f"{words[j]} stays at {got[j] / max(counts[j], 1):.1%}, "
               f"its floor is {rules.need[j] / max(counts[j], 1):.1%}") for j in range(c) if np.isfinite(rules.need[j])]  # fmt: skip
    if np.isfinite(rules.need_all):
        short = max(0.0, rules.need_all - right.sum()) / len(y)
        misses.append((short, f"overall stays at {right.mean():.1%}, its floor is {rules.need_all / len(y):.1%}"))
    groups = [t for t in sets if t.position is None]
    for g, t in enumerate(groups[: len(rules.need_group)]):
        hit = int((right & t.rows).sum())
        lack = max(0.0, rules.need_group[g] - hit) * rules.unit_group[g]
        misses.append((lack, f"{t.name} stays at {hit / t.rows.sum():.1%}, its floor is "
                       f"{rules.need_group[g] / t.rows.sum():.1%}"))  # fmt: skip
    for j in map(int, np.flatnonzero(np.isfinite(rules.most_false))):
        wrong = int(((p == j) & ~right).sum())
        others = max(1, len(y) - counts[j])
        misses.append((max(0.0, wrong - rules.most_false[j]) / others, f"{words[j]} is called falsely for {wrong / others:.1%} "
                       f"of the other examples, {rules.most_false[j] / others:.1%} are allowed"))  # fmt: skip
    return "No feasible point was found: at the best one, " + max(misses, key=lambda m: m[0])[1] + "."


def _checked(base_logits, logits, labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    def array(values) -> np.ndarray:
        return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)

    base, z, y = array(base_logits), array(logits), array(labels)
    if base.ndim != 2 or base.shape != z.shape or y.shape != base.shape[:1]:
        raise InputError(
            f"base_logits and logits must be (n, c) and labels (n,), got {base.shape}, {z.shape} and {y.shape}."
        )
    if not len(y):
        raise InputError("An operating point needs validation examples; got none.")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= z.shape[1]:
        raise InputError(f"labels must be integers in 0..{z.shape[1] - 1}.")
    for name, values in (("base_logits", base), ("logits", z)):
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
            raise InputError(f"{name} of example {bad} are NaN or infinite; no operating point can be chosen on them.")
    return base, z.astype(np.float32), y.astype(np.int64)
