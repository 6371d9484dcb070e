"""How far an operating point chosen on n examples keeps its promise on new ones: every class's bias free, or one for the targets.

    python -m benchmarks.operating.optimism [--draws 8] [--json benchmarks/results/operating-optimism.json]

The development network of ``benchmarks/fitting/development.py`` (trained here on 20,000 images of CIFAR-10's train split) and a convex
fit on 6,000 of them. Of 15,000 images the network has not seen, n are drawn to choose the point on and all others judge it, so that what
is measured is the choice and not the judging. The worst class, and the worst four together.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import HERE, machine, write
from benchmarks.fitting.cifar import row
from benchmarks.fitting.development import development
from benchmarks.fitting.evaluate import applied, worst
from benchmarks.networks import CIFAR10
from tweaknn import Promise
from tweaknn.join.candidates import best_linear
from tweaknn.join.methods import of_means
from tweaknn.join.operating import operate
from tweaknn.join.setting import CAUTION, Setting

SIZES = (250, 500, 1000, 2500)
FORMS = (("overall", False), ("overall", True), ("floors", False))


def logits() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Base, base + fit (n, c), labels (n,) of the unseen images, and the worst four classes."""
    seen, new, frame = development()
    rows = np.sort(np.random.default_rng(5).permutation(len(seen.labels))[:6000])
    targets = worst(new.logits, new.labels, 4)
    train, held = replace(seen.rows(rows), views=()), new.rows(np.arange(2500))
    setting = of_means(Setting(train, held, tuple(targets[:1]), CIFAR10, Promise("floors"), frame, 0))
    return new.logits, applied(best_linear(setting).delta, new).astype(np.float32), new.labels, targets


def main() -> None:
    """Draw, choose, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "operating-optimism.json")
    options = parser.parse_args()
    base, z, y, four = logits()
    rows: list[dict[str, Any]] = []
    for targets in (four[:1], four):
        for n in SIZES:
            for kind, alone in FORMS:
                found = []
                for draw in range(options.draws):
                    order = np.random.default_rng(draw * 7 + n).permutation(len(y))
                    few, many = order[:n], order[n:]
                    point = operate(base[few], z[few], y[few], targets, Promise(kind), caution=CAUTION, alone=alone)
                    found.append(row([(base[many], z[many] + point.bias.astype(np.float32), y[many])], tuple(targets)))
                said = {"targets": len(targets), "n": n, "promise": kind, "one bias": alone}
                for key in ("gain", "overall_gain", "E", "worst_drop"):
                    values = 100 * np.array([f[key] for f in found])
                    said[key] = {"mean": float(values.mean()), "sd": float(values.std(ddof=1))}
                rows.append(said)
                print(*(f"{k} {v['mean']:+.2f}" if isinstance(v, dict) else f"{k} {v}" for k, v in said.items()), flush=True)
    settings = {"draws": options.draws, "sizes": SIZES, "caution": CAUTION}
    write(options.json, {"machine": machine(), "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
