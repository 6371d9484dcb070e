"""Latency on this machine, and the FLOPs a latency budget comes to.

Time is measured on compact copies, interleaved with the full network's in one run, since nothing else says what a cut
is worth here; between measurements latency is taken as linear in FLOPs. What is cut does not come back, so one wrong
reading must not cut much: a reading is the median of several series, readings together are taken as rising with FLOPs
(isotonic regression), and one reading moves the FLOPs wanted by a bounded factor.
"""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..measure.latency import in_turn
from .analyse import as_inputs, keep_working
from .rounding import settle
from .surgery import cut
from .wrapping import world

if TYPE_CHECKING:
    from .pruner import ComplexityAware


ROUNDS = 9  # pairs in a series
SERIES = 3  # series in a reading, at first
MOST = 4  # times as many before a reading is taken for what it is
ALIKE = 0.02  # relative difference of two readings that says nothing
ATTEMPTS = 10  # networks measured at the end
FEWER = 0.93  # of the FLOPs of one that was too slow: the most that is tried next
STEP = 0.7  # of the FLOPs of a network read as too slow: the least that is wanted next


def _once(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    start = time.perf_counter()
    model(*inputs)
    if any(isinstance(x, Tensor) and x.is_cuda for x in inputs):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(small: nn.Module, full: nn.Module, example: Any, *, rounds: int = 25, batch: int | None = 1) -> float:
    """Time of ``small`` by that of ``full``, run in turn for ``rounds``; ``batch`` examples each.

    The median of the pairs' ratios: what slows the machine down for a while slows both of a pair.
    """
    inputs = as_inputs(example)
    if batch is not None:
        inputs = tuple(x[:batch] if isinstance(x, Tensor) and x.dim() else x for x in inputs)
    modes = small.training, full.training
    small.eval(), full.eval()
    try:
        with torch.inference_mode():
            for _ in range(3):
                _once(small, inputs), _once(full, inputs)
            pairs = in_turn(lambda: _once(small, inputs), lambda: _once(full, inputs), rounds) + 1e-12
    finally:
        small.train(modes[0]), full.train(modes[1])
    return float(np.median(pairs[:, 0] / pairs[:, 1]))


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
        """Latency of the network with the gates ``alive``, as a fraction of the full one's; remembered.

        The median of :data:`SERIES` series, and of as many again while the middle half of them spreads by more than the
        budget's tolerance. Every series has copies of its own of both networks: where weights happen to lie in memory is worth
        a few per cent of the time of a small network.
        """
        small, _ = cut(copy.deepcopy(self.full), pruner.original, alive)
        series: list[float] = []
        for _ in range(MOST):
            twins = [(copy.deepcopy(small), copy.deepcopy(self.full)) for _ in range(SERIES)]
            series += [ratio(*pair, self.example, rounds=ROUNDS) for pair in twins]
            value = float(np.median(series))
            quarters = np.quantile(series, [0.25, 0.75])
            again = float(quarters[1] - quarters[0] > pruner.settings.tolerance * value)
            if world() > 1:  # every rank has its own clock, and all have to cut alike
                value, again = _shared(value, again)
            if not again:
                break
        self.points.append((pruner.measure(alive, "flops"), value))
        return value

    def restart(self, pruner: ComplexityAware, left: np.ndarray) -> None:
        """Forget all but the full network; measure the gates ``left`` and the least of them that works.

        Networks without other branches lie on another line. With both ends measured, what is wanted lies between two
        measurements and is never extrapolated.
        """
        self.points = [(1.0, 1.0)]
        self.measure(pruner, left)
        self.measure(pruner, self.least(pruner, left))

    def least(self, pruner: ComplexityAware, left: np.ndarray) -> np.ndarray:
        """The fewest gates of ``left`` that work, with its branches where units are all that may still go."""
        units_only = pruner._window + 1 < len(pruner.windows) or not pruner.original.branches_go  # branches are decided first
        fixed = left & ~pruner.may  # what beta leaves alone
        if units_only:
            fixed[pruner.original.n_units :] = left[pruner.original.n_units :]
        return keep_working(replace(pruner.original, branches_go=not units_only), fixed, left)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """FLOPs measured, rising, and their latencies, made to rise with them (least squares); the last is the full network.

        Fewer FLOPs are not slower: where readings say so it is noise, and they are averaged.
        """
        from sklearn.isotonic import isotonic_regression

        points = sorted(self.points)
        flops, times = np.array(points, dtype=np.float64).T
        certain = np.where(flops >= 1.0, 1e6, 1.0)  # the full network takes 1 by definition
        return flops, isotonic_regression(times, sample_weight=certain, increasing=True)

    def flops(self) -> float:
        """The FLOPs fraction that should meet the target, on the line between the readings around it.

        Never less than :data:`STEP` of the smallest network that was read as too slow: what is cut stays cut, and the
        next reading can ask for more. Where no reading is fast enough, the largest network that is as fast as any, to
        :data:`ALIKE`, with the same bound.
        """
        flops, times = self.curve()
        slow = times > self.target
        if not slow.any():
            return float(flops[-1])
        if slow[0]:
            last = int(np.flatnonzero(times <= times[0] * (1 + ALIKE))[-1])
            above = flops[min(last + 1, len(flops) - 1)]
            return float(max(flops[last], STEP * above))
        k = int(np.argmax(slow))
        f1, l1, f0, l0 = flops[k], times[k], flops[k - 1], times[k - 1]
        return float(max(f0 + (f1 - f0) * (self.target - l0) / (l1 - l0), STEP * f1))

    def _confirmed(self, pruner: ComplexityAware, alive: np.ndarray, value: float) -> float:
        """A reading that meets the target, by the mean with another: of several noisy ones the luckiest would be taken."""
        if abs(value / self.target - 1) > pruner.settings.tolerance:
            return value
        return 0.5 * (value + self.measure(pruner, alive))

    def settle(self, pruner: ComplexityAware, theta: np.ndarray, worth: np.ndarray) -> np.ndarray:
        """Gates that meet the latency, by a few measured attempts; the nearest one, with a warning if none does.

        Where none meets them, the largest of those as near as the nearest, by the budget's tolerance, is taken, cutting
        nothing among them: where cutting on does not make a network faster, it stops.
        """
        tolerance = pruner.settings.tolerance
        self.restart(pruner, pruner.possible)
        least = pruner.measure(self.least(pruner, pruner.possible))
        flops, time_taken = self.points[1]  # cutting nothing
        time_taken = self._confirmed(pruner, pruner.possible, time_taken)
        tried = [(flops, abs(time_taken / self.target - 1), pruner.possible)]  # FLOPs, error, gates
        for _ in range(ATTEMPTS):
            wanted = self.flops()
            if time_taken > self.target * (1 + tolerance):  # times fall slower than on a line at first, and readings are noisy
                wanted = min(wanted, FEWER * flops)
            alive = settle(
                pruner.original, theta, worth, pruner.possible, target=max(wanted, least * 1.001), measure=pruner.measure,
                tolerance=tolerance, may=pruner.may,
            )  # fmt: skip
            time_taken = self._confirmed(pruner, alive, self.measure(pruner, alive))
            flops = pruner.measure(alive)
            tried.append((flops, abs(time_taken / self.target - 1), alive))
            if tried[-1][1] <= tolerance:
                break
        near = min(error for _, error, _ in tried)
        if near <= tolerance:
            flops, error, alive = min(tried, key=lambda t: t[1])
        else:
            flops, error, alive = max((t for t in tried if t[1] <= near + tolerance), key=lambda t: t[0])
        if error > tolerance:
            warnings.warn(
                f"latency {self.target:g} was not met; the nearest measured is within {error:.1%} of it "
                f"(at {flops:.3g} of the full network's FLOPs)",
                stacklevel=2,
            )
        return alive


def _shared(*values: float) -> tuple[float, ...]:
    """Means over all ranks."""
    device = torch.device("cuda") if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    shared = torch.tensor(values, device=device, dtype=torch.float64)
    torch.distributed.all_reduce(shared)
    return tuple((shared / world()).tolist())
