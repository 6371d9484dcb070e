"""Latency on this machine, and the FLOPs a latency budget comes to.

Time is measured on compact copies, interleaved with the full network's in one run, since nothing else says what a cut
is worth here; between measurements latency is taken as linear in FLOPs.
"""

from __future__ import annotations

import copy
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from .analyse import as_inputs, keep_working
from .rounding import settle
from .surgery import cut
from .wrapping import world

if TYPE_CHECKING:
    from .pruner import ComplexityAware


def _once(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    start = time.perf_counter()
    model(*inputs)
    if any(isinstance(x, Tensor) and x.is_cuda for x in inputs):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(small: nn.Module, full: nn.Module, example: Any, *, rounds: int = 25, batch: int | None = 1) -> float:
    """Median over ``rounds`` of the time of ``small`` by that of ``full``, run in turn; ``batch`` examples each."""
    inputs = as_inputs(example)
    if batch is not None:
        inputs = tuple(x[:batch] if isinstance(x, Tensor) and x.dim() else x for x in inputs)
    modes = small.training, full.training
    small.eval(), full.eval()
    try:
        with torch.inference_mode():
            for _ in range(3):
                _once(small, inputs), _once(full, inputs)
            pairs = np.array([[_once(small, inputs), _once(full, inputs)] for _ in range(rounds)])
    finally:
        small.train(modes[0]), full.train(modes[1])
    return float(np.median(pairs[:, 0]) / np.median(pairs[:, 1]))


class LatencyBudget:
    """Turns a latency target into a FLOPs target, better with every measurement."""

    def __init__(self, model: nn.Module, example: Any, target: float):
        self.full = copy.deepcopy(model).eval()
        self.example = example
        self.target = target
        self.points: list[tuple[float, float]] = [(1.0, 1.0)]

    def check(self, pruner: ComplexityAware) -> None:
        """Measure the smallest working network, the other end of what can be had.

        Raises:
            InputError: even that is slower than the target; the sentence says how fast it is.
        """
        low = self.measure(pruner, pruner.lowest())
        if low > self.target * (1 + pruner.settings.tolerance):
            raise InputError(
                f"latency {self.target:g} cannot be met: the smallest working network takes {low:.2g} of the full one's time "
                "for one example (most of it does not depend on widths)"
            )

    def measure(self, pruner: ComplexityAware, alive: np.ndarray) -> float:
        """Latency of the network with the gates ``alive``, as a fraction of the full one's; remembered."""
        copied, _ = cut(copy.deepcopy(self.full), pruner.original, alive)
        value = ratio(copied, self.full, self.example)
        if world() > 1:  # every rank has its own clock, and all have to cut alike
            device = torch.device("cuda") if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
            shared = torch.tensor(value, device=device)
            torch.distributed.all_reduce(shared)
            value = float(shared) / world()
        self.points.append((pruner.measure(alive, "flops"), value))
        return value

    def restart(self, pruner: ComplexityAware) -> None:
        """Forget all but the full network and what is left: networks without other branches lie on another line."""
        self.points = [(1.0, 1.0)]
        self.measure(pruner, pruner.possible)

    def flops(self) -> float:
        """The FLOPs fraction that should meet the target: between the measurements around it, as far as there are.

        Without one below the target the line from the full network is followed, by at most half of what is left: a
        noisy measurement must not send the network to nothing.
        """
        f1, l1 = min((p for p in self.points if p[1] > self.target), default=(1.0, 1.0))
        f0, l0 = max((p for p in self.points if p[1] <= self.target), default=(0.0, 0.0))
        if 0.0 < f0 < f1 and l1 > l0:
            return float(f0 + (f1 - f0) * (self.target - l0) / (l1 - l0))
        slope = (1 - f1) / (1 - l1) if f1 < 1 and l1 < 1 else f1 / l1
        return float(np.clip(f1 - slope * (l1 - self.target), 0.5 * f1, 1.0))

    def settle(self, pruner: ComplexityAware, theta: np.ndarray, worth: np.ndarray) -> np.ndarray:
        """Gates that meet the latency, by a few measured attempts; the nearest one, with a warning if none does."""
        best: tuple[float, np.ndarray] | None = None
        self.restart(pruner)
        lowest = keep_working(pruner.original, np.zeros(len(theta), dtype=bool), pruner.possible)
        for _ in range(6):
            flops = max(self.flops(), pruner.measure(lowest) * 1.001)
            alive = settle(
                pruner.original, theta, worth, pruner.possible, target=flops, measure=pruner.measure,
                tolerance=pruner.settings.tolerance, may=pruner.may,
            )  # fmt: skip
            error = abs(self.measure(pruner, alive) / self.target - 1)
            if best is None or error < best[0]:
                best = error, alive
            if error <= pruner.settings.tolerance:
                break
        assert best is not None
        if best[0] > pruner.settings.tolerance:
            reached = self.target * (1 + best[0])
            warnings.warn(
                f"latency {self.target:g} was not met; the nearest measured is within {best[0]:.1%} of it "
                f"(about {reached:.3g} of the full network's)",
                stacklevel=2,
            )
        return best[1]
