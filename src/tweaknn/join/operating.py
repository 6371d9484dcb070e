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
from tweaknn.join.alone import solve_alone
from tweaknn.join.counting import caution_of, rules_of, target_sets, why
from tweaknn.join.promise import Promise
from tweaknn.join.search import Rules
from tweaknn.join.solve import shortfall, solve
from tweaknn.join.starts import Effort

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
    alone: bool = False,
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
        alone: one bias for all targets together and none for other classes, see :mod:`tweaknn.join.alone`.

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
    free = sorted({j for t in sets for j in t.positions})

    def best(rules: Rules, starts: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
        return solve_alone(z, y, rules, free) if alone and len(free) < c else solve(z, y, rules, sets, effort, starts)

    bias, short = best(rules, starts)
    cautious = bool(np.any(np.asarray(caution) > 0))
    for _ in range(ROUNDS if cautious else 0):
        more = caution_of(base, z + bias, y, sets, promise, caution)
        rules = rules_of(base, y, sets, promise, c, margins, more)
        if shortfall(z, y, rules, bias) <= 0:
            short = 0.0
            break  # what was found is cautious enough by its own measure
        bias, short = best(rules, [bias, *starts])
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
    return _point(base, z, y, bias, sets, rules, promise, words, shortfall(z, y, rules, bias), False)


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
