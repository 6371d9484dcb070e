"""Accuracy by class, calibration and likelihood of logits ``(n, c)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tweaknn.measure.checks import check_labels, check_logits
from tweaknn.measure.ranking import auroc_by_class


@dataclass(frozen=True)
class Measures:
    """Figures of one set of logits; accuracies and ``ece`` are fractions, ``nll`` is in nats.

    ``per_class``, ``auroc`` and ``counts`` have shape ``(c,)``; a class without examples is NaN in the
    first, a
    class without examples (or without counter-examples) is NaN in the second.
    """

    n: int
    overall: float
    balanced: float
    nll: float
    ece: float
    per_class: np.ndarray
    auroc: np.ndarray
    counts: np.ndarray

    def to_dict(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """JSON-ready figures; per-class ones by class name (by position when there are no names), NaN as
        null."""
        names = [str(j) for j in range(len(self.counts))] if classes is None else [str(name) for name in classes]
        return {
            "n": self.n,
            "overall": self.overall,
            "balanced": self.balanced,
            "nll": self.nll,
            "ece": self.ece,
            "per_class": _by_name(names, self.per_class),
            "auroc": _by_name(names, self.auroc),
            "counts": {name: int(count) for name, count in zip(names, self.counts)},
        }


def _by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values)}


def measure(logits: ArrayLike, labels: ArrayLike) -> Measures:
    """All figures of ``logits (n, c)`` against integer ``labels (n,)``.

    The prediction is the largest logit, ties going to the lowest index (as ``torch.argmax``).
    ``balanced`` is the
    mean accuracy over classes that have examples.

    Raises :class:`~tweaknn.errors.InputError` for non-finite logits (naming the first example), wrong
    shapes and
    labels outside the range.
    """
    z = check_logits(logits)
    y = check_labels(labels, *z.shape)
    per_class, counts = per_class_accuracy(z.argmax(axis=1), y, z.shape[1])
    log_p = log_softmax(z)
    return Measures(
        n=len(y),
        overall=float((z.argmax(axis=1) == y).mean()),
        balanced=float(np.nanmean(per_class)),
        nll=float(-log_p[np.arange(len(y)), y].mean()),
        ece=_ece(log_p, y),
        per_class=per_class,
        auroc=auroc_by_class(z, y),
        counts=counts,
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities ``(n, c)``, stable for logits of any size."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def per_class_accuracy(predictions: ArrayLike, labels: ArrayLike, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy ``(c,)`` of each of ``classes`` classes, as fractions (NaN without examples), and its number of examples ``(c,)``,
    from predictions and labels ``(n,)``."""
    predicted, y = np.asarray(predictions), np.asarray(labels)
    counts = np.bincount(y, minlength=classes)
    right = np.bincount(y[predicted == y], minlength=classes)
    return np.where(counts > 0, right / np.maximum(counts, 1), np.nan), counts


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the true class, in nats, of logits ``(n, c)`` on labels ``(n,)``. Raises InputError as
    :func:`check_logits` and :func:`check_labels` do."""
    z = check_logits(logits)
    y = check_labels(labels, *z.shape)
    return float(-log_softmax(z)[np.arange(len(y)), y].mean())


def tempered_log_loss(logits: ArrayLike, labels: ArrayLike, most: int = 20_000) -> float:
    """Mean negative log-likelihood of the true class, in nats, at the temperature that makes it smallest (Guo et al. 2017).

    How sure a classifier is on the whole changes no prediction, so this compares classifiers by what they know.

    Args:
        logits: ``(n, c)``.
        labels: ``(n,)``.
        most: examples it looks at, evenly spread over the rows.
    """
    z = check_logits(logits)
    y = check_labels(labels, *z.shape)
    step = max(1, -(-len(y) // most))
    z, y = z[::step], y[::step]
    rows = np.arange(len(y))

    def at(log_beta: float) -> float:
        return float(-log_softmax(np.exp(log_beta) * z)[rows, y].mean())

    # unimodal in the inverse temperature: golden section over 1/20 to 20
    low, high = -3.0, 3.0
    ratio = (np.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = at(a), at(b)
    while high - low > 0.02:
        if at_a > at_b:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = at(b)
        else:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = at(a)
    return min(at_a, at_b)


def expected_calibration_error(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error, a fraction, of the top label of logits ``(n, c)`` on labels ``(n,)`` (Guo et al. 2017):
    ``bins`` bins of equal width on ``(0, 1]``. Raises InputError as :func:`check_logits` and :func:`check_labels` do."""
    z = check_logits(logits)
    return _ece(log_softmax(z), check_labels(labels, *z.shape), bins)


def _ece(log_p: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    confidence = np.exp(log_p.max(axis=1))
    right = (log_p.argmax(axis=1) == y).astype(np.float64)
    # Bins are half-open on the left, (k/bins, (k+1)/bins], as in the paper's definition.
    at = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(at, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(y))


def confusion_matrix(predictions: ArrayLike, labels: ArrayLike, classes: int) -> np.ndarray:
    """Counts ``(c, c)`` of predictions and labels ``(n,)``, ``c = classes``: row is the true class, column the predicted one."""
    flat = np.asarray(labels, dtype=np.int64) * classes + np.asarray(predictions, dtype=np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def strongest_confusions(predictions: ArrayLike, labels: ArrayLike, top: int = 10) -> list[tuple[int, int, int]]:
    """The ``top`` most frequent mistakes of predictions and labels ``(n,)`` as ``(true class, predicted class, count)``, most
    frequent first."""
    predicted, y = np.asarray(predictions, dtype=np.int64), np.asarray(labels, dtype=np.int64)
    if len(y) == 0:
        return []
    classes = int(max(predicted.max(), y.max())) + 1
    wrong = confusion_matrix(predicted, y, classes)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:top]
    pairs = [(int(k // classes), int(k % classes)) for k in order]
    return [(true, said, int(wrong[true, said])) for true, said in pairs if wrong[true, said] > 0]
