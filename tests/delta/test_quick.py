"""Layers called past their modules: the same bits, and the module's own call wherever it is out of the ordinary."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from tests.delta.nets import Small, delta_for, examples, network
from tweaknn.delta.quick import quicken
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
