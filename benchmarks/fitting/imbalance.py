"""Section 3.3.8 in small: tail classes as targets, with and without oversampling underneath.

    python -m benchmarks.fitting.imbalance --seeds 3 --out benchmarks/results/fit-imbalance.json

The dissertation mends the 50, 100 and 150 rarest of SUN-397's 397 classes (Table 3.10). Here: the 2, 3 and 4 rarest of
clothing10's ten and of Shuttle's seven (those with 30 examples or more in the pool). Two bases on the same examples and
as many steps: drawn as they come, and drawn with equal chances for every class (oversampling). On each: the join
(Algorithm 1), synaptic retraining 1 and 2, and the default, all under the dissertation's rule, overall accuracy not
below the base's; fitted on half of the pool, chosen on a quarter, reported on a quarter, once a seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import HERE, machine, write
from benchmarks.fitting.worlds import clothes, shuttle_rows
from tweaknn import Promise, SynapticJoin, compare_logits
from tweaknn.inputs.augment import augmentation
from tweaknn.network.outputs import collect_logits

METHODS = ("theta", "retrain-1", "retrain-2", "best")


def base(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float, balanced: bool, augment: Any) -> nn.Module:
    """AdamW with one cycle; ``balanced``: every class is drawn as often (oversampling)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(y).clamp_min(1)
    chance = 1 / counts[y].double() if balanced else torch.ones(len(y), dtype=torch.double)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        rows = torch.multinomial(chance, 64, replacement=True, generator=generator)
        one = augment(x[rows], generator) if augment is not None else x[rows]
        optimiser.zero_grad()
        F.cross_entropy(model(one), y[rows]).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def clothing() -> tuple[Any, ...]:
    """Base data, pool, a network, steps, rate, augmentation."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        blocks: list[nn.Module] = []
        for a, b in pairwise([3, 24, 48, 96, 96, 128]):
            blocks += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))

    return (*clothes(), make, 300, 4e-3, augmentation("flip,shift"))


def shuttle() -> tuple[Any, ...]:
    """10,000 rows for a base, 12,000 and all of the rare classes for the pool."""
    x, y, names = shuttle_rows()
    rest = torch.arange(len(y)) >= 10_000
    kept = rest & ((torch.arange(len(y)) < 22_000) | (torch.bincount(y)[y] < 1000))

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, len(names)))

    return x[:10_000], y[:10_000], x[kept], y[kept], make, 400, 2e-3, None


def run(name: str, seeds: int, counts: list[int], out: list[dict[str, Any]], keep: Callable[[], None]) -> None:
    """Both bases of one data set: rows go to ``out``, and ``keep`` writes them after each base and seed."""
    x, y, px, py, make, steps, rate, augment = {"clothing10": clothing, "shuttle": shuttle}[name]()
    size = np.bincount(py.numpy())
    rare = [int(j) for j in np.argsort(size) if size[j] >= 30]
    for balanced in (False, True):
        model = base(make(), x, y, steps, rate, balanced, augment)
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            parts: list[list[int]] = [[], [], []]
            for j in range(len(size)):
                rows = rng.permutation(np.flatnonzero(py.numpy() == j))
                for part, piece in zip(parts, np.split(rows, np.round(np.array([0.5, 0.75]) * len(rows)).astype(int))):
                    part += piece.tolist()
            train, held, test = ((px[p], py[p]) for p in map(sorted, parts))
            before, labels = collect_logits(model, [test])
            for method in METHODS:
                seen = {"views": 2, "augment": augment} if method == "best" and augment else {"views": 0}
                join = SynapticJoin(
                    method=method, promise=Promise("overall"), base_saw="none", cross_fit=False if method == "best" else None,
                    seed=seed, **seen,
                )  # fmt: skip
                ready = join.prepare(model, train, held, classes=[str(j) for j in range(len(size))])
                for c in counts:
                    result = join.choose(ready, [str(j) for j in rare[:c]])
                    own = next((k for k in result.candidates if k.name == method), result.candidates[0])
                    delta = result.delta if method == "best" else own.delta
                    logits = before if delta is None else collect_logits(delta.attach(model, check=False), [test])[0]
                    k = compare_logits(before, logits, labels)
                    out.append({
                        "oversampled": balanced, "seed": seed, "method": method, "targets": c,
                        "base": float(np.nanmean(k.base.per_class[rare[:c]])),
                        "target": float(np.nanmean(k.tweaked.per_class[rare[:c]])),
                        "base_overall": k.base.overall, "overall": k.tweaked.overall, "E": k.E,
                    })  # fmt: skip
            keep()
            print(f"{name}, {'oversampled' if balanced else 'as it comes'}, seed {seed}: {time.process_time():.0f} s", flush=True)
    print(name, "pool", size.tolist())
    for c in counts:
        for balanced in (False, True):
            found = [r for r in out if r["targets"] == c and r["oversampled"] == balanced]
            line = f"  {c} tail classes, {'oversampled' if balanced else 'as it comes'}: base {np.mean([r['base'] for r in found]):.3f}"
            line += f" (overall {np.mean([r['base_overall'] for r in found]):.3f})"
            for method in METHODS:
                rows = [r for r in found if r["method"] == method]
                line += f"  {method} {np.mean([r['target'] for r in rows]):.3f} ({np.mean([r['overall'] for r in rows]):.3f})"
            print(line, flush=True)


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="*", default=["shuttle", "clothing10"])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fit-imbalance.json")
    options = parser.parse_args()
    out: dict[str, Any] = {"machine": machine(), "settings": {**vars(options), "out": None}}
    for name in options.data:
        out[name] = []
        run(name, options.seeds, [2, 3, 4], out[name], partial(write, options.out, out))


if __name__ == "__main__":
    main()
