"""FLOPs and parameters budgeted together."""

from __future__ import annotations

import pytest

from tweaknn.structure.schedule import LAYERS

from .nets import Mlp, sequences
from .test_pruner import loop, start


@pytest.mark.parametrize(("flops", "params"), [(0.5, 0.2), (0.25, 0.6), (0.4, 0.3)])
def test_of_two_budgets_neither_is_exceeded_and_one_is_reached(flops: float, params: float) -> None:
    model, optimizer, pruner = start(steps=120, width=12, flops=flops, params=params)
    loop(model, pruner, optimizer, 120)
    pruner.compact()
    reached = max(pruner.fractions[0] / flops, pruner.fractions[1] / params)
    assert reached == pytest.approx(1.0, rel=0.03)
    assert pruner.undecided <= 0.3


def test_of_two_budgets_branches_go_by_flops() -> None:
    """The blocks with most parameters are not the first to go because parameters are scarce."""
    kept = []
    for more in ({}, {"params": 0.1}):
        model, optimizer, pruner = start(steps=80, flops=0.5, **more)
        for step in range(pruner.windows[1].start):
            loop(model, pruner, optimizer, 1, start=step)
        kept.append(pruner.possible[pruner.original.n_units :].tolist())
    assert kept[0] == kept[1]
