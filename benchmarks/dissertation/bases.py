"""Base networks: trained as section 3.3.1 describes it, and trained on a long tail."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.dissertation.networks import build
from tweaknn.baselines import Training
from tweaknn.baselines.training import fresh_copy, train
from tweaknn.join.splits import holdout

if TYPE_CHECKING:
    from benchmarks.dissertation.tables import Bench


def recipe(iterations: int, lr: float | None) -> Training:
    """Section 3.3.1 for ``iterations``: batches of 100, weight decay 0.004, the rate falling to a tenth after two thirds, as at 75 k of
    115 k."""
    return Training(
        iterations=iterations,
        batch_size=100,
        lr=lr or 1e-3,
        weight_decay=4e-3,
        schedule=lambda optimiser, n: torch.optim.lr_scheduler.MultiStepLR(optimiser, [n * 2 // 3], 0.1),
        checkpoints=1,
    )


def long_tailed(bench: Bench) -> Bench:
    """The bench on long-tailed data: SUN-397 as it is; else the class of rank k in the base's accuracy thinned to ``1 / 10^(k / (c - 1))``
    of its examples, so that the tail is where a network is weak anyway, as it is there.

    With ``bench.tail`` iterations the network is trained on that from the beginning (:func:`recipe`), on the half that methods are
    fitted to, so that the half they are chosen on is new to it; without, the given one is fine-tuned on all of it.
    """
    data, c = bench.train, len(bench.train.classes or [])
    if bench.data == "sun397":
        return bench
    rng = np.random.default_rng(bench.seed)
    share = 10.0 ** (-np.arange(c) / (c - 1))
    keep = [
        rng.permutation(np.flatnonzero(data.labels == j))[: max(40, int(s * (data.labels == j).sum()))]
        for j, s in zip(map(int, bench.order()[::-1]), share)
    ]
    data = data.subset(np.sort(np.concatenate(keep)))
    draw = torch.Generator().manual_seed(bench.seed)
    if bench.tail:
        half = data.subset(holdout(data.labels, share=0.5, seed=bench.seed)[0])
        torch.manual_seed(bench.seed)
        model = train(build(bench.name, c), half, recipe(bench.tail, 0.01), draw).model
    else:
        model = train(fresh_copy(bench.model), data, bench.training, draw).model
    return replace(bench, train=data, model=model.eval())
