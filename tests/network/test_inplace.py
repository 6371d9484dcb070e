"""Reusing memory changes no bit, and nothing that somebody else still reads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from tweaknn.network.inplace import reuse_memory
from tweaknn.network.reader import Reader


class Net(nn.Module):
    """Sums, activations read twice, a sum of different shapes, an activation of the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.bn, self.relu, self.head = nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        first = self.relu(self.bn(self.a(F.relu(x))))
        raw = self.b(first)
        twice = F.relu(raw) + raw.mean((2, 3), keepdim=True)  # raw is read again: relu must not overwrite it
        total = F.relu(self.c(twice) + first)
        return self.head((total + first).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.bn.running_mean.normal_()
    return model, torch.randn(5, 4, 6, 6)


def test_the_same_bits_for_every_layer(net):
    model, x = net
    kept = x.clone()
    reader = Reader(model, x[:2], layers="all")
    assert any(node.kwargs.get("inplace") for node in reader._module.graph.nodes)
    seen = {}
    logits = reader(x, lambda k, a: seen.setdefault(reader.layers[k].name, a.clone()))
    with torch.no_grad():
        first = model.relu(model.bn(model.a(F.relu(x))))
        raw = model.b(first)
        total = F.relu(model.c(F.relu(raw) + raw.mean((2, 3), keepdim=True)) + first)
        assert torch.equal(logits, model(x))
    assert torch.equal(x, kept)
    assert any(torch.equal(first, value) for value in seen.values())
    assert any(torch.equal(total, value) for value in seen.values())


def test_a_layer_that_is_read_is_not_written_over(net):
    """A batch norm's output that is itself read, and waits for the logits by reference, stays as it is."""
    model, x = net
    reader = Reader(model, x[:2], layers=["bn", "relu", "b"])
    seen = {}
    reader(x, lambda k, a: seen.setdefault(reader.layers[k].name, (a, a.clone())))
    assert len(seen) == 3
    for now, then in seen.values():
        assert torch.equal(now, then)


def test_only_what_nobody_else_reads(net):
    model, x = net
    graph = fx.Tracer().trace(model)
    module = fx.GraphModule(model, graph)
    shapes = {}
    for node in graph.nodes:
        shapes[node] = (4, 6, 6)
    assert reuse_memory(graph, dict(model.named_modules()), shapes) > 0
    written = [n for n in graph.nodes if n.kwargs.get("inplace")]
    for node in written:
        assert set(node.all_input_nodes[0].users) == {node}
        assert node.all_input_nodes[0].op != "placeholder"
    module.recompile()


def test_a_network_with_hooks_on_its_relu_keeps_them(net):
    model, x = net
    called = []
    model.relu.register_forward_hook(lambda *_: called.append(1))
    reader = Reader(model, x[:2])
    called.clear()
    reader(x, lambda k, a: None)
    assert called
