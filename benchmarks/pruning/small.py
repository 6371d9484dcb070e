"""Handwritten digits (USPS), small networks and their loop: what the studies share."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import _decode, pick
from .nets import Block

EPOCHS, BATCH = 4, 128


def usps(shared: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """``x`` float ``(n, 1, 16, 16)`` and labels, for train (all but 1,500), validation and test."""
    import pyarrow.parquet as pq

    def load(word: str) -> tuple[Tensor, Tensor]:
        table = pq.read_table(pick(shared / "data" / "usps", word))
        x = np.stack([_decode(row["bytes"])[..., 0] for row in table.column("image").to_pylist()])
        return torch.from_numpy(x).float()[:, None] / 127.5 - 1, torch.from_numpy(table.column("label").to_numpy().copy())

    x, y = load("train")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(7))
    return {"train": (x[order[1500:]], y[order[1500:]]), "validation": (x[order[:1500]], y[order[:1500]]), "test": load("test")}


class Residual(nn.Module):
    """Three stages of two residual blocks, 16-24-32 channels."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32), classes: int = 10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        rows, inside = [], widths[0]
        for k, w in enumerate(widths):
            for b in range(2):
                rows.append(Block(inside, w, 2 if b == 0 and k else 1))
                inside = w
        self.blocks = nn.Sequential(*rows)
        self.linear = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        return self.linear(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


class Separable(nn.Module):
    """MobileNet-style: depthwise and pointwise convolutions."""

    def __init__(self, classes: int = 10):
        super().__init__()

        def pair(a: int, b: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(a, a, 3, stride, 1, groups=a, bias=False), nn.BatchNorm2d(a), nn.ReLU(),
                    nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]  # fmt: skip

        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *pair(16, 32, 1), *pair(32, 64, 2), *pair(64, 64, 1)
        )
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


class Rows(nn.Module):
    """An LSTM that reads a digit row by row."""

    def __init__(self, hidden: int = 48, classes: int = 10):
        super().__init__()
        self.rnn = nn.LSTM(16, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x[:, 0])[0][:, -1])


def train(
    make: Callable[[], nn.Module], data: tuple[Tensor, Tensor], seed: int, options: dict[str, Any] | None = None, *,
    rate: float = 0.05, teacher: nn.Module | None = None, epochs: float = EPOCHS,
) -> tuple[nn.Module, Any, float]:  # fmt: skip
    """SGD with a cosine; ``options`` are :class:`ComplexityAware`'s, None trains plainly."""
    from tweaknn.structure import ComplexityAware

    torch.manual_seed(seed)
    model = make()
    x, y = data
    per = max(1, len(y) // BATCH)
    steps = max(120, round(epochs * per))
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    begin = time.process_time()
    pruner = ComplexityAware(model, x[:2], optimizer, steps=steps, seed=seed, **options) if options is not None else None
    rng = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        if step % per == 0:
            order = torch.randperm(len(y), generator=rng)
        i = order[(step % per) * BATCH : (step % per + 1) * BATCH]
        logits = model(x[i])
        loss = F.cross_entropy(logits, y[i])
        if teacher is not None:
            with torch.no_grad():
                soft = F.log_softmax(teacher(x[i]) / 4, 1)
            loss = 0.3 * loss + 0.7 * 16 * F.kl_div(F.log_softmax(logits / 4, 1), soft, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        if isinstance(model, Rows):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if pruner is not None:
            pruner.step()
    if pruner is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = pruner.compact()
    return model.eval(), pruner, time.process_time() - begin


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


def spread(values: list[Any]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of a figure, or of a list of them, and the values."""
    v = np.asarray(values, dtype=np.float64)
    sd = v.std(0, ddof=1) if len(v) > 1 else np.zeros_like(v[0])
    return {"mean": v.mean(0).tolist(), "sd": sd.tolist(), "values": v.tolist()}


def repeat(seeds: list[int], one: Callable[[int], dict[str, float]]) -> dict[str, Any]:
    """Mean and spread of every figure over seeds."""
    runs = [one(seed) for seed in seeds]
    return {k: spread([r[k] for r in runs]) for k in runs[0]}
