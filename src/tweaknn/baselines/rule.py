"""The rules by which rivals are operated: section 3.1's, and a shared shift of the targets' logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tweaknn.measure import per_class_accuracy


@dataclass(frozen=True)
class Score:
    """Mean target and overall accuracy of one candidate on validation."""

    target: float
    overall: float


def score(logits: np.ndarray, labels: np.ndarray, targets: Sequence[int]) -> Score:
    """Score of logits ``(n, c)``."""
    predicted = logits.argmax(1)
    per_class, _ = per_class_accuracy(predicted, labels, logits.shape[1])
    return Score(float(np.mean(per_class[list(targets)])), float((predicted == labels).mean()))


def keeps(candidate: Score, base: Score, loss: float) -> bool:
    """Whether overall accuracy falls by less than ``loss`` (by nothing, when ``loss`` is 0)."""
    fall = base.overall - candidate.overall
    return fall <= 1e-12 if loss == 0 else fall < loss


def pick(candidates: Sequence[Score], base: Score, loss: float = 0.01) -> int:
    """Section 3.1: the best target accuracy among candidates whose overall loss stays below ``loss``.

    Where none does, the one that loses least.
    """
    allowed = [k for k, s in enumerate(candidates) if keeps(s, base, loss)]
    if allowed:
        return max(allowed, key=lambda k: (candidates[k].target, candidates[k].overall, -k))
    return max(range(len(candidates)), key=lambda k: (candidates[k].overall, candidates[k].target, -k))


def shared_shift(
    logits: np.ndarray, labels: np.ndarray, targets: Sequence[int], base: Score, loss: float = 0.0
) -> float:
    """The shift ``b >= 0`` of all targets' logits together with the best mean target accuracy, exactly.

    Adding ``b`` to the targets turns example ``k`` from the best other class to the best target at ``b = gap[k]``:
    both
    accuracies are step functions of ``b``. Allowed are steps where overall keeps :func:`keeps` against ``base``;
    among
    equal targets the larger overall wins, then the smaller shift. Returns the middle of the step (0 if none is
    allowed).
    """
    inside = np.zeros(logits.shape[1], dtype=bool)
    inside[list(targets)] = True
    if inside.all():
        return 0.0
    z = logits.astype(np.float64)
    best_target = np.where(inside, z, -np.inf)
    best_other = np.where(inside, -np.inf, z)
    as_target, as_other = best_target.argmax(1), best_other.argmax(1)
    rows = np.arange(len(z))
    gap = best_other[rows, as_other] - best_target[rows, as_target]
    counts = np.bincount(labels, minlength=logits.shape[1])
    weight = np.where(
        inside & (counts > 0), 1.0 / np.maximum(counts, 1) / max(1, int((inside & (counts > 0)).sum())), 0.0
    )
    right_after = (as_target == labels).astype(np.float64)
    right_before = (as_other == labels).astype(np.float64)
    change = right_after - right_before
    order = np.argsort(gap, kind="stable")
    order = order[gap[order] > 0]
    steps = gap[order]
    already = gap <= 0
    overall0 = np.where(already, right_after, right_before).sum()
    target0 = (weight[labels] * np.where(already, right_after, right_before)).sum()
    overall = np.concatenate([[overall0], overall0 + np.cumsum(change[order])]) / len(labels)
    target = np.concatenate([[target0], target0 + np.cumsum(change[order] * weight[labels[order]])])
    ends = np.concatenate([[0.0], steps])
    last = np.append(ends[1:] != ends[:-1], True)  # examples with equal gaps flip together
    allowed = last & np.array([keeps(Score(0, o), base, loss) for o in overall])
    if not allowed.any():
        return 0.0
    where = np.flatnonzero(allowed)
    best = max(where, key=lambda k: (round(float(target[k]), 12), round(float(overall[k]), 12), -k))
    if best == 0:
        return 0.0
    following = ends[best + 1] if best + 1 < len(ends) else ends[best] + 1.0
    return float((ends[best] + following) / 2)
