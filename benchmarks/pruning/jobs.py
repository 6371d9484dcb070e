"""One job of the benchmark: train by one method, measure once."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

from . import rivals
from .data import Task
from .methods import Loop, accuracy, make_resnet, outcome
from .nets import flops, parameters
from .overhead import gate_overhead

OURS: dict[str, Any] = {}
"""Options of ours beyond the library's defaults, chosen on validation images."""


def ours(
    task: Task, target: float, epochs: float, seed: int, stem: int, options: dict[str, Any]
) -> tuple[Loop, dict[str, Any]]:  # fmt: skip
    from tweaknn.structure import ComplexityAware

    loop = Loop(task, make_resnet(task, 1.0, seed, stem), epochs, seed)
    example = task.normal(task.train.images[:2])
    begin = time.process_time()
    pruner = ComplexityAware(
        loop.model, example, loop.optimizer, steps=loop.steps, seed=seed, flops=target, **{**OURS, **options}
    )
    setup = time.process_time() - begin
    loop.run(loop.steps, lambda step: pruner.step())
    loop.model = pruner.compact()
    loop.seconds += setup
    n = pruner.original.n_units
    facts = {
        "undecided": pruner.undecided, "setup": setup, "frozen_at": pruner.history[-1]["step"] / loop.steps,
        "blocks": int(pruner.possible[n:].sum()), "n_blocks": len(pruner.original.blocks),
        "widths": {k: p.shape[0] for k, p in loop.model.named_parameters() if p.dim() == 4},
    }  # fmt: skip
    return loop, facts


def mended(model: torch.nn.Module, task: Task, worst: int = 3) -> dict[str, Any]:
    """The worst three classes (on validation) mended by a synaptic join; accuracies on the test split."""
    from torch.utils.data import TensorDataset

    from tweaknn.join.run import SynapticJoin

    model.eval()
    sets = [TensorDataset(task.normal(s.images), s.labels) for s in (task.train, task.validation)]
    names = [str(k) for k in range(task.classes)]
    joined = SynapticJoin(seed=0, base_saw="train").fit(model, *sets, worst=worst, classes=names)
    if joined.delta is None:
        return {"sentence": joined.sentence, "targets": joined.targets}
    after = joined.delta.attach(model).eval()
    overall, per = accuracy(after, task, task.test)
    return {"sentence": joined.sentence, "targets": joined.targets, "test": overall, "per_class": per, "chosen": joined.chosen}


def run_job(task: Task, job: dict[str, Any]) -> dict[str, Any]:
    """Result of one job: accuracy, FLOPs, parameters, seconds, and how fast the network answers."""
    stem = 2
    method, seed, epochs = job["method"], job["seed"], job["epochs"]
    target = job.get("target", 1.0)
    name = method.split(":")[0]
    options = dict(job.get("options", {}))
    if name == "full":
        loop, facts = rivals.plain(task, epochs, seed, stem)
    elif name in ("narrow", "narrow-time"):
        loop, facts = rivals.narrow(task, target, epochs, seed, stem)
    elif name.startswith("tp-") or name == "random":
        loop, facts = rivals.torch_pruning(task, target, epochs, seed, stem, name.removeprefix("tp-"))
    elif name.startswith("ours"):
        options |= {"ours-units": {"beta": 0.0}, "ours-mild": {"beta": 0.2}, "ours-layers": {"beta": 1.0}}.get(name, {})
        if name == "ours-half":
            options["params"] = 0.5 * rivals.narrow_parameters(task, target, stem)
        loop, facts = ours(task, target, epochs, seed, stem, options)
    else:
        raise ValueError(f"unknown method {method}")
    full = make_resnet(task, 1.0, 0, stem)
    example = task.normal(task.test.images[:2])
    result = outcome(loop, task, flops(full, example), parameters(full)) | facts
    full = full.to(memory_format=torch.channels_last)
    if method == "ours":
        result["gate_overhead"] = gate_overhead(seed)["overhead"]
    if job.get("mend"):
        result["mended"] = mended(loop.model, task)
    for batch, rounds in ((1, 40), (128, 7)):
        from tweaknn.structure.latency import ratio

        x = task.normal(task.test.images[:batch])
        result[f"latency_{batch}"] = ratio(copy.deepcopy(loop.model), full, x, rounds=rounds, batch=None)
    return result
