"""Small networks and deltas that the tests of this folder share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tweaknn.delta import MLP, Delta, Read, Term, synapses
from tweaknn.network import Layer, Reader, fingerprint
from tweaknn.network.pooling import width

SHAPE = (3, 8, 8)
CLASSES = ("ant", "bee", "cow", "doe")


class Small(nn.Module):
    """Convolutions with functional and in-place ReLUs, a residual sum, batch norm with statistics of its own."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.out = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn(self.a(x)))
        h = self.act(h + self.b(h))
        return self.out(F.adaptive_avg_pool2d(h, 1).flatten(1))


class Branching(Small):
    """The same, with a decision on the data that torch.fx cannot follow: read by hooks."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = x * 0
        return super().forward(x)


def network(kind: type[nn.Module] = Small, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = kind()
    with torch.no_grad():
        net.bn.running_mean.normal_()
        net.bn.running_var.uniform_(0.5, 2)
    return net.eval()


def examples(n: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def delta_for(
    net: nn.Module,
    reader: Reader,
    *,
    seed: int = 0,
    reductions: tuple[str, ...] = ("mean",),
    columns: tuple[int, ...] = (1,),
    mlp: bool = False,
    per_layer: int = 4,
    bias: bool = False,
    grouped: bool = False,
) -> Delta:
    """A random delta that reads ``per_layer`` neurons of each layer by each reduction."""
    g = torch.Generator().manual_seed(seed)
    reads = []
    for layer in reader.layers:
        for reduction in reductions:
            size = width(reduction, layer.shape, layer.channel_axis)
            index = torch.randperm(size, generator=g)[:per_layer]
            reads.append(Read(layer.name, reduction, layer.shape, layer.channel_axis, index))
    f = sum(int(read.index.numel()) for read in reads)
    k = len(columns)
    ends = torch.tensor(columns, dtype=torch.int64)
    if mlp:
        sizes = [f // 2, f - f // 2] if grouped else [f]
        w1 = tuple(torch.randn(s, 3, generator=g) for s in sizes)
        h = 3 * len(sizes)
        head = MLP(w1, torch.randn(h, generator=g), torch.randn(h, k, generator=g), ends, "gelu")
        term = Term(tuple(reads), head)
    else:
        term = synapses(reads, torch.randn(f, k, generator=g), columns)
    b = torch.zeros(4)
    if bias:
        b[list(columns)] = torch.randn(k, generator=g)
    return Delta((term,), b, fingerprint(net), SHAPE, classes=CLASSES, how=reader.how, meta={"note": "test"})


def reference(delta: Delta, reader: Reader, x: Tensor) -> Tensor:
    """``logits + Σ head(neurons) + bias`` by plain reading and float64 sums."""
    seen: dict[str, Tensor] = {}
    named: list[Layer] = reader.layers
    logits = reader(x, lambda k, value: seen.__setitem__(named[k].name, value.clone()))
    out = logits.double() + delta.bias.double()
    for term in delta.terms:
        features = torch.cat([read.pick(seen.get(read.layer, logits)) for read in term.reads], 1).double()
        out[:, term.head.columns] += term.head(features).double()
    return out
