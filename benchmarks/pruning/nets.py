"""CIFAR ResNet-20 with a stride-2 stem, scaled by width and blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (projection where the shape changes)."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """``widths`` of three stages of ``blocks`` residual blocks; ``stem`` is the first convolution's stride."""

    def __init__(
        self, classes: int = 10, widths: tuple[int, ...] = (16, 32, 64), blocks: tuple[int, ...] = (3, 3, 3),
        stem: int = 2,
    ):  # fmt: skip
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, stem, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inside = widths[0]
        for k, (width, count) in enumerate(zip(widths, blocks), 1):
            rows = []
            for b in range(count):
                rows.append(Block(inside, width, 2 if b == 0 and k > 1 else 1))
                inside = width
            setattr(self, f"layer{k}", nn.Sequential(*rows))
        self.linear = nn.Linear(inside, classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def resnet20(classes: int = 10, scale: float = 1.0, stem: int = 2) -> ResNet:
    widths = tuple(max(1, round(scale * w)) for w in (16, 32, 64))
    return ResNet(classes, widths, stem=stem)


def narrow_scale(target: float, example: Tensor, make) -> float:
    """The width factor whose FLOPs are closest to ``target`` of the full network's."""
    full = flops(make(1.0), example)
    scales = [i / 64 for i in range(8, 65)]
    return min(scales, key=lambda s: abs(flops(make(s), example) / full - target))


def flops(model: nn.Module, example: Tensor) -> int:
    """FLOPs (two a multiply-add) of convolutions and linear layers, by torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    was = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    model.train(was)
    return counter.get_total_flops() // len(example)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
