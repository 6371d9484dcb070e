"""One training loop for every method, so that they differ in nothing but the method."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .data import Split, Task
from .nets import flops, parameters, resnet20

BATCH = 128
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


def rate(step: int, steps: int, warm: int) -> float:
    """Cosine from :data:`RATE` to 0 after a linear warm-up of ``warm`` steps."""
    if step < warm:
        return RATE * (step + 1) / warm
    return RATE * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Loop:
    """``epochs`` of SGD on a task's training split; ``cpu`` is the process time the steps took."""

    def __init__(self, task: Task, model: nn.Module, epochs: float, seed: int, batch: int = BATCH):
        self.task, self.model, self.batch = task, model.to(memory_format=torch.channels_last), batch
        self.per_epoch = len(task.train) // batch
        self.steps = round(epochs * self.per_epoch)
        self.rng = torch.Generator().manual_seed(1000 + seed)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY,
                                         nesterov=True)  # fmt: skip
        self.seconds = 0.0
        self.done = 0

    def run(self, steps: int, after: Any = None, start: int = 0, total: int | None = None) -> None:
        total = total if total is not None else self.steps
        warm = self.per_epoch
        self.model.train()
        order = None
        for step in range(start, start + steps):
            k = step % self.per_epoch
            if order is None or k == 0:
                order = torch.randperm(len(self.task.train), generator=self.rng)
            index = order[k * self.batch : (k + 1) * self.batch]
            x = self.task.normal(self.task.augmented(self.task.train.images[index], self.rng))
            y = self.task.train.labels[index]
            begin = time.process_time()
            for group in self.optimizer.param_groups:
                group["lr"] = rate(step, total, warm)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            if after is not None:
                after(step)
            self.seconds += time.process_time() - begin
            self.done += 1


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, split: Split) -> tuple[float, list[float]]:
    """Share of right answers, overall and by class."""
    was = model.training
    model.eval()
    hits = torch.cat([
        (model(task.normal(split.images[i : i + 500])).argmax(1) == split.labels[i : i + 500])
        for i in range(0, len(split), 500)
    ]).float()  # fmt: skip
    model.train(was)
    per = [float(hits[split.labels == c].mean()) for c in range(task.classes)]
    return float(hits.mean()), per


def outcome(loop: Loop, task: Task, full_flops: int, full_params: int) -> dict[str, Any]:
    example = task.normal(task.test.images[:2])
    test, per = accuracy(loop.model, task, task.test)
    valid, _ = accuracy(loop.model, task, task.validation)
    return {
        "test": test, "validation": valid, "per_class": per, "seconds": loop.seconds, "steps": loop.done,
        "flops": flops(loop.model, example) / full_flops, "params": parameters(loop.model) / full_params,
    }  # fmt: skip


def make_resnet(task: Task, scale: float, seed: int, stem: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return resnet20(task.classes, scale, stem)
