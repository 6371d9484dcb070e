"""How an attached delta computes: which sums a layer is reduced to, and the matrices behind them.

A delta reads means, maxima, quarters and single neurons. Reading them one by one costs a handful of kernels each, which
at batch 1 is more than the network's own layers cost. So a layer is reduced once to *primitives* (sums, maxima, quarters,
gathered neurons), and what turns sums into means is folded into the first matrix of the heads: a mean is a
sum with its weight divided by the number of positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tweaknn.delta.heads import MLP, Linear
from tweaknn.delta.value import LOGITS, Delta, Read
from tweaknn.errors import DeltaError

Key = tuple[str, str]
"""(layer, primitive): primitive is ``position``, ``sum``, ``max``, ``quarters`` or ``grid2``."""


@dataclass
class Primitive:
    """One reduction of a layer, and which of its values somebody reads.

    Attributes:
        kind: ``position`` (gathered), ``sum``, ``max``, ``quarters`` (means over the four quarters of a map with even
            sides) or ``grid2`` (means over overlapping quarters of an odd-sided map, as torch's adaptive pooling).
        index: ``(k,)`` sorted positions within the reduced layer.
        every: whether that is the whole reduced layer.
        start: first column of its values in the joined features.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    channel_axis: int
    index: Tensor
    every: bool
    start: int = 0

    @property
    def width(self) -> int:
        return int(self.index.numel())


@dataclass
class Hidden:
    """MLPs of one activation, joined: ``act(features @ w1 + b1) @ w2``; ``w2`` ends in the touched classes."""

    activation: str
    w1: Tensor
    b1: Tensor
    w2: Tensor


@dataclass
class Plan:
    """Everything an attached delta needs.

    Attributes:
        primitives: in the order of their columns in the joined features ``(n, f)``.
        touched: classes whose logits can change.
        weight: ``(f, t)`` of all linear terms together, or None.
        bias: ``(t,)``.
        hidden: the MLPs.
    """

    primitives: list[Primitive]
    touched: list[int]
    weight: Tensor | None
    bias: Tensor
    hidden: list[Hidden] = field(default_factory=list)


def plan(delta: Delta) -> Plan:
    """Join all terms of a delta: the same function of the network's neurons up to the order of its sums."""
    reads = [read for term in delta.terms for read in term.reads]
    primitives = _primitives(reads)
    features = 0
    for primitive in primitives.values():
        primitive.start = features
        features += primitive.width
    touched = delta.touched
    stored = sum(tensor.numel() for term in delta.terms for tensor in term.head.tensors().values())
    if features * len(touched) > max(1 << 26, 64 * stored):
        raise DeltaError("This delta's terms cannot be joined in reasonable memory; attach them one on another.")
    where = {j: position for position, j in enumerate(touched)}
    weight = torch.zeros(features, len(touched), dtype=torch.float64)
    linear = False
    joined: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for term in delta.terms:
        columns = torch.tensor([where[int(j)] for j in term.head.columns], dtype=torch.int64)
        if isinstance(term.head, Linear):
            linear = True
            weight[:, columns] += _folded(term.reads, term.head.weight, primitives, features)
        else:
            w2 = torch.zeros(term.head.w2.shape[0], len(touched), dtype=torch.float64)
            w2[:, columns] = term.head.w2.double()
            w1 = _folded(term.reads, _dense(term.head), primitives, features)
            joined.setdefault(term.head.activation, []).append((w1, term.head.b1.double(), w2))
    hidden = [
        Hidden(
            name,
            torch.cat([part[0] for part in parts], 1).float(),
            torch.cat([part[1] for part in parts]).float(),
            torch.cat([part[2] for part in parts]).float(),
        )
        for name, parts in joined.items()
    ]
    bias = delta.bias[touched].float()
    return Plan(list(primitives.values()), touched, weight.float() if linear else None, bias, hidden)


def _dense(head: MLP) -> Tensor:
    """The first layer of a grouped MLP as one matrix, zero outside the groups."""
    return torch.block_diag(*head.w1) if len(head.w1) > 1 else head.w1[0]


def _maps(read: Read) -> bool:
    """Whether the quarters of a layer are halves of both sides."""
    sides = [n for axis, n in enumerate(read.shape) if axis != read.channel_axis]
    return len(sides) == 2 and all(side % 2 == 0 for side in sides)


def kind_of(read: Read) -> str:
    """Of the primitive that a read is made from."""
    if read.reduction == "mean":
        return "sum"
    if read.reduction == "grid2":
        return "quarters" if _maps(read) else "grid2"
    return read.reduction


def _primitives(reads: Iterable[Read]) -> dict[Key, Primitive]:
    wanted: dict[Key, list[Read]] = {}
    for read in reads:
        wanted.setdefault((read.layer, kind_of(read)), []).append(read)
    made: dict[Key, Primitive] = {}
    for (layer, kind), group in wanted.items():
        first = group[0]
        index = torch.unique(torch.cat([read.index for read in group]))
        every = int(index.numel()) == first.available
        made[layer, kind] = Primitive(layer, kind, first.shape, first.channel_axis, index, every)
    return made


def _folded(reads: Iterable[Read], matrix: Tensor, primitives: dict[Key, Primitive], features: int) -> Tensor:
    """``matrix`` ``(inputs, h)`` on the read neurons -> ``(features, h)`` float64 on the primitives' values."""
    folded = torch.zeros(features, matrix.shape[1], dtype=torch.float64)
    start = 0
    for read in reads:
        rows = matrix[start : start + read.index.numel()].double()
        start += int(read.index.numel())
        kind = kind_of(read)
        positions = 1
        for axis, n in enumerate(read.shape):
            positions *= n if axis != read.channel_axis else 1
        primitive = primitives[read.layer, kind]
        scale = 1.0 / positions if kind == "sum" else 1.0
        places = primitive.start + torch.searchsorted(primitive.index, read.index)
        folded.index_add_(0, places, rows * scale)
    return folded


__all__ = ["LOGITS", "Hidden", "Plan", "Primitive", "kind_of", "plan"]
