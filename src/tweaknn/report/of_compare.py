"""The page of a comparison."""

from __future__ import annotations

from typing import Any

import numpy as np

from tweaknn.baselines.summary import by_class, mean_curve
from tweaknn.baselines.versus import DEFAULT
from tweaknn.report.common import (
    changes,
    class_table,
    cost_words,
    flat,
    headline,
    join_names,
    listed,
    points,
    rounded,
    tiles,
)
from tweaknn.report.of_methods import methods_table, promises, seeds_of


def compare_page(result: dict[str, Any]) -> dict[str, Any]:
    """Everything the page shows of a comparison; figures and pictures are means over the seeds."""
    classes, targets = result["classes"], result["targets"]
    base = result["base"]
    before = listed(base["per_class"], classes)
    counts = [base["counts"][name] for name in classes]
    good: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        if run["applicable"] and not run["reason"]:
            good.setdefault(run["name"], []).append(run)
    if not good:
        reasons = {m["reason"] for m in result["methods"]}
        return _empty(result, before, counts, "; ".join(sorted(reasons)))
    big = len(classes) > 60
    promise = promises(result)
    views = [_view(m, good[m["name"]], before, big, promise) for m in result["methods"] if m["name"] in good]
    start, why = begin(views, result["methods"])
    name = views[start]["name"]
    chosen = views[start]["modes"]["floors"]
    several = max(len(runs) for runs in good.values())
    where = f"{result['n']:,} test images"
    over = f" (mean of {len(good[name])} seeds)" if len(good[name]) > 1 else ""
    sentence = headline(
        where + over, name, targets, base["target"], chosen["target"], cost_words(classes, before, chosen["per_class"])
    )
    controls = [v for v in views if v["name"] in ("bias", "random-neurons", "last-layer")]
    beside = f"Under the same promise ({promise['floors']}) "
    beside += join_names(
        [f"{v['name']} gives {points(v['modes']['floors']['target'] - base['target'])}" for v in controls]
    )
    beside = beside + " points. " if controls else ""
    return {
        "title": f"{join_names(targets)}: {name} and {len(views) - 1} others",
        "what": f"comparison of {len(result['methods'])} methods, {seeds_of(result)}",
        "sentence": sentence,
        "beside": (beside + alone(good[name]) + why).strip(),
        "tiles": tiles(base, chosen, len(targets) > 1),
        "split": f"{where}, mean of {several} seeds" if several > 1 else f"{where}, seed {result['settings']['seeds'][0]}",
        "targets": targets,
        "warnings": [],
        "views": views,
        "table": class_table(classes, counts, before, chosen["per_class"], chosen["per_class_sd"]),
        "payers": cost_words(classes, before, chosen["per_class"]).removeprefix("and ").capitalize() + ".",
        "curve_note": "The thick line is the mean of the seeds at equal shares of the way, the thin ones are the seeds."
        if several > 1
        else "",
        **methods_table(result),
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


def alone(runs: list[dict[str, Any]]) -> str:
    """What a mean over seeds hides: a user gets one seed, and there the class that loses most loses more than any does on average."""
    worst = [run["under"]["floors"]["worst_drop"] for run in runs]
    if len(worst) < 2 or min(worst) >= -5e-5:
        return ""
    mean, most = -100 * float(np.mean(worst)), -100 * min(worst)
    return f"In a single seed the class that loses most loses {mean:.1f} points on average, {most:.1f} at most. "


def _view(
    method: dict[str, Any], runs: list[dict[str, Any]], before: list, big: bool, promise: dict[str, str]
) -> dict[str, Any]:
    modes = {"own": runs} | {kind: [run["under"][kind] for run in runs] for kind in runs[0]["under"]}
    curves = [run["curve"] for run in runs]
    return {
        "name": method["name"],
        "summary": method["summary"].capitalize() + ".",
        "modes": {key: _mode(promise[key], rows, big) for key, rows in modes.items() if key in promise},
        "front": [
            {**{k: round(p[k], 5) for k in ("target", "overall", "E")}, "per_class": rounded(p["per_class"])}
            for p in mean_curve(curves)
        ],
        "seeds": [[_spot(p, before) for p in curve] for curve in curves] if len(curves) > 1 else [],
    }


def _mode(label: str, rows: list[dict[str, Any]], big: bool) -> dict[str, Any]:
    """One way of operating a method, mean over its seeds."""
    kept = sum(row.get("feasible", True) for row in rows)
    if kept < len(rows):
        label += ": not to be had" + (f" in {len(rows) - kept} of {len(rows)} seeds" if len(rows) > 1 else "") + ", nearest point"
    found = by_class(rows)
    matrices = [row["confusion"] for row in rows if row.get("confusion") is not None]
    mean = None if big or not matrices else np.mean(np.array(matrices, dtype=float), axis=0).round(1).tolist()
    return {
        "label": label,
        "per_class": rounded(found["per_class"]),
        "per_class_sd": None if found["per_class_sd"] is None else rounded(found["per_class_sd"]),
        "confusion": mean if mean is None else [[int(v) if v == int(v) else v for v in line] for line in mean],
        **{k: float(np.mean([row[k] for row in rows])) for k in ("target", "overall", "balanced", "E")},
    }


def _spot(point: dict[str, Any], before: list) -> list[float]:
    """A point of one seed's curve: target, overall, what the class that loses most loses."""
    loss = np.nanmin(np.append(changes(before, point["per_class"]), 0.0))
    return [round(point["target"], 4), round(point["overall"], 4), round(float(loss), 4)]


def begin(views: list[dict[str, Any]], methods: list[dict[str, Any]]) -> tuple[int, str]:
    """Which method the page opens with, and why in a sentence: of ours, the best under floors on the images that chose.

    Test figures must not decide, or the first sentence would be the luckiest. Results without validation figures begin with the
    default.
    """
    by_name = {m["name"]: m for m in methods}
    among = [k for k, v in enumerate(views) if by_name[v["name"]]["ours"]]
    whose = "of our methods" if among else "of these methods"
    among = among or list(range(len(views)))
    floors = {k: by_name[views[k]["name"]]["under"]["floors"] for k in among}
    if all(f.get("validation") for f in floors.values()):
        best = max(among, key=lambda k: (floors[k]["feasible"], floors[k]["validation"]["target"], -floors[k]["validation"]["E"]))
        others = "; another can be chosen below" if len(views) > 1 else ""
        return best, f"Validation images chose it {whose}, not these test images{others}." if len(among) > 1 else ""
    default = next((k for k in among if views[k]["name"] == DEFAULT), among[0])
    return default, ""


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
        **methods_table(result),
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
