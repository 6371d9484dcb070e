"""Set a part of the examples aside, class by class, never parting a group."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from tweaknn.errors import InputError


def holdout(
    labels: np.ndarray, *, share: float = 0.5, groups: np.ndarray | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split examples into two parts, stratified by label.

    Args:
        labels: ``(n,)`` integers.
        share: of the examples that go to the second part, in (0, 1); rounded to a whole number of folds.
        groups: ``(n,)`` of anything sortable (patients, lesions); a group stays in one part.
        seed: of the shuffle.

    Returns:
        Sorted positions of the first and of the second part.

    Raises:
        InputError: ``share`` is not in (0, 1), a class or the groups are too few to split.
    """
    if not 0.0 < share < 1.0:
        raise InputError(f"The share set aside for validation must lie between 0 and 1, not {share}.")
    if len(labels) < 2:
        raise InputError(f"{len(labels)} examples cannot be split in two; give --validation.")
    folds, taken = _fraction(share)
    counts = np.unique(labels, return_counts=True)[1]
    folds = max(2, min(folds, len(labels)))
    if groups is None:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        if counts.max() < folds:
            raise InputError(f"No class has {folds} examples, too few to set some aside; give --validation.")
        parts = [test for _, test in quietly(splitter, labels, None)]
    else:
        distinct = len(np.unique(groups))
        if distinct < folds:
            raise InputError(f"There are only {distinct} groups, too few to set some aside; give --validation.")
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = [test for _, test in quietly(splitter, labels, groups)]
    second = np.sort(np.concatenate(parts[:taken]))
    first = np.setdiff1d(np.arange(len(labels)), second)
    return first, second


def _fraction(share: float) -> tuple[int, int]:
    """``share`` as ``taken / folds`` with few folds."""
    best = min(
        ((folds, round(share * folds)) for folds in range(2, 11)), key=lambda ft: (abs(ft[1] / ft[0] - share), ft)
    )
    return best[0], min(max(best[1], 1), best[0] - 1)


def quietly(splitter, labels: np.ndarray, groups: np.ndarray | None):  # type: ignore[no-untyped-def]
    import warnings

    with warnings.catch_warnings():  # rare classes are spread as well as they can be; the promise warns about them
        warnings.simplefilter("ignore", UserWarning)
        yield from splitter.split(np.zeros((len(labels), 1)), labels, groups)
