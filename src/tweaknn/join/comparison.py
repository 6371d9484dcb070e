"""Base and tweaked network side by side on the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tweaknn.join.diagnosis import names_of
from tweaknn.measure import Measures, error_e, mcnemar, measure, worst_drop


@dataclass(frozen=True)
class Comparison:
    """Figures of two sets of logits on the same labels.

    Attributes:
        base, tweaked: see :class:`~tweaknn.measure.Measures`.
        E: Eq. 3.3, a fraction.
        worst_drop: least of after - before over the classes with examples, a fraction.
        worst_class: the class of it.
        p_value: exact McNemar test of overall correctness.
    """

    base: Measures
    tweaked: Measures
    E: float
    worst_drop: float
    worst_class: str
    p_value: float
    classes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures, as ``tweaknn evaluate --json`` writes them."""
        return {
            "classes": self.classes,
            "n": self.base.n,
            "base": self.base.to_dict(self.classes),
            "tweaked": self.tweaked.to_dict(self.classes),
            "E": self.E,
            "worst_drop": self.worst_drop,
            "worst_class": self.worst_class,
            "p_value": self.p_value,
        }


def compare_logits(
    base: np.ndarray, tweaked: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None = None
) -> Comparison:
    """Compare logits ``(n, c)`` before (``base``) and after (``tweaked``) on labels ``(n,)``. Raises InputError for NaN or bad labels."""
    names = names_of(classes, base.shape[1])
    before, after = measure(base, labels), measure(tweaked, labels)
    drop, where = worst_drop(before.per_class, after.per_class)
    p = mcnemar(base.argmax(1) == labels, tweaked.argmax(1) == labels)
    e = error_e(before.per_class, after.per_class)
    return Comparison(before, after, e, drop, names[where], p, names)
