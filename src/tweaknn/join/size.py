"""How large a delta may be: a fine-tuned copy of the network, or of a hidden layer, is not a delta."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tweaknn.delta import Delta
from tweaknn.network.modes import call, eval_mode, first, placement, to_model

LEAST = 250_000
"""Parameters that a delta may have beside even the smallest base."""

WORK = 0.10
"""Of the base's arithmetic that a delta's may come to before a smaller candidate, as good as validation can tell, is preferred."""


def limit_of(model: nn.Module) -> int:
    """Parameters that a delta for ``model`` may have: half of the base's own, or :data:`LEAST` where that is more."""
    return max(LEAST, sum(p.numel() for p in model.parameters()) // 2)


def base_work(model: nn.Module, x: Any) -> int:
    """Floating-point operations of ``model`` for one example of the batch ``x``, by count; 0 where they cannot be counted.

    A count, not a time: the same on every machine and at every load, so a choice may rest on it.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with eval_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(model, to_model(first(x, 1), *placement(model)))
        return int(counter.get_total_flops())
    except Exception:  # a network that cannot be counted is no error: the rule is then silent
        return 0


def delta_work(delta: Delta) -> int:
    """Floating-point operations of a delta for one example: two a weight, and one for every activation that is pooled."""
    pooled = {(r.layer, r.reduction): math.prod(r.shape) for t in delta.terms for r in t.reads if r.reduction != "position"}
    weights = sum(int(v.numel()) for t in delta.terms for name, v in t.head.tensors().items() if name != "columns")
    return 2 * weights + sum(pooled.values())


def share_of(delta: Delta, base: int) -> float | None:
    """A delta's arithmetic as a fraction of its base's; None where that is not known."""
    return delta_work(delta) / base if base else None
