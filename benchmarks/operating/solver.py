"""CPU seconds of one operating point on 50,000 examples of 100 classes: `python -m benchmarks.operating.solver --json FILE`.

Made-up logits of a network that is right on about 70 %; floors for one target, floors for four, overall, and a mixed form with floors,
specificity, weights and a cost matrix.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.common import machine, write
from tweaknn.join.operating import operate
from tweaknn.join.promise import Promise


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    n, c = options.n, options.classes
    rng = np.random.default_rng(0)
    y = rng.integers(0, c, n)
    base = rng.normal(size=(n, c)).astype(np.float32)
    base[np.arange(n), y] += 3.2
    z = base + 0.6 * rng.normal(size=(n, c)).astype(np.float32)
    z[np.arange(n), y] += 0.6
    costs = rng.random((c, c)) * 0.1
    np.fill_diagonal(costs, 0)
    mixed = Promise(
        "mixed", floors={5: 0.5}, max_drop=0.02, overall_drop=0.01, specificity={0: 0.98}, weights={0: 2.0, 1: 1.0}, costs=costs
    )
    cases = {
        "floors, one target": ([0], Promise("floors"), 0.0),
        "floors, one target, caution": ([0], Promise("floors"), 0.5),
        "floors, four targets": ([0, 1, 2, 3], Promise("floors"), 0.0),
        "overall": ([0], Promise("overall"), 0.0),
        "mixed": ([0, 1], mixed, 0.0),
    }
    few = base[:6000, :20], z[:6000, :20], y[:6000] % 20
    for targets, promise in (([0], Promise("overall")), ([0], Promise("floors", 0.1)), ([0, 1], Promise("floors", 0.1))):
        operate(*few, targets, promise)  # compiles
    rows = {}
    for name, (targets, promise, caution) in cases.items():
        began = time.process_time()
        point = operate(base, z, y, targets, promise, caution=caution)
        rows[name] = {"seconds": time.process_time() - began, "feasible": point.feasible, "gain": point.gain}
        print(name, {k: round(float(v), 3) for k, v in rows[name].items()}, point.reason, flush=True)
    write(options.json, {"machine": machine(), "examples": n, "classes": c, "base_accuracy": (base.argmax(1) == y).mean(), "rows": rows})


if __name__ == "__main__":
    main()
