"""Latency budgets, on a machine whose times are known."""

from __future__ import annotations

import copy

import numpy as np
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


class Clock:
    """A machine whose times are known: a fixed cost and one for each parameter, and noise that only ever slows it."""

    def __init__(self, full: int, fixed: float, seed: int):
        self.full, self.fixed, self.rng, self.calls, self.burst = full, fixed, np.random.default_rng(seed), 0, 1.0

    def exact(self, model: nn.Module) -> float:
        return self.fixed + (1 - self.fixed) * size(model) / self.full

    def once(self, model: nn.Module, inputs: tuple) -> float:
        self.calls += 1
        if self.calls % 16 == 0:  # somebody else's work comes and goes, for the full network as for the small one
            self.burst = self.rng.choice([1.0, 1.0, 2.5])
        spike = self.rng.choice([1.0, 8.0], p=[0.85, 0.15])
        return self.exact(model) * self.burst * spike * float(np.exp(abs(self.rng.normal(0, 0.1))))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("fixed", "target"), [(0.0, 0.6), (0.5, 0.7)])
def test_a_noisy_clock_does_not_shrink_the_network_to_nothing(monkeypatch, seed: int, fixed: float, target: float) -> None:
    torch.manual_seed(0)
    clock = Clock(size(start(steps=2, width=12)[0]), fixed, seed)
    monkeypatch.setattr(latency, "_once", clock.once)
    model, optimizer, pruner = start(steps=90, width=12, latency=target, seed=seed)
    loop(model, pruner, optimizer, 90)
    assert clock.exact(pruner.compact()) == pytest.approx(target, rel=0.08)


@pytest.mark.filterwarnings("ignore:latency .* was not met")
@pytest.mark.parametrize("seed", range(3))
def test_cutting_stops_where_it_hardly_makes_the_network_faster(monkeypatch, seed: int) -> None:
    """The first reading, of the smallest network, was lucky; afterwards networks differ by less than the noise."""
    rng = np.random.default_rng(seed)
    times = iter([0.5] * latency.SERIES)
    monkeypatch.setattr(
        latency, "ratio", lambda s, f, *a, **k: next(times, 0.95 + 0.02 * size(s) / size(f) + 0.004 * rng.normal())
    )
    model, optimizer, pruner = start(steps=90, width=12, latency=0.6)
    loop(model, pruner, optimizer, 90)
    pruner.compact()
    assert pruner.fractions[0] > 0.2


def test_one_reading_moves_the_aim_by_a_bounded_factor() -> None:
    budget = latency.LatencyBudget(nn.Linear(2, 2), None, 0.5)
    budget.points += [(0.4, 0.9), (0.02, 0.45)]
    assert budget.flops() == pytest.approx(latency.STEP * 0.4)
    budget.points = [(1.0, 1.0), (0.4, 0.9), (0.02, 0.6)]  # nothing is fast enough
    assert budget.flops() == pytest.approx(latency.STEP * 0.4)
    budget.points = [(1.0, 1.0), (0.4, 0.89), (0.02, 0.88)]  # nor does cutting help
    assert budget.flops() == pytest.approx(latency.STEP)
    budget.points = [(1.0, 1.0), (0.6, 0.55), (0.5, 0.75), (0.3, 0.4)]  # the second and third contradict each other: 0.65 both
    assert budget.flops() == pytest.approx(0.3 + 0.2 * (0.5 - 0.4) / (0.65 - 0.4))
    assert [round(float(x), 6) for x in budget.curve()[1]] == [0.4, 0.65, 0.65, 1.0]


def layers(model: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in model.modules())


@pytest.mark.filterwarnings("ignore:latency .* was not met")
@pytest.mark.parametrize(("target", "flops"), [(0.55, 0.3), (0.7, 0.3), (0.8, 0.6)])
def test_branches_go_where_only_their_number_costs_time(monkeypatch, target: float, flops: float) -> None:
    """With one example a layer takes its time however thin it is: what must go is layers, and units have nothing to give.

    Branches chosen by FLOPs ended at 0.71, 0.92 and 0.76 here, with 0.15, 0.14 and 0.41 of the FLOPs."""

    def clock(small: nn.Module, full: nn.Module, *args, **kwargs) -> float:
        return 0.1 + 0.8 * layers(small) / layers(full) + 0.1 * size(small) / size(full)

    monkeypatch.setattr(latency, "ratio", clock)
    model, optimizer, pruner = start(steps=90, width=12, latency=target)
    full = copy.deepcopy(pruner.latency.full)
    loop(model, pruner, optimizer, 90)
    small = pruner.compact()
    assert clock(small, full) < target * 1.02
    assert pruner.fractions[0] > flops


def test_every_series_has_copies_of_its_own(monkeypatch) -> None:
    """Where weights lie in memory must not decide a reading."""
    seen: list[tuple[int, int]] = []
    alive: list[nn.Module] = []

    def clock(small: nn.Module, full: nn.Module, *args, **kwargs) -> float:
        alive.extend((small, full))  # an address is not given out twice while it is held
        seen.append((id(small), id(full)))
        return 0.7

    monkeypatch.setattr(latency, "ratio", clock)
    start(steps=90, latency=0.8)
    assert len(seen) == latency.SERIES
    assert len({s for pair in seen for s in pair}) == 2 * latency.SERIES


def test_one_lucky_reading_is_not_taken_for_the_time(monkeypatch) -> None:
    """While what to keep is settled, the first reading of a network that is too slow by up to a third is the target itself."""
    target, seen = 0.75, set()
    restart = latency.LatencyBudget.restart

    def anew(self: latency.LatencyBudget, pruner, left: np.ndarray) -> None:
        seen.clear()
        restart(self, pruner, left)

    def measure(self: latency.LatencyBudget, pruner, alive: np.ndarray) -> float:
        exact = 0.2 + 0.8 * pruner.measure(alive, "params")
        lucky = alive.tobytes() not in seen and 1 < exact / target < 1.35
        seen.add(alive.tobytes())
        self.points.append((pruner.measure(alive), target if lucky else exact))
        return self.points[-1][1]

    monkeypatch.setattr(latency.LatencyBudget, "restart", anew)
    monkeypatch.setattr(latency.LatencyBudget, "measure", measure)
    model, optimizer, pruner = start(steps=90, width=12, latency=target, beta=0.0)
    loop(model, pruner, optimizer, 90)
    pruner.compact()
    assert 0.2 + 0.8 * pruner.fractions[1] == pytest.approx(target, rel=0.045)
