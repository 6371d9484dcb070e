"""Sentences a user should read before trusting a result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from tweaknn.join.promise import Promise
from tweaknn.join.table import PooledTable

FEW = 100
"""Below so many validation examples a floor on a class's accuracy holds only by several points either way."""


def thin_warnings(labels: np.ndarray, classes: Sequence[str], targets: Sequence[int], promise: Promise) -> list[str]:
    """Classes whose validation examples are too few for what is promised of them."""
    counts = np.bincount(labels, minlength=len(classes))
    watched = range(len(classes)) if promise.kind == "floors" or promise.max_drop is not None else targets
    thin = [(classes[j], int(counts[j])) for j in watched if counts[j] < FEW]
    if not thin:
        return []
    some = ", ".join(f"{name} ({n})" for name, n in thin[:6]) + (", ..." if len(thin) > 6 else "")
    return [f"the promise rests on few validation examples of {some}; on new data it holds only by several points"]


def base_saw_warnings(
    base_saw: str | None, train: PooledTable, validation: PooledTable, *, set_aside: bool
) -> list[str]:
    """Whether validation examples were part of the base's own training, as told or as the accuracies suggest."""
    if base_saw in ("validation", "both"):
        return [
            "the base was trained on the validation data, which flatters whatever fits hardest: "
            "expect less on new data, and smaller classes to pay; give --validation data the base never saw"
        ]
    right_t, right_v = (int((t.logits.argmax(1) == t.labels).sum()) for t in (train, validation))
    n_t, n_v = len(train.labels), len(validation.labels)
    gap = right_v / n_v - right_t / n_t
    p = float(stats.fisher_exact([[right_t, n_t - right_t], [right_v, n_v - right_v]])[1])
    if base_saw is None and p < 0.01 and gap > 0.02:
        return [
            f"the base is {100 * gap:.1f} points better on validation than on train: "
            "validation was probably part of its own training; say so with --base-saw, or give other validation data"
        ]
    if base_saw is None and p < 0.01 and gap < -0.02:
        return [
            f"the base is {-100 * gap:.1f} points better on train than on validation: it was probably trained on the former, "
            "so the fit sees easier examples than it will meet"
        ]
    if set_aside and base_saw == "train":
        return [
            "validation was set aside from data the base was trained on, which flatters whatever fits hardest; "
            "give --validation data the base never saw"
        ]
    if base_saw is None and right_v == n_v:
        return ["the base makes no mistake on validation, which suggests that it was trained on it"]
    return []
