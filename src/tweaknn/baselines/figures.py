"""From the logits of one run to the figures of a table's row."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from tweaknn.baselines.outcome import Outcome
from tweaknn.baselines.task import Task
from tweaknn.join.promise import Promise
from tweaknn.join.setting import Setting
from tweaknn.join.settle import settle
from tweaknn.join.table import PooledTable
from tweaknn.measure import (
    confusion_matrix,
    error_e,
    mcnemar,
    measure,
    per_class_accuracy,
    shift_front,
    shifted_accuracy,
    worst_drop,
)

ROW = 5
"""Of :func:`row`'s form: rows of another are computed again from the stored logits."""


def figures(base: np.ndarray, after: np.ndarray, labels: np.ndarray, targets: Sequence[int]) -> dict[str, Any]:
    """Figures of logits ``after (n, c)`` against ``base``, fractions; targets' AUROC is the mean over targets."""
    b, a = measure(base, labels), measure(after, labels)
    at = list(targets)
    right_before, right_after = base.argmax(1) == labels, after.argmax(1) == labels
    rows = np.isin(labels, at)
    drop, where = worst_drop(b.per_class, a.per_class)
    return {
        "target": float(np.mean(a.per_class[at])),
        "target_gain": float(np.mean(a.per_class[at]) - np.mean(b.per_class[at])),
        "overall": a.overall,
        "balanced": a.balanced,
        "E": error_e(b.per_class, a.per_class),
        "worst_drop": drop,
        "worst_class": int(where),
        "nll": a.nll,
        "ece": a.ece,
        "auroc": float(np.mean(a.auroc[at])),
        "auroc_gain": float(np.mean(a.auroc[at]) - np.mean(b.auroc[at])),
        "p_overall": mcnemar(right_before, right_after),
        "p_target": mcnemar(right_before[rows], right_after[rows]),
        "per_class": a.per_class.tolist(),
    }


def under(task: Task, outcome: Outcome, kind: str) -> dict[str, Any]:
    """The same network at the operating point that ``kind`` (floors, overall) allows on validation, measured on test.

    Every method is brought there by the join's own procedure on the same examples: a strength (a multiple of what it
    adds to the base's logits; for a network trained anew, below 1, that means running both), a bias a class, the same
    caution. So rivals and ours keep one promise, kept in one way.
    """
    base, labels = task.judged()
    held = PooledTable(np.zeros((len(labels), 0), dtype=np.float32), base, labels, ())
    promise = Promise(kind, tolerance=task.tolerance)
    setting = Setting(held, held, task.targets, task.classes, promise, _CHANGE, task.seed)  # type: ignore[arg-type]
    # Less than all of a change only serves floors; overall accuracy is the promise of methods that have a scale of their own.
    change = _CHANGE if kind == "floors" else _Whole()
    settled = settle(setting, kind, change, outcome.evaluation)  # type: ignore[arg-type]
    point, strength = settled.point, float(settled.notes["strength"])
    before = task.logits["test"]
    moved = before + np.float32(strength) * (outcome.test - before) + point.bias.astype(np.float32)
    found = figures(before, moved, task.labels("test"), task.targets)
    found["confusion"] = _confusion(moved, task.labels("test"))
    found["right"] = packed(moved.argmax(1) == task.labels("test"))
    found["validation"] = chosen_on(base, settled.logits, labels, task.targets)
    return {**found, "feasible": bool(point.feasible), "reason": point.reason, "strength": strength}


def chosen_on(base: np.ndarray, after: np.ndarray, labels: np.ndarray, targets: Sequence[int]) -> dict[str, float]:
    """The same on the validation images that judge: by these, never by test figures, a reader or a page may choose."""
    found = figures(base, after, labels, targets)
    return {key: found[key] for key in ("target", "target_gain", "overall", "E", "worst_drop")}


def packed(right: np.ndarray) -> str:
    """Which examples ``(n,)`` are right, as text: an eighth of a byte each, for paired tests of one method against another."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpacked(text: str, n: int) -> np.ndarray:
    """What :func:`packed` was given."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n).astype(bool)


class _Change:
    """Stands for any method's change to the logits where the join's procedure expects a delta."""

    terms: tuple = (None,)

    def __mul__(self, strength: float) -> _Change:
        return self

    def with_bias(self, bias: Any) -> _Change:
        return self


class _Whole(_Change):
    """The same at full strength only: the procedure scales what has terms."""

    terms = ()


_CHANGE = _Change()


def curve(task: Task, outcome: Outcome) -> list[dict[str, Any]]:
    """Pareto curve of a method: a shared shift of the targets' logits, chosen on validation, measured on test."""
    _, labels = task.judged()
    test_labels, c = task.labels("test"), task.n_classes
    base, _ = per_class_accuracy(task.logits["test"].argmax(1), test_labels, c)
    out = []
    for shift in shift_front(outcome.evaluation, labels, task.targets):
        target, overall, per_class = shifted_accuracy(outcome.test, test_labels, task.targets, shift)
        out.append(
            {
                "shift": float(shift),
                "target": target,
                "overall": overall,
                "E": error_e(base, per_class),
                "worst_drop": worst_drop(base, per_class)[0],
                "per_class": per_class.tolist(),
            }
        )
    return out


def _confusion(z: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    return confusion_matrix(z.argmax(1), labels, z.shape[1]).tolist()


def checkpoint_figures(task: Task, outcome: Outcome) -> dict[str, Any] | None:
    """Mean and spread over checkpoints of a training (Table 3.4); None where nothing was trained step by step."""
    if len(outcome.checkpoints) < 2:
        return None
    rows = [figures(task.logits["test"], z, task.labels("test"), task.targets) for z in outcome.checkpoints]
    found: dict[str, Any] = {"n": len(rows)}
    for key in ("target", "overall", "E"):
        values = np.array([row[key] for row in rows])
        found[f"{key}_mean"], found[f"{key}_sd"] = float(values.mean()), float(values.std(ddof=1))
    return found


def row(task: Task, outcome: Outcome) -> dict[str, Any]:
    """Everything that is kept of one run of one method."""
    return {
        "row": ROW,
        **figures(task.logits["test"], outcome.test, task.labels("test"), task.targets),
        "confusion": _confusion(outcome.test, task.labels("test")),
        "right": packed(outcome.test.argmax(1) == task.labels("test")),
        "validation": chosen_on(task.judged()[0], outcome.evaluation, task.judged()[1], task.targets),
        "under": {kind: under(task, outcome, kind) for kind in ("floors", "overall")},
        "curve": curve(task, outcome),
        "checkpoints": checkpoint_figures(task, outcome),
        "seconds": outcome.seconds,
        "cpu_seconds": outcome.cpu_seconds,
        "parameters": outcome.parameters,
        "settings": outcome.settings,
    }
