"""The domain-of-attraction test of section 4: prune a gate only where it could not come back by itself.

With ``|Δ_i| <= c_i |W_i|`` and decaying weights the set ``{θ_i <= τ, |W_i| <= r}`` is invariant as long as
``c_i r < ν inf ∂K_β/∂θ_i``. At the current weights ``c_i |W_i|`` is the larger of the two measured end-point derivatives.
The infimum has to allow for neighbours that die later: ``K_β``'s gradient grows with every other gate, so its value
with all undecided gates closed is that bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .pruner import ComplexityAware


def inside(pruner: ComplexityAware) -> Tensor:
    """Gates (bool, ``(n_gates,)``) in the domain of attraction of zero."""
    state = pruner.state
    lowest = torch.where(state.theta > 0.5, state.theta, torch.zeros_like(state.theta))
    # The gate itself does not enter its own derivative but in a self-reading layer, where being closed lowers it.
    pull = math.exp(state.log_nu) * pruner.cost.gradient(lowest)
    return (state.theta <= 0.01) & (torch.maximum(state.on.abs(), state.off.abs()) < pull)
