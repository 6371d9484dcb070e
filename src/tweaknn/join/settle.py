"""Bring a fitted delta to its operating point: how strong, which biases, how cautious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tweaknn.delta import Delta
from tweaknn.join.comparison import compare_logits
from tweaknn.join.operating import OperatingPoint, operate, standing
from tweaknn.join.promise import Promise
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.starts import LIGHT, QUICK

STRENGTHS = (1.0, 0.75, 0.5, 0.25)
"""Multiples of a fitted delta among which validation chooses."""

SLACK = 0.5
"""Standard errors of target accuracy within which overall accuracy decides, see :func:`second_thought`."""


def settle(setting: Setting, name: str, delta: Delta, logits: np.ndarray, **notes: Any) -> Candidate:
    """Bring a delta, whose validation logits are ``logits``, to its operating point.

    How strong the delta is (:data:`STRENGTHS`) is part of the operating point: at strength 0 every promise that the
    base keeps is kept, so a delta that breaks one at full strength may still help at half of it. Where the setting's caution
    leaves no gain, half of it is tried, then none: caution is on top of the promise, which is kept in any case.
    """
    base, labels = setting.validation.logits, setting.validation.labels
    if not setting.operated:
        point = standing(base, logits, labels, setting.aims, setting.promise, classes=setting.classes)
        comparison = compare_logits(base, logits, labels, setting.classes)
        return Candidate(name, delta, logits, comparison, point, dict(notes), (delta, logits))
    for caution in dict.fromkeys((setting.caution, setting.caution / 2, 0.0)):
        point, strength, scaled = best_strength(setting, logits, caution, STRENGTHS if delta.terms else (1.0,))
        if point.feasible and point.value > point.base_value + 1e-12:
            break
    point = second_thought(setting, scaled, point)
    return placed(setting, name, delta, logits, strength, point, {**notes, "caution": caution})


def best_strength(
    setting: Setting,
    logits: np.ndarray,
    caution: float,
    strengths: Sequence[float] = STRENGTHS,
    near: np.ndarray | None = None,
) -> tuple[OperatingPoint, float, np.ndarray]:
    """The best operating point over multiples of a change: the point, the strength, the logits ``(n, c)`` without its biases.

    ``near``: biases of a point of other caution, from which the search then starts, and is short.
    """
    base, labels = setting.validation.logits, setting.validation.labels
    alone = targets_alone(setting.promise)
    tried: list[tuple[tuple[bool, float, float], OperatingPoint, float, np.ndarray]] = []
    for strength in strengths:
        scaled = logits if strength == 1.0 else base + np.float32(strength) * (logits - base)
        point = operate(
            base, scaled, labels, setting.aims, setting.promise, classes=setting.classes, caution=caution,
            starts=[] if near is None else [near], effort=LIGHT if near is None else QUICK, alone=alone,
        )  # fmt: skip
        tried.append(((point.feasible, round(point.value, 12), point.overall), point, strength, scaled))
    _, point, strength, scaled = max(tried, key=lambda row: row[0])
    if near is None and not alone:
        more = operate(
            base, scaled, labels, setting.aims, setting.promise, classes=setting.classes, caution=caution, starts=[point.bias]
        )
        if (more.feasible, round(more.value, 12), more.overall) > (point.feasible, round(point.value, 12), point.overall):
            point = more
    return point, strength, scaled


def targets_alone(promise: Promise) -> bool:
    """Whether the targets' common bias is all that is chosen: where one rule for everybody together is all that is asked."""
    rest = (promise.floors, promise.specificity, promise.costs is not None, promise.max_drop is not None)
    return promise.kind == "overall" and not any(rest)


def placed(
    setting: Setting,
    name: str,
    delta: Delta,
    logits: np.ndarray,
    strength: float,
    point: OperatingPoint,
    notes: dict[str, Any],
) -> Candidate:
    """The candidate that a strength and an operating point make of a fitted delta and its validation logits ``(n, c)``."""
    base, labels = setting.validation.logits, setting.validation.labels
    scaled = logits if strength == 1.0 else base + np.float32(strength) * (logits - base)
    moved = scaled + point.bias.astype(np.float32)
    comparison = compare_logits(base, moved, labels, setting.classes)
    final = (delta if strength == 1.0 else delta * strength).with_bias(torch.from_numpy(point.bias.astype(np.float32)))
    return Candidate(name, final, moved, comparison, point, {**notes, "strength": strength}, (delta, logits))


def second_thought(setting: Setting, logits: np.ndarray, point: OperatingPoint) -> OperatingPoint:
    """Among operating points whose target accuracy validation cannot tell from the best, the one best for everybody.

    The best point spends every class's slack to the last example. Those within :data:`SLACK` standard errors of its
    target accuracy keep the same promise, and the one with the highest overall accuracy is taken. On thirds of
    CIFAR-10's training split, against slack 0 (the best overall accuracy at the very same target accuracy), half a
    standard error cost 0.3 points of target gain for 0.1 points of overall accuracy on new images: a small matter,
    kept for what cannot be told apart (``benchmarks/second_thought.py``).
    """
    if targets_alone(setting.promise):
        return point
    promise = setting.promise.resolve(setting.classes, len(setting.classes), setting.subclasses)
    labels, targets = setting.validation.labels, list(setting.targets)
    if not point.feasible or setting.subclasses or promise.costs is not None or promise.specificity or promise.weights:
        return point
    counts = np.bincount(labels, minlength=len(setting.classes)).astype(float)
    share = point.per_class[targets]
    error = float(np.sqrt((share * (1 - share) / counts[targets]).sum())) / len(targets)
    floors = {j: max(0.0, float(point.floors[j])) for j in range(len(counts)) if counts[j]}
    for j in targets:
        floors[j] = max(floors[j], float(point.per_class[j]) - SLACK * error)
    drop = promise.tolerance if promise.kind == "overall" else promise.overall_drop
    everybody = Promise(
        "mixed",
        floors={j: min(1.0, max(0.0, floor)) for j, floor in floors.items()},
        overall_drop=drop,
        weights={j: float(counts[j]) for j in floors},
    )
    base_logits = setting.validation.logits
    found = operate(base_logits, logits, labels, list(floors), everybody, starts=[point.bias], effort=LIGHT)
    if not found.feasible or found.overall <= point.overall:
        return point
    target = float(found.per_class[targets].mean())
    return replace(
        point, bias=found.bias, target=target, value=target, overall=found.overall, per_class=found.per_class
    )
