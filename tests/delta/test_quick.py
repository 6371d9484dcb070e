"""Layers called past their modules: the same bits, and the module's own call wherever it is out of the ordinary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from tests.delta.nets import Small, delta_for, examples, network
from tweaknn.delta import Delta, Read, synapses
from tweaknn.delta.attach import insert, layered
from tweaknn.delta.quick import quicken, rectified
from tweaknn.network import Reader
from tweaknn.network.tracing import trace


@pytest.mark.parametrize("n", [1, 5])
def test_the_same_bits(n):
    net, x = network(), examples(n)
    traced = trace(net, examples(2))
    module = fx.GraphModule(net, traced.graph)
    quicken(module)
    assert {node.target.__name__ for node in module.graph.nodes if node.op == "call_function"} >= {
        "convolution",
        "normalisation",
    }
    with torch.inference_mode():
        assert torch.equal(module(x), net(x))


def test_hooks_and_changed_layers_are_heeded():
    net, x = network(), examples(3)
    tweaked = delta_for(net, Reader(net, examples(2))).attach(net)
    calls = []
    tweaked.net.get_submodule("b").register_forward_hook(lambda *args: calls.append(1))
    before = tweaked(x)
    assert calls == [1]
    with torch.no_grad():
        tweaked.net.get_submodule("b").weight = nn.Parameter(torch.zeros_like(net.b.weight))
    assert not torch.equal(tweaked(x), before)
    assert float(net.b.weight.abs().sum()) > 0


def test_unusual_layers_keep_their_own_call():
    class Odd(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    net = nn.Sequential(
        Odd(3, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4, track_running_stats=False),
    ).eval()
    module = fx.GraphModule(net, fx.Tracer().trace(net))
    quicken(module)
    assert [node.op for node in module.graph.nodes].count("get_attr") <= 2  # the odd one's own weight and bias
    assert [node.op for node in module.graph.nodes].count("call_module") == 2


def test_a_layer_that_was_replaced_is_the_one_that_runs():
    net, x = network(Small), examples(3)
    tweaked = delta_for(net, Reader(net, examples(2))).attach(net)
    before = tweaked(x)
    tweaked.net.b = nn.Sequential(tweaked.net.b, nn.Tanh())
    assert not torch.equal(tweaked(x), before)


class Residual(nn.Module):
    """Functions and modules, sums and normalisations in front of ReLUs; ``seen`` reads a normalisation twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.again, self.seen = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        x = self.act(self.bn(self.conv(x)))
        y = self.seen(self.again(x))
        y = torch.relu(y) - y
        return self.linear(torch.relu(x + y).mean((2, 3)))


def test_relus_write_over_what_they_alone_read():
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.randn(4, 3, 8, 8)
    nn.init.normal_(net.bn.bias)
    traced = trace(net, x)
    module = fx.GraphModule(net, traced.graph)
    quicken(module)
    alone = [node.args[3] for node in module.graph.nodes if node.target is rectified]
    assert alone == [True, False, True]
    copy = x.clone()
    with torch.inference_mode():
        assert torch.equal(module(x), net(x))
    assert torch.equal(x, copy)
    # with autograd nothing is written over
    module(x.requires_grad_()).sum().backward()
    grad, x.grad = x.grad, None
    net(x).sum().backward()
    assert torch.equal(grad, x.grad)


def test_a_normalisation_that_a_hook_reads_is_left_as_it_is():
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.randn(4, 3, 8, 8)
    nn.init.normal_(net.bn.bias)
    reader = Reader(net, x)
    tweaked = delta_for(net, reader).attach(net)
    kept: list[torch.Tensor] = []
    tweaked.net.get_submodule("bn").register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.inference_mode():
        tweaked(x)
        expected = net.bn(net.conv(x))
    assert float(expected.min()) < 0
    assert torch.equal(kept[0], expected)


def test_a_normalisation_that_a_delta_reads_outlives_the_relu_behind_it():
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.randn(4, 3, 8, 8)
    nn.init.normal_(net.bn.bias)
    shape = (4, 8, 8)
    read = Read("bn", "mean", shape, 0, torch.arange(4))
    traced = trace(net, x)
    node = next(node for node in traced.graph.nodes if node.target == "bn")
    module = layered(replace(traced, nodes={"bn": node}))
    weight = torch.randn(4, 3)
    delta = Delta((synapses([read], weight, range(3)),), torch.zeros(3), "0" * 64, (3, 8, 8))
    insert(delta, module, torch.device("cpu"))
    with torch.inference_mode():
        expected = net(x) + net.bn(net.conv(x)).mean((2, 3)) @ weight
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


class Before(nn.Module):
    """A block of normalisation, ReLU, convolution beside its input."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv, self.linear = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x):
        x = x * 2
        return self.linear((x + self.conv(torch.relu(self.bn(x)))).mean((2, 3)))


def test_a_normalisation_replaced_by_an_identity_is_not_written_over():
    torch.manual_seed(0)
    net, x = Before().eval(), torch.randn(4, 3, 8, 8)
    module = fx.GraphModule(net, trace(net, x).graph)
    quicken(module)
    module.bn = nn.Identity()
    with torch.inference_mode():
        y = x * 2
        expected = net.linear((y + net.conv(torch.relu(y))).mean((2, 3)))
        assert torch.equal(module(x), expected)
