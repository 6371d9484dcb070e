"""What the candidates of one join share, and what a candidate is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tweaknn.delta import Delta
from tweaknn.join.comparison import Comparison
from tweaknn.join.operating import OperatingPoint
from tweaknn.join.promise import Promise
from tweaknn.join.table import PooledTable

CAUTION = 0.25
"""Standard errors every rule is kept by beyond its letter, unless the user says otherwise (docs/results/fitting.md)."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One possible delta at its operating point.

    Attributes:
        name: the method's or control's.
        delta: with the operating point's bias in it.
        logits: ``(n, c)`` on validation, the delta's part included.
        comparison: validation figures against the base.
        point: the operating point.
        notes: settings chosen on the way (L2, n, scale, ...).
        fitted: the delta and its validation logits as they came out of the fit, before strength and biases; None where the method
            has no such thing.
    """

    name: str
    delta: Delta
    logits: np.ndarray
    comparison: Comparison
    point: OperatingPoint
    notes: dict[str, Any] = field(default_factory=dict)
    fitted: tuple[Delta, np.ndarray] | None = None

    def figures(self) -> dict[str, Any]:
        """JSON-ready validation figures."""
        c = self.comparison
        return {
            "target": self.point.target,
            "target_gain": self.point.target - self.point.base_target,
            "overall": c.tweaked.overall,
            "balanced": c.tweaked.balanced,
            "nll": c.tweaked.nll,
            "ece": c.tweaked.ece,
            "E": c.E,
            "worst_drop": c.worst_drop,
            "worst_class": c.worst_class,
            "p_value": c.p_value,
            "per_class": c.tweaked.to_dict(c.classes)["per_class"],
            "auroc": c.tweaked.to_dict(c.classes)["auroc"],
            "feasible": self.point.feasible,
            "reason": self.point.reason,
            "parameters": self.delta.parameters,
            "neurons": sum(term.neurons for term in self.delta.terms),
            **self.notes,
        }


@dataclass(frozen=True, eq=False)
class Setting:
    """What all candidates of one join share.

    Attributes:
        train, validation: tables of the same pooled neurons.
        targets: positions of the target classes; of a sub-class, the classes its examples belong to.
        classes: names of the logits.
        frame: a delta without terms for this base, to be filled.
        limit: parameters that a candidate may have, see :func:`tweaknn.join.size.limit_of`.
        subclasses: name -> ``(n,)`` mask of validation examples; when there are any they are the targets.
        caution: standard errors by which every rule shall hold on validation beyond its letter, see
            :func:`tweaknn.join.operating.operate`.
        work: floating-point operations of the base for one example, 0 where they cannot be counted.
        operated: bring candidates to their operating point; False leaves them as they were fitted (a fold of a cross-fit).
    """

    train: PooledTable
    validation: PooledTable
    targets: tuple[int, ...]
    classes: list[str]
    promise: Promise
    frame: Delta
    seed: int
    limit: int = 250_000
    subclasses: Mapping[str, np.ndarray] = field(default_factory=dict)
    caution: float = CAUTION
    operated: bool = True
    work: int = 0

    @property
    def aims(self) -> Any:
        """The targets as :func:`~tweaknn.join.operating.operate` takes them."""
        return dict(self.subclasses) if self.subclasses else self.targets

    @property
    def names(self) -> list[str]:
        """Names of the targets."""
        return list(self.subclasses) if self.subclasses else [self.classes[j] for j in self.targets]

    @property
    def target_rows(self) -> np.ndarray:
        """``(n,)`` which validation examples the targets are made of."""
        if self.subclasses:
            return np.any(list(self.subclasses.values()), axis=0)
        return np.isin(self.validation.labels, self.targets)
