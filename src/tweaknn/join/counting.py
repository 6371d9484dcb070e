"""A promise as counts: which examples each target is made of, how many of each class must stay right, which rule fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tweaknn.errors import InputError
from tweaknn.join.promise import Promise, class_position
from tweaknn.join.search import Rules


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


def rules_of(base, y, sets: list[TargetSet], promise: Promise, c: int, classes, margins):
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


def why(p: np.ndarray, y: np.ndarray, rules: Rules, sets: list[TargetSet], words: list[str]) -> str:
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
