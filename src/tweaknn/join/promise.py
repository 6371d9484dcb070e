"""What the user asks of an operating point: a sentence about classes, as a value.

``floors``
    mean target accuracy as high as possible while no other class falls below its base accuracy less ``tolerance``, and no
    target below its own.
``overall``
    mean target accuracy as high as possible while overall accuracy does not fall below the base's less ``tolerance``, and no
    target falls below its own.
``mixed``
    only what is written: ``floors`` (absolute accuracies of named classes), ``max_drop`` (no class loses more than this),
    ``overall_drop``, ``specificity`` of targets, ``weights`` of targets, ``costs`` of confusions.

The additional fields may be added to ``floors`` and ``overall`` as well; they only ever tighten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tweaknn.errors import InputError

KINDS = ("floors", "overall", "mixed")


@dataclass(frozen=True)
class Promise:
    """One promise; all accuracies and tolerances are fractions, classes are names or positions.

    Attributes:
        kind: ``floors``, ``overall`` or ``mixed``.
        tolerance: accuracy that may be given up, for ``floors`` by each other class, for ``overall`` by overall accuracy.
        floors: class -> least accuracy, absolute.
        max_drop: no class may lose more accuracy than this against the base (None: no such rule).
        overall_drop: overall accuracy may lose at most this (None: no such rule).
        weights: target -> weight in the mean target accuracy (1 where not given).
        specificity: target -> least share of the other classes' examples that is not called the target.
        costs: (c, c) cost of calling true class (row) predicted class (column); its mean over the examples is subtracted from
            the mean target accuracy. None: no costs.

    Raises:
        InputError: an unknown kind, a fraction outside 0..1, a negative weight, a tolerance of a mixed promise.
    """

    kind: str = "floors"
    tolerance: float = 0.0
    floors: Mapping[Any, float] = field(default_factory=dict)
    max_drop: float | None = None
    overall_drop: float | None = None
    weights: Mapping[Any, float] = field(default_factory=dict)
    specificity: Mapping[Any, float] = field(default_factory=dict)
    costs: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Unknown promise {self.kind!r}; choose one of {', '.join(KINDS)}.")
        if self.kind == "mixed" and self.tolerance:
            raise InputError("A mixed promise has no tolerance of its own; say max_drop (--max-drop) or overall_drop (--overall-drop).")
        single = {"tolerance": self.tolerance, "max_drop": self.max_drop, "overall_drop": self.overall_drop}
        named = [(f"floor of {k}", v) for k, v in self.floors.items()]
        named += [(f"specificity of {k}", v) for k, v in self.specificity.items()]
        for name, value in [*single.items(), *named]:
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"The promise's {name} must be a fraction between 0 and 1, got {value}.")
        for name, weight in self.weights.items():
            if not (np.isfinite(weight) and weight >= 0):
                raise InputError(f"The weight of target {name} must be a finite number of at least 0, got {weight}.")
        if self.costs is not None and not np.isfinite(np.asarray(self.costs, dtype=float)).all():
            raise InputError("The cost matrix holds NaN or infinite values.")

    def resolve(self, classes: Sequence[str] | None, c: int, named: Collection[Any] = ()) -> Promise:
        """The same promise with positions in place of class names; weights may also belong to ``named`` sub-class targets.

        Raises:
            InputError: a class is unknown, or the cost matrix is not (c, c).
        """
        if self.costs is not None and np.asarray(self.costs).shape != (c, c):
            raise InputError(f"The cost matrix must be {c} x {c}, got {np.asarray(self.costs).shape}.")

        def positions(mapping: Mapping[Any, float]) -> dict[int, float]:
            return {class_position(key, classes, c): float(value) for key, value in mapping.items()}

        own = {key: float(value) for key, value in self.weights.items() if key in named}
        weights = positions({key: value for key, value in self.weights.items() if key not in named})

        return replace(
            self,
            floors=positions(self.floors),
            weights={**weights, **own},
            specificity=positions(self.specificity),
        )

    def weighed(self, targets: Sequence[int], classes: Sequence[str], named: Collection[Any] = ()) -> Promise:
        """The same promise for these targets: without weights where they are all alike and so say nothing.

        Raises:
            InputError: a weight belongs to no target.
        """
        keys = list(named) or [classes[j] for j in targets]
        given: dict[Any, float] = {}
        for key, value in self.weights.items():
            whose = key if key in keys or named else classes[class_position(key, classes, len(classes))]
            if whose not in keys:
                raise InputError(f"A weight is given for {key}, which is no target; the targets are {', '.join(map(str, keys))}.")
            given[whose] = value
        alike = len({given.get(key, 1.0) for key in keys}) == 1 and any(given.get(key, 1.0) for key in keys)
        return replace(self, weights={}) if alike else self

    def to_dict(self) -> dict[str, Any]:
        """The fields that say something, ready for JSON."""
        out: dict[str, Any] = {"kind": self.kind, "tolerance": self.tolerance}
        for name in ("max_drop", "overall_drop"):
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        for name in ("floors", "weights", "specificity"):
            if getattr(self, name):
                out[name] = {str(k): float(v) for k, v in getattr(self, name).items()}
        if self.costs is not None:
            out["costs"] = np.asarray(self.costs, dtype=float).tolist()
        return out


def class_position(key: Any, classes: Sequence[str] | None, c: int) -> int:
    """Position of a class given by name or number.

    Raises:
        InputError: no such class (the message lists the classes).
    """
    if classes is not None and key in classes:
        return list(classes).index(key)
    try:
        position = int(key)
    except (TypeError, ValueError):
        position = -1
    if not 0 <= position < c:
        known = ", ".join(map(str, classes)) if classes is not None else f"0..{c - 1}"
        raise InputError(f"Unknown class {key!r}; the classes are {known}.")
    return position
