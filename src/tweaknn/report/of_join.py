"""The pages of a join and of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np

from tweaknn.measure import error_e
from tweaknn.report.common import class_table, cost_words, flat, headline, listed, percent, points, rounded, tiles


def join_page(result: dict[str, Any]) -> dict[str, Any]:
    """The page of ``tweaknn join --json``: validation figures of the chosen delta, the controls beside it.

    With ``extra`` (see :func:`tweaknn.report.neurons.study`) the confusion tables, the front and the neurons too.
    """
    classes, targets, base = result["classes"], result["targets"], result["base"]
    before = listed(base["per_class"], classes)
    counts = [base["counts"][name] for name in classes]
    chosen = result.get("chosen")
    extra = result.get("extra") or {}
    views = []
    for name, c in result["candidates"].items():
        after = listed(c["per_class"], classes)
        mode = _mode("operated as promised", after, c, before)
        mode["confusion"] = (c.get("confusion") or extra.get("confusion")) if name == chosen else c.get("confusion")
        views.append(
            {
                "name": name,
                "summary": _summary(name, c),
                "modes": {"chosen": mode},
                "front": (c.get("front") or (extra.get("front", []) if name == chosen else [])),
            }
        )
    start = next((k for k, v in enumerate(views) if v["name"] == chosen), 0)
    now = views[start]["modes"]["chosen"]
    n = result.get("n_validation", int(sum(counts)))
    who = f"On {n:,} validation images"
    if chosen is None:
        sentence = result["sentence"]
    else:
        cost = cost_words(classes, before, now["per_class"])
        sentence = headline(who, f"with {chosen}", targets, base["target"], now["target"], cost)
    others = [v for v in views if v["name"] != views[start]["name"]]
    beside = "By the same rule on the same images: " + "; ".join(
        f"{v['name']} {points(v['modes']['chosen']['target'] - base['target'])}" for v in others
    )
    base_confusion = extra.get("base_confusion") or base.get("confusion")
    return {
        "title": f"{', '.join(targets)}: what the join did",
        "what": f"a join for {', '.join(targets)}",
        "sentence": sentence,
        "beside": beside + " points for the targets." if others else "",
        "tiles": tiles({**base, "target": base["target"]}, now, len(targets) > 1),
        "split": f"{n:,} validation images; figures on images that chose the operating point flatter it a little",
        "targets": targets,
        "warnings": list(result.get("warnings", [])),
        "views": views,
        "table": class_table(classes, counts, before, now["per_class"]),
        "payers": cost_words(classes, before, now["per_class"]).removeprefix("and ").capitalize() + ".",
        "methods": _methods(result, views),
        "methods_head": [
            "candidate",
            "target %",
            "overall %",
            "balanced %",
            "E",
            "worst class",
            "log loss",
            "parameters",
        ],
        "methods_note": "The method and the controls on the same validation images, each operated by the same rule; the best "
        "was handed over.",
        "confusion": base_confusion is not None and len(classes) <= 60,
        "neurons": extra.get("neurons"),
        "settings": [
            *flat({k: v for k, v in result.get("settings", {}).items() if k != "p_value_targets"}),
            *flat({"promise": result.get("promise", {})}),
            *([("SHA-256 of the network", result["fingerprint"])] if result.get("fingerprint") else []),
        ],
        "interactive": _interactive(classes, targets, counts, before, base, base_confusion, views, start, "chosen"),
    }


def evaluate_page(result: dict[str, Any]) -> dict[str, Any]:
    """The page of ``tweaknn evaluate --delta --json``: base and tweaked on one data set; the most improved class
    is the target."""
    classes = result["classes"] or list(result["base"]["per_class"])
    base, tweaked = result["base"], result["tweaked"]
    before, after = listed(base["per_class"], classes), listed(tweaked["per_class"], classes)
    gain = [-2.0 if a is None or b is None else a - b for a, b in zip(after, before)]
    target = int(np.argmax(gain))
    counts = [base["counts"][name] for name in classes]
    base_target, after_target = before[target] or 0.0, after[target] or 0.0
    found = {**tweaked, "target": after_target, "E": result["E"]}
    mode = _mode("as it is", after, found, before)
    extra = result.get("extra") or {}
    mode["confusion"] = extra.get("confusion")
    views = [
        {
            "name": "tweaked",
            "summary": "The network with its Δnn.",
            "modes": {"chosen": mode},
            "front": extra.get("front", []),
        }
    ]
    name, n = classes[target], result["n"]
    cost = cost_words(classes, before, after)
    figures = {**base, "target": base_target}
    return {
        "title": f"Base and tweaked on {n:,} images",
        "what": "base and tweaked network side by side",
        "sentence": headline(f"On {n:,} images", "with the Δnn", [name], base_target, after_target, cost),
        "beside": f"{name} gains most. The paired test of overall correctness gives p = {result['p_value']:.2g}.",
        "tiles": tiles(figures, mode, False),
        "split": f"{n:,} images",
        "targets": [name],
        "warnings": [],
        "views": views,
        "table": class_table(classes, counts, before, after),
        "payers": cost.removeprefix("and ").capitalize() + ".",
        "methods": None,
        "confusion": extra.get("base_confusion") is not None,
        "neurons": extra.get("neurons"),
        "settings": flat({k: result[k] for k in ("model", "data", "deltas", "skipped") if k in result}),
        "interactive": _interactive(
            classes, [name], counts, before, figures, extra.get("base_confusion"), views, 0, "chosen"
        ),
    }


def _mode(label: str, after: list, c: dict[str, Any], before: list) -> dict[str, Any]:
    e = c.get("E")
    if e is None:
        e = error_e([np.nan if v is None else v for v in before], [np.nan if v is None else v for v in after])
    return {
        "label": label,
        "per_class": rounded(after),
        "target": c["target"],
        "overall": c["overall"],
        "balanced": c.get("balanced"),
        "E": e,
    }


def _summary(name: str, c: dict[str, Any]) -> str:
    known = {
        "bias": "Control: a constant on each logit.",
        "target-bias": "Control: a constant on the target's logit.",
        "random-neurons": "Control: neurons drawn by lot.",
        "last-layer": "Control: the last hidden layer alone.",
        "fit": "Pooled neurons of all layers, weights at the convex optimum, operating point.",
        "theta": "The dissertation's join.",
    }
    reason = c.get("reason")
    return known.get(name, "") + (f" {reason}" if reason else "")


def _methods(result: dict[str, Any], views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    base = result["base"]
    first = ["–"] * 7
    first[:3] = [percent(base["target"]), percent(base["overall"]), percent(base["balanced"])]
    rows = [{"name": "the untouched network", "summary": "", "tone": "base", "reason": "", "cells": first}]
    controls = set(result.get("controls", []))
    for view in views:
        c = result["candidates"][view["name"]]
        tone = "" if view["name"] in controls else "ours"
        chosen = " (handed over)" if view["name"] == result.get("chosen") else ""
        cells = [
            f"{percent(c['target'])} ({points(c['target'] - base['target'])})",
            f"{percent(c['overall'])} ({points(c['overall'] - base['overall'])})",
            percent(c.get("balanced")),
            f"{100 * c['E']:.1f}",
            f"{c.get('worst_class', '')} {points(c['worst_drop'])}",
            "–" if c.get("nll") is None else f"{c['nll']:.3f}",
            f"{c['parameters']:,}",
        ]
        rows.append(
            {"name": view["name"] + chosen, "summary": view["summary"], "tone": tone, "reason": "", "cells": cells}
        )
    return rows


def _interactive(
    classes: list[str],
    targets: list[str],
    counts: list[int],
    before: list,
    base: dict[str, Any],
    confusion: Any,
    views: list[dict[str, Any]],
    start: int,
    mode: str,
) -> dict[str, Any]:
    return {
        "classes": classes,
        "targets": targets,
        "counts": counts,
        "base": {
            "per_class": rounded(before),
            "target": base["target"],
            "overall": base["overall"],
            "confusion": confusion,
        },
        "views": views,
        "others": [
            {"name": v["name"], "target": v["modes"][mode]["target"], "overall": v["modes"][mode]["overall"]}
            for v in views
        ],
        "start": {"view": start, "mode": mode},
    }
