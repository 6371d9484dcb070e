"""What a join reads of a network, so that it fits memory, and the augmented views of its training examples."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tweaknn.delta import Read
from tweaknn.errors import InputError
from tweaknn.inputs.augment import Augmentation, augmentation
from tweaknn.join.table import _reads
from tweaknn.network.layers import stages
from tweaknn.network.reader import Reader

VIEWS, FEW = 1, 5_000
"""Views of each picture that the default reads, one more below so many training examples. Each costs a pass over the data. Few
examples need them most (20,000 images, one, two, three views: 5.6, 7.9, 9.1 points, ``benchmarks/fitting/development.py --views``);
on the 50,000 of CIFAR-10 a second gave nothing, and with two, reading and fitting 10,000 images come to more than two epochs of
fine-tuning a ResNet-20."""

MEMORY = 1_500_000_000
"""Bytes that the pooled neurons of all examples and views may take."""

WITH_VIEWS = ("best", "aan", "aan-grouped", "mean")
"""Methods that read views by default: those with an MLP, which would learn the training pictures by heart without."""


def reading(method: str, reader: Reader, rows: int) -> tuple[Read, ...]:
    """The pooled neurons a method reads of each example.

    Every layer's mean over positions; for an AAN also the maximum, and a 2 x 2 grid of the last maps. A large network's do not fit:
    then means alone, of the outputs of its stages and of as many layers as fit, the last ones first.

    Args:
        rows: examples and views that will be held at once.
    """
    room = max(MEMORY // (4 * max(rows, 1)), 1)
    rich = method in WITH_VIEWS
    reads = _reads(reader, ("mean", "max"), last_stage(reader)) if rich else _reads(reader, ("mean",))
    if _size(reads) <= room:
        return tuple(reads)
    reads = _reads(reader, ("mean",))
    if _size(reads) <= room:
        return tuple(reads)
    kept: set[str] = set()
    taken = 0
    ends = {layer.name for layer in stages(reader.layers)}
    late = [layer.name for layer in reversed(reader.layers)]
    widths = {read.layer: int(read.index.numel()) for read in reads}
    for name in [late[0], *(n for n in late if n in ends), *late]:  # at least the last layer, whatever it takes
        if name not in kept and (not kept or taken + widths[name] <= room):
            kept.add(name)
            taken += widths[name]
    return tuple(read for read in reads if read.layer in kept)


def last_stage(reader: Reader) -> list[str]:
    """Names of the layers that have the last layers' resolution, at most two: where a 2 x 2 grid is worth its place."""
    maps = [layer for layer in reader.layers if len(layer.spatial) == 2 and min(layer.spatial) > 1]
    return [layer.name for layer in maps if layer.spatial == maps[-1].spatial][-2:] if maps else []


def _size(reads: list[Read]) -> int:
    return sum(int(read.index.numel()) for read in reads)


class Views:
    """Batches of augmented examples, the same ones whenever they are read: each batch has a generator of its own."""

    def __init__(self, batches: Any, augment: Callable[[Any, torch.Generator], Any], seed: int) -> None:
        self.batches, self.augment, self.seed = batches, augment, seed

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        for k, (x, y) in enumerate(self.batches):
            yield self.augment(x, torch.Generator().manual_seed(self.seed * 100_003 + k)), y


def views_of(
    method: str, views: int | None, augment: str | Callable[..., Any] | None, x: Any, examples: int
) -> tuple[int, Callable[..., Any] | None]:
    """How many views are read and what makes them, for inputs like ``x`` (a batch) and so many training examples.

    Raises:
        InputError: views are asked for and nothing says what a view of such inputs is, or the augmentation does not fit them.
    """
    pictures = isinstance(x, torch.Tensor) and x.ndim == 4 and x.is_floating_point() and min(x.shape[2:]) > 1
    if views is None:
        views = (VIEWS + (examples < FEW)) if augment is not None or (pictures and method in WITH_VIEWS) else 0
    if not views:
        return 0, None
    if augment is None and not pictures:
        raise InputError(
            "Views of inputs that are no pictures need --augment: noise (for tables of numbers) or file.py:function."
        )
    made = augmentation(augment or "shift") if augment is None or isinstance(augment, str) else augment
    if isinstance(made, Augmentation):
        made(x, torch.Generator().manual_seed(0))  # says what is wrong before an hour of reading
    return views, made


def source_of(augment: Any) -> str:
    """What identifies an augmentation in a stored table's key: its own source, or (no reuse) nothing at all."""
    if isinstance(augment, Augmentation):
        return augment.source
    try:
        return inspect.getsource(augment)
    except (OSError, TypeError):
        return uuid.uuid4().hex
