"""Pareto fronts of two quantities that are both to be large."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def pareto_front(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Indices of the points no other point beats in both, in order of rising ``first``; equal points once."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    order = np.lexsort((-b, -a))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], b[order][:-1]]))
    return order[b[order] > best][::-1]
