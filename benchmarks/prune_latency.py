"""A real latency budget, reached or not: ResNet-20 (stride-2 stem) on CIFAR-10 JPEG, short training, half the time for one example.

    python benchmarks/prune_latency.py --json out.json [--latency 0.5] [--epochs 5] [--seeds 0 1 2] [--smoke]

The budget is steered by this machine's clock while the network trains; afterwards the finished network is measured anew,
in turn with the unpruned one (`tweaknn.structure.latency.ratio`), in several series whose median and quartiles are told.
Let nothing else run meanwhile: a clock that is wrong cuts too much or too little. Accuracy is on the test split, looked at
once a run; nothing is chosen.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.prune import machine  # noqa: E402
from benchmarks.pruning.data import Task, cifar  # noqa: E402
from benchmarks.pruning.methods import Loop, make_resnet, outcome  # noqa: E402
from benchmarks.pruning.nets import flops, parameters  # noqa: E402
from benchmarks.pruning.small import spread  # noqa: E402


def measured(small: torch.nn.Module, full: torch.nn.Module, x: torch.Tensor, rounds: int, series: int) -> dict[str, float]:
    """The median of ``series`` series of paired ratios, and the quarters of them."""
    from tweaknn.structure.latency import ratio

    twins = [(copy.deepcopy(small), copy.deepcopy(full)) for _ in range(series)]  # where weights lie in memory is luck
    found = [ratio(*pair, x, rounds=rounds, batch=None) for pair in twins]
    low, middle, high = np.quantile(found, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "low": low, "high": high}


def one(task: Task, target: float, epochs: float, seed: int, series: int = 15) -> dict[str, Any]:
    from tweaknn.structure import ComplexityAware

    loop = Loop(task, make_resnet(task, 1.0, seed), epochs, seed)
    full = copy.deepcopy(loop.model)
    example = task.normal(task.train.images[:2])
    begin = time.perf_counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pruner = ComplexityAware(loop.model, example, loop.optimizer, steps=loop.steps, seed=seed, latency=target)
        loop.run(loop.steps, lambda step: pruner.step())
        loop.model = pruner.compact()
    seconds = time.perf_counter() - begin
    result = outcome(loop, task, flops(full, example), parameters(full))
    twin = copy.deepcopy(loop.model).eval()
    for batch, rounds in ((1, 25), (128, 5)):
        result[f"latency_{batch}"] = measured(twin, full, task.normal(task.test.images[:batch]), rounds, series)
    result["itself"] = measured(copy.deepcopy(full), full, task.normal(task.test.images[:1]), 25, series)  # 1 but for noise
    assert pruner.latency is not None
    n = pruner.original.n_units
    return result | {
        "seed": seed, "wall_seconds": seconds, "undecided": pruner.undecided, "blocks": int(pruner.possible[n:].sum()),
        "steered_to": pruner.latency.points[-1][1], "readings": pruner.latency.points,
        "met": abs(result["latency_1"]["median"] / target - 1) <= pruner.settings.tolerance,
        "said": [str(w.message) for w in said if "latency" in str(w.message)],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true", help="One seed, 1,000 images: to see that it works.")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("TWEAKNN_SHARED", ROOT.parent / "shared")))
    args = parser.parse_args()
    torch.set_num_threads(1)
    from benchmarks.common import write

    task = cifar(args.shared, *((1_000, 500) if args.smoke else ()))
    runs = []
    for seed in args.seeds[: 1 if args.smoke else None]:
        runs.append(one(task, args.latency, args.epochs, seed, 3 if args.smoke else 15))
        r = runs[-1]
        print(f"seed {seed}: {r['latency_1']['median']:.3f} of the time at batch 1 ({r['latency_1']['low']:.3f} to "
              f"{r['latency_1']['high']:.3f}; steered to {r['steered_to']:.3f}), {r['latency_128']['median']:.3f} at 128, FLOPs "
              f"{r['flops']:.3f}, test {r['test']:.4f}, {r['wall_seconds']:.0f} s", file=sys.stderr)  # fmt: skip
    write(args.json, {
        "latency_target": args.latency, "latency_reached": spread([r["latency_1"]["median"] for r in runs]),
        "flops_reached": spread([r["flops"] for r in runs]), "accuracy": spread([r["test"] for r in runs]),
        "met": [r["met"] for r in runs], "seeds": [r["seed"] for r in runs], "runs": runs,
        "settings": {"network": "ResNet-20, stride-2 stem", "epochs": args.epochs, "batch_size": 128, "smoke": args.smoke},
        "machine": machine(), "date": datetime.date.today().isoformat(),
    })  # fmt: skip


if __name__ == "__main__":
    main()
