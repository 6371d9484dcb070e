"""A small CNN on scikit-learn's digits, trained in a second, with one class it is bad at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from tweaknn.baselines import Training, make_task
from tweaknn.inputs import Examples
from tweaknn.inputs.preprocess import Preprocess
from tweaknn.inputs.sources import ArraySource


class Net(nn.Module):
    """Two convolutions with a functional ReLU, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.conv1(x))), 2)
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


def digits(part: str) -> Examples:
    """Train (1,000) or test (797) digits as uint8 images."""
    data = load_digits()
    at = np.random.default_rng(0).permutation(len(data.target))
    at = at[:1000] if part == "train" else at[1000:]
    images = (data.images[at] * 15.9375).astype(np.uint8)
    source = ArraySource(images, part)
    names = [f"digit {k}" for k in range(10)]
    return Examples(source, data.target[at], classes=names, preprocess=Preprocess(mean=(0.3,), std=(0.4,)), name=part)


def trained(seed: int = 0, weak: int = 8) -> Net:
    """Trained for a moment on data with few examples of class ``weak``."""
    torch.manual_seed(seed)
    net = Net()
    examples = digits("train")
    keep = (examples.labels != weak) | (np.arange(len(examples)) % 8 == 0)
    part = examples.subset(keep)
    x, y = part.batch(range(len(part)))
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for k in range(60):
        at = torch.randperm(len(x), generator=torch.Generator().manual_seed(k))[:128]
        optimiser.zero_grad()
        F.cross_entropy(net(x[at]), y[at]).backward()
        optimiser.step()
    return net.eval()


@pytest.fixture(scope="session")
def net() -> Net:
    return trained()


@pytest.fixture
def task(net):
    fast = Training(iterations=12, lr=0.02, penalties=(2.0, 5.0), checkpoints=2)
    return make_task(net, digits("train"), digits("test"), ["digit 8"], training=fast)
