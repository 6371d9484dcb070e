"""Which neurons a network has, and reading them without leaving a trace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.networks import resnet20
from tweaknn.errors import ModelError
from tweaknn.network import Reader, fingerprint, pool


def read(model, x, layers="all", **kwargs):
    reader = Reader(model, x, layers, **kwargs)
    seen = {}
    logits = reader(x, lambda k, value: seen.__setitem__(reader.layers[k].name, value.clone()))
    return reader, seen, logits


def test_resnet20_has_the_neurons_of_the_dissertation():
    net, x = resnet20(), torch.randn(2, 3, 32, 32)
    every, stages = Reader(net, x), Reader(net, x, "stages")
    assert (len(every.layers), every.neurons) == (19, 188_416)
    assert sum(layer.channels for layer in every.layers) == 688
    assert stages.neurons == 28_672
    assert [layer.name.split(".")[0] for layer in stages.layers] == ["layer1", "layer2", "layer3"]
    assert every.how == "fx"


class InPlace(nn.Module):
    """The convolution's output is overwritten by the ReLU that follows."""

    def __init__(self, inplace):
        super().__init__()
        self.conv, self.act, self.out = nn.Conv2d(1, 2, 3), nn.ReLU(inplace=inplace), nn.Linear(2, 3)

    def forward(self, x):
        h = self.conv(x)
        h = self.act(h)
        h += 1
        return self.out(h.mean((2, 3)))


def test_a_neuron_is_read_before_an_in_place_operation_changes_it():
    torch.manual_seed(0)
    x = torch.randn(3, 1, 6, 6)
    plain = InPlace(inplace=False)
    other = InPlace(inplace=True)
    other.load_state_dict(plain.state_dict())
    for net in (plain, other):
        _, seen, _ = read(net, x, ["conv", "act"])
        torch.testing.assert_close(seen["conv"], net.conv(x))
        torch.testing.assert_close(seen["act"], F.relu(net.conv(x)))
        assert seen["conv"].min() < 0


class Shared(nn.Module):
    """One ReLU and one linear layer, used several times; hooks have to count the calls."""

    def __init__(self, traceable=True):
        super().__init__()
        self.lin, self.act, self.out, self.traceable = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), traceable

    def forward(self, x):
        if not self.traceable and x.sum() > 1e9:
            return x
        h = self.act(self.lin(x))
        h = self.act(self.lin(h) - 0.1)
        return self.out(h)


@pytest.mark.parametrize("traceable", [True, False])
def test_shared_modules_are_read_call_by_call(traceable):
    torch.manual_seed(0)
    net, x = Shared(traceable), torch.randn(5, 4)
    reader, seen, _ = read(net, x)
    assert reader.how == ("fx" if traceable else "hooks")
    first = F.relu(net.lin(x))
    second = F.relu(net.lin(first) - 0.1)
    values = list(seen.values())
    torch.testing.assert_close(values[0], first)
    torch.testing.assert_close(values[1], second)
    assert len({layer.name for layer in reader.layers}) == len(reader.layers) == 2


def test_changing_shapes_are_an_error_that_names_the_layer():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    reader = Reader(net, torch.randn(2, 1, 8, 8))
    with pytest.raises(ModelError, match=r"Layer 1 .*\(2, 8, 8\).*\(2, 6, 6\)"):
        reader(torch.randn(2, 1, 10, 10), lambda k, value: None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).to(dtype)
    _, seen, logits = read(net, torch.randn(5, 4))
    assert next(iter(seen.values())).dtype == dtype
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


class Outputs(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.a, self.b, self.c, self.form = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2), form

    def forward(self, x):
        h = torch.relu(self.a(x))
        first, second = self.b(h), self.c(h)
        if self.form == "tuple":
            return first, second
        return {"logits": first, "other": second}


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_several_outputs(form):
    net, x = Outputs(form), torch.randn(5, 4)
    _, _, logits = read(net, x)
    assert logits.shape == (5, 3)
    _, _, logits = read(net, x, head=1 if form == "tuple" else "other")
    assert logits.shape == (5, 2)
    assert ("first is taken" in Reader(net, x).remark) == (form == "tuple")
    assert Reader(net, x, head=0 if form == "tuple" else "logits").remark == ""
    with pytest.raises(ModelError, match="no output"):
        Reader(net, x, head=7 if form == "tuple" else "missing")


def test_training_flags_and_statistics_are_given_back():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))
    net.train()
    net[1].eval()
    before = fingerprint(net)
    flags = [module.training for module in net.modules()]
    read(net, torch.randn(5, 4))
    assert [module.training for module in net.modules()] == flags
    assert fingerprint(net) == before
    reader = Reader(net, torch.randn(5, 4))
    with pytest.raises(ZeroDivisionError):
        reader(torch.randn(5, 4), lambda k, value: 1 / 0)
    assert [module.training for module in net.modules()] == flags


class Tokens(nn.Module):
    """Channels last, as in ViT, Swin and ConvNeXt: after linear layers and layer norms, and through permutations."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.lin, self.out = (
            nn.Conv2d(3, 5, 2, 2),
            nn.LayerNorm(5),
            nn.Linear(5, 7),
            nn.Linear(7, 2),
        )

    def forward(self, x):
        h = F.gelu(self.conv(x))  # (n, 5, 4, 4)
        h = F.gelu(self.norm(h.permute(0, 2, 3, 1)))  # (n, 4, 4, 5)
        h = F.gelu(self.lin(h.flatten(1, 2)))  # (n, 16, 7)
        return self.out(h.mean(1))


def test_channel_axes():
    reader = Reader(Tokens(), torch.randn(2, 3, 8, 8))
    assert [(layer.shape, layer.channel_axis) for layer in reader.layers] == [
        ((5, 4, 4), 0),
        ((4, 4, 5), 2),
        ((16, 7), 1),
    ]


class Block(nn.Module):
    """As ConvNeXt's: ends in a linear layer and hands out channels first."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm, self.up, self.act = nn.LayerNorm(channels), nn.Linear(channels, 7), nn.GELU()
        self.down = nn.Linear(7, channels)

    def forward(self, x):
        return x + self.down(self.act(self.up(self.norm(self.conv(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)


class NormFirst(nn.LayerNorm):
    """Layer norm over the channels of maps."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Hooked(nn.Module):
    """A decision that torch.fx cannot follow, and modules whose kind does not tell which axis counts channels."""

    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 5, 2, 2), NormFirst(5)), Block(5)])
        self.pool, self.sound, self.norm, self.act = nn.AvgPool2d(2), nn.Conv1d(5, 6, 2), nn.LayerNorm(3), nn.ReLU()
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        if not isinstance(x, torch.Tensor):
            raise TypeError
        h = self.pool(self.first[1](self.first[0](x)))
        return self.out(self.act(self.norm(self.sound(h.flatten(2)))).mean(2))


def test_channel_axes_by_hooks():
    reader = Reader(Hooked(), torch.randn(2, 3, 8, 8))
    assert reader.how == "hooks"
    assert {layer.name: (layer.shape, layer.channel_axis) for layer in reader.every} == {
        "first.0.0": ((5, 4, 4), 0),
        "first.0.1": ((5, 4, 4), 0),
        "first.0": ((5, 4, 4), 0),
        "first.1.conv": ((5, 4, 4), 0),
        "first.1.norm": ((4, 4, 5), 2),
        "first.1.up": ((4, 4, 7), 2),
        "first.1.act": ((4, 4, 7), 2),
        "first.1.down": ((4, 4, 5), 2),
        "first.1": ((5, 4, 4), 0),
        "pool": ((5, 2, 2), 0),
        "sound": ((6, 3), 0),
        "norm": ((6, 3), 0),
        "act": ((6, 3), 0),
    }


def test_names_that_are_not_there():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ModelError, match="its layers are 1"):
        Reader(net, torch.randn(2, 4), "nonsense")
    with pytest.raises(ModelError, match="No hidden neurons"):
        Reader(nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.raises(ModelError, match="does not run on an input of shape"):
        Reader(net, torch.randn(2, 5))


def test_pooling_against_plain_loops():
    x = torch.randn(2, 3, 5, 6)
    for axis, value in ((0, x), (2, x.permute(0, 2, 3, 1))):
        mean, high, grid = (pool(value, axis, name) for name in ("mean", "max", "grid2"))
        for n in range(2):
            for c in range(3):
                plane = x[n, c]
                assert mean[n, c].item() == pytest.approx(sum(plane.flatten().tolist()) / 30, abs=1e-6)
                assert high[n, c].item() == max(plane.flatten().tolist())
                quarters = [plane[r, k].mean() for r in (slice(0, 3), slice(2, 5)) for k in (slice(0, 3), slice(3, 6))]
                torch.testing.assert_close(grid[n, 4 * c : 4 * c + 4], torch.stack(quarters))


def test_fingerprint_sees_every_value_and_no_wrapper():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    before = fingerprint(net)
    assert fingerprint(nn.DataParallel(net)) == before
    assert fingerprint(torch.compile(net)) == before
    for tensor in (*net.parameters(), *net.buffers()):
        with torch.no_grad():
            flat = tensor.view(-1)
            old = flat[-1].clone()
            flat[-1] = flat[-1] + 1
            assert fingerprint(net) != before
            flat[-1] = old
    assert fingerprint(net) == before
