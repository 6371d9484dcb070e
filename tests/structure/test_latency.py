"""Latency budgets, on a machine whose times are known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tweaknn.errors import InputError
from tweaknn.structure import latency

from .test_pruner import loop, start


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("fixed", [0.0, 0.3])
def test_budget_is_met_on_a_machine_with_fixed_costs(monkeypatch, fixed: float) -> None:
    """A network's time is a fixed cost and something in its parameters, not in its FLOPs."""
    monkeypatch.setattr(latency, "ratio", lambda small, full, *a, **k: fixed + (1 - fixed) * size(small) / size(full))
    model, optimizer, pruner = start(steps=90, width=12, latency=0.6)
    full = copy.deepcopy(pruner.latency.full)
    loop(model, pruner, optimizer, 90)
    small = pruner.compact()
    assert fixed + (1 - fixed) * size(small) / size(full) == pytest.approx(0.6, rel=0.04)


def test_what_cannot_be_met_names_the_nearest(monkeypatch) -> None:
    monkeypatch.setattr(latency, "ratio", lambda small, full, *a, **k: 0.8 + 0.2 * size(small) / size(full))
    with pytest.raises(InputError, match=r"latency 0\.3 cannot be met: the smallest working network takes 0\.8"):
        start(steps=60, latency=0.3)


def test_real_clock_sees_a_smaller_network() -> None:
    torch.manual_seed(0)
    big = nn.Sequential(nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 1500))
    small = nn.Sequential(nn.Linear(1500, 20), nn.ReLU(), nn.Linear(20, 1500))
    assert latency.ratio(small, big, torch.randn(64, 1500), rounds=9, batch=None) < 0.5
    assert big.training
    assert small.training
