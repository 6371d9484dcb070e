"""One pass of a network over data: micro-batches through the reader, their neurons folded, nothing outliving them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tweaknn.errors import DataError, ModelError
from tweaknn.network.layers import Layer
from tweaknn.network.modes import batch_size
from tweaknn.network.pooling import pool, width
from tweaknn.network.reader import Reader
from tweaknn.theta.blocks import Block
from tweaknn.theta.holding import keepable
from tweaknn.theta.relations import Relations, relate
from tweaknn.theta.team import together

MICRO_BYTES = 48 << 20
"""Activations of a micro-batch until the logits exist. Half as much would stay in the last-level cache, but convolutions of 32
examples keep two threads badly busy: measured on ResNet-20 (`benchmarks/observe.py`), 64 are faster with one thread and with two."""
HELD_BYTES = 256 << 20
"""Activations that wait together where the statistics are at least eight times as large: those have to be read from
memory at every folding, so that fewer foldings of more examples are cheaper. Pooled neurons, which are few, wait for
their whole batch."""


class Folder(Protocol):
    """What takes a block's neurons: see :class:`~tweaknn.theta.accumulate.Accumulator`."""

    block: Block

    def fold(self, values: Any, relations: Relations) -> None: ...

    def note(self, relations: Relations, n: int) -> None: ...


@dataclass(frozen=True)
class Settings:
    """How to observe; all that decides the bits of V and of the statistics.

    micro: examples run together; reduction: ``position`` or one of :data:`tweaknn.network.pooling.REDUCTIONS`.
    """

    targets: tuple[int, ...]
    form: str = "plain"
    budget: int = 1
    reduction: str = "position"
    micro: int = 32


def micro_batch(neurons: int, batch: int) -> int:
    """A power of two whose activations fit :data:`MICRO_BYTES`, from 4 to 128 and at most ``batch``."""
    fitting = max(4, min(128, MICRO_BYTES // (4 * max(neurons, 1))))
    return max(1, min(batch, 1 << (int(fitting).bit_length() - 1)))


@dataclass(frozen=True)
class _Waiting:
    """A micro-batch that has been run: its neurons by layer, logits, labels, and the number of its first example."""

    held: dict[int, Tensor]
    logits: np.ndarray
    labels: np.ndarray
    first: int


class Stop(Exception):
    """Raised in a sink to leave a network behind the last layer that is needed."""


class Stream:
    """Runs micro-batches and folds their neurons.

    Args:
        reader: the network. folders: one a block. settings: see :class:`Settings`.
        threads: Python threads that share the folding; by default what torch uses.
    """

    def __init__(
        self, reader: Reader, folders: Sequence[Folder], settings: Settings, threads: int | None = None
    ) -> None:
        self.reader = reader
        self.settings = settings
        self.by_layer: dict[int, list[Folder]] = {}
        for folder in folders:
            self.by_layer.setdefault(folder.block.layer, []).append(folder)
        self.last = max(self.by_layer, default=-1)
        self.threads = threads or torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        self._keep = keepable(reader)
        self._buffers: dict[tuple[int, int], Tensor] = {}
        self.together = self._together()
        self._targets = np.asarray(settings.targets, np.int64)
        # Larger blocks first, so that threads end together.
        self._order = sorted(folders, key=lambda f: -f.block.size)

    def __enter__(self) -> Stream:
        if self.threads > 1:
            self._pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._buffers.clear()

    def _together(self) -> int:
        """How many micro-batches are folded at a time."""
        layers = [self.reader.layers[k] for k in self.by_layer]
        example = 4 * sum(width(self.settings.reduction, layer.shape, layer.channel_axis) for layer in layers)
        neurons = sum(f.block.size for folders in self.by_layer.values() for f in folders)
        statistics = 4 * neurons * len(self.settings.targets)
        room = max(MICRO_BYTES, min(HELD_BYTES, statistics // 8))
        return max(1, room // max(1, example * self.settings.micro))

    def run(self, x: Any, y: Tensor, first: int = 0, known: np.ndarray | None = None) -> np.ndarray:
        """Observe one batch; returns its logits ``(n, classes)``, which are ``known`` where an earlier pass has seen them.

        first: number of its first example.
        """
        labels = as_labels(y, first)
        if batch_size(x) != len(labels):
            raise DataError(f"A batch has {batch_size(x)} inputs and {len(labels)} labels.")
        waiting: list[_Waiting] = []
        found = []
        for part, a, length in _parts(x, self.settings.micro):
            rows = slice(a, a + length)
            logits = None if known is None else known[rows]
            waiting.append(self._read(part, labels[rows], first + a, len(waiting), logits))
            found.append(waiting[-1].logits)
            if len(waiting) == self.together:
                self._settle(waiting)
                waiting.clear()
        self._settle(waiting)
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

    def _read(self, x: Any, labels: np.ndarray, first: int, slot: int, known: np.ndarray | None = None) -> _Waiting:
        """Run a micro-batch, its neurons kept until :meth:`_settle`; no further than needed where its logits are known."""
        held: dict[int, Tensor] = {}

        def sink(k: int, activation: Tensor) -> None:
            if k in self.by_layer:
                held[k] = self._take(k, activation, slot=slot)
            if known is not None and k == self.last:
                raise Stop

        if known is None:
            return _Waiting(held, as_logits(self.reader(x, sink)), labels, first)
        with suppress(Stop):
            self.reader(x, sink)
        return _Waiting(held, known, labels, first)

    def _settle(self, waiting: Sequence[_Waiting]) -> None:
        """Fold micro-batches, now that their logits exist."""
        if not waiting:
            return
        logits = np.concatenate([w.logits for w in waiting])
        labels = np.concatenate([w.labels for w in waiting])
        relations = _relations(logits, labels, self._targets, self.settings.form, waiting[0].first)
        alone = len(waiting) == 1
        values = {
            k: _host(v if alone else torch.cat([w.held[k] for w in waiting])) for k, v in waiting[0].held.items()
        }
        self._fold_all(self._order, values, relations)
        for folder in self._order:
            folder.note(relations, len(labels))

    def run_known(self, x: Any, y: Tensor, logits: np.ndarray, first: int = 0) -> None:
        """Observe a batch whose logits are known: the network is left at the last layer that is needed, and each layer is folded as it
        appears unless micro-batches wait together."""
        if self.together > 1:
            self.run(x, y, first, logits)
            return
        labels = as_labels(y, first)
        for part, a, length in _parts(x, self.settings.micro):
            rows = slice(a, a + length)
            relations = _relations(logits[rows], labels[rows], self._targets, self.settings.form, first + a)

            def sink(k: int, activation: Tensor, relations: Relations = relations) -> None:
                if k in self.by_layer:
                    values = _host(self._take(k, activation, copy=False))
                    self._fold_all(self.by_layer[k], {k: values}, relations)
                if k == self.last:
                    raise Stop

            with suppress(Stop):
                self.reader(part, sink)
            for folder in self._order:
                folder.note(relations, length)

    def _fold_all(self, folders: Sequence[Folder], values: dict[int, Any], relations: Relations) -> None:
        def one(folder: Folder) -> None:
            folder.fold(values[folder.block.layer], relations)

        if self._pool is None or len(folders) < 2:
            for folder in folders:
                one(folder)
        else:
            # Each thread pulls the next block from a shared iterator: one task a thread, not one a block.
            shared = iter(folders)

            def drain() -> None:
                for folder in shared:
                    one(folder)

            if together(drain, self.threads):
                return
            tasks = [self._pool.submit(drain) for _ in range(self.threads - 1)]
            drain()
            for task in tasks:
                task.result()

    def _take(self, k: int, activation: Tensor, copy: bool = True, slot: int = 0) -> Tensor:
        """A layer's neurons ``(n, width)`` float32 that stay as they are until the micro-batch has been folded.

        slot: which of the micro-batches that wait together.
        """
        layer = self.reader.layers[k]
        n = activation.shape[0]
        plain = activation.dtype == torch.float32 and activation.is_contiguous()
        if self.settings.reduction != "position":
            if self.settings.reduction == "mean" and plain and activation.device.type == "cpu" and _maps(layer):
                return _means(activation, layer.channels)
            return pool(activation, layer.channel_axis, self.settings.reduction)
        if plain and (self._keep[k] or not copy):
            return activation.detach().view(n, -1)
        if activation.device.type != "cpu":
            return activation.detach().reshape(n, -1).to(torch.float32, copy=True)
        buffer = self._buffers.get((slot, k))
        if buffer is None or len(buffer) < n:
            buffer = torch.empty((max(n, self.settings.micro), *layer.shape), dtype=torch.float32)
            self._buffers[slot, k] = buffer
        buffer[:n].copy_(activation.detach())
        return buffer[:n].view(n, -1)


def _maps(layer: Layer) -> bool:
    return layer.channel_axis == 0 and len(layer.shape) > 1


def _means(activation: Tensor, channels: int) -> Tensor:
    """Means of maps ``(n, channels)``: a sum along memory, on all of torch's threads."""
    n = activation.shape[0]
    maps = activation.detach().view(n * channels, -1)
    return maps.sum(1).div_(maps.shape[1]).view(n, channels)


def _host(values: Tensor) -> Any:
    """CPU tensors as NumPy arrays for the compiled kernels; others stay on their device."""
    return values.numpy() if values.device.type == "cpu" else values


def as_logits(logits: Tensor) -> np.ndarray:
    return logits.detach().to("cpu", torch.float32).numpy()


def as_labels(y: Any, first: int) -> np.ndarray:
    """Labels as int64 ``(n,)``; DataError when they are not integers."""
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"Labels from example {first} on are {labels.dtype} of shape {labels.shape}; integers (n,) are needed."
        )
    return labels.astype(np.int64)


def _relations(logits: np.ndarray, labels: np.ndarray, targets: np.ndarray, form: str, first: int) -> Relations:
    if not np.isfinite(logits).all():
        k = first + int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise ModelError(f"The logits of example {k} are NaN or infinite; check its input and the weights.")
    bad = np.flatnonzero((labels < 0) | (labels >= logits.shape[1]))
    if len(bad):
        raise DataError(
            f"Example {first + int(bad[0])} has label {labels[bad[0]]}, but the network has {logits.shape[1]} classes."
        )
    return relate(logits, labels, targets, form)


def _parts(x: Any, size: int) -> Iterator[tuple[Any, int, int]]:
    n = batch_size(x)
    for a in range(0, n, size):
        yield _rows(x, a, min(a + size, n)), a, min(size, n - a)


def _rows(x: Any, a: int, b: int) -> Any:
    if isinstance(x, dict):
        return {key: _rows(value, a, b) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(_rows(value, a, b) for value in x)
    return x[a:b]


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Progress = Callable[[int], None]
