"""A picture of what a delta did: every class before and after, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tweaknn.join.comparison import Comparison
from tweaknn.measure import wilson


def before_after(comparison: Comparison, path: str | Path, *, targets: Sequence[str] = (), title: str = "") -> None:
    """Write a PNG or SVG of per-class accuracy before and after; targets are coloured."""
    from matplotlib.figure import Figure  # the object interface needs no display and no global state

    c = comparison
    shown = [j for j in range(len(c.classes)) if c.base.counts[j]]
    shown.sort(key=lambda j: c.base.per_class[j])
    figure = Figure(figsize=(7.2, 0.34 * len(shown) + 1.3), layout="constrained")
    axes = figure.subplots()
    for row, j in enumerate(shown):
        n = int(c.base.counts[j])
        after = float(c.tweaked.per_class[j])
        low, high = wilson(round(after * n), n)
        colour = "#c2410c" if c.classes[j] in targets else "#475569"
        axes.plot([100 * low, 100 * high], [row, row], color=colour, alpha=0.25, linewidth=7, solid_capstyle="butt")
        axes.plot([100 * c.base.per_class[j], 100 * after], [row, row], color=colour, linewidth=1.5)
        axes.plot(100 * c.base.per_class[j], row, "o", color="white", markeredgecolor=colour, markersize=7)
        axes.plot(100 * after, row, "o", color=colour, markersize=7)
    axes.set_yticks(range(len(shown)), [c.classes[j] + (" ◂" if c.classes[j] in targets else "") for j in shown])
    axes.axvline(100 * c.tweaked.overall, color="#94a3b8", linewidth=1, linestyle=":")
    axes.set_xlabel("accuracy, %   (○ base, ● tweaked, bar: 95 % interval, dotted: overall after)")
    low = min(float(np.nanmin(c.base.per_class[shown])), float(np.nanmin(c.tweaked.per_class[shown])))
    axes.set_xlim(max(0.0, 100 * low - 8), 101)
    axes.set_title(
        title or f"overall {100 * c.base.overall:.1f} → {100 * c.tweaked.overall:.1f} %", loc="left", fontsize=10
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(Path(path), dpi=150)
