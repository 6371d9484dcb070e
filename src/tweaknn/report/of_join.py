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
    if chosen is not None and "tweaked" in extra:
        return _on_other_images(result, extra)
    views = []
    for name, c in result["candidates"].items():
        mode = _mode("operated as promised", listed(c["per_class"], classes), c, before)
        mode["confusion"] = c.get("confusion")
        views.append(
            {
                "name": name,
                "summary": _summary(name, c),
                "modes": {"chosen": mode},
                "front": c.get("front") or [],
            }
        )
    start = next((k for k, v in enumerate(views) if v["name"] == chosen), 0)
    now = views[start]["modes"]["chosen"]
    n = result.get("n_validation", int(sum(counts)))
    cost = cost_words(classes, before, now["per_class"])
    sentence = result["sentence"]
    if chosen is not None:
        sentence = headline(f"{n:,} validation images", _called(chosen), targets, base["target"], now["target"], cost)
    others = [v for v in views if v["name"] != views[start]["name"]]
    beside = "By the same rule on the same images: " + "; ".join(
        f"{v['name']} {points(v['modes']['chosen']['target'] - base['target'])}" for v in others
    )
    base_confusion = base.get("confusion")
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
        **_controls(result),
        "confusion": base_confusion is not None and len(classes) <= 60,
        "neurons": extra.get("neurons"),
        "settings": _settings(result),
        "interactive": _interactive(classes, targets, counts, before, base, base_confusion, views, start, "chosen"),
    }


def _settings(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        *flat({k: v for k, v in result.get("settings", {}).items() if k != "p_value_targets"}),
        *flat({"promise": result.get("promise", {})}),
        *flat({k: result[k] for k in ("model", "train", "validation", "out") if result.get(k)}),
        *([("SHA-256 of the network", result["fingerprint"])] if result.get("fingerprint") else []),
    ]


def _controls(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "methods": _methods(result),
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
    }


def _on_other_images(result: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """A join's page with everything measured on images given to the report; the controls stay validation figures."""
    page = _page(extra, result["classes"], result["targets"], _called(result["chosen"]), extra.get("front") or [])
    return {
        **page,
        "title": f"{', '.join(result['targets'])}: what the join did",
        "what": f"a join for {', '.join(result['targets'])}, on images it did not see",
        "beside": result["sentence"],
        "warnings": list(result.get("warnings", [])),
        **_controls(result),
        "settings": _settings(result),
    }


PICKED = "{} is shown because it gains most on these very images; on new ones it will gain less."


def evaluate_page(result: dict[str, Any]) -> dict[str, Any]:
    """The page of ``tweaknn evaluate --delta --json``: base and tweaked on one data set.

    The targets are those the Δnn was made for. Where the result does not say, the most improved class is shown, and the page says
    that it was picked by the very figures it shows. With ``extra`` it shows what was measured on the images given to the report.
    """
    extra = result.get("extra") or {}
    source = extra if "tweaked" in extra else result
    classes = result["classes"] or list(result["base"]["per_class"])
    before, after = listed(source["base"]["per_class"], classes), listed(source["tweaked"]["per_class"], classes)
    targets = [name for name in result.get("targets") or [] if name in classes]
    picked = not targets or result.get("picked", False)
    if not targets:
        gain = [-2.0 if a is None or b is None else a - b for a, b in zip(after, before)]
        targets = [classes[int(np.argmax(gain))]]
    page = _page(source, classes, targets, "the Δnn", source.get("front") or [])
    page["beside"] = PICKED.format(targets[0]) if picked else ""
    if source.get("p_value") is not None:
        page["beside"] = f"{page['beside']} The paired test of overall correctness gives p = {source['p_value']:.2g}.".strip()
    page["settings"] = flat({k: result[k] for k in ("model", "data", "deltas", "skipped") if k in result})
    page["neurons"] = extra.get("neurons")
    return page


def _page(
    source: dict[str, Any], classes: list[str], targets: list[str], name: str, front: list[dict[str, Any]]
) -> dict[str, Any]:
    """A page about one change measured on one set of images: ``base``, ``tweaked``, ``E`` as ``tweaknn evaluate``
    writes them."""
    base, tweaked, n = source["base"], source["tweaked"], source["n"]
    before, after = listed(base["per_class"], classes), listed(tweaked["per_class"], classes)
    counts = [base["counts"][c] for c in classes]
    at = [classes.index(t) for t in targets]
    base_target = float(np.mean([before[j] or 0.0 for j in at]))
    target = float(np.mean([after[j] or 0.0 for j in at]))
    mode = _mode("as it is", after, {**tweaked, "target": target, "E": source["E"]}, before)
    mode["confusion"] = source.get("confusion")
    views = [{"name": name, "summary": "The network with its Δnn.", "modes": {"chosen": mode}, "front": front}]
    cost = cost_words(classes, before, after)
    figures = {**base, "target": base_target}
    return {
        "title": f"Base and tweaked on {n:,} images",
        "what": "base and tweaked network side by side",
        "sentence": headline(f"{n:,} images", name, targets, base_target, target, cost),
        "beside": "",
        "tiles": tiles(figures, mode, len(targets) > 1),
        "split": f"{n:,} images",
        "targets": targets,
        "warnings": [],
        "views": views,
        "table": class_table(classes, counts, before, after),
        "payers": cost.removeprefix("and ").capitalize() + ".",
        "curve_note": "The line is drawn on these very images: a point chosen on it is chosen on them, and on new ones does less."
        if front
        else "",
        "methods": None,
        "confusion": source.get("base_confusion") is not None and len(classes) <= 60,
        "neurons": source.get("neurons"),
        "settings": [],
        "interactive": _interactive(
            classes, targets, counts, before, figures, source.get("base_confusion"), views, 0, "chosen"
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


def _called(name: str) -> str:
    """A candidate in the page's first sentence."""
    known = {
        "bias": "a mere constant on the logits",
        "random-neurons": "randomly drawn neurons",
        "last-layer": "a refit of the last layer",
        "mean": "the join (the mean of its two fits)",
    }
    return known.get(name, f"the join ({name})")


def _summary(name: str, c: dict[str, Any]) -> str:
    known = {
        "bias": "Control: a constant on each logit.",
        "target-bias": "Control: a constant on the target's logit.",
        "random-neurons": "Control: neurons drawn by lot.",
        "last-layer": "Control: the last hidden layer alone.",
        "fit": "Pooled neurons of all layers, weights at the convex optimum, operating point.",
        "aan": "A small network on pooled neurons of all layers, operating point.",
        "aan-grouped": "The same with a hidden group a stage.",
        "mean": "The mean of fit and aan, operating point.",
        "selected": "A few neurons that a group-sparse fit keeps, refitted.",
        "theta": "The dissertation's join.",
        "retrain-1": "The dissertation's synapses, their weights solved for.",
        "retrain-2": "The same with the targets' loss doubled.",
        "schedule": "Joins and retrainings in turn.",
    }
    reason = c.get("reason")
    return known.get(name, "") + (f" {reason}" if reason else "")


def _methods(result: dict[str, Any]) -> list[dict[str, Any]]:
    base = result["base"]
    first = ["–"] * 7
    first[:3] = [percent(base["target"]), percent(base["overall"]), percent(base["balanced"])]
    rows = [{"name": "the untouched network", "summary": "", "tone": "base", "reason": "", "cells": first}]
    controls = set(result.get("controls", []))
    for name, c in result["candidates"].items():
        chosen = " (handed over)" if name == result.get("chosen") else ""
        cells = [
            f"{percent(c['target'])} ({points(c['target'] - base['target'])})",
            f"{percent(c['overall'])} ({points(c['overall'] - base['overall'])})",
            percent(c.get("balanced")),
            f"{100 * c['E']:.1f}",
            f"{c.get('worst_class', '')} {points(c['worst_drop'])}",
            "–" if c.get("nll") is None else f"{c['nll']:.3f}",
            f"{c['parameters']:,}",
        ]
        tone = "" if name in controls else "ours"
        rows.append({"name": name + chosen, "summary": _summary(name, c), "tone": tone, "reason": "", "cells": cells})
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
        "start": {"view": start, "mode": mode},
    }
