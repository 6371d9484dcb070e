"""A small problem of operating points: logits of a base and of a better network, and labels."""

from __future__ import annotations

import numpy as np


def example(seed, n=60, c=3, help_=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    y[:c] = np.arange(c)
    base = rng.normal(size=(n, c))
    base[np.arange(n), y] += 0.8
    better = base + help_ * (rng.normal(size=(n, c)) * 0.5 + np.eye(c)[y] * 0.5)
    return base.astype(np.float32), better.astype(np.float32), y
