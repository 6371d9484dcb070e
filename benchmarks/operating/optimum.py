"""How near the joint optimum the solver comes: `python -m benchmarks.operating.optimum --json FILE`.

Small problems against a proof: the optimum by mixed-integer programming (HiGHS), which is told nothing by the solver; where it does not
end in time, its bound. And large ones against a bound that costs one exact solution a target: under floors no joint point gives a target
more than the best point for that target alone does, every other class's floor being the same in both.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import lil_array

from benchmarks.common import machine, write
from benchmarks.operating.problems import SHAPES, made_up, real
from tweaknn.join.operating import operate
from tweaknn.join.promise import Promise

ROOM = 8.0
"""Largest bias the program may use either way."""


def proven(z: np.ndarray, y: np.ndarray, gain: np.ndarray, need: np.ndarray, need_all: float, seconds: float) -> tuple[float, bool]:
    """Upper bound of the value, and whether it is the optimum itself: which examples are right, and one bias a class."""
    n, c = z.shape
    m = 2 * ROOM + float(z.max() - z.min())
    rows, least = lil_array((n * (c - 1) + c + 1, n + c)), []
    for k in range(n):
        for j in range(c):
            if j != y[k]:
                i = len(least)
                rows[i, n + y[k]], rows[i, n + j], rows[i, k] = 1.0, -1.0, -m
                least.append(z[k, j] - z[k, y[k]] + 1e-6 - m)
    for j in range(c):
        rows[[len(least)], np.flatnonzero(y == j)] = 1.0
        least.append(need[j])
    rows[[len(least)], np.arange(n)] = 1.0
    least.append(need_all)
    low, high = np.concatenate([np.zeros(n), np.full(c, -ROOM)]), np.concatenate([np.ones(n), np.full(c, ROOM)])
    low[n] = high[n] = 0.0
    found = milp(
        -np.concatenate([gain, np.zeros(c)]), constraints=LinearConstraint(rows.tocsr(), np.array(least)),
        integrality=np.concatenate([np.ones(n), np.zeros(c)]), bounds=(low, high),
        options={"time_limit": seconds, "mip_rel_gap": 0},
    )  # fmt: skip
    if found.status == 2:
        return -np.inf, True
    return (-found.fun, True) if found.status == 0 else (-found.mip_dual_bound, False)


def small(seconds: float) -> list[dict[str, Any]]:
    """Random problems of 3 to 5 classes."""
    rows = []
    for n, c in ((60, 3), (44, 4), (70, 4), (60, 5)):
        for seed in range(5):
            base, z, y = made_up(n, c, 100 + seed)
            counts, before = np.bincount(y, minlength=c), np.bincount(y[base.argmax(1) == y], minlength=c)
            targets = np.arange(2) if c < 5 else np.arange(3)
            gain = np.where(np.isin(y, targets), 1.0 / len(targets) / counts[y], 0.0)
            for kind in ("floors", "overall"):
                need = before.astype(float) if kind == "floors" else np.where(np.isin(np.arange(c), targets), before, 0.0)
                bound, exact = proven(z.astype(float), y, gain, need, before.sum() if kind == "overall" else 0.0, seconds)
                point = operate(base, z, y, targets.tolist(), Promise(kind))
                row = {"examples": n, "classes": c, "seed": seed, "kind": kind, "proven": exact, "feasible": point.feasible,
                       "possible": bound > -np.inf, "value": point.value, "bound": bound,
                       "behind_in_examples": (bound - point.value) / gain[gain > 0].min() if point.feasible else None}  # fmt: skip
                rows.append(row)
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return rows


def large() -> list[dict[str, Any]]:
    """Several targets under floors against the mean of their optima by themselves."""
    pools = {name: (lambda shape=SHAPES[name]: made_up(*shape)) for name in ("2000x10", "10000x10", "20000x60")}
    pools |= {name: (lambda name=name: real(name)) for name in ("resnet20", "vit")}
    rows = []
    for name, make in pools.items():
        base, z, y = make()
        c = z.shape[1]
        recall = np.bincount(y[z.argmax(1) == y], minlength=c) / np.maximum(np.bincount(y, minlength=c), 1)
        targets = [int(j) for j in np.argsort(recall, kind="stable")[:4]]
        promise = Promise("floors", 0.02)
        point = operate(base, z, y, targets, promise)
        # a target may not lose anything, so by itself it has the others' floors at their base accuracy, without the tolerance
        alone = []
        for t in targets:
            others = {j: float((base.argmax(1)[y == j] == j).mean()) for j in targets if j != t}
            one = operate(base, z, y, [t], Promise("floors", 0.02, floors=others))
            alone.append(one.target if one.feasible else 0.0)
        row = {"pool": name, "feasible": point.feasible, "value": point.value, "base": point.base_value, "bound": float(np.mean(alone))}
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=40.0, help="for each proof")
    options = parser.parse_args()
    few, many = small(options.seconds), large()
    sure = [r for r in few if r["proven"] and r["possible"]]
    found = {
        "problems": len(few),
        "proven_and_possible": len(sure),
        "reached": sum(r["feasible"] and r["behind_in_examples"] < 1e-3 for r in sure),
        "missed_feasible": sum(not r["feasible"] for r in sure),
        "proven_impossible": sum(not r["possible"] for r in few),
    }
    print(found)
    write(options.json, {"machine": machine(), **found, "small": few, "large": many})


if __name__ == "__main__":
    main()
