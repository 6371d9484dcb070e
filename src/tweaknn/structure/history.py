"""What the gates did, for the log and the picture of ``tweaknn structure``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelError

if TYPE_CHECKING:
    from .pruner import ComplexityAware

SNAPSHOTS = 80
PATIENCE_NAN = 50


def note(pruner: ComplexityAware, *, always: bool = False) -> None:
    """Add a snapshot to ``pruner.history``: some :data:`SNAPSHOTS` of them in a run, and one where ``always``."""
    step = pruner.state.step
    gap = max(1, sum(w.end - w.start for w in pruner.windows) // SNAPSHOTS)
    if step % gap == 0 or always:
        flops, params = pruner.cost.fractions(pruner.state.theta)
        pruner.history.append(
            {"step": step, "nu": math.exp(pruner.state.log_nu), "flops": flops, "params": params, "theta": by_layer(pruner)}
        )


def by_layer(pruner: ComplexityAware) -> dict[str, float]:
    """Mean ``theta`` of every layer's units, and every branch's, by name."""
    theta = pruner.state.theta.cpu().numpy()
    groups: dict[str, list[float]] = {}
    for i, name in enumerate(pruner.plan.unit_names):
        groups.setdefault(name.rsplit(":", 1)[0], []).append(theta[i])
    out = {name: round(float(np.mean(v)), 4) for name, v in groups.items()}
    for b, block in enumerate(pruner.plan.blocks):
        out[f"branch {block.name}"] = round(float(theta[pruner.plan.n_units + b]), 4)
    return out


def stray(pruner: ComplexityAware) -> None:
    """Count a step whose gradients say nothing. Raises ModelError where there were :data:`PATIENCE_NAN` without a break."""
    pruner.skipped += 1
    pruner._astray += 1
    if pruner._astray >= PATIENCE_NAN:
        raise ModelError(
            f"the gates' gradients were NaN or infinite for {pruner._astray} steps, up to step {pruner.state.step + 1}: "
            "the loss has diverged; lower the learning rate"
        )
