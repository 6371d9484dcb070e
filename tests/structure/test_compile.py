"""Under the compiler that people use: inductor, with surgery in mid-run."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tweaknn.structure import ComplexityAware

from .nets import Residual, images

STEPS = 20


class Tiny(nn.Module):
    """As little as has units, a branch and batch norm."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width)
        self.block, self.head = Residual(width, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(F.relu(self.bn(self.conv(x)))).mean((2, 3)))


def trained(backend) -> tuple[list[float], list[int], list[int]]:
    """Losses, the steps that were compiled in, and those after which the network was smaller."""
    torch.manual_seed(0)
    model, x, y = Tiny(), images(8), torch.arange(8) % 4
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pruner = ComplexityAware(model, x[:2], optimizer, steps=STEPS, flops=0.5, every=5, beta=0.0, layers=0.0, units=0.0)
    compiled_at: list[int] = []

    def watched(graph, example):
        compiled_at.append(pruner.state.step)
        return backend(graph, example)

    network = torch.compile(model, backend=watched) if backend is not None else model
    losses, cuts = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if pruner.step():
            cuts.append(step)
    assert pruner.fractions[0] < 0.7
    return losses, compiled_at, cuts


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_inductor_compiles_again_after_surgery_and_only_then() -> None:
    from torch._inductor.compile_fx import compile_fx

    torch._dynamo.reset()
    want, _, _ = trained(None)
    losses, compiled_at, cuts = trained(compile_fx)
    assert cuts
    assert compiled_at == [0, *(step + 1 for step in cuts)]
    assert losses == pytest.approx(want, rel=1e-3)
