"""Every neuron of every layer in one pass: Algorithm θ over a stream of batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tweaknn.errors import DataError, InputError
from tweaknn.network.fingerprint import fingerprint
from tweaknn.network.modes import first
from tweaknn.network.reader import Reader
from tweaknn.theta import ranking, second
from tweaknn.theta.batches import Batches
from tweaknn.theta.blocks import Block, Plan, plan, widths
from tweaknn.theta.checkpoint import Chained, Checkpoint, pack, unpack
from tweaknn.theta.finishing import EPS2, Finisher
from tweaknn.theta.job import Job, follow
from tweaknn.theta.ranking import Ranked
from tweaknn.theta.state import State
from tweaknn.theta.statistics import check_finite, check_targets
from tweaknn.theta.stream import Progress, Settings, micro_batch
from tweaknn.theta.synapses import Synapses

__all__ = ["Observation", "Ranked", "observe"]

KEPT_BYTES = 1 << 30
"""Default room for mistakes that may still count; beyond it they are counted in a second pass."""


@dataclass
class Observation:
    """What Algorithm θ found: read block by block (:meth:`parts`), ranked (:meth:`best`), or written to Parquet.

    layers: names; plan: blocks and passes; mistakes: ``(c,)`` size of D_w of each target; examples: how many were seen.
    how: ``fx`` or ``hooks``.
    """

    layers: list[str]
    how: str
    settings: Settings
    plan: Plan
    finisher: Finisher
    examples: int
    _owned: Any = field(default=None, repr=False)

    @property
    def blocks(self) -> list[Block]:
        """Blocks in the order of :meth:`parts`: by layer, then position."""
        return [b for p in reversed(self.plan.passes) for b in p]

    @property
    def targets(self) -> np.ndarray:
        """``(c,)`` class indices."""
        return self.finisher.states[0].targets

    @property
    def mistakes(self) -> np.ndarray:
        """``(c,)`` examples of each target that the network gets wrong."""
        return self.finisher.states[0].mistakes

    def parts(self) -> Iterator[tuple[Block, Synapses]]:
        """Thresholds and counts of one block after the other."""
        for b, block in enumerate(self.blocks):
            yield block, self.finisher.part(b)

    def best(self, n: int, targets: Sequence[int] | None = None) -> dict[int, Ranked]:
        """The ``n`` best synapses of each target (section 3: by count, then threshold), over all layers."""
        wanted = [int(t) for t in (self.targets if targets is None else targets)]
        rows = {t: int(np.flatnonzero(self.targets == t)[0]) for t in wanted}
        return ranking.best(self.finisher, self.blocks, self._tallies, rows, n)

    def active_counts(self) -> np.ndarray:
        """``(c,)`` how many neurons are active: count at least half of the largest of the class (Table 3.2)."""
        return ranking.active(self._tallies)

    def largest_counts(self) -> np.ndarray:
        """``(c,)`` the largest count of each target."""
        return ranking.largest(self._tallies)

    @cached_property
    def _tallies(self) -> np.ndarray:
        return ranking.histograms(self.finisher)

    def write(self, path: str | Path, classes: Sequence[str] | None = None) -> int:
        """Write all synapses as Parquet; see :func:`tweaknn.theta.parquet.write`. Returns the number of rows."""
        from tweaknn.theta.parquet import write

        return write(self, Path(path), classes)


def observe(
    reader: Reader,
    batches: Any,
    targets: Sequence[int],
    *,
    form: str = "plain",
    budget: int = 1,
    reduction: str = "position",
    memory: int | None = None,
    kept_memory: int = KEPT_BYTES,
    eps2: float = EPS2,
    threads: int | None = None,
    devices: Sequence[str] = (),
    progress: Progress | None = None,
    resume: str | Path | None = None,
    key: dict[str, Any] | None = None,
    shard: int = 2048,
    every: float = 20.0,
    engine: Any = None,
) -> Observation:
    """Run Algorithm θ for every neuron of ``reader`` and all ``targets`` (sections 2 and 4).

    Args:
        batches: DataLoader, list of batches, or anything :class:`~tweaknn.theta.batches.Batches` takes.
        targets: class indices.
        form: ``plain`` or ``signed``. budget: the q-th smallest bound instead of the minimum.
        reduction: ``position``, or ``mean``, ``max``, ``grid2`` for pooled neurons.
        memory: bytes for the statistics; more passes over the data where they do not fit at once.
        kept_memory: bytes for mistakes that may still count; beyond them a second pass counts.
        eps2: fraction taken off each bound.
        threads: Python threads for folding, by default torch's number.
        devices: where the statistics live, e.g. ``("cuda:0", "cuda:1")``; neurons are dealt out among them.
        progress: called with the number of examples done, all passes together.
        resume: folder for finished work. key: what else identifies the run, e.g. the data's content hash.
        shard: examples between points where work can be saved; every: least seconds between two savings.
        engine: e.g. :class:`tweaknn.engines.ray.RayEngine`; by default this process.

    Raises:
        InputError: targets, form or memory are unusable; the batches cannot be read twice.
        DataError: labels do not fit the network, or the data set is not as long as it says.
        ModelError: NaN or infinite values; the message names the layer and example.
    """
    batches = Batches(batches)
    size, classes = _first(reader, batches)
    wanted = tuple(int(t) for t in targets)
    if not wanted:
        raise InputError("At least one target class is needed.")
    check_targets(np.asarray(wanted), classes)
    sizes = widths(reader, reduction)
    settings = Settings(wanted, form, budget, reduction, micro_batch(reader.neurons, size))
    passes = plan(sizes, len(wanted), form=form, budget=budget, memory=memory)
    names = [layer.name for layer in reader.layers]
    owned, checkpoint = None, None
    if resume is not None or len(passes.passes) > 1:
        owned = None if resume is not None else tempfile.TemporaryDirectory(prefix="tweaknn-")
        folder = Path(resume if resume is not None else owned.name)  # type: ignore[union-attr]
        about = {
            "network": fingerprint(reader.model),
            "layers": names,
            "settings": repr(settings),
            "blocks": repr(passes.passes),
            "batch": size,
            **(key or {}),
        }
        checkpoint = Checkpoint(folder, about, durable=resume is not None)
    if not devices and reader.device.type != "cpu":
        devices = (str(reader.device),)
    run = _Run(reader, batches, settings, passes, size, threads, tuple(devices), checkpoint, progress)
    run.durable, run.shard, run.every, run.kept_memory = resume is not None, max(1, shard // size), every, kept_memory
    run.engine = engine
    done: list[Sequence[State]] = [run.one(p) for p in range(len(passes.passes))]
    states = Chained(list(reversed(done)))
    _check(states, [b for p in reversed(passes.passes) for b in p], reader, run)
    finisher = Finisher(states, eps2=eps2)
    found = Observation(names, reader.how, settings, passes, finisher, run.examples, owned)
    second.complete(found, run)
    return found


@dataclass
class _Run:
    """One observation while it is made."""

    reader: Reader
    batches: Batches
    settings: Settings
    plan: Plan
    batch: int
    threads: int | None
    devices: tuple[str, ...]
    checkpoint: Checkpoint | None
    progress: Progress | None
    examples: int = 0
    durable: bool = False
    shard: int = 1
    every: float = 20.0
    kept_memory: int = KEPT_BYTES
    engine: Any = None
    logits: np.ndarray | None = None
    seen: int = 0

    def job(self, blocks: Sequence[Block], settings: Settings | None = None) -> Job:
        return Job(self.reader, self.batches, tuple(blocks), settings or self.settings, self.batch, self.logits,
                   self.threads, self.devices)  # fmt: skip

    def tell(self, n: int) -> None:
        self.seen += n
        if self.progress is not None:
            self.progress(self.seen)

    def one(self, p: int) -> Sequence[State]:
        """Pass ``p``: from disk when it is finished, else run, from its last saved shard on."""
        several = len(self.plan.passes) > 1
        keep_logits = p == 0 and several
        targets = np.asarray(self.settings.targets)
        name = f"pass{p}"
        if self.checkpoint is not None and name in self.checkpoint.names():
            if keep_logits:
                self._load_logits()
            stored = self.checkpoint.blocks(name, targets, self.settings.form)
            self.examples = stored[0].examples
            self.tell(self.examples)
            return stored
        job = self.job(self.plan.passes[p])
        run = self._local if self.engine is None else self._elsewhere
        states, logits = run(job, name, keep_logits)
        self.examples = states[0].examples
        if self.checkpoint is None:
            return states
        if keep_logits:
            self.logits = logits
            self.checkpoint.save("logits", {"logits": logits}, len(logits))
        if several or self.durable:
            self.checkpoint.save(name, pack(states), self.examples)
            self.checkpoint.forget("current")
            return self.checkpoint.blocks(name, targets, self.settings.form, check=False)
        return states

    def _load_logits(self) -> None:
        assert self.checkpoint is not None
        stored = self.checkpoint.load("logits")
        if stored is None:
            raise InputError(f"--resume {self.checkpoint.folder} lacks its logits; delete it to start again.")
        self.logits = stored[0]["logits"]

    def _elsewhere(self, job: Job, name: str, keep_logits: bool) -> tuple[list[State], np.ndarray]:
        return self.engine.run(job, self.shard, keep_logits, self.checkpoint if self.durable else None, name, self.tell)

    def _local(self, job: Job, name: str, keep_logits: bool) -> tuple[list[State], np.ndarray]:
        folders = job.accumulators()
        logits: list[np.ndarray] = []
        begin = 0
        stored = self.checkpoint.load("current") if self.checkpoint is not None and self.durable else None
        if stored is not None and str(stored[0].pop("name")) == name:
            arrays, begin = stored
            logits = [arrays.pop("logits")]
            for folder, state in zip(folders, unpack(arrays, np.asarray(job.settings.targets), job.settings.form)):
                folder.load(state)
            self.tell(folders[0].state().examples)
        saved = time.monotonic()
        ended = self.batches.count is not None and begin == self.batches.count
        for k, out, y in follow(job, folders, begin, None, keep_logits) if not ended else ():
            if keep_logits:
                logits.append(out)
            self._limit(folders)
            self.tell(len(y))
            enough = (k + 1 - begin) % self.shard == 0 and time.monotonic() - saved >= self.every
            if self.durable and self.checkpoint is not None and enough:
                so_far = np.concatenate(logits) if logits else np.zeros((0, 0), np.float32)
                now: dict[str, Any] = {**pack([f.state() for f in folders]), "logits": so_far, "name": np.str_(name)}
                took = time.monotonic()
                self.checkpoint.save("current", now, k + 1)
                saved = time.monotonic()
                # Large statistics are saved less often: at most a twentieth of the time goes into it.
                saved += 20 * (saved - took) if self.every else 0
        return [f.state() for f in folders], np.concatenate(logits) if logits else np.zeros((0, 0), np.float32)

    def _limit(self, folders: Sequence[Any]) -> None:
        """Keep the list of mistakes within its memory: first forget, then give up."""
        if sum(f.kept_bytes for f in folders) <= self.kept_memory:
            return
        for f in folders:
            f.shrink()
        if sum(f.kept_bytes for f in folders) > self.kept_memory * 3 // 4:
            for f in folders:
                f.give_up()


def _first(reader: Reader, batches: Batches) -> tuple[int, int]:
    """Size of the first batch and number of classes."""
    if batches.count == 0:
        raise DataError("The data set has no examples.")
    x, y = next(batches.read(0, 1))
    if not len(y):
        raise DataError("The data set has no examples.")
    classes = reader(first(x, 2), lambda k, activation: None).shape[1]
    return len(y), int(classes)


def _check(states: Sequence[State], blocks: Sequence[Block], reader: Reader, run: Any) -> None:
    """ModelError naming layer and example when a NaN or an infinity came in."""
    for b, block in enumerate(blocks):
        if not all(np.isfinite(p[0].max()) for p in states[b].peaks):
            second.find_bad(run.job([block]), reader.layers[block.layer].name)
            check_finite(states[b], layer=reader.layers[block.layer].name)


def seconds_an_example(reader: Reader, x: Any, y: torch.Tensor, settings: Settings, blocks: Sequence[Block]) -> float:
    """Time of a first micro-batch, run twice, the second measured: what a plan's passes will take, beforehand."""
    job = Job(reader, Batches([(x, y)]), tuple(blocks), settings, len(y))
    took = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        for _ in follow(job, job.accumulators(), 0, None, False):
            pass
        took = time.perf_counter() - begin
    return took / len(y)
