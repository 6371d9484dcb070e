"""The demonstration: a small CNN on scikit-learn's handwritten digits, one class of which it has hardly seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = [str(digit) for digit in range(10)]
RARE = 8
"""The digit that the base's own training data nearly lacks, as rare classes do in real data."""


class DigitsCNN(nn.Module):
    """Two convolutions and a linear layer for 8 x 8 grey images in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.linear = nn.Linear(32 * 4, 10)
        self.classes = CLASSES

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.linear(x.flatten(1))


@dataclass(frozen=True)
class Digits:
    """Four disjoint parts: ``base`` trains the network, the others are new to it; each is ``(x, y)`` with ``x``
    ``(n, 1, 8, 8)`` float32 in 0..1."""

    base: tuple[Tensor, Tensor]
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits(seed: int = 0) -> Digits:
    """scikit-learn's 1,797 digits in four parts, most examples of :data:`RARE` taken out of the first."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images.astype(np.float32) / 16).unsqueeze(1)
    y = torch.from_numpy(bunch.target.astype(np.int64))
    order = np.random.default_rng(seed).permutation(len(y))
    base, train, validation, test = np.split(order, [500, 900, 1300])
    rare = base[y[base].numpy() == RARE]
    base = np.setdiff1d(base, rare[4:])
    return Digits(*((x[torch.from_numpy(part)], y[torch.from_numpy(part)]) for part in (base, train, validation, test)))


def train_base(x: Tensor, y: Tensor, *, epochs: int = 25, seed: int = 0) -> DigitsCNN:
    """Train the base as anybody would: the average is optimised, not the class that matters."""
    torch.manual_seed(seed)
    model = DigitsCNN()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(32):
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model.eval()
