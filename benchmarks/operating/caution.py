"""How cautious to be by default: `python -m benchmarks.operating.caution --seeds 20 --json benchmarks/results/caution.json`.

Half of a pool to fit on, a quarter to choose on, a quarter to report on, many times over; on networks and data that the README's
tables do not use. For each class among the three worst: the convex fit at its operating point under ``floors`` (with tolerance 0
and 0.01), for several cautions in standard errors. Reported: gain and E on the report quarter, how often some class lost more
there than allowed by two standard errors of its own, and E in units of what pure chance gives at that size (a change that truly
harms nobody, measured on the same examples).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, write
from benchmarks.operating.pools import POOLS, convex, means_only, pool
from tweaknn.join.promise import Promise
from tweaknn.join.setting import Setting
from tweaknn.join.settle import settle

CAUTIONS = (0.0, 0.5, 1.0, 2.0)


def judged(base: np.ndarray, moved: np.ndarray, y: np.ndarray, targets: list[int], tolerance: float) -> dict[str, float]:
    """Figures of a change on report examples."""
    c = base.shape[1]
    counts = np.bincount(y, minlength=c).astype(float)
    before, after = base.argmax(1) == y, moved.argmax(1) == y
    drop = (np.bincount(y[before], minlength=c) - np.bincount(y[after], minlength=c)) / np.maximum(counts, 1)
    changed = np.bincount(y[before != after], minlength=c)
    error = np.sqrt(changed) / np.maximum(counts, 1)
    there = counts > 0
    others = there & ~np.isin(np.arange(c), targets)
    # half of a centred normal's square: what E would be if every true drop were nothing
    chance = np.sqrt((error[there] ** 2 / 2).mean())
    return {
        "gain": float(-drop[targets].mean()),
        "E": float(np.sqrt((np.maximum(drop[there], 0) ** 2).mean())),
        "chance": float(chance),
        "worst_drop": float(drop[others].max()),
        "mean_other": float(-drop[others].mean()),
        "overall": float(after.mean() - before.mean()),
        "broken": float(((drop - tolerance)[others] > 2 * error[others] + 1e-12).any()),
    }


def study(name: str, seeds: int, tolerances: tuple[float, ...]) -> list[dict[str, Any]]:
    """Rows of one pool."""
    world = pool(name)
    table = means_only(world.table)
    shares = (1 / 3, 1 / 12) if name == "photos" else (0.5, 0.25)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        fit_on, choose, report = world.split(seed, shares)
        if name == "photos":
            report = np.sort(np.random.default_rng(seed).choice(report, len(choose), replace=False))
        here, there = table.rows(choose), table.rows(report)
        made, logits, (outside,) = convex(world, table.rows(fit_on), here, [there])
        counts = np.bincount(here.labels, minlength=len(world.classes))
        right = np.bincount(here.labels[here.logits.argmax(1) == here.labels], minlength=len(counts))
        accuracy = np.where(counts > 4, right / np.maximum(counts, 1), 2.0)
        for target in np.argsort(accuracy, kind="stable")[:3].tolist():
            for tolerance in tolerances:
                setting = Setting(
                    here, here, (target,), world.classes, Promise("floors", tolerance), world.frame, seed
                )
                for caution in CAUTIONS:
                    found = settle(replace(setting, caution=caution), "fit", made.delta, logits)
                    point, strength = found.point, found.notes["strength"]
                    if point.feasible:
                        moved = there.logits + np.float32(strength) * (outside - there.logits) + point.bias
                    else:
                        moved = there.logits
                    figures = judged(there.logits, moved, there.labels, [target], tolerance)
                    rows.append(
                        {"pool": name, "seed": seed, "target": target, "tolerance": tolerance, "caution": caution,
                         "feasible": point.feasible, "strength": strength, "kept": found.notes["caution"],
                         "promised": point.gain, **figures}
                    )  # fmt: skip
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds and targets, in points."""
    out = []
    for key in sorted({(r["pool"], r["tolerance"], r["caution"]) for r in rows}):
        mine = [r for r in rows if (r["pool"], r["tolerance"], r["caution"]) == key]
        mean = {k: float(np.mean([r[k] for r in mine])) for k in
                ("promised", "gain", "E", "chance", "worst_drop", "mean_other", "overall", "broken", "feasible")}  # fmt: skip
        share = ("broken", "feasible")
        out.append({"pool": key[0], "tolerance": key[1], "caution": key[2], "n": len(mine)}
                   | {k: v if k in share else 100 * v for k, v in mean.items()})  # fmt: skip
    return out


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pools", nargs="*", default=list(POOLS))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.pools:
        began = time.process_time()
        rows += study(name, options.seeds, (0.0, 0.01))
        for line in summary([r for r in rows if r["pool"] == name]):
            print(" ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{v}" for k, v in line.items()), flush=True)
        print(f"{name}: {time.process_time() - began:.0f} s", flush=True)
        write(options.json, {"machine": machine(), "seeds": options.seeds, "points": summary(rows)})


if __name__ == "__main__":
    main()
