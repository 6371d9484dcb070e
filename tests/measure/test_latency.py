"""Latency of an attached network: paired, robust to a busy machine, and said when it is too much beyond noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tweaknn.measure.latency import Latency, paired_latency, warning


class Clocked(nn.Module):
    """A network whose passes take a given time on a clock of our own."""

    def __init__(self, hand: list[float], seconds: float, noise=None):
        super().__init__()
        self.hand, self.seconds, self.noise = hand, seconds, noise

    def forward(self, x):
        self.hand[0] += self.seconds * (self.noise() if self.noise else 1.0)
        return x


def timed(slower: float, noise=None, batch: int = 1) -> Latency:
    hand = [0.0]
    tweaked, base = Clocked(hand, slower, noise), Clocked(hand, 1.0, noise)
    return paired_latency(tweaked, base, torch.zeros(4, 2), batch, clock=lambda: hand[0])


def test_the_ratio_of_a_quiet_machine_is_exact():
    found = timed(1.25)
    assert found.ratio == pytest.approx(1.25)
    assert found.slow
    assert "1.25" in warning([found])
    assert warning([timed(1.05)]) == ""


def test_spikes_and_drift_of_a_busy_machine_do_not_make_a_delta_slow():
    rng = np.random.default_rng(0)
    load = [1.0]

    def noise() -> float:
        load[0] *= 1.002
        return load[0] * (5.0 if rng.random() < 0.1 else 1.0) * (1 + 0.05 * rng.standard_normal())

    found = timed(1.05, noise)
    assert abs(found.ratio - 1.05) < 0.04
    assert not found.slow


def test_only_as_many_examples_as_asked_for_are_run_and_modes_come_back():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            assert not self.training
            return x

    one, two = Spy().train(), Spy().eval()
    paired_latency(one, two, torch.zeros(8, 2), 3, series=1, rounds=1)
    assert set(seen) == {3}
    assert one.training
    assert not two.training
