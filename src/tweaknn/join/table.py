"""Pooled neurons of a data set, read in one pass: what the fit and the operating point work on."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tweaknn.delta.value import Read
from tweaknn.errors import InputError, ModelError
from tweaknn.network.pooling import pool, width
from tweaknn.network.reader import Reader

Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class PooledTable:
    """Values of pooled neurons and base logits over a data set.

    Attributes:
        features: ``(n, f)`` float32.
        logits: ``(n, c)`` float32.
        labels: ``(n,)`` int64.
        reads: which neurons the features are, in their order.
        views: ``(features, logits)`` of the same examples under augmentation, as often as was asked for.
    """

    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    reads: tuple[Read, ...]
    views: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def rows(self, index: np.ndarray) -> PooledTable:
        """Some examples of it."""
        views = tuple((features[index], logits[index]) for features, logits in self.views)
        return PooledTable(self.features[index], self.logits[index], self.labels[index], self.reads, views)

    def spans(self) -> list[slice]:
        """Columns of each entry of ``reads``."""
        ends = np.cumsum([int(read.index.numel()) for read in self.reads])
        return [slice(int(end) - int(read.index.numel()), int(end)) for end, read in zip(ends, self.reads, strict=True)]


def read_pooled(
    reader: Reader,
    batches: Iterable[tuple[Any, torch.Tensor]],
    n: int,
    reads: Sequence[Read] | None = None,
    *,
    progress: Progress | None = None,
) -> PooledTable:
    """Pool every layer of ``reader`` over ``batches`` of ``(x, y)``.

    Args:
        reader: the network.
        batches: in a fixed order, ``n`` examples in all.
        n: number of examples.
        reads: which pooled neurons; None: the mean of every layer.
        progress: called with the number of examples done.

    Raises:
        ModelError: a neuron or a logit is NaN or infinite; the message names the layer and the example.
        InputError: the batches hold another number of examples than ``n``, or labels outside the logits' range.
    """
    reads = list(reads) if reads is not None else _reads(reader, ("mean",))
    widths = [int(read.index.numel()) for read in reads]
    starts = np.concatenate([[0], np.cumsum(widths)]).astype(int)
    by_layer: dict[str, list[int]] = {}
    for r, read in enumerate(reads):
        by_layer.setdefault(read.layer, []).append(r)
    features = np.empty((n, int(starts[-1])), dtype=np.float32)
    labels = np.empty(n, dtype=np.int64)
    logits: np.ndarray | None = None
    done = 0
    for x, y in batches:
        size = len(y)
        if done + size > n:
            raise InputError(f"The data set says it has {n} examples and hands out more.")

        def sink(k: int, activation: torch.Tensor, row: int = done, size: int = size) -> None:
            layer = reader.layers[k]
            for r in by_layer.get(layer.name, ()):
                values = pool(activation, layer.channel_axis, reads[r].reduction)
                features[row : row + size, starts[r] : starts[r + 1]] = values.cpu().numpy()

        batch = reader(x, sink).cpu().numpy()
        if logits is None:
            logits = np.empty((n, batch.shape[1]), dtype=np.float32)
        logits[done : done + size] = batch
        labels[done : done + size] = np.asarray(y)
        _check(features, logits, labels, reads, starts, done, done + size)
        done += size
        if progress is not None:
            progress(done)
    if done != n or logits is None:
        raise InputError(f"The data set says it has {n} examples and hands out {done}.")
    return PooledTable(features, logits, labels, tuple(reads))


def read_values(
    reader: Reader, batches: Iterable[tuple[Any, torch.Tensor]], reads: Sequence[Read], *, progress: Progress | None = None
) -> np.ndarray:
    """Values ``(n, f)`` float32 of the neurons ``reads`` name, in their order, in one pass over ``batches`` of ``(x, y)``."""
    by_layer: dict[str, list[int]] = {}
    for r, read in enumerate(reads):
        by_layer.setdefault(read.layer, []).append(r)
    blocks: list[np.ndarray] = []
    done = 0
    for x, y in batches:
        found: dict[int, np.ndarray] = {}

        def sink(k: int, activation: torch.Tensor, found: dict[int, np.ndarray] = found) -> None:
            for r in by_layer.get(reader.layers[k].name, ()):
                found[r] = reads[r].pick(activation).float().cpu().numpy()

        reader(x, sink)
        blocks.append(np.concatenate([found[r] for r in range(len(reads))], axis=1))
        done += len(y)
        if progress is not None:
            progress(done)
    return np.concatenate(blocks)


def stored_pooled(
    folder: str | Path,
    reader: Reader,
    examples: Any,
    batch_size: int,
    reads: Sequence[Read],
    *,
    batches: Any = None,
    more: str = "",
    progress: Progress | None = None,
) -> PooledTable:
    """:func:`read_pooled` kept on disk as table T (section 4.1): made once for a base, a data set and its preprocessing,
    opened afterwards, completed when a reading was killed. ``batches`` are read in place of the examples' own (a view of them), and
    ``more`` then says what they are.

    Raises:
        TableError: the stored table is damaged.
        ModelError, InputError: as :func:`read_pooled`.
    """
    from tweaknn.theta.table import table

    content = f"{examples.content_hash()} {_transform(examples.preprocess)} {more}".strip()
    source = examples.loader(batch_size) if batches is None else batches
    stored = table(folder, reader, source, reads, data=content, progress=progress)
    return PooledTable(stored.values, stored.logits, stored.labels, tuple(reads))


def _transform(preprocess: Any) -> str:
    """What identifies a preprocessing: its settings, a function's own source, or (no reuse) nothing at all."""
    if preprocess is None or is_dataclass(preprocess):
        return repr(preprocess)
    try:
        return inspect.getsource(preprocess)
    except (OSError, TypeError):
        return uuid.uuid4().hex


def _reads(reader: Any, reductions: Sequence[str], grids: Sequence[str] = ()) -> list[Read]:
    reads = []
    for layer in reader.layers:
        wanted = list(dict.fromkeys(reductions)) if layer.spatial else list(reductions)[:1]
        if layer.name in grids and "grid2" not in wanted:
            wanted.append("grid2")
        for reduction in wanted:
            index = torch.arange(width(reduction, layer.shape, layer.channel_axis))
            reads.append(Read(layer.name, reduction, layer.shape, layer.channel_axis, index))
    return reads


def _check(
    features: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    reads: Sequence[Read],
    starts: np.ndarray,
    start: int,
    stop: int,
) -> None:
    for what, block in (("neurons", features[start:stop]), ("logits", logits[start:stop])):
        if np.isfinite(block.sum(dtype=np.float64)) or np.isfinite(block).all():
            continue
        row, column = np.argwhere(~np.isfinite(block))[0]
        if what == "logits":
            raise ModelError(f"The network's logits of example {start + row} are NaN or infinite; check that example.")
        read = reads[int(np.searchsorted(starts, column, side="right")) - 1]
        raise ModelError(
            f"Layer {read.layer} is NaN or infinite for example {start + row}; check that example, or the weights."
        )
    low, high = labels[start:stop].min(), labels[start:stop].max()
    if low < 0 or high >= logits.shape[1]:
        wrong = int(low if low < 0 else high)
        raise InputError(
            f"Label {wrong} does not fit a network with {logits.shape[1]} logits (0..{logits.shape[1] - 1})."
        )
