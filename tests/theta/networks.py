"""Small networks with the features real ones have: residuals, in-place operations, shared modules, GELU, gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """Functional ReLUs, a residual sum, an in-place ReLU on a sum, a module used twice."""

    def __init__(self, classes: int = 4, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.shared = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.gelu = nn.GELU()
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.act(self.shared(x))
        y = self.shared(y)
        y.add_(x)
        x = self.act(y)
        x = self.gelu(self.down(x))
        return self.head(x.mean((2, 3)))


class Untraceable(nn.Module):
    """Branches on its values, so that only module hooks can read it; its activation works in place."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, classes)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.a(x))
        if x.sum() > -1:
            x = self.relu(self.b(x))
        return self.head(x)


def labelled(model: nn.Module, x: torch.Tensor, right: float = 0.8, classes: int = 4, seed: int = 0) -> torch.Tensor:
    """Labels such that the network is right on about ``right`` of the examples."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        predicted = model.eval()(x).argmax(1)
    wrong = torch.rand(len(x), generator=g) >= right
    shift = torch.randint(1, classes, (len(x),), generator=g)
    return torch.where(wrong, (predicted + shift) % classes, predicted)


def batches(x: torch.Tensor, y: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(x.split(size), y.split(size)))


def network(kind: str, n: int = 150, seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = Residual() if kind == "fx" else Untraceable()
    model.eval()
    x = torch.randn(n, 3, 8, 8) if kind == "fx" else torch.randn(n, 8)
    with torch.no_grad():  # every class is predicted now and then
        model.head.bias -= model(x).mean(0)
    return model, x, labelled(model, x)


def values(reader, x: torch.Tensor, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All neurons ``(n, v)`` copied in the sink, and logits: what the stream must have seen."""
    rows, logits = [], []
    for part in x.split(micro):
        kept: list[torch.Tensor] = []
        logits.append(reader(part, lambda k, a, kept=kept: kept.append(a.reshape(len(a), -1).clone())))
        rows.append(torch.cat(kept, 1))
    return torch.cat(rows), torch.cat(logits)
