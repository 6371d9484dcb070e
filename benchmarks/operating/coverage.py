"""How often a promise holds on new data: `python -m benchmarks.operating.coverage --json benchmarks/results/coverage.json`.

A pool's examples that the fit has not seen are the population; 200 validation sets are drawn from it with replacement, so what is
true on new data is known exactly. For each draw: the plain operating point (no caution), the default, and the certified one
(``confidence`` 0.95), under ``floors`` and ``overall`` with a tolerance; then whether each keeps the promise on the population.
Coverage is the share of draws in which it does (handing over nothing counts as keeping it). Stored logits only: seconds a row.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, write
from benchmarks.operating.pools import convex, means_only, pool
from tweaknn.delta import Delta
from tweaknn.join.certify import certify
from tweaknn.join.promise import Promise
from tweaknn.join.setting import CAUTION, Setting
from tweaknn.join.settle import best_strength, placed
from tweaknn.join.splits import holdout
from tweaknn.join.table import PooledTable

CASES = (
    ("vit", 2500, "floors", 0.1),
    ("vit", 1000, "overall", 0.02),
    ("text", 2500, "floors", 0.15),
)
CONFIDENCE = 0.95


def keeps(before: np.ndarray, after: np.ndarray, y: np.ndarray, target: int, promise: Promise) -> bool:
    """Whether a promise holds on the population, from correctness before and after."""
    counts = np.bincount(y)
    change = np.bincount(y[after], minlength=len(counts)) - np.bincount(y[before], minlength=len(counts))
    share = change / np.maximum(counts, 1)
    if share[target] < 0:
        return False
    if promise.kind == "overall":
        return bool(after.mean() >= before.mean() - promise.tolerance - 1e-12)
    return bool((share >= -promise.tolerance - 1e-12).all())


def case(name: str, n: int, promise: Promise, draws: int) -> dict[str, Any]:
    """One row."""
    world = pool(name)
    table = means_only(world.table)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(table.labels))
    size = min(len(order) // 3, 5000)
    first, rest = table.rows(order[:size]), table.rows(order[size:])
    made, _, (outside,) = convex(world, first.rows(np.arange(size * 3 // 4)), first.rows(np.arange(size * 3 // 4, size)), [rest])
    y, base = rest.labels, rest.logits
    counts = np.bincount(y, minlength=len(world.classes))
    before = base.argmax(1) == y
    accuracy = np.bincount(y[before], minlength=len(counts)) / np.maximum(counts, 1)
    target = int(np.argmin(np.where(counts >= 50, accuracy, 2)))
    names = ("plain", "default", "certified")
    held: dict[str, list[bool]] = {k: [] for k in names}
    gains: dict[str, list[float]] = {k: [] for k in names}
    none = {k: 0 for k in names}

    def moved(strength: float, bias: np.ndarray) -> np.ndarray:
        return (base + np.float32(strength) * (outside - base) + bias).argmax(1) == y

    def judge(key: str, strength: float, bias: np.ndarray | None) -> None:
        after = before if bias is None else moved(strength, bias)
        held[key].append(keeps(before, after, y, target, promise))
        gains[key].append(float(after[y == target].mean() - before[y == target].mean()))
        none[key] += bias is None

    for draw in range(draws):
        if draw % 20 == 0:
            print(name, draw, {k: (round(float(np.mean(v)), 3), none[k]) for k, v in held.items() if v}, flush=True)
        rows = np.random.default_rng(1000 + draw).integers(0, len(y), n)
        whole = rest.rows(rows)
        if not (whole.labels == target).any():
            continue
        for key, caution in (("plain", 0.0), ("default", CAUTION)):
            s = setting(world, whole, target, promise, caution)
            point, strength, _ = best_strength(s, outside[rows], caution)
            helps = point.feasible and point.value > point.base_value
            judge(key, strength, point.bias if helps else None)
        choose, keep = holdout(whole.labels, share=0.5, seed=draw)
        s = setting(world, whole.rows(choose), target, promise, CAUTION)
        logits = outside[rows][choose]
        point, strength, _ = best_strength(s, logits, CAUTION)
        found = placed(s, "fit", made.delta, logits, strength, point, {})
        best, _ = certify(s, found, whole.rows(keep), {}, CONFIDENCE)
        judge("certified", best.notes["strength"] if best else 0.0, best.point.bias if best else None)
    row: dict[str, Any] = {
        "pool": name, "n": n, "promise": promise.kind, "tolerance": promise.tolerance, "target": target, "draws": len(held["plain"]),
        "population": len(y), "fewest": int(counts[counts > 0].min() * n / len(y)),
    }  # fmt: skip
    for key in names:
        row[key] = {
            "coverage": float(np.mean(held[key])),
            "gain": float(np.mean(gains[key])),
            "nothing": none[key] / len(held[key]),
        }
    return row


def setting(world: Any, table: PooledTable, target: int, promise: Promise, caution: float) -> Setting:
    """Of one draw."""
    frame: Delta = world.frame
    return Setting(table, table, (target,), world.classes, promise, frame, 0, caution=caution)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--cases", type=int, nargs="*", default=list(range(len(CASES))), help="which of them, by position")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, n, kind, tolerance in (CASES[k] for k in options.cases):
        began = time.process_time()
        rows.append(case(name, n, Promise(kind, tolerance), options.draws))
        print(rows[-1], f"{time.process_time() - began:.0f} s", flush=True)
        write(options.json, {"machine": machine(), "confidence": CONFIDENCE, "rows": rows})


if __name__ == "__main__":
    main()
