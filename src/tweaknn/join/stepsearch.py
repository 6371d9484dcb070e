"""Exact search for a scale: how far along one direction a target's logit should go (method note, section 3).

With ``a[k]`` added ``scale`` times to the target's logit of example ``k``, every example changes its prediction at
most once, at ``scale = gap[k] / a[k]``. Accuracies are step functions of ``scale``; sorting the critical scales gives
all their values, so nothing is sampled and nothing is missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Limits:
    """What has to hold, in numbers of correct examples.

    Attributes:
        least: ``(c,)`` smallest number of correct examples of each class; 0 where nothing is promised.
        least_overall: smallest number of correct examples of all classes together.
        weight: ``(c,)`` what one correct example of each class is worth: ``1 / (targets * examples)`` on targets.
    """

    least: np.ndarray
    least_overall: int
    weight: np.ndarray

    def value(self, correct: np.ndarray) -> float:
        """Mean target accuracy for ``correct`` ``(c,)`` counts."""
        return float(self.weight @ correct)

    def allows(self, correct: np.ndarray) -> bool:
        return bool((correct >= self.least).all() and correct.sum() >= self.least_overall)


@dataclass(frozen=True)
class Step:
    """A point of a step function: the ``scale``, the mean target accuracy and the correct examples of all classes."""

    scale: float
    value: float
    overall: int


def correct_by_class(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``(c,)`` numbers of correct examples; ties go to the lowest index, as in ``torch.argmax``."""
    c = logits.shape[1]
    return np.bincount(labels[logits.argmax(1) == labels], minlength=c).astype(np.int64)


def best_scale(
    logits: np.ndarray, direction: np.ndarray, target: int, labels: np.ndarray, limits: Limits
) -> Step | None:
    """The best allowed ``scale >= 0`` for ``logits[:, target] + scale * direction``, exactly.

    Among equal values the larger overall accuracy wins, then the smaller scale; the returned scale is the middle of its
    step, as far as possible from flipping anybody.

    Args:
        logits: ``(n, c)``, with everything else already added.
        direction: ``(n,)``.
        target: the class whose logit moves.
        labels: ``(n,)``.
        limits: what has to hold.

    Returns:
        The best step, or None when no scale keeps the limits.
    """
    rows = np.arange(len(labels))
    others = logits.copy()
    others[:, target] = -np.inf
    rival = others.argmax(1)
    gap = others[rows, rival] - logits[:, target]  # the target wins where scale * direction > gap
    wins_ties = target < rival
    with np.errstate(divide="ignore", invalid="ignore"):
        critical = np.where(direction != 0, gap / direction, np.inf)
    starts_in = (gap < 0) | ((gap == 0) & wins_ties)
    # a tie at scale 0 leaves at once when it moves the other way, and enters at once when it moves towards the target
    moves = np.isfinite(critical) & np.where(
        starts_in, (direction < 0) & (critical >= 0), (direction > 0) & (critical >= 0)
    )

    c = logits.shape[1]
    now = np.where(starts_in, target, rival)
    correct = np.bincount(labels[now == labels], minlength=c).astype(np.int64)
    moving = np.flatnonzero(moves)
    order = moving[np.argsort(critical[moving], kind="stable")]
    scales = critical[order]
    enters = direction[order] > 0
    # +1 where an example becomes correct, -1 where it becomes wrong, 0 where it was and stays wrong
    sign = np.where(enters, 1, -1)
    change = np.where(labels[order] == target, sign, np.where(labels[order] == rival[order], -sign, 0))

    last_of_step = np.flatnonzero(np.append(scales[1:] != scales[:-1], True)) if len(scales) else np.empty(0, int)
    value = limits.value(correct) + np.cumsum(change * limits.weight[labels[order]])
    overall = int(correct.sum()) + np.cumsum(change)
    broken = int((correct < limits.least).sum()) + np.cumsum(_violations(labels[order], change, correct, limits.least))
    allowed = (broken == 0) & (overall >= limits.least_overall)

    candidates = [Step(0.0, limits.value(correct), int(correct.sum()))] if limits.allows(correct) else []
    usable = last_of_step[allowed[last_of_step]] if len(last_of_step) else last_of_step
    if len(usable):
        rounded = np.round(value[usable], 12)
        best = usable[np.lexsort((scales[usable], -overall[usable], -rounded))[0]]
        after = scales[scales > scales[best]]
        upper = float(after[0]) if len(after) else float(scales[best]) * 1.05 + 1e-6
        candidates.append(Step((float(scales[best]) + upper) / 2, float(rounded[rounded.argmax()]), int(overall[best])))
    if not candidates:
        return None
    return min(candidates, key=lambda s: (-round(s.value, 12), -s.overall, s.scale))


def _violations(label: np.ndarray, change: np.ndarray, correct: np.ndarray, least: np.ndarray) -> np.ndarray:
    """For each event, +1 when its class falls below its least, -1 when it comes back."""
    marks = np.zeros(len(label), dtype=np.int64)
    by_class = np.argsort(label, kind="stable")
    sorted_labels = label[by_class]
    sums = np.cumsum(change[by_class])
    first = np.searchsorted(sorted_labels, sorted_labels, side="left")
    before_class = np.where(first > 0, sums[first - 1], 0)
    after = correct[sorted_labels] + sums - before_class
    before = after - change[by_class]
    low = least[sorted_labels]
    marks[by_class] = (after < low).astype(np.int64) - (before < low).astype(np.int64)
    return marks
