"""Measures of ranking, which a mere shift of one logit hardly moves: AUROC and sensitivity at a
specificity."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tweaknn.errors import InputError


def class_scores(logits: np.ndarray) -> np.ndarray:
    """One-vs-rest score ``(n, c)`` of each class: its log-odds ``log(p_j / (1 - p_j))`` under softmax.

    It ranks examples exactly as ``p_j`` does, and keeps doing so where ``p_j`` rounds to 0 or 1:
    ``z_j - logsumexp of the other logits``.
    """
    z = np.asarray(logits, dtype=np.float64)
    rows = np.arange(len(z))
    shifted = z - z.max(axis=1, keepdims=True)
    exps = np.exp(shifted)
    total = exps.sum(axis=1, keepdims=True)
    # Below the top class p_j <= 1/2, so 1 - p_j is safe; for the top class the others are summed by
    # themselves.
    top = z.argmax(axis=1)
    rest = np.log(total) + np.log1p(-np.minimum(exps / total, 0.5))
    others = shifted.copy()
    others[rows, top] = -np.inf
    second = others.max(axis=1)
    rest[rows, top] = second + np.log(np.exp(others - second[:, None]).sum(axis=1))
    return shifted - rest


def auroc_binary(scores: ArrayLike, positive: ArrayLike) -> float:
    """Exact area under the ROC curve of ``scores`` ``(n,)`` for the examples ``positive`` ``(n,)`` bool (Mann-Whitney with
    midranks for ties); NaN when either side is empty."""
    s, p = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    n_positive = int(p.sum())
    n_negative = len(p) - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    _, group, size = np.unique(s, return_inverse=True, return_counts=True)
    midrank = np.cumsum(size) - (size - 1) / 2
    rank_sum = midrank[group][p].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def auroc_by_class(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """AUROC ``(c,)`` of each class against all others, on :func:`class_scores` of logits ``(n, c)`` and labels ``(n,)``; NaN for
    absent classes."""
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    scores = class_scores(z)
    return np.array([auroc_binary(scores[:, j], y == j) for j in range(z.shape[1])])


def sensitivity_at_specificity(scores: ArrayLike, positive: ArrayLike, specificity: float) -> float:
    """Largest sensitivity of a rule ``score >= t`` whose specificity is at least ``specificity``.

    ``scores (n,)``, ``positive (n,)`` boolean; NaN when either side is empty. Raises
    :class:`~tweaknn.errors.InputError` for a specificity outside [0, 1].
    """
    if not 0.0 <= specificity <= 1.0:
        raise InputError(f"specificity must lie between 0 and 1, not {specificity}.")
    s, p = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    negatives = np.sort(s[~p])
    if len(negatives) == 0 or not p.any():
        return float("nan")
    # At least ceil(specificity * n) negatives must lie strictly below t.
    below = int(np.ceil(specificity * len(negatives) - 1e-9))
    if below == 0:
        return 1.0
    return float((s[p] > negatives[below - 1]).mean())
