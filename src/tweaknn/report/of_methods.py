"""The table of all methods on a comparison's page, and what its figures are."""

from __future__ import annotations

from typing import Any

from tweaknn.baselines.versus import DEFAULT
from tweaknn.report.common import SPREAD, STILL, percent, plus_minus, points

HEAD = (
    "method",
    "target %",
    "overall %",
    "E",
    "worst class",
    "AUROC",
    "target, floors",
    "E, floors",
    "p against base",
    f"{DEFAULT} beyond it, floors",
    "seconds",
    "parameters",
)

AGAINST = 9
"""The column of :data:`HEAD` that compares with the default."""


def promises(result: dict[str, Any]) -> dict[str, str]:
    """Each way of operating a method, in words."""
    given = result["settings"].get("tolerance") or 0.0
    below = f" by more than {100 * given:g} points" if given else ""
    return {
        "own": "as its authors operate it",
        "floors": f"no class below its base{below} on validation",
        "overall": f"overall not below its base{below} on validation",
    }


def seeds_of(result: dict[str, Any]) -> str:
    """``3 seeds``."""
    n = len(result["settings"]["seeds"])
    return f"{n} seed{'s' if n > 1 else ''}"


def methods_table(result: dict[str, Any]) -> dict[str, Any]:
    """``methods``, ``methods_head`` and ``methods_note`` of the page."""
    base = result["base"]
    rows: list[dict[str, Any]] = [
        {
            "name": "the untouched network",
            "summary": "",
            "tone": "base",
            "reason": "",
            "cells": [percent(base["target"]), percent(base["overall"]), *["–"] * (len(HEAD) - 3)],
        }
    ]
    for m in result["methods"]:
        row = {"name": m["name"], "summary": m["summary"], "tone": "ours" if m["ours"] else "", "reason": m["reason"]}
        rows.append({**row, "cells": [] if m["target"] is None else _cells(m)})
    head = list(HEAD)
    if not any(m.get("versus") and DEFAULT in m["versus"] for m in result["methods"]):  # nothing to be said of it
        del head[AGAINST]
        for row in rows:
            row["cells"] = [cell for k, cell in enumerate(row["cells"]) if k != AGAINST - 1]
    return {"methods": rows, "methods_head": head, "methods_note": note(result)}


def _cells(m: dict[str, Any]) -> list[str]:
    floors = m["under"]["floors"]
    kept = floors["feasible"]
    return [
        _spread(m, "target"),
        _spread(m, "overall"),
        f"{100 * m['E']:.1f}" + plus_minus((m.get("sd") or {}).get("E")),
        points(m["worst_drop"]),
        points(m["auroc_gain"]),
        points(floors["target_gain"]) + plus_minus((floors.get("sd") or {}).get("target_gain")) if kept else "not kept",
        f"{100 * floors['E']:.1f}" + plus_minus((floors.get("sd") or {}).get("E")) if kept else "–",
        against_base(m),
        against_default(m),
        f"{m.get('cpu_seconds') or m['seconds']:.0f}",
        f"{m['parameters']:,}",
    ]


def against_base(m: dict[str, Any]) -> str:
    """The corrected p of the targets' examples; of an earlier result the median over seeds, uncorrected."""
    tested = _tested(m, "base", "own")
    if tested is not None:
        return chance(tested["p_holm"])
    known = sorted(v for v in m.get("p_target") or [] if v is not None)
    return chance(known[len(known) // 2]) if known else "–"


def against_default(m: dict[str, Any]) -> str:
    """How much more the default gains for the targets under floors, and its corrected p."""
    tested = _tested(m, DEFAULT, "floors")
    return "–" if tested is None else f"{points(tested['difference'])} (p {chance(tested['p_holm'])})"


def _tested(m: dict[str, Any], other: str, mode: str) -> dict[str, Any] | None:
    return (((m.get("versus") or {}).get(other) or {}).get(mode) or {}).get("target")


def chance(p: float) -> str:
    """A p-value as anybody reads it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _spread(m: dict[str, Any], key: str) -> str:
    return percent(m[key]) + plus_minus((m.get("sd") or {}).get(key))


def note(result: dict[str, Any]) -> str:
    """What the table's figures are."""
    promise = promises(result)["floors"]
    several = len(result["settings"]["seeds"]) > 1
    means = ""
    if several:
        differ = result["settings"].get("spread") or _earlier(result)
        means = f"Means over {seeds_of(result)}, ± {SPREAD} {differ}; {STILL}. "
    text = (
        f"{means}Differences are points against the untouched network. First each method as its authors operate it, then all at the "
        f"operating point with {promise} (floors). AUROC is the targets' mean change: a mere shift of a logit hardly moves it. "
        "Seconds are the processor's, where they were taken. "
    )
    tested = [m["versus"] for m in result["methods"] if m.get("versus")]
    if not tested:
        return text + "p is McNemar's paired test on the targets' examples (the median over seeds, not corrected for their number)."
    n = max(t["base"]["own"]["target"]["tests"] for t in tested)
    over = ", the seeds combined by Rüger's rule" if several else ""
    text += f"p is McNemar's exact paired test on the targets' examples{over}, corrected by Holm's rule for the {n} methods tested"
    if any(DEFAULT in t for t in tested):
        text += f"; the column beside it is what the default, {DEFAULT}, gains for the targets beyond a method under floors, tested alike"
    return text + "."


def _earlier(result: dict[str, Any]) -> str:
    """What differs from seed to seed, for results that do not say."""
    given = (result.get("identity") or {}).get("validation") is not None
    return "everything random in a method" if given else "the split and everything random in a method"
