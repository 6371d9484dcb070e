"""Gain against size of a delta, ResNet-20 on CIFAR-10 stored as JPEG (issue: fit and operate).

    python -m benchmarks.fitting.size --seeds 3 --rows 50000 --out benchmarks/results/fit-size.json [--plot docs/images/fit-size.png]

The tables and halves of ``benchmarks.fitting.cifar``: fitted on images of the train split, chosen on one half of the test split,
measured on the other, both ways. Single targets (bird, cat, dog, airplane), promise floors. Sizes: the constant bias, convex fits of 10 to
640 pooled neurons (chosen by group lasso), of all neurons, AANs of 8 to 127 hidden neurons. Nothing is chosen by what this shows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import HERE, machine, write
from benchmarks.fitting.cifar import TARGETS, row, tables
from benchmarks.fitting.evaluate import applied
from benchmarks.fitting.tables import base_network
from benchmarks.networks import CIFAR10
from tweaknn import Promise
from tweaknn.join.aans import AANChoice, aan
from tweaknn.join.candidates import Made, best_linear, bias_alone, fitted, once
from tweaknn.join.methods import of_means
from tweaknn.join.selected import chosen
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.size import limit_of

NEURONS = (10, 40, 160, 640)
HIDDEN = (8, 32, 127)


def candidates(setting: Setting) -> list[Candidate]:
    """One candidate a size at its operating point."""
    small = of_means(setting)
    made: dict[str, tuple[Setting, Callable[[], Made]]] = {
        **{
            f"{k} neurons": (small, lambda k=k: fitted(small, "selected", chosen(small, "selected", k)))
            for k in NEURONS  # type: ignore[misc]
        },
        "fit": (small, lambda: best_linear(small)),
        **{f"AAN of {h}": (setting, lambda h=h: aan(setting, "aan", AANChoice(hidden=h))) for h in HIDDEN},  # type: ignore[misc]
    }
    found = [bias_alone(setting)]
    for name, (own, make) in made.items():
        found.append(once(own, (name,), make).settle(own, name))
    return found


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=HERE / ".cache")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=12_500)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fit-size.json")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    limit, rows, sizes = limit_of(base_network()), {}, {}
    for seed in range(options.seeds):
        ready, ways = tables(seed, options.rows, "test", options.cache)
        for target in TARGETS:
            began = time.process_time()
            parts: dict[str, list[Any]] = {}
            for held, test in ways:
                setting = Setting(ready.train_table, held, (target,), CIFAR10, Promise("floors"), ready.frame, seed, limit)
                for c in candidates(setting):
                    parts.setdefault(c.name, []).append((test.logits, applied(c.delta, test), test.labels))
                    sizes.setdefault(c.name, []).append(c.delta.parameters)
            for name, measured in parts.items():
                rows.setdefault(name, []).append({"seed": seed, "target": target, **row(measured, (target,))})
            print(f"seed {seed}, {CIFAR10[target]}: {time.process_time() - began:.0f} s", flush=True)
        points = {name: _point(found, sizes[name]) for name, found in rows.items()}
        write(options.out, {"machine": machine(), "limit": limit, "points": points, "rows": rows,
                            "settings": {"seeds": options.seeds, "rows": options.rows, "promise": "floors"}})  # fmt: skip
    for name, p in points.items():
        gain = f"gain {p['gain']:+5.1f} ± {p['sd'] or 0:.1f}"
        print(f"{name:14s} {p['parameters']:9,.0f} parameters  {gain}  E {p['E']:.2f}  auroc {p['auroc']:+.2f}")
    if options.plot:
        draw(points, options.plot)


def _point(found: list[dict[str, float]], sizes: list[int]) -> dict[str, Any]:
    seeds = sorted({r["seed"] for r in found})
    gains = [100 * np.mean([r["gain"] for r in found if r["seed"] == s]) for s in seeds]
    mean = {k: 100 * np.mean([r[k] for r in found]) for k in ("gain", "E", "auroc_gain")}
    return {"parameters": float(np.mean(sizes)), "gain": mean["gain"], "sd": float(np.std(gains, ddof=1)) if len(gains) > 1 else None,
            "E": mean["E"], "auroc": mean["auroc_gain"]}  # fmt: skip


def draw(points: dict[str, dict[str, Any]], path: Path) -> None:
    """Gain against parameters."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.5), constrained_layout=True)
    for name, p in points.items():
        axis.errorbar(p["parameters"], p["gain"], yerr=p["sd"], fmt="o", color="C1" if name.startswith("AAN") else "C0")
        axis.annotate(name, (p["parameters"], p["gain"]), xytext=(4, -10), textcoords="offset points", fontsize=8)
    axis.set_xscale("log")
    axis.set_xlabel("parameters of the delta")
    axis.set_ylabel("gain of the target, points (floors)")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
