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


@dataclass(frozen=True)
class Caution:
    """Examples to be kept right beyond the letter of the promise, so many standard errors' worth of each rule's count.

    ``classes`` (c,) for drops of a class, ``floors`` (c,) for absolute accuracies, ``overall``, ``groups`` (g,), ``false`` (c,).
    """

    classes: np.ndarray
    floors: np.ndarray
    overall: float
    groups: np.ndarray
    false: np.ndarray


def target_sets(targets, labels: np.ndarray, c: int, classes: Sequence[str] | None, promise: Promise) -> list[TargetSet]:
    """``targets`` in any of the forms of :func:`operate`, as example sets with weights.

    Raises:
        InputError: unknown class, a target without examples, masks of another length or that overlap, no targets at all.
    """
    named: list[tuple[str, np.ndarray, int | None]] = []

    def whole(t) -> tuple[str, np.ndarray, int]:
        j = class_position(t, classes, c)
        return str(classes[j]) if classes is not None else str(j), labels == j, j

    if isinstance(targets, Mapping):
        for name, value in targets.items():
            if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
                named.append(whole(value))
            else:
                named.append((str(name), np.asarray(value), None))
    elif isinstance(targets, np.ndarray) and targets.dtype == bool:
        named = [("target", targets, None)]
    else:
        named = [whole(t) for t in ([targets] if isinstance(targets, (str, int, np.integer)) else list(targets))]
    if not named:
        raise InputError("Give at least one target class.")
    out = []
    taken = np.zeros(len(labels), dtype=bool)
    for name, rows, position in named:
        if rows.shape != labels.shape or rows.dtype != bool:
            raise InputError(f"The mask of target {name!r} must be {len(labels)} booleans, got shape {rows.shape}.")
        if not rows.any():
            raise InputError(f"Target {name!r} has no example here; give validation data that holds some.")
        if (taken & rows).any():
            raise InputError(f"Target {name!r} shares examples with another target; targets may not overlap.")
        taken |= rows
        weight = promise.weights.get(name if position is None else position, 1.0)
        out.append(TargetSet(name, rows, weight, position, tuple(np.unique(labels[rows]).tolist())))
    if sum(t.weight for t in out) <= 0:
        raise InputError("All target weights are 0; at least one must be positive.")
    return out


def groups_of(y: np.ndarray, sets: list[TargetSet], promise: Promise) -> list[tuple[str, np.ndarray]]:
    """Sub-classes with a floor of their own: each sub-class target and, under ``floors``, what is left of its classes."""
    if promise.kind == "mixed":
        return []
    parts = [t for t in sets if t.position is None]
    found = [(t.name, t.rows) for t in parts]
    if promise.kind == "floors" and parts:
        taken = np.any([t.rows for t in parts], axis=0)
        for j in sorted({j for t in parts for j in t.positions}):
            rest = (y == j) & ~taken
            if rest.any():
                found.append((f"the rest of {j}", rest))
    return found


def rules_of(
    base, y, sets: list[TargetSet], promise: Promise, c: int, margins: np.ndarray | None = None, more: Caution | None = None
) -> Rules:
    """The promise as numbers of examples, with ``margins`` (c,) fractions and ``more`` caution on top."""
    n = len(y)
    counts = np.bincount(y, minlength=c).astype(float)
    right = base.argmax(1) == y
    correct = np.bincount(y[right], minlength=c).astype(float)
    total_weight = sum(t.weight for t in sets)
    gain = np.zeros(n)
    group = np.full(n, -1, np.int64)
    whole = [t.position for t in sets if t.position is not None]
    split = sorted({j for t in sets if t.position is None for j in t.positions})
    for t in sets:
        gain[t.rows] += t.weight / total_weight / t.rows.sum()
    groups = groups_of(y, sets, promise)
    need_group, unit_group = np.zeros(len(groups)), np.zeros(len(groups))
    for g, (_, rows) in enumerate(groups):
        group[rows] = g
        allowed = promise.tolerance * rows.sum() if g >= len(groups) - len(split) and promise.kind == "floors" else 0.0
        need_group[g] = (right & rows).sum() - allowed
        unit_group[g] = 1.0 / rows.sum()
    need = np.full(c, -np.inf)
    if promise.kind == "floors":
        need = correct - promise.tolerance * counts
    if promise.kind != "mixed":
        need[whole] = correct[whole]
    if promise.max_drop is not None:
        need = np.maximum(need, correct - promise.max_drop * counts)
    if margins is not None:
        need = need + np.asarray(margins) * counts
    if more is not None:
        need = need + more.classes
        need_group = need_group + more.groups
    for j, floor in promise.floors.items():
        need[j] = max(need[j], floor * counts[j] + (more.floors[j] if more is not None else 0.0))
    if margins is not None or more is not None:  # caution never asks for more than there is
        letter = rules_of(base, y, sets, promise, c)
        need = np.where(np.isfinite(need), np.minimum(need, np.maximum(letter.need, counts)), need)
        if len(groups):
            need_group = np.minimum(need_group, np.array([rows.sum() for _, rows in groups], dtype=float))
    need_all = -np.inf
    if promise.kind == "overall":
        need_all = right.sum() - promise.tolerance * n
    if promise.overall_drop is not None:
        need_all = max(need_all, right.sum() - promise.overall_drop * n)
    if more is not None:
        need_all += more.overall
    most_false = np.full(c, np.inf)
    for j, specificity in promise.specificity.items():
        spare = more.false[j] if more is not None else 0.0
        most_false[j] = max(0.0, np.floor((1 - specificity) * (n - counts[j]) - spare + 1e-9))
    # Counts are integers: 0.1 * 30 must not ask for a fourth example because of rounding.
    need, need_group, need_all = np.ceil(need - 1e-9), np.ceil(need_group - 1e-9), float(np.ceil(need_all - 1e-9))
    price = np.zeros((c, c)) if promise.costs is None else np.asarray(promise.costs, dtype=float) / n
    return Rules(
        gain=gain,
        price=np.ascontiguousarray(price),
        need=need,
        unit=1 / np.maximum(counts, 1),
        need_all=need_all,
        unit_all=c / n,
        group=group,
        need_group=need_group,
        unit_group=unit_group,
        most_false=most_false,
        unit_false=1 / np.maximum(n - counts, 1),
    )


def caution_of(
    base: np.ndarray, z: np.ndarray, y: np.ndarray, sets: list[TargetSet], promise: Promise, errors: float | np.ndarray
) -> Caution:
    """``errors`` standard errors of every rule's count, as estimated where the logits are ``z`` (n, c).

    A drop is a paired difference: of ``d`` examples whose correctness changed, its count has the standard error ``sqrt(d)``. The
    count of an absolute floor, or of false calls, is binomial. Whole examples only: a fraction of one asks for nothing. Targets are
    not cautioned: their gain is the slack. ``errors`` may be one number a class.
    """
    n, c = z.shape
    p = z.argmax(1)
    right = p == y
    changed = (base.argmax(1) == y) != right
    counts = np.bincount(y, minlength=c)
    hits = np.bincount(y[right], minlength=c)
    false = np.bincount(p[~right], minlength=c)
    others = np.maximum(n - counts, 1)
    share = hits / np.maximum(counts, 1)
    each = np.broadcast_to(np.asarray(errors, dtype=float), (c,))
    drops = np.floor(each * np.sqrt(np.bincount(y[changed], minlength=c)))
    drops[[t.position for t in sets if t.position is not None]] = 0.0
    targets = {t.name for t in sets}
    groups = [
        0.0 if name in targets else float(np.floor(each[y[rows]].mean() * np.sqrt((changed & rows).sum())))
        for name, rows in groups_of(y, sets, promise)
    ]
    return Caution(
        classes=drops,
        floors=np.floor(each * np.sqrt(counts * share * (1 - share))),
        overall=float(np.floor(each.mean() * np.sqrt(changed.sum()))),
        groups=np.array(groups, dtype=float),
        false=np.floor(each * np.sqrt(false * (1 - false / others))),
    )


def why(
    p: np.ndarray, y: np.ndarray, rules: Rules, sets: list[TargetSet], promise: Promise, words: list[str], cautious: bool = False
) -> str:
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
    for g, (name, rows) in enumerate(groups_of(y, sets, promise)):
        if name.startswith("the rest of "):
            name = "the rest of " + words[int(name.removeprefix("the rest of "))]
        hit = int((right & rows).sum())
        lack = max(0.0, rules.need_group[g] - hit) * rules.unit_group[g]
        misses.append((lack, f"{name} stays at {hit / rows.sum():.1%}, its floor is "
                       f"{rules.need_group[g] / rows.sum():.1%}"))  # fmt: skip
    for j in map(int, np.flatnonzero(np.isfinite(rules.most_false))):
        wrong = int(((p == j) & ~right).sum())
        others = max(1, len(y) - counts[j])
        misses.append((max(0.0, wrong - rules.most_false[j]) / others, f"{words[j]} is called falsely for {wrong / others:.1%} "
                       f"of the other examples, {rules.most_false[j] / others:.1%} are allowed"))  # fmt: skip
    more = ", caution included" if cautious else ""
    return "No feasible point was found: at the best one, " + max(misses, key=lambda m: m[0])[1] + more + "."
