"""The exact optimum under floors: a least fixed point.

Fix the biases of the targets. The accuracy of a class rises with its own bias and falls with every other. So if two bias vectors
keep all floors of the other classes, their componentwise minimum does too (each class keeps its own bias from one of the two, and
meets competitors no stronger than there): the feasible points form a lattice with a least element, and since a target's accuracy
falls with every other bias, *the least element is the best feasible point for the targets*. It is reached from below by raising
one bias at a time to the smallest value that meets that class's floor (Tarski; Gauss-Seidel order).

For a single target nothing else is free, so this is the global optimum of ``floors``, and "infeasible" is a proof.
"""

from __future__ import annotations

import numba as nb
import numpy as np

NEVER = -1e30


@nb.njit(cache=True)
def _raise(z, start, rows, need, b, free, follow, ceiling, eps, most_sweeps):  # pragma: no cover - compiled
    """Raise ``b`` in place to the least fixed point; returns sweeps used, or -1 where a bias passed ``ceiling``."""
    c = z.shape[1]
    for sweep in range(most_sweeps):
        changed = False
        for j in range(c):
            if not free[j]:
                continue
            size = start[j + 1] - start[j]
            d = np.empty(size)
            for r in range(size):
                k = rows[start[j] + r]
                top = NEVER
                for i in range(c):
                    if i != j:
                        top = max(top, z[k, i] + b[i])
                d[r] = top - z[k, j]
            d.sort()
            least = d[int(need[j]) - 1] + eps
            if least > b[j]:
                b[j] = least
                changed = True
                if least > ceiling:
                    return -1
        low = np.inf
        for j in range(c):
            if free[j]:
                low = min(low, b[j])
        if low < np.inf:
            for j in range(c):
                if follow[j] and low > b[j]:
                    b[j] = low
                    changed = True
        if not changed:
            return sweep + 1
    return most_sweeps


def least_biases(
    z: np.ndarray, y: np.ndarray, need: np.ndarray, bias: np.ndarray, fixed: np.ndarray, most_sweeps: int | None = None
) -> tuple[np.ndarray, bool]:
    """The smallest biases of the classes not ``fixed`` that meet ``need``.

    Args:
        z: (n, c) float64 logits.
        y: (n,) labels.
        need: (c,) correct predictions each class must keep (at most its number of examples). A free class that needs none, or has
            no examples, follows the smallest of the others, so that no class is silenced unseen.
        bias: (c,) the biases of the fixed classes; other entries are ignored.
        fixed: (c,) booleans, at least one True.
        most_sweeps: a cap on the work, None: 400, more of them where they are cheap. It is reached only where two classes outbid each
            other by tiny steps; the point is then infeasible by a few examples.

    Returns:
        biases (c,), and whether the floors of the free classes can be met at all (False: even silencing the fixed classes does not
        help).
    """
    c = z.shape[1]
    counts = np.bincount(y, minlength=c)
    free = ~fixed & (need > 0) & (counts > 0)
    follow = ~fixed & ~free
    b = np.where(fixed, bias, NEVER).astype(np.float64)
    rows = np.argsort(y, kind="stable")
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    span = float(z.max() - z.min())
    ceiling = float(b[fixed].max()) + (c + 1) * span + 1.0
    if (need[free] > counts[free]).any():
        return np.where(b == NEVER, 0.0, b), False
    eps = 1e-6 * max(1.0, span / 100)
    if most_sweeps is None:
        most_sweeps = max(400, 30_000_000 // max(z.size, 1))
    used = _raise(z, start, rows, need, b, free, follow, ceiling, eps, most_sweeps)
    b[b <= NEVER] = b[fixed].min()
    return b, used >= 0
