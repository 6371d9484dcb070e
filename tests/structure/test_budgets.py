"""FLOPs and parameters budgeted together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tweaknn.structure import ComplexityAware

from .nets import make
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


@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_networks_without_branches_meet_two_budgets(name: str) -> None:
    model, x = make(name)
    x = x.repeat(6, *[1] * (x.dim() - 1))
    with torch.no_grad():
        y = torch.arange(len(x)) % model(x).shape[1]
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pruner = ComplexityAware(model, x[:3], optimizer, steps=40, flops=0.7, params=0.6, every=5, end=0.8)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(pruner.model(x), y).backward()
        optimizer.step()
        pruner.step()
    pruner.compact()
    reached = max(pruner.fractions[0] / 0.7, pruner.fractions[1] / 0.6)
    assert reached == pytest.approx(1.0, rel=0.12)  # one unit of these is several per cent
