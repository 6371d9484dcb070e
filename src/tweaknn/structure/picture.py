"""The picture of a structure: widths before and after, and theta over time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InputError


def draw(facts: dict[str, Any], path: str | Path) -> None:
    """Write a figure of a trained directory's ``facts``; the suffix of ``path`` decides the format.

    Raises:
        InputError: the network was trained plainly, or the format is unknown.
    """
    from matplotlib.figure import Figure

    layers = [row for row in facts.get("layers") or [] if "width" in row]
    history = [h for h in facts.get("history") or [] if h.get("theta")]
    if not layers:
        raise InputError("this network was trained plainly; there is nothing to draw")
    figure = Figure(figsize=(11, 0.28 * len(layers) + 2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    place = range(len(layers))
    left.barh(place, [row["width"][0] for row in layers], color="0.88", label="before")
    left.barh(place, [row["width"][1] for row in layers], color="tab:blue", height=0.5, label="after")
    left.set_yticks(list(place), [row["layer"] for row in layers], fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("units")
    left.set_title(f"FLOPs {100 * facts['flops']:.1f} %, parameters {100 * facts['params']:.1f} %", fontsize=10)
    left.legend(fontsize=8)
    steps = [h["step"] for h in history]
    for name in history[0]["theta"] if history else []:
        values = [h["theta"].get(name, 0.0) for h in history]
        branch = name.startswith("branch ")
        right.plot(steps, values, color="tab:red" if branch else "tab:blue", lw=1.4 if branch else 0.8, alpha=0.7)
    right.plot([], [], color="tab:red", label="branches")
    right.plot([], [], color="tab:blue", label="units, mean of a layer")
    right.plot(steps, [h["flops"] for h in history], "k--", lw=1.5, label="expected FLOPs")
    right.set_xlabel("optimiser step")
    right.set_ylabel("theta")
    right.set_ylim(-0.02, 1.02)
    right.legend(fontsize=8)
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    kind = target.suffix.lstrip(".").lower()
    try:
        figure.savefig(part, format=kind, dpi=130)
        os.replace(part, target)
    except ValueError:
        part.unlink(missing_ok=True)
        raise InputError(f"{target.name}: the picture's format must be png, svg or pdf") from None
