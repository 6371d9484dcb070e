"""Candidates for a delta: the method's own and the controls, each brought to its operating point by the same rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tweaknn.delta import Delta, Read, synapses
from tweaknn.fit.convex import LinearFit, fit_path
from tweaknn.join.comparison import Comparison, compare_logits
from tweaknn.join.operating import OperatingPoint, operate
from tweaknn.join.promise import Promise
from tweaknn.join.table import PooledTable
from tweaknn.measure import negative_log_likelihood

L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4)
"""Strengths tried for the convex fit; validation decides."""

STRENGTHS = (1.0, 0.75, 0.5, 0.25)
"""Multiples of a fitted delta among which validation chooses."""

SLACK = 0.5
"""Standard errors of target accuracy within which overall accuracy decides, see :func:`second_thought`."""

CONTROLS = ("bias", "random-neurons", "last-layer")
"""What any method has to beat: a constant on each logit, neurons drawn by lot, the last hidden layer alone."""


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
    """

    name: str
    delta: Delta
    logits: np.ndarray
    comparison: Comparison
    point: OperatingPoint
    notes: dict[str, Any] = field(default_factory=dict)

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
        targets: positions of the target classes.
        classes: names of the logits.
        frame: a delta without terms for this base, to be filled.
    """

    train: PooledTable
    validation: PooledTable
    targets: tuple[int, ...]
    classes: list[str]
    promise: Promise
    frame: Delta
    seed: int


def settle(setting: Setting, name: str, delta: Delta, logits: np.ndarray, **notes: Any) -> Candidate:
    """Bring a delta, whose validation logits are ``logits``, to its operating point.

    How strong the delta is (:data:`STRENGTHS`) is part of the operating point: at strength 0 every promise that the
    base keeps is kept, so a delta that breaks one at full strength may still help at half of it.
    """
    base, labels = setting.validation.logits, setting.validation.labels
    tried: list[tuple[tuple[bool, float, float], OperatingPoint, float, np.ndarray]] = []
    for strength in STRENGTHS if delta.terms else (1.0,):
        scaled = logits if strength == 1.0 else base + np.float32(strength) * (logits - base)
        point = operate(base, scaled, labels, setting.targets, setting.promise, classes=setting.classes)
        tried.append(((point.feasible, round(point.value, 12), point.overall), point, strength, scaled))
    _, point, strength, scaled = max(tried, key=lambda row: row[0])
    point = second_thought(setting, scaled, point)
    moved = scaled + point.bias.astype(np.float32)
    comparison = compare_logits(base, moved, labels, setting.classes)
    final = (delta if strength == 1.0 else delta * strength).with_bias(torch.from_numpy(point.bias.astype(np.float32)))
    return Candidate(name, final, moved, comparison, point, {**notes, "strength": strength})


def second_thought(setting: Setting, logits: np.ndarray, point: OperatingPoint) -> OperatingPoint:
    """Among operating points whose target accuracy validation cannot tell from the best, the one best for everybody.

    The best point spends every class's slack to the last example. Those within :data:`SLACK` standard errors of its
    target accuracy keep the same promise, and the one with the highest overall accuracy is taken. On thirds of
    CIFAR-10's training split, against slack 0 (the best overall accuracy at the very same target accuracy), half a
    standard error cost 0.3 points of target gain for 0.1 points of overall accuracy on new images: a small matter,
    kept for what cannot be told apart (``benchmarks/second_thought.py``).
    """
    promise, labels, targets = (
        setting.promise.resolve(setting.classes, len(setting.classes)),
        setting.validation.labels,
        setting.targets,
    )
    if not point.feasible or promise.costs is not None or promise.specificity or promise.weights:
        return point
    counts = np.bincount(labels, minlength=len(setting.classes)).astype(float)
    share = point.per_class[list(targets)]
    error = float(np.sqrt((share * (1 - share) / counts[list(targets)]).sum())) / len(targets)
    floors = {j: float(promise.floors.get(j, 0.0)) for j in range(len(counts)) if counts[j]}
    for j in floors:
        base = float(point.base_per_class[j])
        if promise.kind == "floors":
            floors[j] = max(floors[j], base - promise.tolerance)
        if promise.max_drop is not None:
            floors[j] = max(floors[j], base - promise.max_drop)
        if j in targets:
            floors[j] = max(
                floors[j], base if promise.kind != "mixed" else 0.0, float(point.per_class[j]) - SLACK * error
            )
    drop = promise.tolerance if promise.kind == "overall" else promise.overall_drop
    everybody = Promise(
        "mixed",
        floors={j: min(1.0, max(0.0, floor)) for j, floor in floors.items()},
        overall_drop=drop,
        weights={j: float(counts[j]) for j in floors},
    )
    base_logits = setting.validation.logits
    found = operate(base_logits, logits, labels, list(floors), everybody, starts=[point.bias])
    if not found.feasible or found.overall <= point.overall:
        return point
    target = float(found.per_class[list(targets)].mean())
    return replace(
        point, bias=found.bias, target=target, value=target, overall=found.overall, per_class=found.per_class
    )


def bias_alone(setting: Setting) -> Candidate:
    """Control: nothing but a constant on each logit."""
    return settle(setting, "bias", _renamed(setting.frame, "bias"), setting.validation.logits)


def linear(
    setting: Setting, name: str, columns: np.ndarray, grid: Sequence[float] = L2_GRID, **notes: Any
) -> Candidate:
    """:func:`fitted` synapses at their operating point."""
    delta, logits, l2 = fitted(setting, name, columns, grid)
    return settle(setting, name, delta, logits, l2=l2, neurons_read=len(columns), **notes)


def fitted(
    setting: Setting, name: str, columns: np.ndarray, grid: Sequence[float] = L2_GRID
) -> tuple[Delta, np.ndarray, float]:
    """Synapses from the pooled neurons ``columns`` to all logits, at the optimum of the convex problem (section 3.2.4),
    its L2 chosen by the log loss on validation.

    Returns:
        The delta before any operating point, its validation logits ``(n, c)``, the L2.
    """
    # a class without training examples gets nothing: its best bias would be minus infinity
    present = np.bincount(setting.train.labels, minlength=setting.train.logits.shape[1]) > 0
    fits = fit_path(
        setting.train.features[:, columns],
        setting.train.logits,
        setting.train.labels,
        grid,
        mask=None if present.all() else present,
    )
    features = setting.validation.features[:, columns]
    scored: list[tuple[float, int, LinearFit, np.ndarray]] = []
    for position, fit in enumerate(fits):
        logits = fit.logits(features, setting.validation.logits)
        scored.append((negative_log_likelihood(logits, setting.validation.labels), position, fit, logits))
    _, _, best, logits = min(scored, key=lambda row: row[:2])
    weight = torch.from_numpy(best.weight.astype(np.float32))
    term = synapses(pick(setting.train.reads, columns), weight, range(logits.shape[1]))
    bias = torch.from_numpy(best.bias.astype(np.float32))
    delta = Delta(**{**fields_of(setting.frame), "terms": (term,), "bias": bias, "kind": name})
    return delta, logits, best.l2


def controls(setting: Setting) -> list[Candidate]:
    """The three controls, on the same splits and by the same rule as the method."""
    f = setting.train.features.shape[1]
    last = np.arange(f)[setting.train.spans()[-1]]
    rng = np.random.default_rng(setting.seed)
    few = np.sort(rng.choice(f, size=max(1, f // 4), replace=False))
    return [
        bias_alone(setting),
        linear(setting, "random-neurons", few),
        linear(setting, "last-layer", last),
    ]


def pick(reads: Sequence[Read], columns: np.ndarray) -> list[Read]:
    """The reads of some columns (sorted) of a table."""
    chosen = []
    start = 0
    for read in reads:
        stop = start + int(read.index.numel())
        inside = columns[(columns >= start) & (columns < stop)] - start
        if len(inside):
            index = read.index[torch.from_numpy(np.asarray(inside, dtype=np.int64))]
            chosen.append(Read(read.layer, read.reduction, read.shape, read.channel_axis, index))
        start = stop
    return chosen


def fields_of(delta: Delta) -> dict[str, Any]:
    return {name: getattr(delta, name) for name in delta.__dataclass_fields__}


def _renamed(delta: Delta, kind: str) -> Delta:
    return Delta(**{**fields_of(delta), "kind": kind})
