"""How large a delta may be: a fine-tuned copy of the network, or of a hidden layer, is not a delta."""

from __future__ import annotations

from torch import nn

LEAST = 250_000
"""Parameters that a delta may have beside even the smallest base."""


def limit_of(model: nn.Module) -> int:
    """Parameters that a delta for ``model`` may have: half of the base's own, or :data:`LEAST` where that is more."""
    return max(LEAST, sum(p.numel() for p in model.parameters()) // 2)
