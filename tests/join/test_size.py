"""What a delta may cost: counted arithmetic, by which ties are decided, never by a clock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from tweaknn import SynapticJoin
from tweaknn.delta import Delta
from tweaknn.delta.heads import Linear
from tweaknn.delta.value import Read, Term
from tweaknn.join.choice import ordered
from tweaknn.join.promise import Promise
from tweaknn.join.setting import Setting
from tweaknn.join.size import WORK, base_work, delta_work, share_of


def synapses(n: int, reduction: str = "mean") -> Delta:
    read = Read("a", reduction, (n, 4, 4), 0, torch.arange(n))
    return Delta((Term((read,), Linear(torch.ones(n, 3), torch.arange(3))),), torch.zeros(3), "x", (2,))


def test_arithmetic_is_counted():
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    assert base_work(net, torch.zeros(7, 10)) == 2 * (10 * 20 + 20 * 3)
    assert net.training, "nothing stays of the count"
    assert delta_work(synapses(5)) == 2 * 15 + 5 * 16
    assert delta_work(synapses(5, "position")) == 2 * 15
    assert share_of(synapses(5), 0) is None


def test_a_network_that_cannot_be_counted_is_no_error():
    class Odd(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    assert base_work(Odd(), torch.zeros(1, 2)) == 0


def fitted(method="best"):
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, 3, 900))
    x = torch.from_numpy(rng.normal(size=(900, 12)).astype(np.float32))
    x[torch.arange(900), y] += 1.2
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 3))
    ready = SynapticJoin(method=method, cross_fit=False).prepare(net, (x[:600], y[:600]), (x[600:], y[600:]))
    return SynapticJoin(method=method, cross_fit=False), ready


def test_among_equals_the_one_within_a_tenth_of_the_base_comes_first_and_more_is_said():
    join, ready = fitted()
    assert ready.work == 2 * (12 * 30 + 30 * 3)
    heavy = join.choose(ready, [0])
    assert heavy.settings["arithmetic"] > WORK
    assert any("arithmetic" in text for text in heavy.warnings)
    # beside a base of a hundred million operations every candidate is light: nothing is said, and nothing else decides
    light = join.choose(replace(ready, work=100_000_000), [0])
    assert light.settings["arithmetic"] < WORK
    assert not any("arithmetic" in text for text in light.warnings)
    again = join.choose(ready, [0])
    assert again.chosen == heavy.chosen, "counted, so the same every time"


def test_ordered_prefers_the_lighter_of_two_that_validation_cannot_tell_apart():
    join, ready = fitted("fit")
    first = join.choose(ready, [0]).candidates[0]
    wide = replace(first.delta, terms=first.delta.terms * 4)
    heavy = replace(first, name="heavy", delta=wide, notes={**first.notes, "log_loss": -1.0})
    setting = Setting(ready.train_table, ready.validation_table, (0,), ready.classes, Promise("floors"), ready.frame, 0)
    between = int((delta_work(first.delta) + delta_work(wide)) / 2 / WORK)
    for work, name in ((0, "heavy"), (between, first.name), (1, "heavy"), (10 * between, "heavy")):
        assert ordered([heavy, first], replace(setting, work=work))[0].name == name
