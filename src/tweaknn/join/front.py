"""The whole front of operating points of one change: target accuracy against overall accuracy, and against the worst loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tweaknn.errors import InputError
from tweaknn.join.operating import OperatingPoint, operate
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.settle import targets_alone
from tweaknn.join.starts import QUICK
from tweaknn.measure import error_e, pareto_front
from tweaknn.writing import json_text, write

TOLERANCES = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.35)
"""What each other class (or overall accuracy) may lose at the points of the front, fractions."""

LARGE = 2_000_000
"""Examples times classes above which every other tolerance is left out."""

PICTURES = (".png", ".svg", ".pdf")


def front(setting: Setting, best: Candidate, tolerances: Sequence[float] = TOLERANCES) -> list[dict[str, Any]]:
    """Operating points of the best candidate's change on the setting's validation examples.

    For each of ``tolerances`` the best point whose worst loss of another class, and the best one whose loss of overall accuracy, stays
    within it (each as exact as :func:`~tweaknn.join.operating.operate` is; for one target under floors that is the optimum), without
    caution. Kept are those on at least one of the two fronts, in order of rising target accuracy.

    Returns:
        Dictionaries with ``target``, ``overall``, ``worst_drop``, ``E``, ``per_class``, ``bias`` (of each class, to be added to the
        logits of base and ``strength`` times the change), ``strength``, ``fronts`` (``overall``, ``worst_drop`` or both).
    """
    base, labels = setting.validation.logits, setting.validation.labels
    delta, logits = best.fitted or (best.delta, best.logits)
    strength = float(best.notes.get("strength", 1.0)) if best.fitted else 1.0
    if base.size > LARGE:
        tolerances = tolerances[::2]
    wanted: list[tuple[float, OperatingPoint]] = []
    for s in (strength,):
        scaled = logits if s == 1.0 else base + np.float32(s) * (logits - base)
        for kind in ("floors", "overall"):
            starts: list[np.ndarray] = []
            for tolerance in tolerances:
                # weights, costs and what is asked beside floors or overall accuracy hold all along the front
                promise = replace(setting.promise, kind=kind, tolerance=tolerance, max_drop=None, overall_drop=None)
                point = operate(
                    base, scaled, labels, setting.aims, promise, classes=setting.classes, starts=starts,
                    effort=QUICK if starts else None, alone=targets_alone(setting.promise) and kind == "overall",
                )  # fmt: skip
                starts = [point.bias]
                if point.feasible:
                    wanted.append((s, point))
    # the base itself is a point of every front
    rows = [_row(point, s) for s, point in wanted]
    if not rows:
        return []
    here = best.point
    rows.append(_base_row(here))
    target = np.array([row["target"] for row in rows])
    on = {
        "overall": set(pareto_front(target, [row["overall"] for row in rows]).tolist()),
        "worst_drop": set(pareto_front(target, [row["worst_drop"] for row in rows]).tolist()),
    }
    kept = []
    for k in np.argsort(target, kind="stable"):
        fronts = [name for name, members in on.items() if int(k) in members]
        if fronts:
            kept.append({**rows[k], "fronts": fronts})
    return kept


def _row(point: OperatingPoint, strength: float) -> dict[str, Any]:
    drop = point.per_class - point.base_per_class
    return {
        "target": round(point.target, 6),
        "overall": round(point.overall, 6),
        "worst_drop": round(float(min(0.0, np.nanmin(drop))), 6),
        "E": error_e(point.base_per_class, point.per_class),
        "per_class": [None if np.isnan(a) else round(float(a), 5) for a in point.per_class],
        "bias": [round(float(b), 5) for b in point.bias],
        "strength": strength,
    }


def _base_row(point: OperatingPoint) -> dict[str, Any]:
    return {
        "target": round(point.base_target, 6),
        "overall": round(point.base_overall, 6),
        "worst_drop": 0.0,
        "E": 0.0,
        "per_class": [None if np.isnan(a) else round(float(a), 5) for a in point.base_per_class],
        "bias": [0.0] * len(point.bias),
        "strength": 0.0,
    }


def check_front_file(path: Path | None) -> None:
    """Raises InputError for a name that says neither a picture nor data."""
    if path is not None and path.suffix.lower() not in (*PICTURES, ".json"):
        raise InputError(f"--front {path}: give a name that ends in .json, {', '.join(PICTURES)}.")


def write_front(path: Path, figures: dict[str, Any]) -> None:
    """The front of a join's ``figures`` (:meth:`JoinResult.to_dict`) as data (``.json``) or as a picture.

    Raises:
        InputError: the name ends in neither, or the file cannot be written.
    """
    check_front_file(path)
    name = figures["chosen"] or next(iter(figures["candidates"]))
    points = figures["candidates"][name].get("front") or []
    if path.suffix.lower() == ".json":
        about = {key: figures[key] for key in ("targets", "classes", "promise", "n_validation")}
        content = {"candidate": name, **about, "base": {k: figures["base"][k] for k in ("target", "overall")}, "front": points}
        write(path, json_text(content), "--front")
        return
    write(path, _picture(path.suffix.lower()[1:], figures, name, points), "--front")


def _picture(kind: str, figures: dict[str, Any], name: str, points: list[dict[str, Any]]) -> bytes:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    base, chosen = figures["base"], figures["candidates"][name]
    left, right = figure.subplots(1, 2)
    for axis, key, words in ((left, "overall", "overall accuracy, %"), (right, "worst_drop", "worst class, points")):
        mine = [p for p in points if key in p["fronts"]]
        axis.plot([100 * p["target"] for p in mine], [100 * p[key] for p in mine], "o-", ms=3, color="#2f6f9f", label=f"front of {name}")
        for other, c in figures["candidates"].items():
            y = c["overall"] if key == "overall" else min(0.0, c["worst_drop"])
            if other != name:
                axis.plot(100 * c["target"], 100 * y, "x", color="#777777")
                axis.annotate(other, (100 * c["target"], 100 * y), fontsize=7, color="#555555", xytext=(3, 3), textcoords="offset points")
        y = chosen["overall"] if key == "overall" else min(0.0, chosen["worst_drop"])
        axis.plot(100 * chosen["target"], 100 * y, "D", color="#c2542d", label="handed over")
        axis.plot(100 * base["target"], 100 * (base["overall"] if key == "overall" else 0.0), "s", color="black", label="base")
        axis.set_xlabel(f"{', '.join(figures['targets'])}: accuracy, %")
        axis.set_ylabel(words)
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.suptitle(f"Operating points on {figures['n_validation']:,} validation examples", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
