"""The networks of the dissertation (section 3.3.1), written from their published descriptions.

``cnn3_bn`` for SVHN (89.6 K parameters), ``cnn3`` for CIFAR-10, ``nin``, CIFAR ResNets, DenseNet-40; GoogLeNet,
ResNet-18 and DenseNet-121
come from torchvision. Use from the command line as ``--model benchmarks/dissertation/networks.py:cnn3``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import ResNet


class CNN3(nn.Module):
    """Caffe's CIFAR-10 "quick": 5 x 5 convolutions of 32, 32, 64 channels, pooled by 2 after each, one linear layer.

    With one linear layer it has 89.6 K parameters, the number Table 4.2 gives; 45,056 neurons are its three ReLU
    outputs.
    """

    def __init__(self, classes: int = 10, norm: bool = False) -> None:
        super().__init__()
        widths = (3, 32, 32, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 5, padding=2) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) if norm else nn.Identity() for b in widths[1:])
        self.linear = nn.Linear(64 * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        return self.linear(x.flatten(1))


class NIN(nn.Module):
    """Network in network (Lin et al. 2014) for 32 x 32 images: its head is a convolution, averaged."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()

        def block(a: int, b: int, c: int, d: int, k: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    nn.Conv2d(a, b, k, padding=k // 2),
                    nn.ReLU(),
                    nn.Conv2d(b, c, 1),
                    nn.ReLU(),
                    nn.Conv2d(c, d, 1),
                    nn.ReLU(),
                )
            )

        self.one, self.two = block(3, 192, 160, 96, 5), block(96, 192, 192, 192, 5)
        self.three = nn.Sequential(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.Conv2d(192, 192, 1), nn.ReLU())
        self.head = nn.Conv2d(192, classes, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.max_pool2d(self.one(x), 3, 2, 1))
        x = self.drop(F.avg_pool2d(self.two(x), 3, 2, 1))
        return self.head(self.three(x)).mean((2, 3))


class DenseNet40(nn.Module):
    """DenseNet of 40 layers, growth 12, no bottleneck: 1.02 M parameters."""

    def __init__(self, classes: int = 10, growth: int = 12, depth: int = 12) -> None:
        super().__init__()
        channels = 16
        self.first = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        blocks: list[nn.ModuleList] = []
        joints: list[nn.Module] = []
        for block in range(3):
            layers = nn.ModuleList()
            for _ in range(depth):
                norm, conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, padding=1, bias=False)
                layers.append(nn.Sequential(norm, nn.ReLU(), conv))
                channels += growth
            blocks.append(layers)
            if block < 2:
                joint = (
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                    nn.Conv2d(channels, channels, 1, bias=False),
                    nn.AvgPool2d(2),
                )
                joints.append(nn.Sequential(*joint))
        self.blocks, self.joints = nn.ModuleList(blocks), nn.ModuleList(joints)
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for k, block in enumerate(self.blocks):
            for layer in block:  # type: ignore[attr-defined]
                x = torch.cat([x, layer(x)], 1)
            if k < 2:
                x = self.joints[k](x)
        return self.linear(F.relu(self.norm(x)).mean((2, 3)))


def cnn3() -> nn.Module:
    """For CIFAR-10: 77.9 % in the dissertation after 50 k iterations."""
    return CNN3()


def cnn3_bn() -> nn.Module:
    """For SVHN, with batch normalisation: 88.99 % after 115 k iterations."""
    return CNN3(norm=True)


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    extra = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    return models.get_model(name, weights=None, num_classes=classes, **extra)


def build(name: str, classes: int) -> nn.Module:
    """A network by the dissertation's name for it. Raises KeyError listing the names."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "cnn3": lambda: CNN3(classes),
        "cnn3-bn": lambda: CNN3(classes, norm=True),
        "nin": lambda: NIN(classes),
        "resnet20": lambda: ResNet(3, classes),
        "resnet56": lambda: ResNet(9, classes),
        "resnet18": lambda: _torchvision("resnet18", classes),
        "densenet40": lambda: DenseNet40(classes),
        "densenet121": lambda: _torchvision("densenet121", classes),
        "googlenet": lambda: _torchvision("googlenet", classes),
    }
    if name not in makers:
        raise KeyError(f"unknown network {name!r}; choose one of {', '.join(makers)}")
    return makers[name]()
