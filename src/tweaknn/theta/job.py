"""One piece of work that any engine can run anywhere: a pass of the network over a range of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tweaknn.errors import DataError
from tweaknn.network.reader import Reader
from tweaknn.theta.accumulate import Accumulator
from tweaknn.theta.batches import Batches
from tweaknn.theta.blocks import Block
from tweaknn.theta.state import State
from tweaknn.theta.stream import Settings, Stream


def tracks_own(neurons: int, targets: int, form: str) -> bool:
    """Whether the first pass notes what neurons do on D_t, in case the 100 % fall-back is needed.

    It costs a byte a pair in the plain form, nine in the signed one: there only where there are few pairs, else the
    rare fall-back takes a second pass.
    """
    return form == "plain" or neurons * targets <= 1 << 22


@dataclass
class Job:
    """What is to be observed; travels to other processes whole.

    logits: of all examples, when an earlier pass has seen them: layers are then folded as they appear.
    starts: number of the first example of each batch, known after the first pass; else batches are of one size.
    """

    reader: Reader
    batches: Batches
    blocks: tuple[Block, ...]
    settings: Settings
    batch: int
    logits: np.ndarray | None = None
    threads: int | None = None
    devices: tuple[str, ...] = ()
    starts: list[int] = field(default_factory=list)

    def accumulators(self) -> list[Any]:
        """A fresh accumulator a block; on other devices when the job names some."""
        targets = np.asarray(self.settings.targets)
        if self.devices:
            from tweaknn.theta.device import spread

            return spread(self.blocks, targets, self.settings.form, self.settings.budget, self.devices)
        s = self.settings
        own = tracks_own(sum(b.size for b in self.blocks), len(targets), s.form)
        return [Accumulator(b, targets, s.form, s.budget, own) for b in self.blocks]


@dataclass
class Result:
    """States of a range of batches, one a block, with the logits and labels seen."""

    states: list[State]
    logits: np.ndarray
    labels: np.ndarray


def follow(
    job: Job, folders: Sequence[Any], start: int, stop: int | None, keep_logits: bool
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Fold batches ``start`` to ``stop`` into ``folders``; yields (batch, its logits, its labels) after each.

    Raises:
        DataError: the batches are of uneven size, or a second pass sees other examples than the first.
    """
    first = start * job.batch
    with Stream(job.reader, folders, job.settings, job.threads) as stream:
        ended = False
        for k, (x, y) in enumerate(job.batches.read(start, stop), start):
            n = len(y)
            if n > job.batch or ended:
                raise DataError(
                    f"Batch {k - ended} has {n if not ended else 'fewer'} examples and batch 0 has {job.batch}; "
                    "all but the last have to be of one size."
                )
            ended = n < job.batch
            if job.logits is None:
                logits = stream.run(x, y, first)
                yield k, logits if keep_logits else logits[:0], np.asarray(y)
            else:
                if first + n > len(job.logits):
                    raise DataError(f"The data set has more examples in the second pass than {len(job.logits)}.")
                stream.run_known(x, y, job.logits[first : first + n], first)
                yield k, job.logits[:0], np.asarray(y)
            first += n


def run_shard(
    job: Job, start: int, stop: int | None, keep_logits: bool = False, progress: Callable[[int], None] | None = None
) -> Result:
    """Observe one shard from nothing: the pure function that engines map over ranges of batches."""
    folders = job.accumulators()
    logits, labels = [], []
    for _, out, y in follow(job, folders, start, stop, keep_logits):
        logits.append(out)
        labels.append(y)
        if progress is not None:
            progress(len(y))
    states = [folder.state() for folder in folders]
    empty = np.zeros((0, 0), np.float32)
    return Result(
        states, np.concatenate(logits) if logits else empty, np.concatenate(labels) if labels else np.zeros(0, int)
    )


def seed_threads(threads: int) -> None:
    """Run torch with the number of threads of the process that started the work: bits of V may depend on it."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
