"""What a Python user has - arrays, a data set, a loader - as :class:`~tweaknn.inputs.examples.Examples`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from tweaknn.errors import DataError, InputError
from tweaknn.inputs.examples import Examples
from tweaknn.inputs.sources import ItemSource


def as_examples(data: Any, *, classes: Sequence[str] | None = None, name: str = "data") -> Examples:
    """Wrap what a Python user has: :class:`Examples`, a ``(x, y)`` pair of arrays, a ``Dataset`` or
    ``DataLoader``.

    A ``DataLoader`` over an indexable dataset with torch's own collation stands for that dataset, or the part that a
    ``SubsetRandomSampler`` names (its shuffling is left behind, as the order of examples must not change between passes); with
    another sampler, and any other iterable of ``(x, y)`` batches, what it gives is read once and kept in memory.

    Raises :class:`~tweaknn.errors.DataError` for anything else, and for labels that are not whole numbers.
    """
    if isinstance(data, Examples):
        return data if classes is None else data.relabelled(data.labels, classes)
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        x, y = (_tensor(part, name) for part in data)
        if len(x) != len(y):
            raise DataError(f"{name}: {len(x)} examples but {len(y)} labels.")
        data = TensorDataset(x, y)
    if isinstance(data, DataLoader):
        classes = classes if classes is not None else getattr(data.dataset, "classes", None)
        part = _part(data)
        data = part if part is not None else _materialise(iter(data), name)
    if isinstance(data, Examples):
        return as_examples(data, classes=classes)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset):
        source = ItemSource(data, name)
        found = classes if classes is not None else getattr(data, "classes", None)
        labels, answers = source.answers()
        return Examples(source, labels, classes=found, name=name, answers=answers)
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=64)
    if hasattr(data, "__iter__"):
        return as_examples(_materialise(iter(data), name), classes=classes, name=name)
    raise DataError(f"{name}: expected a Dataset, a DataLoader of (x, y) or a pair (x, y), not {type(data).__name__}.")


def one_class(examples: Examples) -> Examples:
    """The examples, if each has one class. Raises InputError where it has several labels or a mask instead."""
    answers = examples.answers
    if answers is None:
        return examples
    what = "a mask" if answers.ndim == 3 else f"{answers.shape[1]} labels"
    raise InputError(
        f"{examples.name}: each example has {what} where one class is needed. Give positions (y.argmax(1) of one-hot rows); "
        "tweaknn.network.views takes one label of several, or pixels."
    )


def batches_of(data: Any, batch_size: int = 128) -> Any:
    """Batches of ``(x, y)``: a loader or another iterable as it is; of a data set or a pair of arrays, made here."""
    pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(hasattr(part, "shape") for part in data)
    return as_examples(data).loader(batch_size) if pair or isinstance(data, Dataset) else data


def _part(loader: DataLoader) -> Any:
    """The data set that a loader goes through once, in whatever order; None where only reading it tells what it gives."""
    data, sampler = loader.dataset, loader.sampler
    if loader.collate_fn is not default_collate or isinstance(data, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return None
    if type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == len(data)):  # type: ignore[arg-type]
        return data
    if type(sampler) is not SubsetRandomSampler:
        return None
    at = sorted(int(k) for k in sampler.indices)
    return data.subset(at) if isinstance(data, Examples) else Subset(data, at)


def _tensor(part: Any, name: str) -> torch.Tensor:
    if isinstance(part, torch.Tensor):
        return part
    array = np.asarray(part)
    if array.dtype.kind in "OUS":
        raise DataError(
            f"{name}: numbers are needed, not {array.dtype}; labels are positions of the classes among the network's outputs."
        )
    return torch.as_tensor(np.ascontiguousarray(array))


class Mapped(Dataset):
    """Examples ``({name: tensor}, y)`` in memory."""

    def __init__(self, x: dict[str, torch.Tensor], y: torch.Tensor) -> None:
        self.x, self.targets = x, y

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, k: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {key: value[k] for key, value in self.x.items()}, self.targets[k]


def _materialise(batches: Iterator[Any], name: str) -> Dataset:
    xs: list[Any] = []
    ys: list[torch.Tensor] = []
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError(
                f"{name}: a loader must give pairs (x, y), not {type(batch).__name__}; a network that takes a dictionary gets ({{...}}, y)."
            )
        try:
            mapped = isinstance(batch[0], Mapping)
            x = {key: torch.as_tensor(value) for key, value in batch[0].items()} if mapped else torch.as_tensor(batch[0])
            y = torch.as_tensor(batch[1])
        except (TypeError, ValueError, RuntimeError) as problem:
            raise DataError(f"{name}: a batch cannot be made a tensor ({problem}).") from None
        for part in x.values() if isinstance(x, dict) else (x,):
            if part.ndim == 0 or y.ndim == 0 or len(part) != len(y):
                raise DataError(
                    f"{name}: a loader must give batches, x (n, ...) and y (n, ...), not {tuple(part.shape)} and {tuple(y.shape)}; "
                    "for single examples give a Dataset."
                )
        xs.append(x)
        ys.append(y)
    if not xs:
        raise DataError(f"{name}: there are no examples.")
    try:
        if isinstance(xs[0], dict):
            return Mapped({key: torch.cat([x[key] for x in xs]) for key in xs[0]}, torch.cat(ys))
        return TensorDataset(torch.cat(xs), torch.cat(ys))
    except (RuntimeError, TypeError, KeyError):
        if isinstance(xs[0], dict):
            raise DataError(f"{name}: batches are dictionaries that do not fit one another; pad texts to one length.") from None
        shapes = sorted({tuple(x.shape[1:]) for x in xs})[:3]
        raise DataError(f"{name}: batches have different shapes ({', '.join(map(str, shapes))}).") from None
