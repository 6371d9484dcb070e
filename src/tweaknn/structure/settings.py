"""Settings of complexity-aware training, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError

ESTIMATORS = ("trapezoid", "weighted", "straight-through")
BUDGETS = ("flops", "params", "latency")
BOTH = "both"  # FLOPs and parameters


@dataclass(frozen=True)
class Settings:
    """What the user may choose. Fractions of the run are of ``steps``, the number of optimiser steps.

    nu: accuracy against size: the loss (nats) one would pay for 100 % of the complexity. Ignored with a budget.
    alpha: 1 counts FLOPs only, 0 parameters only. beta: 0 units only, 1/2 both, 1 layers only.
    flops, params, latency: a budget, as a fraction of the full network's; at most one of them, or ``flops`` and ``params``
    together: then neither is exceeded (branches go by FLOPs, units by what is further from its budget).
    warmup: fraction of the run before any gate opens. Branches decide between it and ``layers``, units between ``units`` and
    ``end``, the fraction at which every gate is 0 or 1. With a budget, which says how many branches go, they decide at
    once (0 and a twentieth of ``end``; ``units`` is a quarter of ``end``, 0.4). Without one, nothing but what a branch does
    for the loss holds it back, so the network learns first: 0.15, 0.3, 0.3 and 0.5.
    theta0: where gates start when their time comes; before, they are 1.
    speed: the fraction of such a window in which a unit drive moves ``theta`` by one (``T`` of section 4).
    share: the share of gates sampled in a step, the others being where they would be rounded to.
    rho: weight of the concave term. kappa: caution about noisy estimates. patience: steps a gate stays at 0 before
    it is pruned. every: steps between surgeries; 0 leaves surgery to ``compact``. rewind: with a budget, weights go back
    to where they were once the branches are decided, since some steps of a network about to lose most of its branches
    are a worse start than none.

    Raises:
        InputError: a value is out of its range, several budgets are given, or the times are out of order.
    """

    steps: int
    nu: float = 1.0
    alpha: float = 0.5
    beta: float = 0.5
    flops: float | None = None
    params: float | None = None
    latency: float | None = None
    warmup: float | None = None
    layers: float | None = None
    units: float | None = None
    end: float | None = None
    speed: float = 0.25
    theta0: float = 0.9
    share: float = 0.25
    rho: float = 3.0
    kappa: float = 1.0
    patience: int = 10
    every: int = 20
    estimator: str = "trapezoid"
    shrink: bool = True
    rewind: bool = True
    attraction: bool = False
    tolerance: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        def need(ok: bool, sentence: str) -> None:
            if not ok:
                raise InputError(sentence)

        need(isinstance(self.steps, int) and self.steps >= 1, f"steps must be a whole number of at least 1, got {self.steps!r}")
        need(math.isfinite(self.nu) and self.nu >= 0, f"nu must be a finite number of at least 0, got {self.nu}")
        for name in ("alpha", "beta"):
            need(0 <= getattr(self, name) <= 1, f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        budgets = [b for b in BUDGETS if getattr(self, b) is not None]
        need(
            len(budgets) <= 1 or budgets == ["flops", "params"],
            f"give one budget, not {' and '.join(budgets)} (flops and params may go together)",
        )
        for name in budgets:
            value = getattr(self, name)
            need(0 < value <= 1, f"{name} is a fraction of the full network's and must lie in (0, 1], got {value}")
        times = self.times
        need(
            0 <= times[0] <= times[1] <= times[2] < times[3] <= 1,
            "0 <= warmup <= layers <= units < end <= 1 must hold, got " + ", ".join(f"{t:g}" for t in times),
        )
        need(0 < self.theta0 <= 1, f"theta0 must lie in (0, 1], got {self.theta0}")
        need(0 < self.share <= 1, f"share must lie in (0, 1], got {self.share}")
        need(self.speed > 0, f"speed must be above 0, got {self.speed}")
        need(self.estimator in ESTIMATORS, f"estimator must be one of {', '.join(ESTIMATORS)}, got {self.estimator!r}")
        need(self.rho >= 0 and self.kappa >= 0, "rho and kappa must be at least 0")
        need(self.patience >= 0 and self.every >= 0, "patience and every must be at least 0")

    @property
    def times(self) -> tuple[float, float, float, float]:
        """Fractions of the run: branches' gates open, are decided, units' gates open, are decided; what is not said makes room
        for what is."""
        learn = self.budget is None
        end = (0.5 if learn else 0.4) if self.end is None else self.end
        units = (0.6 if learn else 0.25) * end if self.units is None else self.units
        layers = min((0.6 if learn else 0.05) * end, units) if self.layers is None else self.layers
        if self.units is None and learn:
            units = max(units, layers)
        warmup = (min(0.3 * end, layers) if learn else 0.0) if self.warmup is None else self.warmup
        return warmup, layers, units, end

    @property
    def budget(self) -> tuple[str, float] | None:
        """The budget's kind and fraction, or None; that of FLOPs where parameters have one too."""
        for name in BUDGETS:
            if getattr(self, name) is not None:
                return name, float(getattr(self, name))
        return None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, one entry a field."""
        return asdict(self)
