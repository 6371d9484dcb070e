"""Results of a network with several labels an example: one label's page, *not given* and *given* as its two classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tweaknn.errors import InputError
from tweaknn.measure import error_e
from tweaknn.report.common import changes


def is_of_labels(result: dict[str, Any]) -> str | None:
    """``join`` or ``evaluate`` where that command wrote a result a label, else None."""
    labels = result.get("labels")
    if isinstance(labels, dict) and labels and all(isinstance(v, dict) and "candidates" in v for v in labels.values()):
        return "join"
    both = [result.get("base"), result.get("tweaked")]
    if all(isinstance(v, dict) and v and all(isinstance(r, dict) and "recall" in r for r in v.values()) for v in both):
        return "evaluate"
    return None


def label_of(result: dict[str, Any], target: str | None) -> str:
    """The label a page is about: ``target``, or the one that a join named first or an evaluation shows to gain most.

    Raises:
        InputError: the result has no such label.
    """
    names = list(result["labels"]) if is_of_labels(result) == "join" else list(result["base"])
    if target is not None:
        if target not in names:
            raise InputError(f"The result has no label {target!r}; it has {', '.join(names)}.")
        return target
    if "labels" in result:
        return names[0]
    balanced = [[rows[name]["balanced"] for name in names] for rows in (result["base"], result["tweaked"])]
    gain = changes(*balanced)
    return names[0] if np.isnan(gain).all() else names[int(np.nanargmax(gain))]


def one_label(result: dict[str, Any], label: str, named: bool = True) -> dict[str, Any]:
    """The result of ``label`` alone, in the form of a network with two classes; ``named``: not picked by its own figures."""
    if is_of_labels(result) == "join":
        return {**result["labels"][label], "out": result.get("out")}
    classes = [f"not {label}", label]
    n = int(result["n"])
    figures: dict[str, Any] = {}
    for key in ("base", "tweaked"):
        row = result[key][label]
        counts = [n - int(row["given"]), int(row["given"])]
        accuracies = [row["specificity"], row["recall"]]
        figures[key] = {
            "per_class": dict(zip(classes, accuracies)),
            "counts": dict(zip(classes, counts)),
            "overall": sum((a or 0.0) * m for a, m in zip(accuracies, counts)) / max(n, 1),
            "balanced": row["balanced"],
        }
    before, after = (
        [np.nan if v is None else v for v in figures[k]["per_class"].values()] for k in ("base", "tweaked")
    )
    kept: dict[str, Any] = {key: result[key] for key in ("model", "data", "deltas") if key in result}
    about = {"targets": [label], "picked": not named}
    return {**kept, **figures, **about, "classes": classes, "n": n, "E": error_e(before, after)}
