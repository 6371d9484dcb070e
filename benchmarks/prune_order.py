"""Branches before units, and when: the exploration behind the schedule of `structure/schedule.py`. Validation images only.

    python benchmarks/prune_order.py --json out.json [--seeds 0] [--only NAME ...]

The network and loop are those of `benchmarks/prune.py` on CIFAR-10 JPEG (15 epochs). Branches are taken out by hand
before the first step, units by their gates in a window of the run, so that only the order and the time differ;
`branches by their gates` lets the library decide both.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

UNITS = {"beta": 0.0, "layers": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "one block a stage, full width": {"keep": ("1.0", "2.0", "3.0")},
    "one block a stage, units at 10-40 %, to half the narrow network's parameters":
        {"keep": ("1.0", "2.0", "3.0"), "prune": {"params": 0.14, "alpha": 0.1, "units": 0.1, "end": 0.4, **UNITS}},
    "one block a stage, units at 30-60 %, to half the narrow network's parameters":
        {"keep": ("1.0", "2.0", "3.0"), "prune": {"params": 0.14, "alpha": 0.3, "units": 0.3, "end": 0.6, **UNITS}},
    "one block a stage, units at 50-80 %, to half the narrow network's parameters":
        {"keep": ("1.0", "2.0", "3.0"), "prune": {"params": 0.14, "alpha": 0.3, "units": 0.5, "end": 0.8, **UNITS}},
    "one block a stage, units at 10-40 %":
        {"keep": ("1.0", "2.0", "3.0"), "prune": {"flops": 0.27, "alpha": 0.1, "units": 0.1, "end": 0.4, **UNITS}},
    "1-2-1 blocks, units at 10-40 %":
        {"keep": ("1.0", "2.0", "2.1", "3.0"), "prune": {"flops": 0.27, "alpha": 0.1, "units": 0.1, "end": 0.4, **UNITS}},
    "branches by their gates in 4 %, no rewinding": {"prune": {"flops": 0.27, "alpha": 0.1, "layers": 0.04, "rewind": False}},
    "branches by their gates": {"prune": {"flops": 0.27, "alpha": 0.1}},
}  # fmt: skip


def run(task: Any, seed: int, keep: tuple[str, ...] | None = None, prune: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train one variant; accuracy in percent on validation images, FLOPs and parameters of the full network's."""
    from benchmarks.pruning.methods import Loop, accuracy, make_resnet
    from benchmarks.pruning.nets import flops, parameters
    from tweaknn.structure import ComplexityAware
    from tweaknn.structure.analyse import analyse
    from tweaknn.structure.surgery import cut

    example = task.normal(task.train.images[:2])
    model = make_resnet(task, 1.0, seed)
    full = {"flops": flops(model, example), "params": parameters(model)}
    if keep is not None:
        plan = analyse(model, example)
        alive = np.ones(plan.n_gates, dtype=bool)
        alive[plan.n_units :] = [b.owner.removeprefix("layer") in keep for b in plan.blocks]
        model, _ = cut(model, plan, alive)
    loop = Loop(task, model, 15, seed)
    pruner = None
    if prune is not None:
        now = {"flops": flops(model, example), "params": parameters(model)}
        options = {k: v * full[k] / now[k] if k in full else v for k, v in prune.items()}
        pruner = ComplexityAware(model, example, loop.optimizer, steps=loop.steps, seed=seed, **options)
    loop.run(loop.steps, (lambda step: pruner.step()) if pruner is not None else None)
    if pruner is not None:
        loop.model = pruner.compact()
    return {
        "seed": seed, "validation": 100 * accuracy(loop.model, task, task.validation)[0],
        "flops": flops(loop.model, example) / full["flops"], "params": parameters(loop.model) / full["params"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("TWEAKNN_SHARED", ROOT.parent / "shared")))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    from benchmarks.prune import machine
    from benchmarks.pruning.data import cifar

    task = cifar(args.shared, validation=8_000)
    found: dict[str, Any] = json.loads(args.json.read_text()) if args.json.is_file() else {"rows": {}}
    for name in args.only:
        found["rows"][name] = [run(task, seed, **VARIANTS[name]) for seed in args.seeds]
        found |= {"machine": machine(), "date": datetime.date.today().isoformat()}
        part = args.json.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(part, args.json)
        print(name, found["rows"][name], file=sys.stderr)


if __name__ == "__main__":
    main()
