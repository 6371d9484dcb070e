"""Pools of examples no base has seen, for choosing how cautious to be and for counting how often a promise holds.

Those of :mod:`benchmarks.fitting.worlds`, and photographs: a small network trained here on 20,000 images of CIFAR-10's train split,
its pool the other 30,000. No test image of CIFAR-10 is read.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import HERE
from benchmarks.fitting import worlds
from benchmarks.fitting.tables import pictures, prepared
from tweaknn.join.candidates import Made, fitted
from tweaknn.join.promise import Promise
from tweaknn.join.setting import Setting
from tweaknn.join.table import PooledTable


def photos() -> tuple[nn.Module, Tensor, Tensor, str]:
    """A network of four convolutions trained for six epochs on 20,000 images of CIFAR-10's train split."""
    x, y = pictures("train", HERE / ".cache")
    torch.manual_seed(0)
    widths = [3, 24, 48, 64, 96]
    blocks: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(widths)):
        blocks += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        blocks += [nn.MaxPool2d(2)] if k < 3 else []
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))
    order = np.random.default_rng(0).permutation(len(y))
    own, rest = order[:20000], order[20000:]
    labels = torch.from_numpy(y.astype(np.int64))
    worlds.train_base(model, prepared(x[own]), labels[own], 6, 4e-3, batch=128)
    return model, prepared(x[rest]), labels[rest], ""


worlds.WORLDS["photos"] = photos
POOLS = ("photos", "usps", "vit", "text", "pairs", "shuttle", "clothing", "backbone")


def pool(name: str, cache: Path = HERE / ".cache") -> worlds.World:
    """Open a pool, making it once."""
    return worlds.world(name, cache, views=0)


def means_only(table: PooledTable) -> PooledTable:
    """The first pooling of each layer, without views: what the convex fit reads."""
    from tweaknn.join.methods import columns_of, means

    small = columns_of(table, means(table))
    return PooledTable(small.features, small.logits, small.labels, small.reads)


def convex(
    world: worlds.World, fit_on: PooledTable, choose_on: PooledTable, others: list[PooledTable]
) -> tuple[Made, np.ndarray, list[np.ndarray]]:
    """The convex fit, its L2 chosen on ``choose_on``, and its logits there and on ``others``."""
    from tweaknn.join.apply import tweaked_logits

    setting = Setting(fit_on, choose_on, (0,), world.classes, Promise("floors"), world.frame, 0)
    made = fitted(setting, "fit", np.arange(fit_on.features.shape[1]))
    return made, made.logits, [tweaked_logits(made.delta, other) for other in others]
