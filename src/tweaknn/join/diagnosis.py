"""What a classifier does well and badly, class by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from tweaknn.measure import Measures, measure, strongest_confusions, wilson
from tweaknn.network.outputs import collect_logits


@dataclass(frozen=True)
class ClassRow:
    """One class: accuracy with its 95 % Wilson interval, AUROC (None where undefined), mistakes to be won."""

    name: str
    n: int
    accuracy: float | None
    low: float | None
    high: float | None
    auroc: float | None
    mistakes: int


@dataclass(frozen=True)
class Confusion:
    """``count`` examples of ``label`` are taken for ``predicted``: a ``share`` of that class."""

    label: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Diagnosis:
    """Result of :func:`diagnose`."""

    measures: Measures
    rows: list[ClassRow]
    worst: list[str]
    confusions: list[Confusion]
    classes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures: those of :class:`~tweaknn.measure.Measures` and the rows."""
        return {
            "classes": self.classes,
            **self.measures.to_dict(self.classes),
            "intervals": {row.name: None if row.low is None else [row.low, row.high] for row in self.rows},
            "mistakes": {row.name: row.mistakes for row in self.rows},
            "worst": self.worst,
            "confusions": [asdict(confusion) for confusion in self.confusions],
        }


def names_of(classes: Sequence[str] | None, c: int) -> list[str]:
    """Class names, positions where there are none."""
    return [str(name) for name in classes] if classes is not None else [str(j) for j in range(c)]


def worst_classes(per_class: np.ndarray, k: int) -> list[int]:
    """Positions of the ``k`` least accurate classes that have examples, worst first."""
    present = np.flatnonzero(~np.isnan(per_class))
    return [int(j) for j in present[np.argsort(per_class[present], kind="stable")][:k]]


def diagnose(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    *,
    classes: Sequence[str] | None = None,
    worst: int = 3,
    confusions: int = 8,
    head: int | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Diagnosis:
    """Measure a classifier class by class.

    Args:
        model: any network that :func:`tweaknn.network.modes.logits_of` understands.
        batches: a ``DataLoader`` of ``(x, y)``, or anything like it; a data set; a pair of arrays.
        classes: names of the logits.
        worst: how many of the worst classes to name.
        confusions: how many confusions to name.

    Raises:
        ModelError: NaN or infinite logits.
        InputError: no examples, or labels outside the logits' range.
    """
    from tweaknn.inputs import batches_of

    logits, labels = collect_logits(model, batches_of(batches), head=head, progress=progress)
    return diagnose_logits(logits, labels, classes=classes, worst=worst, confusions=confusions)


def diagnose_logits(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    classes: Sequence[str] | None = None,
    worst: int = 3,
    confusions: int = 8,
) -> Diagnosis:
    """:func:`diagnose` for logits ``(n, c)`` at hand."""
    c = logits.shape[1]
    names = names_of(classes, c)
    m = measure(logits, labels)
    predictions = logits.argmax(1)
    correct = np.bincount(labels[predictions == labels], minlength=c)
    rows = []
    for j in range(c):
        n, hits = int(m.counts[j]), int(correct[j])
        low, high = wilson(hits, n) if n else (None, None)
        auroc = None if np.isnan(m.auroc[j]) else float(m.auroc[j])
        rows.append(ClassRow(names[j], n, hits / n if n else None, low, high, auroc, n - hits))
    pairs = [
        Confusion(names[label], names[predicted], count, count / int(m.counts[label]))
        for label, predicted, count in (
            tuple(int(v) for v in pair[:3]) for pair in strongest_confusions(predictions, labels, confusions)
        )
    ]
    return Diagnosis(m, rows, [names[j] for j in worst_classes(m.per_class, worst)], pairs, names)
