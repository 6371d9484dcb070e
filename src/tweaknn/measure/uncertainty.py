"""How sure a figure is: intervals of an accuracy, paired comparison of two classifiers on the same
examples."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm

from tweaknn.errors import InputError


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of ``successes / n``; ``(nan, nan)`` when ``n`` is 0.

    Raises:
        InputError: ``level`` outside (0, 1), or successes outside 0..n.
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"the confidence level must lie between 0 and 1, not {level}.")
    if not 0 <= successes <= n:
        raise InputError(f"successes must lie between 0 and n = {n}, not {successes}.")
    if n == 0:
        return float("nan"), float("nan")
    z = float(norm.ppf(0.5 + level / 2))
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The bound is exactly 0 (or 1) there; rounding must not make it -1e-17.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return low, high


def _discordant(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[int, int, int]:
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"a paired test needs two lists of equal length, not {a.shape} and {b.shape}.")
    return int((a & ~b).sum()), int((b & ~a).sum()), len(a)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """P-value of the exact two-sided McNemar test on paired correctness ``correct_a``, ``correct_b`` ``(n,)`` bool: binomial on
    the examples where they differ.

    Raises:
        InputError: the two are not lists of one length.
    """
    only_a, only_b, _ = _discordant(correct_a, correct_b)
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction: each p-value as if it had been the only test, whatever the tests have to do with one another."""
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


def combined(values: Sequence[float]) -> float:
    """One p-value of several tests of one thing, valid however they depend on one another (Rüger 1978).

    The k-th smallest of K times K / k, with k the middle: seeds are tested on the same examples, so nothing that takes them for
    independent may be used.

    Raises:
        InputError: no p-value is given.
    """
    if not len(values):
        raise InputError("combining p-values needs at least one.")
    p = sorted(values)
    middle = (len(p) + 1) // 2
    return float(min(1.0, p[middle - 1] * len(p) / middle))


def paired_difference(correct_a: ArrayLike, correct_b: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Accuracy of b less accuracy of a on the same examples, with its interval ``(difference, low, high)``.

    The interval is Agresti and Min's (2005) adjusted Wald: half an example is added to each discordant
    cell, which keeps its coverage near the level in small samples. ``correct_a``, ``correct_b``: ``(n,)`` bool; all figures
    are fractions.

    Raises:
        InputError: no example, or the two are not lists of one length.
    """
    only_a, only_b, n = _discordant(correct_a, correct_b)
    if n == 0:
        raise InputError("a paired difference needs at least one example.")
    z = float(norm.ppf(0.5 + level / 2))
    lost, won, size = only_a + 0.5, only_b + 0.5, n + 2.0
    middle = (won - lost) / size
    half = z * sqrt(max(0.0, (won + lost) - (won - lost) ** 2 / size)) / size
    return (only_b - only_a) / n, middle - half, middle + half
