"""Methods that only shift logits: calibration, constant bias, logit adjustment. Controls every other method has to
beat."""

from __future__ import annotations

import numpy as np

from tweaknn.baselines.outcome import Outcome
from tweaknn.baselines.registry import method
from tweaknn.baselines.rule import pick, score, shared_shift
from tweaknn.baselines.task import Task
from tweaknn.fit.convex import fit_linear
from tweaknn.join.stepsearch import Limits, best_scale, correct_by_class


@method("calibration", "softmax of the targets times mu, of the others times 1 - mu")
def calibration(task: Task) -> Outcome:
    """Calibration [17, 49]: μ on validation, the highest target accuracy with overall not below the base's.

    Multiplying the softmax by μ and 1 - μ is adding ``log(μ / (1 - μ))`` to the targets' logits, so μ is found
    exactly, as a
    step of that shift, rather than on a grid.
    """
    z, y = task.logits["validation"], task.labels("validation")
    base = score(z, y, task.targets)
    shift = shared_shift(z, y, task.targets, base)
    bias = np.zeros(task.n_classes)
    bias[list(task.targets)] = shift
    return shifted(task, bias, 1, {"mu": float(1 / (1 + np.exp(-shift)))})


@method("bias", "a constant on each target's logit, chosen on validation")
def bias(task: Task) -> Outcome:
    """One constant a target, chosen in turn by the exact step search until none moves; overall not below the
    base's."""
    z, y = task.logits["validation"], task.labels("validation")
    found = target_scales(z, y, task.targets, {j: np.ones(len(y), dtype=z.dtype) for j in task.targets})
    constant = np.zeros(task.n_classes)
    for j, value in found.items():
        constant[j] = value
    return shifted(task, constant, len(task.targets), {"bias": {task.classes[j]: float(v) for j, v in found.items()}})


@method("logit-adjustment", "a constant on every logit: class priors taken out, targets preferred")
def logit_adjustment(task: Task) -> Outcome:
    """Logit adjustment (Menon et al. 2021) over all classes, for a network whose own priors are unknown.

    Biases are fitted by maximum likelihood on the train split with every class counting equally (which takes the
    shift of
    class priors out), plus ``τ`` times minus the log of the training frequencies; targets may count more. ``τ``
    and the
    targets' weight are chosen on validation: best target accuracy with overall not below the base's.
    """
    z, y = task.logits["train"], task.labels("train")
    counts = np.bincount(y, minlength=task.n_classes)
    frequency = np.maximum(counts, 0.5) / len(y)
    equal = 1.0 / np.maximum(counts, 1)[y]
    validation = task.logits["validation"]
    labels = task.labels("validation")
    base = score(validation, labels, task.targets)
    candidates = [(np.zeros(task.n_classes), {"tau": 0.0, "target_weight": 0.0})]
    for preference in (1.0, 1.5, 2.0, 3.0, 5.0):
        weight = equal * np.where(np.isin(y, task.targets), preference, 1.0)
        _, fitted = fit_linear(np.zeros((len(y), 1), dtype=np.float32), z, y, l2=1.0, sample_weight=weight)
        for tau in (0.0, 0.5, 1.0):
            candidates.append((fitted - tau * np.log(frequency), {"tau": tau, "target_weight": preference}))
    scores = [score(validation + constant, labels, task.targets) for constant, _ in candidates]
    constant, settings = candidates[pick(scores, base, 0.0)]
    return shifted(task, constant - np.median(constant), task.n_classes, settings)


def shifted(task: Task, constant: np.ndarray, parameters: int, settings: dict) -> Outcome:
    """The base with ``constant (c,)`` added to its logits."""
    added = constant.astype(np.float32)
    return Outcome(task.judged()[0] + added, task.logits["test"] + added, parameters, settings)


def target_scales(
    logits: np.ndarray,
    labels: np.ndarray,
    targets: tuple[int, ...],
    directions: dict[int, np.ndarray],
    sweeps: int = 3,
) -> dict[int, float]:
    """A scale ``>= 0`` for each target's direction ``(n,)``, by coordinate ascent over exact steps.

    Mean target accuracy as high as possible while overall accuracy stays at least that of ``logits`` and no target
    falls.
    Several targets compete with one another, so that none can move alone: the ascent also starts from the best
    point at
    which all of them move together, and the better of the two ends counts.
    """
    c = logits.shape[1]
    counts = np.bincount(labels, minlength=c)
    weight = np.zeros(c)
    weight[list(targets)] = 1.0 / (len(targets) * np.maximum(counts[list(targets)], 1))
    base = correct_by_class(logits, labels)
    least = np.zeros(c, dtype=np.int64)
    least[list(targets)] = base[list(targets)]
    limits = Limits(least, int(base.sum()), weight)
    starts = [dict.fromkeys(targets, 0.0)]
    if len(targets) > 1:
        starts.append(_together(logits, labels, targets, directions, limits))
    ends = [_ascend(logits, labels, targets, directions, limits, start, sweeps) for start in starts]
    values = [limits.value(correct_by_class(_moved(logits, end, directions), labels)) for end in ends]
    return ends[int(np.argmax(values))]


def _moved(logits: np.ndarray, scales: dict[int, float], directions: dict[int, np.ndarray]) -> np.ndarray:
    z = logits.copy()
    for j, scale in scales.items():
        z[:, j] += np.float32(scale) * directions[j]
    return z


def _together(
    logits: np.ndarray,
    labels: np.ndarray,
    targets: tuple[int, ...],
    directions: dict[int, np.ndarray],
    limits: Limits,
    levels: int = 60,
) -> dict[int, float]:
    """The best allowed point with all targets at one scale, on quantiles of the scales at which their examples
    flip."""
    gaps = []
    for j in targets:
        rows = (labels == j) & (directions[j] > 0)
        gaps.append((logits[rows].max(1) - logits[rows, j]) / directions[j][rows])
    every = np.concatenate(gaps)
    best_value, best = -1.0, dict.fromkeys(targets, 0.0)
    for scale in np.unique(np.quantile(every[every > 0], np.linspace(0, 0.98, levels))) if (every > 0).any() else []:
        scales = dict.fromkeys(targets, float(scale))
        correct = correct_by_class(_moved(logits, scales, directions), labels)
        if limits.allows(correct) and limits.value(correct) > best_value:
            best_value, best = limits.value(correct), scales
    return best


def _ascend(
    logits: np.ndarray,
    labels: np.ndarray,
    targets: tuple[int, ...],
    directions: dict[int, np.ndarray],
    limits: Limits,
    start: dict[int, float],
    sweeps: int,
) -> dict[int, float]:
    scales = dict(start)
    for _ in range(sweeps):
        before = dict(scales)
        for j in targets:
            others = _moved(logits, {k: s for k, s in scales.items() if k != j}, directions)
            step = best_scale(others, directions[j], j, labels, limits)
            if step is not None:
                scales[j] = float(step.scale)
        if all(abs(scales[j] - before[j]) < 1e-9 for j in targets):
            break
    return scales
