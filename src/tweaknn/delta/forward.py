"""The modules an attached delta is made of: one a layer that reads it, one that changes the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tweaknn.delta.heads import ACTIVATIONS
from tweaknn.delta.plan import Plan, Primitive
from tweaknn.errors import ModelError
from tweaknn.network.pooling import pool

_exporting = getattr(torch.compiler, "is_exporting", lambda: True)  # what is exported may move to another device, constants would not

FEW = 64
"""Positions of a layer that a compiled program holds as numbers."""


def gather(x: Tensor, index: Tensor, shape: tuple[int, ...], few: list[int] | None = None) -> Tensor:
    """Single neurons: ``(n, *shape)``, positions ``(k,)`` row-major -> ``(n, k)`` float32.

    Raises:
        ModelError: the layer has another shape, so that a position means another neuron.
    """
    if x.ndim == 1 and shape == (1,):  # one logit an example, without an axis of its own
        x = x.unsqueeze(1)
    if x.shape[1:] != shape:
        raise ModelError(
            f"The delta reads single neurons of a layer of shape {shape}, which is {tuple(x.shape[1:])} for this "
            "input; give inputs of the size it was made for."
        )
    if few is not None and torch.compiler.is_compiling() and not _exporting():
        index = torch.tensor(few, device=x.device)  # a constant of the program, which no call has to check
    if x.is_contiguous():
        values = x.flatten(1).index_select(1, index)
    else:  # another memory format: gathered without copying the layer
        values = x[(slice(None), *torch.unravel_index(index, x.shape[1:]))]  # type: ignore[index]
    return values if values.dtype == torch.float32 else values.float()


def neurons(
    x: Tensor, index: Tensor, shape: tuple[int, ...], few: list[int], places: list[tuple[int, ...]]
) -> Tensor | list[Tensor]:
    """:func:`gather`, but in a program compiled for one example the neurons one by one, ``(1,)`` each, for
    :meth:`Change.term_by_term`: a compiler makes a kernel of every layer's gathering, and one of all of them if they
    are nothing but terms of a sum. It keeps the layers until then, which is cheap for one example and not for many.

    ``places``: the positions of ``few`` with an index an axis.
    """
    # compilers tell a batch of one from larger ones anyway: the question costs no guard
    if torch.compiler.is_compiling() and not _exporting() and x.shape[0] == 1 and x.shape[1:] == shape:
        return [x[(slice(None), *place)].float() for place in places]  # type: ignore[index]
    return gather(x, index, shape, few)


def channels_first(x: Tensor, channel_axis: int) -> Tensor:
    """Maps as they are: ``(n, *shape) -> (n, channels, h, w)`` float32."""
    return (x if channel_axis == 0 else x.movedim(channel_axis + 1, 1)).float()


def everything(x: Tensor) -> Tensor:
    """Every neuron: ``(n, *shape) -> (n, size)`` float32; one logit an example may come without an axis of its own."""
    return x.float().unsqueeze(1) if x.ndim == 1 else x.flatten(1).float()


def total(x: Tensor, axes: list[int], sides: Sequence[int]) -> Tensor:
    """Sums over ``axes``: ``(n, *shape) -> (n, channels)`` float32; in an input of another size, as if its ``axes`` were
    as long as ``sides``, those of the input the delta was made for."""
    values = x.sum(axes, dtype=torch.float32)
    # size by size: at batch 1 the comparison of two shapes costs as much as the sum itself
    for axis, side in zip(axes, sides):
        if x.size(axis) != side:
            return _rescaled(values, x, axes, math.prod(sides))
    return values


def _rescaled(values: Tensor, x: Tensor, axes: Sequence[int], positions: int) -> Tensor:
    found = 1
    for axis in axes:  # a loop, which a compiler follows more readily than math.prod of a generator
        found *= x.shape[axis]
    return values if found == positions else values * (positions / found)


def highest(x: Tensor, axes: list[int]) -> Tensor:
    """Maxima over ``axes``: ``(n, *shape) -> (n, channels)`` float32."""
    values = x.amax(axes)
    return values if values.dtype == torch.float32 else values.float()


def quarters(x: Tensor, channel_axis: int) -> Tensor:
    """Means over the quarters of maps: ``(n, *shape) -> (n, channels * 4)`` float32."""
    maps = x.movedim(channel_axis + 1, 1) if channel_axis else x
    h, w = maps.size(2), maps.size(3)
    if h % 2 or w % 2:  # an input of another size
        return pool(x, channel_axis, "grid2")
    if h <= 8 and maps.dtype == torch.float32:  # one kernel; larger maps are summed along memory first
        return F.avg_pool2d(maps, (h // 2, w // 2)).flatten(1)
    rows = maps.unflatten(2, (2, h // 2)).sum(3, dtype=torch.float32)
    return rows.unflatten(3, (2, w // 2)).sum(-1).flatten(1) / (h * w // 4)


def _few(primitive: Primitive) -> list[int] | None:
    return primitive.index.tolist() if primitive.width <= FEW else None


def reading(primitive: Primitive) -> tuple[Any, tuple[Any, ...], bool]:
    """How a primitive is computed: a function of the activation, its further arguments, and whether the primitive's
    index comes in addition: as the function's second argument (``position``), or as a selection from its result."""
    axes = [axis + 1 for axis in range(len(primitive.shape)) if axis != primitive.channel_axis]
    sides = [primitive.shape[axis - 1] for axis in axes]
    if primitive.kind == "pixel":
        return channels_first, (primitive.channel_axis,), not primitive.every
    if primitive.kind == "position":
        return (everything, (), False) if primitive.every else (gather, (primitive.shape, _few(primitive)), True)
    if primitive.kind == "quarters":
        return quarters, (primitive.channel_axis,), not primitive.every
    if not axes and primitive.kind in ("sum", "max"):
        return everything, (), not primitive.every
    if primitive.kind == "sum":
        return total, (axes, sides), not primitive.every
    if primitive.kind == "max":
        return highest, (axes,), not primitive.every
    return pool, (primitive.channel_axis, primitive.kind), not primitive.every


def one_by_one(plan: Plan) -> bool:
    """Whether a delta is so small a sum over single neurons that a compiler may write it out."""
    kinds = {primitive.kind if not primitive.every else "every" for primitive in plan.primitives}
    return kinds == {"position"} and not plan.hidden and sum(primitive.width for primitive in plan.primitives) <= FEW


REDUCTIONS: dict[str, Any] = {f.__name__: f for f in (gather, channels_first, everything, total, highest, quarters, pool)}
"""What :func:`reading` names, by name."""


class LayerRead(nn.Module):
    """Reduces a layer to the values that a delta needs of it: ``(n, *shape) -> (n, k)``, one a primitive."""

    def __init__(self, primitives: Sequence[Primitive], device: torch.device) -> None:
        super().__init__()
        self.steps = [reading(primitive) for primitive in primitives]
        for p, primitive in enumerate(primitives):
            self.register_buffer(f"index_{p}", primitive.index.to(device))

    def forward(self, activation: Tensor) -> list[Tensor]:
        values = []
        for p, (function, arguments, indexed) in enumerate(self.steps):
            if function is gather:
                values.append(gather(activation, getattr(self, f"index_{p}"), *arguments))
                continue
            value = function(activation, *arguments)
            values.append(value.index_select(1, getattr(self, f"index_{p}")) if indexed else value)
        return values


class Change(nn.Module):
    """Adds a delta's part to the logits; logits that it does not name are passed on bit for bit."""

    bias: Tensor
    touched: Tensor

    def __init__(self, plan: Plan, n_classes: int, device: torch.device) -> None:
        super().__init__()
        self.everywhere = plan.touched == list(range(n_classes))
        self.nothing = not plan.touched
        self.linear = plan.weight is not None
        self.activations = [hidden.activation for hidden in plan.hidden]
        # one product instead of two where an MLP and synapses read the same values; maps need them apart
        pixels = any(primitive.kind == "pixel" for primitive in plan.primitives)
        self.joined = len(plan.hidden[0].b1) if self.linear and len(plan.hidden) == 1 and not pixels else 0
        self.register_buffer("touched", torch.tensor(plan.touched, dtype=torch.int64, device=device))
        tensors = {"bias": plan.bias, "weight": plan.weight}
        for h, hidden in enumerate(plan.hidden):
            tensors |= {f"w1_{h}": hidden.w1, f"b1_{h}": hidden.b1, f"w2_{h}": hidden.w2}
        if self.joined and plan.weight is not None:
            both = {"w1_0": torch.cat([plan.hidden[0].w1, plan.weight], 1), "b1_0": torch.cat([plan.hidden[0].b1, plan.bias])}
            tensors |= {**both, "weight": None}
        for name, tensor in tensors.items():
            if tensor is not None:
                self.register_buffer(name, tensor.to(device).contiguous())

    def forward(self, logits: Tensor, values: Sequence[Tensor]) -> Tensor:
        """``logits`` ``(n, c)``, ``values`` the primitives' ``(n, k)`` each, in the plan's order."""
        if self.nothing:
            return logits
        if logits.ndim == 1:
            return self(logits.unsqueeze(1), values).squeeze(1)
        if logits.ndim > 2:
            return self._maps(logits, values)
        change = self.change(logits, values)
        if change.dtype != logits.dtype:
            change = change.to(logits.dtype)
        return logits + change if self.everywhere else logits.index_add(1, self.touched, change)

    def _maps(self, logits: Tensor, values: Sequence[Tensor]) -> Tensor:
        """``logits`` ``(n, c, h, w)``, ``values`` maps ``(n, k, ., .)``: what each pixel reads is brought to the logits'
        size between the two matrices, which is the same as reading there and costs fewer channels."""
        size = logits.shape[2:]
        with torch.autocast(logits.device.type, enabled=False):
            change = self._sum(self.weight if self.linear else None, self.bias, values, size)  # type: ignore[arg-type]
            for h, name in enumerate(self.activations):
                w1, b1, w2 = (getattr(self, f"{part}_{h}") for part in ("w1", "b1", "w2"))
                hidden = ACTIVATIONS[name](self._sum(w1, b1, values, size))
                change = change + F.conv2d(hidden, _single(w2).t()[:, :, None, None])
            change = change.to(logits.dtype).expand(logits.shape[0], -1, *size)
        return logits + change if self.everywhere else logits.index_add(1, self.touched, change)

    @staticmethod
    def _sum(weight: Tensor | None, bias: Tensor, values: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        found = _single(bias)[None, :, None, None]
        start = 0
        for maps in values if weight is not None else ():
            rows = _single(weight)[start : start + maps.shape[1]]  # type: ignore[arg-type,index]
            start += maps.shape[1]
            part = F.conv2d(maps, rows.t()[:, :, None, None])
            if part.shape[2:] != size:
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            found = found + part
        return found

    def change(self, logits: Tensor, values: Sequence[Tensor]) -> Tensor:
        """What is added to the touched logits, ``(n, t)``, in float32."""
        if not values:
            return self.bias.float().expand(logits.shape[0], -1)
        if torch.is_autocast_enabled(logits.device.type):
            # sums over thousands of positions do not fit half precision
            with torch.autocast(logits.device.type, enabled=False):
                return self._matrices(values)
        return self._matrices(values)

    def term_by_term(self, values: Sequence[Sequence[Tensor]]) -> Tensor:
        """The change as a plain sum over neurons ``(1,)``, see :func:`neurons`."""
        change, weight = _single(self.bias), _single(self.weight)  # type: ignore[arg-type]
        for row, neuron in enumerate(neuron for layer in values for neuron in layer):
            change = change + neuron[:, None] * weight[row]
        return change

    def _matrices(self, values: Sequence[Tensor]) -> Tensor:
        if isinstance(values[0], list):
            return self.term_by_term(values)  # type: ignore[arg-type]
        features = torch.cat(values, dim=1) if len(values) > 1 else values[0]  # type: ignore[arg-type]
        bias = _single(self.bias)
        if self.joined:
            both = torch.addmm(_single(self.b1_0), features, _single(self.w1_0))  # type: ignore[arg-type]
            hidden = ACTIVATIONS[self.activations[0]](both[:, : self.joined])
            return torch.addmm(both[:, self.joined :], hidden, _single(self.w2_0))  # type: ignore[arg-type]
        if self.linear:
            change = torch.addmm(bias, features, _single(self.weight))  # type: ignore[arg-type]
        else:
            change = bias
        for h, name in enumerate(self.activations):
            w1, b1, w2 = (_single(getattr(self, f"{part}_{h}")) for part in ("w1", "b1", "w2"))
            hidden = ACTIVATIONS[name](torch.addmm(b1, features, w1))
            change = torch.addmm(change, hidden, w2)
        return change


def _single(tensor: Tensor) -> Tensor:
    """The network may have been turned to half precision, the sums may not."""
    return tensor if tensor.dtype == torch.float32 else tensor.float()
