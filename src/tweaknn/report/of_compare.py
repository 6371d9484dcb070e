"""The page of a comparison."""

from __future__ import annotations

from typing import Any

from tweaknn.report.common import (
    class_table,
    cost_words,
    flat,
    headline,
    join_names,
    listed,
    percent,
    points,
    rounded,
    tiles,
)

MODES = {
    "own": "as its authors operate it",
    "floors": "no class below its base (on validation)",
    "overall": "overall not below its base (on validation)",
}


def compare_page(result: dict[str, Any]) -> dict[str, Any]:
    """Everything the page shows of a comparison; pictures are of the first seed, the table is of all."""
    classes, targets = result["classes"], result["targets"]
    base = result["base"]
    before = listed(base["per_class"], classes)
    counts = [base["counts"][name] for name in classes]
    first: dict[str, Any] = {}
    for run in result["runs"]:
        if run["applicable"] and not run["reason"]:
            first.setdefault(run["name"], run)
    if not first:
        reasons = {m["reason"] for m in result["methods"]}
        return _empty(result, before, counts, "; ".join(sorted(reasons)))
    big = len(classes) > 60
    views = [_view(m, first[m["name"]], big) for m in result["methods"] if m["name"] in first]
    start = _best(views, result["methods"])
    name = views[start]["name"]
    chosen = views[start]["modes"]["floors"]
    seeds = result["settings"]["seeds"]
    where = f"{result['n']:,} test images"
    sentence = headline(
        where, name, targets, base["target"], chosen["target"], cost_words(classes, before, chosen["per_class"])
    )
    controls = [v for v in views if v["name"] in ("bias", "random-neurons", "last-layer")]
    beside = "Under the same promise (no class below its base accuracy on validation) "
    beside += join_names(
        [f"{v['name']} gives {points(v['modes']['floors']['target'] - base['target'])}" for v in controls]
    )
    return {
        "title": f"{join_names(targets)}: {name} and {len(views) - 1} others",
        "what": f"comparison of {len(result['methods'])} methods, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}",
        "sentence": sentence,
        "beside": beside + " points." if controls else "",
        "tiles": tiles(base, chosen, len(targets) > 1),
        "split": f"{result['n']:,} test images, seed {seeds[0]}",
        "targets": targets,
        "warnings": [],
        "views": views,
        "table": class_table(classes, counts, before, chosen["per_class"]),
        "payers": cost_words(classes, before, chosen["per_class"]).removeprefix("and ").capitalize() + ".",
        "methods": _methods(result),
        "methods_head": [
            "method",
            "target %",
            "overall %",
            "E",
            "worst class",
            "AUROC",
            "target, floors",
            "E, floors",
            "p, target",
            "seconds",
            "parameters",
        ],
        "methods_note": (
            f"Means over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, ± their standard deviation; differences are points "
            "against the untouched network. First each method as its authors operate it, then all at the operating point at "
            "which no class falls below its base accuracy on validation (floors). AUROC is the targets' mean change: a mere shift of "
            "a logit hardly moves it. p is McNemar's paired test on the targets' examples (the median over seeds); seconds are the "
            "processor's, where they were taken."
        ),
        "confusion": not big and base.get("confusion") is not None,
        "neurons": None,
        "settings": _settings(result),
        "interactive": {
            "classes": classes,
            "targets": targets,
            "counts": counts,
            "base": {
                "per_class": rounded(before),
                "target": base["target"],
                "overall": base["overall"],
                "confusion": None if big else base.get("confusion"),
            },
            "views": views,
            "start": {"view": start, "mode": "floors"},
        },
    }


def _view(method: dict[str, Any], run: dict[str, Any], big: bool) -> dict[str, Any]:
    modes = {"own": run, **run["under"]}
    return {
        "name": method["name"],
        "summary": method["summary"].capitalize() + ".",
        "modes": {
            key: {
                "label": MODES[key] + ("" if found.get("feasible", True) else ": not to be had, nearest point"),
                "per_class": rounded(found["per_class"]),
                "confusion": None if big else found.get("confusion"),
                **{k: found[k] for k in ("target", "overall", "balanced", "E")},
            }
            for key, found in modes.items()
            if key in MODES
        },
        "front": [
            {**{k: round(p[k], 5) for k in ("target", "overall", "E")}, "per_class": rounded(p["per_class"])}
            for p in run["curve"]
        ],
    }


def _best(views: list[dict[str, Any]], methods: list[dict[str, Any]]) -> int:
    """Ours with the best target under floors, where there is one: the page is about what a user would deploy."""
    ours = {m["name"] for m in methods if m["ours"]}
    among = [k for k, v in enumerate(views) if v["name"] in ours] or list(range(len(views)))
    return max(among, key=lambda k: (views[k]["modes"]["floors"]["target"], -views[k]["modes"]["floors"]["E"]))


def _methods(result: dict[str, Any]) -> list[dict[str, Any]]:
    base = result["base"]
    rows: list[dict[str, Any]] = [
        {
            "name": "the untouched network",
            "summary": "",
            "tone": "base",
            "reason": "",
            "cells": [percent(base["target"]), percent(base["overall"]), *["–"] * 8],
        }
    ]
    for m in result["methods"]:
        row = {"name": m["name"], "summary": m["summary"], "tone": "ours" if m["ours"] else "", "reason": m["reason"]}
        if m["target"] is None:
            rows.append({**row, "reason": m["reason"], "cells": []})
            continue
        floors = m["under"]["floors"]
        kept = floors["feasible"]
        rows.append(
            {
                **row,
                "cells": [
                    _spread(m, "target"),
                    _spread(m, "overall"),
                    f"{100 * m['E']:.1f}",
                    points(m["worst_drop"]),
                    points(m["auroc_gain"]),
                    _gain(floors) if kept else "not kept",
                    f"{100 * floors['E']:.1f}" if kept else "–",
                    _chance(m.get("p_target") or []),
                    f"{m.get('cpu_seconds') or m['seconds']:.0f}",
                    f"{m['parameters']:,}",
                ],
            }
        )
    return rows


def _chance(p: list[float | None]) -> str:
    known = sorted(v for v in p if v is not None)
    if not known:
        return "–"
    middle = known[len(known) // 2]
    return "< 0.001" if middle < 0.001 else f"{middle:.3f}"


def _spread(m: dict[str, Any], key: str) -> str:
    sd = (m.get("sd") or {}).get(key)
    return percent(m[key]) + (f" ± {100 * sd:.1f}" if sd is not None else "")


def _gain(floors: dict[str, Any]) -> str:
    sd = floors["sd"].get("target_gain")
    return points(floors["target_gain"]) + (f" ± {100 * sd:.1f}" if sd is not None else "")


def _settings(result: dict[str, Any]) -> list[tuple[str, str]]:
    identity = {k: v for k, v in result["identity"].items() if k in ("base", "train", "validation", "test")}
    named = {f"SHA-256 of {'the network' if k == 'base' else k}": v for k, v in identity.items()}
    return [*flat(result["settings"]), *flat(named), *flat(result["machine"])]


def _empty(result: dict[str, Any], before: list, counts: list, reason: str) -> dict[str, Any]:
    classes, base = result["classes"], result["base"]
    mode = {
        "label": "untouched",
        "per_class": rounded(before),
        "target": base["target"],
        "overall": base["overall"],
        "balanced": base["balanced"],
        "E": 0.0,
        "confusion": base.get("confusion"),
    }
    view = {"name": "the untouched network", "summary": "", "modes": {"own": mode}, "front": []}
    return {
        "title": "No method ran",
        "what": "comparison",
        "sentence": f"No method gave a result: {reason}.",
        "beside": "",
        "tiles": tiles(base, mode, len(result["targets"]) > 1),
        "split": f"{result['n']:,} test images",
        "targets": result["targets"],
        "warnings": [],
        "views": [view],
        "table": class_table(classes, counts, before, before),
        "payers": "Nobody.",
        "methods": _methods(result),
        "methods_head": ["method", *[""] * 10],
        "methods_note": "",
        "confusion": False,
        "neurons": None,
        "settings": _settings(result),
        "interactive": {
            "classes": classes,
            "targets": result["targets"],
            "counts": counts,
            "base": {
                "per_class": rounded(before),
                "target": base["target"],
                "overall": base["overall"],
                "confusion": None,
            },
            "views": [view],
            "start": {"view": 0, "mode": "own"},
        },
    }
