"""How much longer an attached network takes than its base, measured in turn on this machine, noise included in what is said."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tweaknn.network.modes import call, eval_mode, first, placement, to_model

MOST = 1.10
"""Of its base's time that an attached network should take at most."""

SERIES, ROUNDS = 9, 9


@dataclass(frozen=True)
class Latency:
    """Time with the delta by time without, for one batch size.

    Attributes:
        batch: examples at a time.
        ratio: median over series of the median of paired ratios.
        low, high: the quarter of the series below and above which a quarter of them lies.
        base_seconds: median of the base's times.
    """

    batch: int
    ratio: float
    low: float
    high: float
    base_seconds: float

    @property
    def slow(self) -> bool:
        """More than :data:`MOST` beyond the noise of this measurement: even the lower quartile of the series is."""
        return self.low > MOST

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON."""
        return {"ratio": self.ratio, "low": self.low, "high": self.high, "base_seconds": self.base_seconds, "slow": self.slow}


def in_turn(one: Callable[[], float], other: Callable[[], float], rounds: int, first_is_one: bool = True) -> np.ndarray:
    """Seconds ``(rounds, 2)`` of two runs that time themselves, in turn and in changing order: what slows the machine slows both."""
    pairs = np.empty((rounds, 2))
    for r in range(rounds):
        for k in (0, 1) if (r % 2 == 0) == first_is_one else (1, 0):
            pairs[r, k] = (one, other)[k]()
    return pairs


def paired_latency(
    tweaked: nn.Module, base: nn.Module, x: Any, batch: int, *, series: int = SERIES, rounds: int = ROUNDS, clock=time.perf_counter
) -> Latency:
    """Run both on the first ``batch`` examples of ``x``, in turn and in changing order, so that what slows the machine slows both.

    Both are put in eval mode for it and back afterwards. The ratio is that of times (``tweaked`` by ``base``): the median, and the
    quartiles, of the medians of ``series`` series of ``rounds`` pairs; times are seconds by ``clock``.
    """
    inputs = to_model(first(x, batch), *placement(base))

    def once(model: nn.Module) -> float:
        began = clock()
        call(model, inputs)
        if torch.cuda.is_available() and placement(base)[0].type == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    pairs = np.empty((series, rounds, 2))
    with eval_mode(tweaked), eval_mode(base), torch.inference_mode():
        for _ in range(3):
            once(tweaked), once(base)
        for s in range(series):
            pairs[s] = in_turn(lambda: once(tweaked), lambda: once(base), rounds, s % 2 == 1)
    medians = np.median(pairs[..., 0] / np.maximum(pairs[..., 1], 1e-9), axis=1)
    low, middle, high = np.quantile(medians, [0.25, 0.5, 0.75])
    return Latency(batch, float(middle), float(low), float(high), float(np.median(pairs[..., 1])))


def sentence(found: list[Latency]) -> str:
    """What a user is told: the ratio at each batch size and how sure it is."""
    said = "; ".join(f"{t.ratio:.2f} at batch {t.batch} ({t.low:.2f} to {t.high:.2f})" for t in found)
    return f"time with the delta by time without: {said}"


def warning(found: list[Latency]) -> str:
    """One sentence where the limit is passed beyond noise, else nothing."""
    slow = [t for t in found if t.slow]
    if not slow:
        return ""
    worst = max(slow, key=lambda t: t.ratio)
    return (
        f"With the delta the network takes {worst.ratio:.2f} of its base's time at batch {worst.batch}, more than {MOST:.2f}; "
        "a smaller delta (--method fit or selected) or the exported network may be faster."
    )
