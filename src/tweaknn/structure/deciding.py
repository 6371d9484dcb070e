"""Which gates a :class:`~tweaknn.structure.pruner.ComplexityAware` closes, and whether its budget is met by that."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import InputError
from .rounding import order_of_branches, settle, settle_branches
from .schedule import layers_target
from .settings import BOTH

if TYPE_CHECKING:
    from .latency import LatencyBudget
    from .pruner import ComplexityAware


def budget_of(pruner: ComplexityAware) -> tuple[str | None, float, float]:
    """What is budgeted (``flops``, ``params`` or both), the fraction to end at, and what a fraction of the parameters
    counts in FLOPs, which makes one measure of two budgets. Raises InputError where no gates can meet one."""
    budget, s = pruner.settings.budget, pruner.settings
    if budget is None:
        return None, 1.0, 1.0
    kind, target = budget
    for name in ("flops", "params"):
        wanted = getattr(s, name)
        if wanted is None:
            continue
        low = pruner.measure(pruner.lowest(), name)
        if wanted < low * (1 - s.tolerance):
            raise InputError(f"{name} {wanted:g} cannot be met: the smallest working network has {low:.4g} of the full one's")
    if s.flops is not None and s.params is not None:
        return BOTH, target, s.flops / s.params
    return "params" if kind == "params" else "flops", target, 1.0


def worth(pruner: ComplexityAware) -> np.ndarray:
    """Loss saved per price, by gate."""
    return (-pruner.state.s / pruner.prices.clamp(min=1e-12)).cpu().numpy()


def due(pruner: ComplexityAware) -> np.ndarray:
    """Gates whose pruning is due: at zero for ``patience`` steps, with the slow estimate agreeing."""
    st, s = pruner.state, pruner.settings
    scale = (math.exp(st.log_nu) * pruner.prices).clamp(min=1e-12)
    pull = pruner.cost.gradient(st.theta) / pruner.prices.clamp(min=1e-12)
    window = pruner.windows[pruner._window]
    patience = max(1, min(s.patience, (window.end - window.start) // 10))
    found = (st.still >= patience) & (st.s / scale + pull > 0) & pruner.active
    if s.attraction:
        from .attraction import inside

        found &= inside(pruner)
    return (found & pruner._moving()).cpu().numpy()


def branches(pruner: ComplexityAware, theta: np.ndarray) -> np.ndarray:
    """Branches to keep for the budget."""
    if pruner.latency is not None:
        return _branches_by_time(pruner, pruner.latency, theta)
    return settle_branches(
        pruner.plan, theta, worth(pruner), pruner.possible, aim=pruner._aim(), floor=pruner._target,
        measure=lambda a: pruner.measure(a, pruner._kind or "flops"),
    )  # fmt: skip


def _branches_by_time(pruner: ComplexityAware, latency: LatencyBudget, theta: np.ndarray) -> np.ndarray:
    """Branches to keep for a latency: as many go, in the usual order, as bring the *measured* time nearest to what branches are
    to reach, and not below the budget.

    What a branch costs in time is mostly not in its FLOPs (with one example, thinner layers are hardly faster): chosen by FLOPs,
    branches left units a saving to make that units do not have. By bisection, since neighbours differ by little more than
    the clock's noise. None go where all of them together would not save twice the budget's tolerance.
    """
    order, before = order_of_branches(pruner.plan, theta, worth(pruner), pruner.possible)
    floor, tolerance = latency.target, pruner.settings.tolerance
    aim = layers_target(floor, pruner.settings.beta)
    read: dict[int, float] = {}

    def without(k: int) -> np.ndarray:
        alive = pruner.possible.copy()
        alive[[pruner.plan.n_units + b for b in order[:k]]] = False
        return pruner._working(alive)

    def time_of(k: int) -> float:
        if k not in read:
            read[k] = latency.measure(pruner, without(k))
        return read[k]

    def too_slow(k: int) -> bool:
        """Whether units alone could not bring what is left to the budget."""
        return latency.measure(pruner, latency.least(pruner, without(k))) > floor

    if not before or time_of(before) > time_of(0) * (1 - 2 * tolerance):
        gone = 0
    else:
        low, high = 0, before  # time_of(low) is above the aim
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if time_of(middle) > aim else (low, middle)
        near = [low, high] if time_of(high) >= floor * (1 - tolerance) else [low]
        gone = min(near, key=lambda k: abs(math.log(time_of(k) / aim)))
        while gone < len(order) and too_slow(gone):
            gone += 1
    latency.restart(pruner, without(gone))
    pruner._target = latency.flops()
    return without(gone)


def rewind(pruner: ComplexityAware) -> None:
    """Weights and statistics as they were before branches began to be dropped: deciding was only a rehearsal."""
    if pruner._before is None:
        return
    with torch.no_grad():
        for name, t in pruner.model.state_dict().items():
            t.copy_(pruner._before[name])
    for optimizer in pruner.optimizers:
        for p in pruner.model.parameters():
            optimizer.state.pop(p, None)
    pruner._before = None


def everything(pruner: ComplexityAware, theta: np.ndarray) -> np.ndarray:
    """Gates to keep at the end: rounded, then corrected until the budget is met, by time where that is the budget."""
    if pruner.latency is not None:
        return pruner.latency.settle(pruner, theta, worth(pruner))
    return settle(
        pruner.original, theta, worth(pruner), pruner.possible, target=pruner._target if pruner._kind is not None else None,
        measure=lambda a: pruner.measure(a, pruner._kind or "flops"), tolerance=pruner.settings.tolerance, may=pruner.may,
    )  # fmt: skip


def say_what_was_reached(pruner: ComplexityAware, alive: np.ndarray) -> None:
    """Warn where the budget is met only roughly."""
    if pruner._kind is None or pruner.latency is not None:
        return
    reached = pruner.measure(alive, pruner._kind)
    if pruner._kind == BOTH:
        asked = f"flops {pruner.settings.flops:g} and params {pruner.settings.params:g}"
        shown = " and ".join(f"{pruner.measure(alive, name):.3g}" for name in ("flops", "params"))
    else:
        asked, shown = f"{pruner._kind} {pruner._target:g}", f"{reached:.3g}"
    if abs(reached / pruner._target - 1) > pruner.settings.tolerance:
        warnings.warn(
            f"{asked} was not met exactly: the nearest the gates of this network give is {shown} of the full one's", stacklevel=5,
        )  # fmt: skip
