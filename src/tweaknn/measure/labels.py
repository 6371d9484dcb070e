"""Several labels an example, each given where its logit is above a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tweaknn.measure.ranking import auroc_by_class


def label_measures(
    scores: np.ndarray, given: np.ndarray, labels: Sequence[str], threshold: float = 0.0
) -> dict[str, dict[str, Any]]:
    """``scores`` ``(n, l)`` logits, ``given`` ``(n, l)`` of 0 and 1 -> figures by the name in ``labels``, fractions or None where
    undefined.

    ``recall`` is the share of the examples with the label that are given it, ``specificity`` the share of the others that
    are not, ``balanced`` their mean; ``given`` counts the examples that have it, ``said`` those that are given it.
    """
    found = {}
    for j, name in enumerate(labels):
        score, truth = scores[:, j], given[:, j].astype(bool)
        said = score > threshold
        recall = float(said[truth].mean()) if truth.any() else None
        specificity = float((~said[~truth]).mean()) if (~truth).any() else None
        two = np.stack([np.zeros_like(score), score], axis=1)
        auroc = float(auroc_by_class(two, truth.astype(np.int64))[1]) if 0 < truth.sum() < len(truth) else None
        found[name] = {
            "given": int(truth.sum()),
            "said": int(said.sum()),
            "recall": recall,
            "specificity": specificity,
            "balanced": None if recall is None or specificity is None else (recall + specificity) / 2,
            "auroc": auroc,
        }
    return found
