"""A delta as a row of a :class:`~tweaknn.delta.bank.DeltaBank`'s tables."""

from __future__ import annotations

import numpy as np

from tweaknn.delta.heads import Linear
from tweaknn.delta.plan import Primitive, plan
from tweaknn.delta.value import Delta

Key = tuple[str, str]
"""(layer, primitive), as in :mod:`tweaknn.delta.plan`."""


class Row:
    """A delta as a list of synapses a primitive: ``key -> (primitive, addresses, weights, classes)``, and a bias."""

    def __init__(self, delta: Delta) -> None:
        made = plan(delta)
        self.parts: dict[Key, tuple[Primitive, np.ndarray, np.ndarray, np.ndarray]] = {}
        self.bias = delta.bias.float().numpy()
        if made.weight is None:
            return
        weight, touched = made.weight.numpy(), np.asarray(made.touched)
        for primitive in made.primitives:
            block = weight[primitive.start : primitive.start + primitive.width]
            source, column = np.nonzero(block)
            if len(source):
                self.parts[primitive.layer, primitive.kind] = (
                    primitive,
                    primitive.index.numpy()[source],
                    block[source, column],
                    touched[column],
                )


def row_of(delta: Delta) -> Row | None:
    """None for deltas that are no list of synapses, or whose layers only hooks can name."""
    if delta.how != "fx" or any(not isinstance(term.head, Linear) for term in delta.terms):
        return None
    if any(read.reduction == "pixel" for term in delta.terms for read in term.reads):
        return None
    return Row(delta)


def known(row: Row | None) -> Row:
    """The row of a delta that is known to have one."""
    assert row is not None
    return row
