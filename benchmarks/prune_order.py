"""Branches before units, and when: the exploration behind the schedule of `structure/schedule.py`. Validation images only.

    python benchmarks/prune_order.py --json out.json [--seeds 0] [--only NAME ...] [--validation 8000]
    python benchmarks/prune_order.py --data clothing10 --json out.json --seeds 0 1 2 --only default "units only" ...

With ``--data clothing10``: 2,300 of its training photographs for 40 epochs, judged on the other 768 and its validation
folder; nothing of its test folder is read. The network and loop are those of `benchmarks/prune.py` (15 epochs on
CIFAR-10 JPEG). Branches are taken out by hand before the first step, units by their gates in a window of the run, so
that only the order and the time differ; `branches by their gates` and `default` let the library decide both; `by hand
from the first step` has branches and widths chosen by hand and no gates at all.
"""

from __future__ import annotations

import argparse
import datetime
import json
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
    "default": {"prune": {"flops": 0.27}},
    "beta 0.37": {"prune": {"flops": 0.27, "beta": 0.37}},
    "beta 0.2": {"prune": {"flops": 0.27, "beta": 0.2}},
    "default, no rewinding": {"prune": {"flops": 0.27, "rewind": False}},
    "units only": {"prune": {"flops": 0.27, "beta": 0.0}},
    "uniformly narrow": {"rival": "narrow"},
    "Torch-Pruning, uniform": {"rival": "uniform"},
    "unpruned": {"rival": "full"},
    "default, with half the narrow network's parameters": {"prune": {"flops": 0.27, "params": 0.1413}},
    "the same, alpha 0.1": {"prune": {"flops": 0.27, "params": 0.1413, "alpha": 0.1}},
    "one block a stage and widths by hand from the first step": {"keep": {"1.0": 16, "2.0": 32, "3.0": 38}},
    "the same, with half the narrow network's parameters": {"keep": {"1.0": 16, "2.0": 32, "3.0": 18}},
    "1-2-1 blocks and widths by hand from the first step": {"keep": {"1.0": 16, "2.0": 28, "2.1": 11, "3.0": 17}},
}  # fmt: skip


def by_hand(model: Any, example: Any, keep: Any) -> Any:
    """The network with the residual blocks in ``keep`` only; a mapping gives the width inside each."""
    from tweaknn.structure.analyse import analyse
    from tweaknn.structure.surgery import cut

    plan = analyse(model, example)
    alive = np.ones(plan.n_gates, dtype=bool)
    alive[plan.n_units :] = [b.owner.removeprefix("layer") in keep for b in plan.blocks]
    for unit, name in enumerate(plan.unit_names):
        layer, _, number = name.rpartition(":")
        block, _, conv = layer.removeprefix("layer").rpartition(".")
        if isinstance(keep, dict) and conv == "conv1" and block in keep:
            alive[unit] = int(number) < keep[block]
    return cut(model, plan, alive)[0]


def run(
    task: Any, seed: int, keep: Any = None, prune: dict[str, Any] | None = None, rival: str | None = None
) -> dict[str, Any]:  # fmt: skip
    """Train one variant; accuracy in percent on validation images, FLOPs and parameters of the full network's."""
    from benchmarks.pruning import rivals
    from benchmarks.pruning.methods import Loop, make_resnet
    from benchmarks.pruning.nets import flops, parameters
    from tweaknn.structure import ComplexityAware

    example = task.normal(task.train.images[:2])
    model = make_resnet(task, 1.0, seed)
    full = {"flops": flops(model, example), "params": parameters(model)}
    if keep is not None:
        model = by_hand(model, example, keep)
    epochs = 15 if task.name == "cifar10-jpeg" else 40
    if rival is not None:
        if rival == "full":
            loop, _ = rivals.plain(task, epochs, seed, 2)
        elif rival == "narrow":
            loop, _ = rivals.narrow(task, 0.27, epochs, seed, 2)
        else:
            loop, _ = rivals.torch_pruning(task, 0.27, epochs, seed, 2, rival)
        return outcome(task, loop, seed, full)
    loop = Loop(task, model, epochs, seed)
    pruner = None
    began = time.process_time()
    if prune is not None:
        now = {"flops": flops(model, example), "params": parameters(model)}
        options = {k: v * full[k] / now[k] if k in full else v for k, v in prune.items()}
        pruner = ComplexityAware(model, example, loop.optimizer, steps=loop.steps, seed=seed, **options)
    setup = time.process_time() - began
    loop.run(loop.steps, (lambda step: pruner.step()) if pruner is not None else None)
    if pruner is not None:
        loop.model = pruner.compact()
    return outcome(task, loop, seed, full, setup)


def outcome(task: Any, loop: Any, seed: int, full: dict[str, float], setup: float = 0.0) -> dict[str, Any]:
    """What is written of a run."""
    from benchmarks.pruning.methods import accuracy
    from benchmarks.pruning.nets import flops, parameters

    overall, per_class = accuracy(loop.model, task, task.validation)
    return {
        "seed": seed, "validation": 100 * overall, "balanced": 100 * float(np.mean(per_class)),
        "flops": flops(loop.model, task.normal(task.train.images[:2])) / full["flops"],
        "params": parameters(loop.model) / full["params"], "seconds": setup + loop.seconds,
        "widths": {k.removesuffix(".weight"): p.shape[0] for k, p in loop.model.named_parameters()
                   if p.dim() == 4 and "shortcut" not in k},
    }  # fmt: skip


def photographs(shared: Path) -> Any:
    """clothing10 without its test folder: 768 training photographs join the validation folder."""
    from benchmarks.pruning.data import Split, Task, clothing

    task = clothing(shared)
    order = np.random.default_rng(5).permutation(len(task.train))
    more = task.train.take(order[2300:])
    judged = Split(torch.cat([more.images, task.validation.images]), torch.cat([more.labels, task.validation.labels]))
    return Task("clothing10", task.train.take(order[:2300]), judged, judged, task.classes, task.mean, task.std, task.pad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("TWEAKNN_SHARED", ROOT.parent / "shared")))
    parser.add_argument("--data", choices=("cifar10", "clothing10"), default="cifar10")
    parser.add_argument("--validation", type=int, default=8_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    from benchmarks.prune import machine
    from benchmarks.pruning.data import cifar

    task = cifar(args.shared, validation=args.validation) if args.data == "cifar10" else photographs(args.shared)
    found: dict[str, Any] = json.loads(args.json.read_text()) if args.json.is_file() else {"rows": {}}
    for name in args.only:
        kept = [r for r in found["rows"].get(name, []) if r["seed"] not in args.seeds]
        found["rows"][name] = kept + [run(task, seed, **VARIANTS[name]) for seed in args.seeds]
        found |= {"data": task.name, "validation_images": len(task.validation)}
        found |= {"machine": machine(), "date": datetime.date.today().isoformat()}
        part = args.json.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(part, args.json)
        print(name, found["rows"][name], file=sys.stderr)


if __name__ == "__main__":
    main()
