"""What a user would do instead: narrow networks, Torch-Pruning, random pruning."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn

from .data import Task
from .methods import Loop, make_resnet
from .nets import flops, narrow_scale, parameters

PRUNE_AT = 0.35
"""Where in the run the one-shot rivals prune; what is left trains on under the same schedule."""


def narrow(task: Task, target: float, epochs: float, seed: int, stem: int) -> tuple[Loop, dict[str, Any]]:
    example = task.normal(task.train.images[:2])
    scale = narrow_scale(target, example, lambda s: make_resnet(task, s, 0, stem))
    loop = Loop(task, make_resnet(task, scale, seed, stem), epochs, seed)
    loop.run(loop.steps)
    return loop, {"scale": scale}


def narrow_parameters(task: Task, target: float, stem: int) -> float:
    """Parameters of the uniformly narrow network, as a fraction of the full one's."""
    example = task.normal(task.train.images[:2])
    scale = narrow_scale(target, example, lambda s: make_resnet(task, s, 0, stem))
    return parameters(make_resnet(task, scale, 0, stem)) / parameters(make_resnet(task, 1.0, 0, stem))


def plain(task: Task, epochs: float, seed: int, stem: int) -> tuple[Loop, dict[str, Any]]:
    loop = Loop(task, make_resnet(task, 1.0, seed, stem), epochs, seed)
    loop.run(loop.steps)
    return loop, {}


def torch_pruning(
    task: Task, target: float, epochs: float, seed: int, stem: int, kind: str, at: float = PRUNE_AT
) -> tuple[Loop, dict[str, Any]]:  # fmt: skip
    """Train, prune once at ``at`` of the run to the FLOPs target, train on with the same schedule.

    ``kind``: ``uniform`` or ``global`` (group norm), or ``random`` (uniform).
    """
    loop = Loop(task, make_resnet(task, 1.0, seed, stem), epochs, seed)
    first = int(at * loop.steps)
    loop.run(first)
    begin = time.process_time()
    example = task.normal(task.train.images[:2])
    model, ratio = prune_to(loop.model, example, target, kind, seed)
    loop.model = model
    loop.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    loop.seconds += time.process_time() - begin
    loop.run(loop.steps - first, start=first)
    return loop, {"ratio": ratio, "pruned_at": at}


def prune_to(model: nn.Module, example: torch.Tensor, target: float, kind: str, seed: int) -> tuple[nn.Module, float]:
    """The pruning ratio whose FLOPs come closest to ``target``, by bisection on copies, and the pruned copy."""
    full = flops(model, example)

    def at(ratio: float) -> nn.Module:
        import torch_pruning as tp

        torch.manual_seed(seed)
        twin = copy.deepcopy(model).eval()
        importance = tp.importance.RandomImportance() if kind == "random" else tp.importance.GroupMagnitudeImportance(p=2)
        pruner = tp.pruner.GroupNormPruner(
            twin, example, importance=importance, global_pruning=kind == "global", pruning_ratio=ratio,
            max_pruning_ratio=0.95, ignored_layers=[twin.linear], round_to=None,
        )  # fmt: skip
        pruner.step()
        return twin.train()

    low, high, best = 0.0, 0.95, (9.9, model, 0.0)
    for _ in range(9):
        mid = 0.5 * (low + high)
        twin = at(mid)
        now = flops(twin, example) / full
        if abs(now - target) < best[0]:
            best = (abs(now - target), twin, mid)
        if now > target:
            low = mid
        else:
            high = mid
    for p in best[1].parameters():
        p.requires_grad_(True)
    return best[1], best[2]
