"""Synaptic retraining as the dissertation does it (section 3.2.4): stochastic gradient steps on the new synapses only.

It minimises the same cross-entropy as :mod:`tweaknn.fit.convex`, from the join's own weights, without a penalty and without a bias, on
raw neuron values. It is here for comparison: the convex solver reaches the optimum itself, in less time and without a rate to choose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tweaknn.errors import InputError


@dataclass(frozen=True)
class SGDSettings:
    """``iterations`` mini-batches of ``batch`` examples at learning rate ``rate`` with ``momentum``.

    The dissertation trains for 5,000 to 20,000 iterations (sections 3.3.2, 3.3.7, 3.3.9) and gives rates of 1e-4 and 1e-6 for its
    networks' values; it does not give batch or momentum, which are Caffe's customary 128 and 0.9 here. ``relative``: the rate is divided
    by the mean square of the neurons' values summed over a logit's synapses, so that one setting serves all networks; False takes it as
    it is.

    Raises:
        InputError: no iterations, an empty batch, a rate that is not positive, a momentum outside 0..1.
    """

    iterations: int = 10_000
    batch: int = 128
    rate: float = 0.1
    momentum: float = 0.9
    relative: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch < 1 or not self.rate > 0 or not 0 <= self.momentum < 1:
            raise InputError(
                "Retraining by SGD needs at least one iteration, one example a batch, a positive rate and a momentum in 0..1, "
                f"got {self.iterations}, {self.batch}, {self.rate}, {self.momentum}."
            )


def fit_sgd(
    features: Any,
    offsets: Any,
    labels: Any,
    start: Any,
    mask: Any,
    settings: SGDSettings | None = None,
    *,
    sample_weight: Any = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Weights of synapses after stochastic gradient descent.

    Args:
        features: (n, f) neuron values as the network has them.
        offsets: (n, c) logits without these synapses.
        labels: (n,) integers.
        start: (f, c) weights to begin with: the join's.
        mask: (f, c) booleans, the synapses that exist; the others stay at 0.
        settings: see :class:`SGDSettings`.
        sample_weight: (n,) non-negative; 2 on the targets' examples is the dissertation's variant 2.
        progress: called with the number of iterations done, every hundred.

    Returns:
        (f, c) float64. The same seed gives the same weights.

    Raises:
        InputError: shapes disagree, or the weights became NaN or infinite (the rate is too high).
    """
    settings = settings or SGDSettings()
    x = torch.as_tensor(np.asarray(features), dtype=torch.float32)
    z = torch.as_tensor(np.asarray(offsets), dtype=torch.float32)
    y = torch.as_tensor(np.asarray(labels)).long()
    w = torch.as_tensor(np.asarray(start), dtype=torch.float32).clone()
    m = torch.as_tensor(np.asarray(mask), dtype=torch.float32)
    n, f = x.shape
    if z.shape[0] != n or y.shape != (n,) or w.shape != (f, z.shape[1]) or m.shape != w.shape:
        raise InputError(
            f"features {tuple(x.shape)}, offsets {tuple(z.shape)}, labels {tuple(y.shape)}, start {tuple(w.shape)} and mask "
            f"{tuple(m.shape)} do not agree."
        )
    a = torch.ones(n) if sample_weight is None else torch.as_tensor(np.asarray(sample_weight), dtype=torch.float32)
    w *= m
    rate = settings.rate
    if settings.relative:
        power = float((x.double().square().mean(0) @ m.double()).max())
        rate /= max(power, 1e-12)
    speed = torch.zeros_like(w)
    generator = torch.Generator().manual_seed(settings.seed)
    size = min(settings.batch, n)
    order, at = torch.randperm(n, generator=generator), 0
    for step in range(settings.iterations):
        if at + size > n:
            order, at = torch.randperm(n, generator=generator), 0
        rows = order[at : at + size]
        at += size
        p = (z[rows] + x[rows] @ w).softmax(1)
        p[torch.arange(size), y[rows]] -= 1
        slope = x[rows].T @ (p * (a[rows] / size).unsqueeze(1)) * m
        speed = settings.momentum * speed - rate * slope
        w = w + speed
        if progress is not None and (step + 1) % 100 == 0:
            progress(step + 1)
    if not bool(torch.isfinite(w).all()):
        raise InputError(f"Retraining by SGD went astray at rate {settings.rate}; take a lower one, or the convex solver.")
    return w.double().numpy()
