"""Fixed batches of a data set: any range of them can be asked for, in any process, and is always the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, default_collate

from tweaknn.errors import DataError, InputError


class Batches:
    """Batches ``(x, y)`` by number.

    Args:
        source: a DataLoader in a fixed order, a list of batches, or anything iterable again and again.

    A map-style data set read in order is indexed directly, so that a resumed or remote run does not read what it does
    not need. Anything else is read from its start.

    Raises:
        InputError: the loader shuffles, so that two passes would not see the same batches.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.direct = False
        if isinstance(source, Batches):
            self.source, self.direct = source.source, source.direct
        elif isinstance(source, DataLoader):
            sampler = source.sampler if source.batch_size is None else source.batch_sampler
            inner = sampler.sampler if isinstance(sampler, BatchSampler) else sampler
            if type(inner).__name__ in ("RandomSampler", "WeightedRandomSampler", "SubsetRandomSampler"):
                raise InputError("The data loader shuffles; observing needs a fixed order (shuffle=False).")
            self.direct = isinstance(inner, SequentialSampler) and hasattr(source.dataset, "__getitem__")
        elif isinstance(source, (list, tuple)):
            self.direct = True
        elif iter(source) is source:
            raise InputError("Batches are read more than once; give a DataLoader or a list, not an iterator.")

    @property
    def count(self) -> int | None:
        """Number of batches, where the source knows it."""
        try:
            return len(self.source)
        except TypeError:
            return None

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Any, Tensor]]:
        """Batches ``start`` to ``stop``.

        Raises:
            DataError: the data set ends before, or a batch is no pair of inputs and labels.
        """
        whole = start == 0 and stop is None
        found = start
        for batch in self._read(start, stop, whole):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise DataError(f"Batch {found} is a {type(batch).__name__}; a pair (inputs, labels) is needed.")
            found += 1
            yield batch[0], batch[1]
        expected = self.count if stop is None else stop
        if expected is not None and found < expected:
            raise DataError(f"The data set says it has {expected} batches or more, but it ends after {found}.")

    def _read(self, start: int, stop: int | None, whole: bool) -> Iterator[Any]:
        loader = self.source
        if whole or not self.direct:
            yield from islice(iter(loader), start, stop)
            return
        # In this process: no workers are started for a range.
        stop = len(loader) if stop is None else stop
        if isinstance(loader, (list, tuple)):
            yield from loader[start:stop]
            return
        if loader.batch_size is None:
            for k in range(start, stop):
                yield loader.dataset[k]
            return
        collate = loader.collate_fn or default_collate
        for k in range(start, stop):
            rows = range(k * loader.batch_size, min((k + 1) * loader.batch_size, len(loader.dataset)))
            yield collate([loader.dataset[i] for i in rows])
