"""What a result says of its controls, and what is decided before the network runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tweaknn import Promise, SynapticJoin
from tweaknn.errors import InputError
from tweaknn.join.candidates import CONTROLS
from tweaknn.network.views import LabelView


class Shifted(nn.Module):
    """Two features say the class; the base holds class 0 back by a constant, so that a bias is all the cure."""

    def __init__(self, shift: float):
        super().__init__()
        self.hidden = nn.Linear(2, 8)
        self.out = nn.Linear(8, 2)
        self.calls = 0
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).repeat(2, 1))
            self.hidden.bias.zero_()
            self.out.weight.copy_(torch.tensor([[1.0, -1, 0, 0] * 2, [-1.0, 1, 0, 0] * 2]) * 2)
            self.out.bias.copy_(torch.tensor([-shift, 0.0]))

    def forward(self, x):
        self.calls += 1
        return self.out(torch.relu(self.hidden(x)))


def examples(n: int, seed: int):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, 2)).astype(np.float32)
    x[:, 0] = np.where(y == 0, 1.0, -1.0) + 0.02 * x[:, 0]
    return DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=50)


def test_a_bias_that_does_as_well_is_named():
    result = SynapticJoin(method="fit", base_saw="none", cross_fit=False).fit(
        Shifted(9.0), examples(400, 0), examples(400, 1), targets=["a"], classes=["a", "b"]
    )
    assert result.best.point.target == 1.0
    if result.chosen in CONTROLS:
        assert "control" in result.sentence or "constant" in result.sentence
    else:
        assert "bias" in result.rivals
        assert "a constant bias" in result.sentence
        assert "as well" in result.sentence
    assert result.to_dict()["controls_as_good"] == result.rivals


def test_no_control_is_named_where_each_does_worse():
    """A class that only a hidden neuron knows of: the bias cannot reach it under floors."""

    class Blind(Shifted):
        def __init__(self):
            super().__init__(0.0)
            with torch.no_grad():
                self.out.weight.zero_()
                self.out.bias.copy_(torch.tensor([-0.1, 0.0]))

    result = SynapticJoin(method="fit", base_saw="none", cross_fit=False).fit(
        Blind(), examples(400, 0), examples(400, 1), targets=["a"], classes=["a", "b"]
    )
    assert result.best.point.target == 1.0
    assert "bias" not in result.rivals
    assert "constant bias" not in result.sentence


def test_an_unknown_class_is_said_before_the_network_runs():
    model = Shifted(1.0)
    with pytest.raises(InputError, match="Unknown class 'c'"):
        SynapticJoin().fit(model, examples(40, 0), examples(40, 1), targets=["c"], classes=["a", "b"])
    assert model.calls == 0


def test_what_was_set_aside_is_not_cross_fitted_as_well():
    """400 of each class are enough to set half aside; the halves are then too small to be called plenty, which must not count."""
    result = SynapticJoin(method="fit").fit(Shifted(9.0), examples(1000, 0), targets=["a"], classes=["a", "b"])
    assert result.settings["folds"] == 0
    assert result.settings["n_train"] == result.settings["n_validation"] == 500
    scarce = SynapticJoin(method="fit").fit(Shifted(9.0), examples(300, 0), targets=["a"], classes=["a", "b"])
    assert scarce.settings["folds"] == 5
    assert scarce.settings["n_validation"] == 300


def test_validation_examples_that_are_training_examples_are_said():
    """Wholly or in part, in another order and in batches of another size; others are not, repeated rows neither."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(300, 4), torch.arange(300) % 3
    other = torch.randn(150, 4)
    join = SynapticJoin(method="fit", base_saw="none")

    def said(validation):
        labels = torch.arange(len(validation)) % 3
        return [w for w in join.fit(net, (x, y), (validation, labels), targets=[1]).warnings if "as well: what was fitted" in w]

    assert len(said(x.flip(0)[2:])) == 1  # the labels of position k are those of example 299 - k - 2
    assert said(other) == []
    assert said(torch.cat([other, x[:1].expand(60, 4)])) == []
    ready = join.prepare(net, DataLoader(TensorDataset(x, y), 64), DataLoader(TensorDataset(x[30:90], y[30:90]), 7))
    found = join.choose(ready, [1]).warnings
    assert any("at least 60 of the 60" in w for w in found)


def test_one_logit_is_not_enough_to_call_two_examples_the_same():
    torch.manual_seed(0)
    net = LabelView(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval())
    x, y = torch.randn(900, 4), (torch.arange(900) % 3 == 0).long()
    join = SynapticJoin(method="fit", base_saw="none", cross_fit=False)
    found = join.fit(net, (x[:500], y[:500]), (x[500:], y[500:]), targets=[1]).warnings
    assert not any("as well: what was fitted" in w for w in found)
    found = join.fit(net, (x[:500], y[:500]), (x[100:500], y[100:500]), targets=[1]).warnings
    assert any("of the 400 validation" in w for w in found)


def test_weights_of_no_target_are_refused_and_those_that_say_nothing_change_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(600, 4), torch.arange(600) % 3
    x[:, 0] += y
    join = SynapticJoin(method="fit", base_saw="none")
    ready = join.prepare(net, (x[:300], y[:300]), (x[300:], y[300:]))
    plain = join.choose(ready, [1])
    join.promise = Promise("floors", weights={1: 5.0})
    assert torch.equal(plain.require().bias, join.choose(ready, [1]).require().bias)
    join.promise = Promise("floors", weights={"2": 5.0})
    with pytest.raises(InputError, match="no target"):
        join.choose(ready, [1])
