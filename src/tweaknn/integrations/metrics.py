"""Per-class figures as a torchmetrics collection."""

from __future__ import annotations

from typing import Any

from tweaknn.errors import ModelError


def per_class_metrics(num_classes: int, *, classes: list[str] | None = None) -> Any:
    """A ``torchmetrics.MetricCollection`` on logits ``(n, c)`` and labels ``(n,)``.

    ``accuracy`` and ``auroc`` of each class (by name, with ``classes``), ``overall``, ``balanced``. All merge across
    processes as torchmetrics does.

    Raises:
        ModelError: torchmetrics is not installed.
    """
    try:
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC
        from torchmetrics.wrappers import ClasswiseWrapper
    except ImportError:
        raise ModelError("The metrics need torchmetrics: pip install 'tweaknn[lightning]'.") from None
    return MetricCollection(
        {
            "accuracy": ClasswiseWrapper(
                MulticlassAccuracy(num_classes, average=None), labels=classes, prefix="accuracy_"
            ),
            "auroc": ClasswiseWrapper(MulticlassAUROC(num_classes, average=None), labels=classes, prefix="auroc_"),
            "overall": MulticlassAccuracy(num_classes, average="micro"),
            "balanced": MulticlassAccuracy(num_classes, average="macro"),
        }
    )
