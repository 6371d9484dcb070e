"""Reduce a layer's activations: one number a channel, or the layer's neurons as they are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("position", "mean", "max", "grid2", "pixel")
"""``pixel`` is no reduction of a layer: each pixel of a segmentation network reads the channels at its own place."""


def width(reduction: str, shape: tuple[int, ...], channel_axis: int) -> int:
    """Number of neurons a reduction leaves of a layer of ``shape`` (without the batch)."""
    channels = shape[channel_axis]
    if reduction == "position":
        return math.prod(shape)
    return channels * 4 if reduction == "grid2" else channels


def pool(activation: Tensor, channel_axis: int, reduction: str) -> Tensor:
    """Reduce ``(n, *shape)`` to ``(n, width)``.

    Args:
        activation: a layer's output; half precision is accumulated in float32.
        channel_axis: which axis of ``shape`` (without the batch) counts the channels.
        reduction: ``position`` every neuron, row-major; ``mean`` or ``max`` over all other axes;
            ``grid2`` means over the four quarters of the picture (index ``channel * 4 + row * 2 + column``),
            for layers without two spatial axes the mean repeated, so that every layer answers to every reduction.

    Raises:
        ValueError: an unknown reduction.
    """
    n = activation.shape[0]
    if reduction == "position":
        return activation.reshape(n, -1).float()
    if activation.ndim == 2:
        flat = activation.float()
        return flat.repeat_interleave(4, dim=1) if reduction == "grid2" else flat
    if reduction == "grid2":
        if activation.ndim != 4:
            return pool(activation, channel_axis, "mean").repeat_interleave(4, dim=1)
        maps = activation.movedim(channel_axis + 1, 1).float()
        return F.adaptive_avg_pool2d(maps, 2).reshape(n, -1)
    axes = [axis for axis in range(1, activation.ndim) if axis != channel_axis + 1]
    if reduction == "mean":
        return activation.mean(axes, dtype=torch.float32)
    if reduction == "max":
        return activation.amax(axes).float()
    raise ValueError(f"Unknown reduction {reduction!r}; choose one of {', '.join(REDUCTIONS)}.")
