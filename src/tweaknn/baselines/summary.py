"""From single runs to a table: means and spreads over seeds, one entry a method."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tweaknn.baselines.registry import get
from tweaknn.baselines.versus import tests, without_examples
from tweaknn.inputs import Examples
from tweaknn.measure import confusion_matrix, measure, wilson

if TYPE_CHECKING:
    from tweaknn.baselines.compare import Plan
    from tweaknn.baselines.store import Store

FIGURES = (
    "target",
    "target_gain",
    "overall",
    "balanced",
    "E",
    "worst_drop",
    "nll",
    "ece",
    "auroc",
    "auroc_gain",
    "seconds",
    "cpu_seconds",
)


def summarise(
    store: Store,
    methods: Sequence[str],
    targets: tuple[int, ...],
    test: Examples,
    base: np.ndarray,
    plan: Plan,
    identity: dict[str, Any],
    source: dict[str, Any],
) -> dict[str, Any]:
    """The result: ``methods`` (means, ``sd`` over seeds, spreads over checkpoints, paired tests), ``runs``,
    ``base``."""
    classes = test.classes or [str(j) for j in range(base.shape[1])]
    seeds = range(plan.first_seed, plan.first_seed + plan.seeds)
    runs = []
    for seed in seeds:
        for name in methods:
            found = store.load(name, seed, targets)
            if found is not None:
                runs.append({**found, "seed": seed, "logits": store.keys[name, seed]})
    before = measure(base, test.labels)
    versus = tests(runs, base, test.labels, targets)
    runs = without_examples(runs)
    entries = [summary(name, [r for r in runs if r["name"] == name], plan.seeds) for name in methods]
    return {
        "kind": "compare",
        "version": identity["version"],
        "classes": classes,
        "targets": [classes[j] for j in targets],
        "n": len(test),
        "base": {
            **before.to_dict(classes),
            "target": float(np.mean(before.per_class[list(targets)])),
            "intervals": {c: wilson(round(a * n), int(n)) if n else None for c, a, n in _counts(classes, before)},
            "confusion": confusion_matrix(base.argmax(1), test.labels, base.shape[1]).tolist(),
        },
        "methods": [{**entry, "versus": versus.get(entry["name"])} for entry in entries],
        "runs": runs,
        "settings": {
            "seeds": list(seeds),
            "validation_share": plan.validation_share,
            "limit": plan.limit,
            "tolerance": plan.tolerance,
            "spread": spread_of(plan, identity),
            "layers": plan.layers,
            "time_limit": plan.time_limit,
            "training": plan.training.to_dict(),
            **source,
        },
        "identity": identity,
        "machine": machine(),
    }


def _counts(classes: Sequence[str], m: Any) -> list[tuple[str, float, int]]:
    return [(c, 0.0 if np.isnan(a) else float(a), int(n)) for c, a, n in zip(classes, m.per_class, m.counts)]


def summary(name: str, runs: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """One method over its seeds: means, ``sd`` (sample standard deviation, null for one seed)."""
    good = [r for r in runs if r["applicable"] and not r["reason"]]
    bad = [r for r in runs if r["reason"]]
    known = get(name)
    entry: dict[str, Any] = {
        "name": name,
        "summary": known.summary,
        "ours": known.ours,
        "applicable": bool(good) or not bad or any(r["applicable"] for r in bad),
        "reason": bad[0]["reason"] if bad else "" if good else "it was not run",
        "seeds": len(good),
        "failed": len(bad),
    }
    if not good:
        return {**entry, **dict.fromkeys((*FIGURES, "parameters")), "sd": None, "under": None}
    entry.update({key: _mean(good, key) for key in FIGURES})
    entry["sd"] = {key: _sd(good, key) for key in FIGURES}
    entry["parameters"] = round(float(np.mean([r["parameters"] for r in good])))
    entry["p_overall"] = [r["p_overall"] for r in good]
    entry["p_target"] = [r["p_target"] for r in good]
    entry.update(by_class(good))
    entry["validation"] = _validation(good)
    entry["under"] = {kind: _under([r["under"][kind] for r in good]) for kind in good[0]["under"]}
    entry["checkpoints"] = _checkpoints([r["checkpoints"] for r in good if r["checkpoints"]])
    entry["curve"] = mean_curve([r["curve"] for r in good])
    entry["settings"] = [r["settings"] for r in good]
    return entry


def _under(rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = [k for k in FIGURES if k in rows[0]]
    return {
        **{key: _mean(rows, key) for key in keys},
        "sd": {key: _sd(rows, key) for key in keys},
        **by_class(rows),
        "validation": _validation(rows),
        "feasible": all(r["feasible"] for r in rows),
    }


def by_class(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds of every class's accuracy; null where a class has no examples."""
    values = np.array([r["per_class"] for r in rows], dtype=float)
    return {
        "per_class": values.mean(axis=0).tolist(),
        "per_class_sd": values.std(axis=0, ddof=1).tolist() if len(values) > 1 else None,
    }


def _validation(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """Means over seeds on the images that chose; None for runs of an earlier form."""
    kept = [r["validation"] for r in rows if r.get("validation")]
    return {key: float(np.mean([r[key] for r in kept])) for key in kept[0]} if kept else None


def mean_curve(curves: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The mean Pareto curve over seeds, ``sd`` beside each figure.

    Every seed's curve has as many points as its own validation images gave it, from the best overall accuracy to the targets'
    best. They are averaged at equal shares of that way, each seed by the nearest of its own points.
    """
    curves = [c for c in curves if c]
    if len(curves) < 2:
        return curves[0] if curves else []
    n = int(np.median([len(c) for c in curves]))
    out = []
    for k in range(n):
        share = k / max(1, n - 1)
        rows = [c[round(share * (len(c) - 1))] for c in curves]
        keys = [key for key in ("shift", "target", "overall", "E", "worst_drop") if key in rows[0]]
        point: dict[str, Any] = {key: _mean(rows, key) for key in keys}
        point["per_class"] = np.mean(np.array([r["per_class"] for r in rows], dtype=float), axis=0).tolist()
        point["sd"] = {key: _sd(rows, key) for key in keys}
        out.append(point)
    return out


def spread_of(plan: Plan, identity: dict[str, Any]) -> str:
    """In words, what differs from seed to seed: all that a standard deviation over seeds can contain."""
    if identity["validation"] is None:
        return "which part of the training data validates, and everything random in a method"
    few = "" if plan.limit is None else f" (and which {plan.limit:,} validation examples judge, where there are more)"
    return f"everything random in a method{few}; training and validation data are the same in every seed"


def _checkpoints(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Table 3.4: mean over seeds of the mean and of the spread over checkpoints."""
    if not rows:
        return None
    return {key: float(np.mean([r[key] for r in rows])) for key in rows[0]}


def _mean(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [r[key] for r in rows if r.get(key) is not None]
    return float(np.mean(values)) if values else None


def _sd(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [r[key] for r in rows if r.get(key) is not None]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def machine() -> dict[str, Any]:
    """What figures and times were taken on."""
    import os

    from tweaknn import __version__

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "tweaknn": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": cores,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
