"""torchao's int8 weight-only quantisation of whole networks, convolutions included.

torchao has a kernel for linear layers only: a convolution with its int8 tensor as weight is refused. Here torchao quantises
every weight (one scale an output channel); linear layers then run on its kernel, convolutions make floats of its tensor at
each call, which is what weight-only means.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn


class Int8Conv2d(nn.Conv2d):
    """A convolution whose ``weight`` is torchao's int8 tensor, ``(out, everything else)``."""

    full_shape: torch.Size

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.weight
        return self._conv_forward(x, weight.dequantize().view(self.full_shape), self.bias)


def int8(model: nn.Module) -> nn.Module:
    """A copy of ``model`` (an attached delta's network, too) with the weights of all linear layers and convolutions as int8."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(model).eval()
    for m in model.modules():
        if type(m) is nn.Conv2d:
            m.full_shape = m.weight.shape
            m.weight = nn.Parameter(m.weight.detach().flatten(1), requires_grad=False)
            m.__class__ = Int8Conv2d  # in its place: names, graphs and hooks go on finding it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the compiler's settings are not ours to change
        quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False), lambda m, _: isinstance(m, (nn.Linear, Int8Conv2d)))
    return model


def weight_bytes(model: nn.Module) -> int:
    """What the parameters take, int8 with their scales; an attached delta's numbers too."""
    tensors = list(model.parameters())
    for path, m in model.named_modules():
        if path.split(".")[-1].startswith("_tweaknn_change_"):
            tensors += list(m.buffers())
    return sum(_bytes(t) for t in tensors)


def _bytes(t: Any) -> int:
    if hasattr(t, "qdata"):
        return _bytes(t.qdata) + _bytes(t.scale)
    return t.numel() * t.element_size()
