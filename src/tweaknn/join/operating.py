"""The operating point: a bias for each class, chosen on validation logits so that a :class:`Promise` holds there.

Section 8 of the method: whatever a delta adds, *how far to go and at whose cost* is decided here. The objective is a step
function of the biases, so the search (:mod:`tweaknn.join.search`) is over its exact steps, from several starts, one of them the
solution of a smoothed problem; what is returned has been counted plainly, on the very float32 sums the delta will compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tweaknn.errors import InputError
from tweaknn.join.counting import TargetSet, caution_of, rules_of, target_sets, why
from tweaknn.join.lattice import least_biases
from tweaknn.join.promise import Promise
from tweaknn.join.search import Rules, Search, nearest_flips
from tweaknn.join.starts import Effort, moves_of, starts_of

ROUNDS = 2
"""How often the size of a standard error is estimated anew at the point that was found with the last one."""


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
        floors: (c,) accuracy that was asked of each class on these examples, caution included; -inf where none was.
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
    floors: np.ndarray = field(default_factory=lambda: np.zeros(0))

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


def operate(
    base_logits,
    logits,
    labels,
    targets,
    promise: Promise | None = None,
    *,
    classes: Sequence[str] | None = None,
    margins: np.ndarray | None = None,
    caution: float | np.ndarray = 0.0,
    starts: Sequence[np.ndarray] = (),
    effort: Effort | None = None,
) -> OperatingPoint:
    """The bias per class that makes the most of ``logits`` under ``promise``, judged against ``base_logits``.

    Args:
        base_logits: (n, c) of the untouched network on validation examples.
        logits: (n, c) with the delta added (or ``base_logits`` again: the constant-bias control).
        labels: (n,) integers.
        targets: classes, by position or name; a (n,) boolean mask makes one target of just those examples (a sub-class); a
            mapping name -> mask or class position, several of either.
        promise: defaults to ``Promise("floors")``.
        classes: names, to resolve targets and promise and for the reason's wording.
        margins: (c,) fractions added to every class's floor: caution beyond the letter of the promise.
        caution: standard errors by which every rule shall be kept on these examples beyond its letter, one number or one a class;
            how large a standard error is depends on how many examples the change moves, so a small change needs little caution.
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
    promise = (promise or Promise()).resolve(classes, c, targets if isinstance(targets, Mapping) else ())
    sets = target_sets(targets, y, c, classes, promise)
    words = [str(k) for k in (classes if classes is not None else range(c))]
    rules = rules_of(base, y, sets, promise, c, margins)
    bias, short = _search(z, y, rules, sets, effort, starts)
    cautious = bool(np.any(np.asarray(caution) > 0))
    for _ in range(ROUNDS if cautious else 0):
        more = caution_of(base, z + bias, y, sets, promise, caution)
        rules = rules_of(base, y, sets, promise, c, margins, more)
        if _shortfall(z, y, rules, bias) <= 0:
            short = 0.0
            break  # what was found is cautious enough by its own measure
        bias, short = _search(z, y, rules, sets, effort, [bias, *starts])
    return _point(base, z, y, bias, sets, rules, promise, words, short, cautious)


def standing(
    base_logits, logits, labels, targets, promise: Promise | None = None, *, classes: Sequence[str] | None = None
) -> OperatingPoint:
    """What ``logits`` do to the targets and the promise as they stand, without any bias. Arguments and errors of :func:`operate`."""
    base, z, y = _checked(base_logits, logits, labels)
    c = z.shape[1]
    promise = (promise or Promise()).resolve(classes, c, targets if isinstance(targets, Mapping) else ())
    sets = target_sets(targets, y, c, classes, promise)
    words = [str(k) for k in (classes if classes is not None else range(c))]
    rules = rules_of(base, y, sets, promise, c)
    bias = np.zeros(c, dtype=np.float32)
    return _point(base, z, y, bias, sets, rules, promise, words, _shortfall(z, y, rules, bias), False)


def _search(
    z: np.ndarray, y: np.ndarray, rules: Rules, sets: list[TargetSet], effort: Effort, starts: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Best biases found, and by how much they miss the rules."""
    search = Search(z, y, rules)
    best, best_key = np.zeros(search.c, dtype=np.float32), None
    for candidate in _candidates(search, sets, effort, starts):
        candidate = _settle(search, candidate)
        value, short = search.evaluate(candidate.astype(np.float64))
        key = (-round(short, 12), round(value, 12), -float(np.abs(candidate).sum()))
        if best_key is None or key > best_key:
            best, best_key = candidate, key
    assert best_key is not None
    return best, -best_key[0]


def _shortfall(z: np.ndarray, y: np.ndarray, rules: Rules, bias: np.ndarray) -> float:
    return Search(z, y, rules).evaluate(bias.astype(np.float64))[1]


def _candidates(search: Search, sets: list[TargetSet], effort: Effort, given: Sequence[np.ndarray]):
    """Bias vectors worth counting. With floors alone and one target the least fixed point is the optimum: nothing else is tried."""
    floors = _only_floors(search.rules)
    fixed = np.isin(np.arange(search.c), [j for t in sets for j in t.positions])
    yield np.zeros(search.c)
    if floors:
        exact, possible = least_biases(search.z, search.y, search.rules.need, np.zeros(search.c), fixed)
        yield exact
        bound = search.rules.need[~fixed & np.isin(np.arange(search.c), search.y)] > 0
        proven = possible and search.evaluate(exact)[1] <= 0  # the climb from below may have met its cap
        if fixed.sum() == 1 and proven and sets[0].position is not None and bound.all():
            return
    moves = moves_of(search.c, sets, effort)
    large = search.n * search.c > effort.large
    for start in starts_of(search, given, effort, large):
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
    large = search.n * search.c > effort.large
    most = min(effort.trials, 4 * len(targets)) if large else effort.trials
    for step in effort.steps[:1] if large else effort.steps:
        improved = True
        while improved and spent < most:
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


def _settle(search: Search, bias: np.ndarray) -> np.ndarray:
    """Centre each bias between the nearest flips on either side (no prediction changes), median 0, float32."""
    bias = bias.astype(np.float64)
    for _ in range(2):
        up, down = nearest_flips(search.z, bias)
        # Moving all classes at once must keep every prediction: half of the half is always safe for pairs.
        step = np.where(np.isfinite(up) & np.isfinite(down), (up + down) / 4, 0.0)
        if np.abs(step).max() < 1e-9:
            break
        bias = bias + step
    return (bias - np.median(bias)).astype(np.float32)


def _point(
    base, z, y, bias, sets, rules: Rules, promise: Promise, words: list[str], short: float, cautious: bool
) -> OperatingPoint:
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
    reason = "" if short <= 0 else why(p, y, rules, sets, promise, words, cautious)
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
        floors=rules.need / np.where(counts, counts, np.nan),
    )


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
