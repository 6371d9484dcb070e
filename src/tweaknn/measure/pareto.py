"""Pareto fronts of two quantities that are both to be large, and the front of a shift of the targets' logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tweaknn.measure.accuracy import per_class_accuracy


def pareto_front(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Indices of the points ``(first (p,), second (p,))`` no other point beats in both, in order of rising ``first``; equal points once."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    order = np.lexsort((-b, -a))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], b[order][:-1]]))
    return order[b[order] > best][::-1]


def target_gaps(logits: ArrayLike, targets: Sequence[int]) -> np.ndarray:
    """How much ``(n,)`` the best of ``targets`` (positions) lacks to the best other class in logits ``(n, c)``: the shift at
    which each example turns to a target."""
    z = np.asarray(logits, dtype=np.float64)
    inside = np.zeros(z.shape[1], dtype=bool)
    inside[list(targets)] = True
    return np.where(inside, -np.inf, z).max(1) - np.where(inside, z, -np.inf).max(1)


def shift_front(logits: ArrayLike, labels: ArrayLike, targets: Sequence[int], points: int = 41) -> np.ndarray:
    """Shifts of all targets' logits together on the Pareto front of (mean target, overall) accuracy, rising.

    Candidates are 0 and ``points`` quantiles of :func:`target_gaps` over the targets' own examples (logits ``(n, c)``, labels
    ``(n,)``), which move target accuracy in even steps. Empty when every class is a target or no target has examples.
    """
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    rows = np.isin(y, list(targets))
    if len(set(targets)) >= z.shape[1] or not rows.any():
        return np.empty(0)
    gaps = target_gaps(z, targets)[rows]
    shifts = np.unique(np.concatenate([[0.0], np.quantile(gaps, np.linspace(0.02, 0.999, points))]))
    scored = [shifted_accuracy(z, y, targets, shift) for shift in shifts]
    return shifts[pareto_front([s[0] for s in scored], [s[1] for s in scored])]


def shifted_accuracy(
    logits: ArrayLike, labels: ArrayLike, targets: Sequence[int], shift: float
) -> tuple[float, float, np.ndarray]:
    """Mean target accuracy, overall accuracy and per-class accuracy ``(c,)``, fractions, with ``shift`` added to the targets'
    logits; of logits ``(n, c)`` and labels ``(n,)``."""
    moved, y = np.array(logits, dtype=np.float64), np.asarray(labels)
    moved[:, list(targets)] += shift
    predicted = moved.argmax(1)
    per_class, _ = per_class_accuracy(predicted, y, moved.shape[1])
    return float(np.nanmean(per_class[list(targets)])), float((predicted == y).mean()), per_class
