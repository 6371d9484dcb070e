"""Exact tests of a paired drop: may a class's accuracy have fallen by as much as is allowed, or more?

Of ``n`` examples ``lost`` were right before and are wrong now, ``won`` the other way round. The drop on new data is
``p_lost - p_won``; the observed ``lost - won`` is a sum of ``n`` independent steps of -1, 0, +1, so its distribution is known up to
one nuisance number (how many examples change at all). It is bounded by the method of Berger and Boos (1994): a confidence limit for
the nuisance at a small level ``beta``, the largest tail probability below it, plus ``beta``. Valid for every sample size.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import beta as beta_distribution
from scipy.stats import binom

from tweaknn.errors import InputError

NUISANCE = 0.1
"""Share of the level that is spent on the confidence limit of the nuisance."""
_GRID = 24


def lost_p_value(lost: int, n: int, allowed: float) -> float:
    """P-value of the same from the examples lost alone, as if none could be won: the better test where hardly any change.

    A drop of ``allowed`` or more means that at least that share is lost: exact binomial. With ``allowed`` 0 always 1.
    """
    return float(binom.cdf(lost, n, allowed))


def drop_p_value(lost: int, won: int, n: int, allowed: float, level: float = 0.05) -> float:
    """P-value of "the drop on new data is ``allowed`` or more"; small means that less than ``allowed`` is lost.

    Args:
        lost: examples right before and wrong after.
        won: examples wrong before and right after.
        n: examples of the class.
        allowed: drop of accuracy, a fraction in [0, 1].
        level: at which the answer will be judged; only says how much is spent on the nuisance.

    Returns:
        A valid p-value: under any true drop of ``allowed`` or more it is at most ``u`` with probability at most ``u``, for
        each ``u`` of at least ``NUISANCE * level``. With ``allowed`` 0 it is the exact sign test on the examples that changed.

    Raises:
        InputError: counts that do not fit together, ``allowed`` outside [0, 1].
    """
    lost, won, n = int(lost), int(won), int(n)
    if lost < 0 or won < 0 or lost + won > n or n < 1:
        raise InputError(f"{lost} lost and {won} won of {n} examples do not fit together.")
    if not 0.0 <= allowed <= 1.0:
        raise InputError(f"A drop of accuracy lies between 0 and 1, not at {allowed}.")
    if allowed == 0.0:
        return float(binom.cdf(lost, lost + won, 0.5)) if lost + won else 1.0
    if lost - won >= allowed * n:
        return 1.0
    if allowed == 1.0:
        return 0.0
    beta = NUISANCE * level
    # The nuisance is p_won; its upper confidence limit is Clopper and Pearson's.
    limit = 1.0 if won == n else float(beta_distribution.ppf(1 - beta, won + 1, n - won))
    limit = min(limit, (1.0 - allowed) / 2)
    grid = np.linspace(0.0, limit, _GRID)
    tail = _tail(lost - won, n, grid + allowed, grid)
    best = int(tail.argmax())
    # The tail is a smooth function of the nuisance: a second, finer grid around the largest value.
    around = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)], _GRID)
    tail = np.append(tail, _tail(lost - won, n, around + allowed, around))
    return min(1.0, float(tail.max()) + beta)


def _tail(most: int, n: int, p_lost: np.ndarray, p_won: np.ndarray) -> np.ndarray:
    """P(lost - won <= most) for pairs of step probabilities: a binomial sum over how many examples change."""
    out = np.empty(len(p_lost))
    for k, (a, b) in enumerate(zip(p_lost, p_won, strict=True)):
        q = a + b
        reach = 10 * np.sqrt(n * q * (1 - q)) + 20  # what lies beyond has less mass than rounding
        changed = np.arange(max(0, int(n * q - reach)), min(n, int(n * q + reach) + 1) + 1)
        half = np.floor((most + changed) / 2)
        out[k] = (binom.pmf(changed, n, q) * binom.cdf(half, changed, a / q)).sum()
    return np.clip(out, 0.0, 1.0)


def drop_bound(lost: int, won: int, n: int, level: float = 0.95) -> float:
    """Upper confidence limit of the drop on new data: the smallest drop that the data reject at ``1 - level``, to 1e-4.

    ``lost`` and ``won`` of ``n`` examples became wrong and right. Raises InputError where they do not fit together."""
    alpha = 1 - level
    low, high = max(0.0, (lost - won) / n), 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if drop_p_value(lost, won, n, middle, alpha) <= alpha:
            high = middle
        else:
            low = middle
    return high


def least_examples(allowed: float, level: float = 0.95) -> int:
    """Examples of a class below which a drop under ``allowed`` cannot be certified even if not one of them is lost."""
    if not 0 < allowed < 1:
        return 0
    return int(np.ceil(np.log(1 - level) / np.log(1 - allowed) - 1e-9))


def below_p_value(successes: int, n: int, least: float) -> float:
    """P-value of "the rate on new data is below ``least``", having seen ``successes`` of ``n``: exact binomial
    (Clopper and Pearson 1934)."""
    return float(binom.sf(successes - 1, n, least)) if least > 0 else 0.0


def above_p_value(events: int, n: int, most: float) -> float:
    """P-value of "the rate on new data is above ``most``", having seen ``events`` of ``n``: exact binomial (Clopper
    and Pearson 1934)."""
    return float(binom.cdf(events, n, most)) if most < 1 else 0.0
