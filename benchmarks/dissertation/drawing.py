"""The dissertation's figures as pictures, from the JSON of ``python -m benchmarks.dissertation figX.Y --json FILE``.

python -m benchmarks.dissertation.drawing FOLDER OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SOFT, STRONG = "#94a3b8", "#c2410c"


def _new(columns: int = 1, width: float = 6.4, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, [figure.add_subplot(1, columns, k + 1) for k in range(columns)]


def _bars(axes: Axes, d: dict[str, Any], rows: dict[str, Any]) -> None:
    names, n = [*d["classes"], "overall"], len(rows)
    for k, (label, row) in enumerate(rows.items()):
        values = [100 * (v or 0) for v in [*row["per_class"], row["overall"]]]
        axes.bar(np.arange(len(names)) + (k - (n - 1) / 2) * 0.8 / n, values, 0.8 / n, label=label)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=7, ncol=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _boxes(axes: Axes, d: dict[str, Any], moments: list[dict[str, Any]], title: str) -> None:
    columns = [[100 * m["per_class"][j] for m in moments] for j in range(len(d["classes"]))]
    axes.boxplot([*columns, [100 * m["overall"] for m in moments]])
    axes.set_xticks(range(1, len(columns) + 2), [*d["classes"], "overall"], rotation=60, ha="right", fontsize=7)
    axes.set_title(title, fontsize=9)


def _curves(
    axes: Axes, rows: list[dict[str, Any]], x: str = "iteration", keys: tuple[str, ...] = ("overall", "target"), **style: Any
) -> None:
    for key in keys:
        axes.plot([r[x] for r in rows], [100 * r[key] for r in rows], label=f"{style.get('name', '')} {key}".strip())
    axes.set_xlabel({"seconds": "CPU seconds"}.get(x, x))
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=7)


def grouped_bars(d: dict[str, Any]) -> Figure:
    """Figures 1.1 and 6.2."""
    figure, (axes,) = _new(width=9)
    _bars(axes, d, d["rows"])
    return figure


def training_curves(d: dict[str, Any]) -> Figure:
    """Figure 3.1."""
    figure, (left, right) = _new(2)
    steps = [r["iteration"] for r in d["training"]]
    for j, name in enumerate(d["classes"]):
        target = name == d["target"]
        left.plot(steps, [100 * r["per_class"][j] for r in d["training"]], color=STRONG if target else SOFT, lw=1.6 if target else 0.8)
    left.plot(steps, [100 * r["overall"] for r in d["training"]], color="black", label="overall")
    left.legend(fontsize=7)
    left.set_title(f"training; {d['target']} in colour", fontsize=9)
    for name, rows in d["retraining"].items():
        _curves(right, rows, name=name)
    return figure


def histograms(d: dict[str, Any]) -> Figure:
    """Figure 3.3."""
    count = max(1, len(d["synapses"]))
    figure, axes = _new(count, 3.6)
    for axis, s in zip(axes, d["synapses"]):
        edges = np.linspace(0, 6 * max(abs(s["threshold"]), 1e-9), 50)
        axis.hist([np.abs(s["E_c"]), np.abs(s["E_w"])], edges, label=["E_c", "E_w"], color=[SOFT, STRONG])
        axis.axvline(abs(s["threshold"]), color="black", ls="--")
        axis.set_title(f"{s['layer']} {s['index']}: count {s['count']}", fontsize=8)
        axis.legend(fontsize=7)
    return figure


def count_distribution(d: dict[str, Any]) -> Figure:
    """Figure 3.4."""
    figure, (axes,) = _new()
    for layer, counts in d["layers"].items():
        points = [(int(k), v) for k, v in counts.items() if int(k) > 0]
        axes.loglog([p[0] for p in points], [p[1] for p in points], "o", ms=3, label=layer)
    axes.set_xlabel("count")
    axes.set_ylabel("synapses")
    axes.legend(fontsize=7)
    return figure


def over_n(d: dict[str, Any]) -> Figure:
    """Figure 3.5."""
    figure, axes = _new(2)
    for key, axis in zip(("target", "overall"), axes):
        for scale in sorted({p["scale"] for p in d["points"]}):
            rows = [p for p in d["points"] if p["scale"] == scale]
            axis.plot([p["n"] for p in rows], [100 * p[key] for p in rows], label=f"scale {scale:g}")
        axis.set_title(f"{key} accuracy over n", fontsize=9)
        axis.legend(fontsize=7)
    return figure


def over_scale(d: dict[str, Any]) -> Figure:
    """Figure 3.6."""
    figure, axes = _new(2)
    _curves(axes[0], d["points"], "scale")
    _curves(axes[1], [p for p in d["points"] if p["scale"] <= 60], "scale", ("overall",))
    return figure


def spreads(d: dict[str, Any]) -> Figure:
    """Figures 3.7 and 6.1."""
    figure, axes = _new(len(d["boxes"]) + 2 * ("calibration" in d), 3.4)
    for axis, (name, moments) in zip(axes, d["boxes"].items()):
        _boxes(axis, d, moments, name)
    if "calibration" in d:
        for axis, key, rows in ((axes[-2], "mu", d["calibration"]), (axes[-1], "scale", d["join"])):
            for j, name in enumerate(d["classes"]):
                target = name == d["target"]
                axis.plot([r[key] for r in rows], [100 * r["per_class"][j] for r in rows], color=STRONG if target else SOFT)
            axis.plot([r[key] for r in rows], [100 * r["overall"] for r in rows], color="black")
            axis.set_title(f"{'calibration' if key == 'mu' else 'join'} over {key}", fontsize=9)
    return figure


def sizes(d: dict[str, Any]) -> Figure:
    """Figure 3.8."""
    figure, (axes,) = _new()
    for name, row in d["networks"].items():
        axes.loglog(row["parameters"], max(row["active"], 0.5), "o", mfc=None if row["trained"] else "white")
        axes.annotate(name + ("" if row["trained"] else " (untrained)"), (row["parameters"], max(row["active"], 0.5)), fontsize=7)
    axes.set_xlabel("parameters")
    axes.set_ylabel("active neurons a class")
    return figure


def over_layers(d: dict[str, Any]) -> Figure:
    """Figure 3.9."""
    figure, (axes,) = _new()
    names = list(d["layers"])
    axes.barh(names, [r["active"] for r in d["layers"].values()], color=SOFT)
    for k, row in enumerate(d["layers"].values()):
        axes.text(row["active"], k, f" {row['active']:,} ({row['share']:.2%}), {row['chosen']} chosen", va="center", fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("active neurons")
    axes.margins(x=0.4)  # room for what is written behind the bars
    return figure


def tails(d: dict[str, Any]) -> Figure:
    """Figure 3.10."""
    figure, (axes,) = _new(width=9)
    x = np.arange(len(d["classes"]))
    for k, name in enumerate(("oversampling", "synaptic join")):
        axes.bar(x + 0.4 * k - 0.2, [100 * v for v in d[name]], 0.4, label=name)
    if len(x) <= 40:
        axes.set_xticks(x, [f"{c} ({n})" for c, n in zip(d["classes"], d["examples"])], rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("points won")
    axes.legend(fontsize=7)
    return figure


def convergence(d: dict[str, Any]) -> Figure:
    """Figure 3.11."""
    figure, axes = _new(2)
    for axis, x in zip(axes, ("iteration", "seconds")):
        _curves(axis, d["retraining-1"], x, name="retraining-1")
        _curves(axis, d["synaptic retraining-2"]["moments"], x, name="synaptic retraining-2")
    return figure


DRAWINGS: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "fig1.1": grouped_bars,
    "fig3.1": training_curves,
    "fig3.3": histograms,
    "fig3.4": count_distribution,
    "fig3.5": over_n,
    "fig3.6": over_scale,
    "fig3.7": spreads,
    "fig3.8": sizes,
    "fig3.9": over_layers,
    "fig3.10": tails,
    "fig3.11": convergence,
    "fig6.1": spreads,
    "fig6.2": grouped_bars,
}


def main() -> None:
    """Draw every figure whose numbers are there."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        file = folder / f"dissertation-{name}.json"
        if file.is_file():
            draw(json.loads(file.read_text())).savefig(out / f"dissertation-{name}.png", dpi=90)
            print(out / f"dissertation-{name}.png")


if __name__ == "__main__":
    main()
