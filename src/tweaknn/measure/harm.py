"""Who pays: the dissertation's E (Eq. 3.3) and the largest loss of one class."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tweaknn.errors import InputError


def _pair(before: ArrayLike, after: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    o, t = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if o.ndim != 1 or o.shape != t.shape:
        raise InputError(f"accuracies before and after must be lists of equal length, not {o.shape} and {t.shape}.")
    both = np.isfinite(o) & np.isfinite(t)
    if not both.any():
        raise InputError("no class has an accuracy both before and after.")
    return o, t, both


def error_e(before: ArrayLike, after: ArrayLike) -> float:
    """``E = sqrt( (1/|C|) sum_i (t_i - o_i)^2 [t_i < o_i] )``, Eq. 3.3, in the unit of its input.

    ``before (c,)`` and ``after (c,)`` are per-class accuracies ``o`` and ``t``; classes that are NaN (no
    examples)
    in either are left out, of ``|C|`` too.
    """
    o, t, both = _pair(before, after)
    loss = np.minimum(t[both] - o[both], 0.0)
    return float(np.sqrt((loss**2).mean()))


def worst_drop(before: ArrayLike, after: ArrayLike) -> tuple[float, int]:
    """Smallest ``after - before`` over classes (negative when some class lost) and that class's index."""
    o, t, both = _pair(before, after)
    change = np.where(both, t - o, np.inf)
    worst = int(np.argmin(change))
    return float(change[worst]), worst
