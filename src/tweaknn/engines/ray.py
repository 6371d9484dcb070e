"""Observe on a Ray cluster: the same pure function over ranges of batches, merged in a tree, bit for bit the same.

The network, the data set and the settings are put into Ray's object store once: each node fetches them once, each
worker process builds its reader once. A task whose node dies is run again elsewhere by Ray; what the user hears of it,
and what is kept for the next start, is ours.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tweaknn.errors import InputError, TweaknnError
from tweaknn.network.modes import first
from tweaknn.network.reader import Reader
from tweaknn.theta.batches import Batches
from tweaknn.theta.blocks import Block
from tweaknn.theta.checkpoint import Checkpoint, pack, unpack
from tweaknn.theta.job import Job, Result, run_shard, seed_threads
from tweaknn.theta.state import State
from tweaknn.theta.statistics import merge
from tweaknn.theta.stream import Settings


@dataclass
class Spec:
    """A :class:`~tweaknn.theta.job.Job` in a form that travels: the reader is built again where it arrives."""

    model: nn.Module
    layers: list[str]
    head: int | str | None
    source: Any
    blocks: tuple[Block, ...]
    settings: Settings
    batch: int
    logits: np.ndarray | None
    threads: int

    @staticmethod
    def of(job: Job) -> Spec:
        r = job.reader
        names = [layer.name for layer in r.layers]
        threads = torch.get_num_threads()
        return Spec(
            r.model, names, r.head, job.batches.source, job.blocks, job.settings, job.batch, job.logits, threads
        )

    def job(self) -> Job:
        seed_threads(self.threads)
        batches = Batches(self.source)
        x, _ = next(batches.read(0, 1))
        reader = Reader(self.model, first(x, 2), layers=self.layers, head=self.head)
        return Job(reader, batches, self.blocks, self.settings, self.batch, self.logits, self.threads)


_jobs: dict[str, Job] = {}
"""Readers of this worker process, by the number of their run: a worker builds each once."""


def _work(holder: list[Any], name: str, start: int, stop: int, keep_logits: bool) -> tuple[list[State], np.ndarray]:
    import ray

    if name not in _jobs:
        _jobs.clear()
        _jobs[name] = ray.get(holder[0]).job()
    result: Result = run_shard(_jobs[name], start, stop, keep_logits)
    return result.states, result.logits


def _merge(*shards: list[State]) -> list[State]:
    merged = shards[0]
    for other in shards[1:]:
        merged = [merge(a, b) for a, b in zip(merged, other)]
    return merged


class RayEngine:
    """Maps shards over a Ray cluster.

    Args:
        address: of a running cluster, ``"auto"`` for the one this machine belongs to; None starts one here.
        retries: how often a shard may lose its node before the run is given up.
        note: told what happens: how many nodes there are, which are lost.

    Raises:
        InputError: ray is not installed, or no cluster answers at the address.
    """

    FAN = 4
    """Shards merged at a time."""

    def __init__(
        self, address: str | None = None, *, retries: int = 5, note: Callable[[str], None] = lambda sentence: None
    ) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("The Ray engine needs ray: install it with pip install 'tweaknn[ray]'.") from None
        self.ray, self.note, self.retries = ray, note, retries
        if not ray.is_initialized():
            _check_answers(address)
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = (str(error).splitlines() or ["no answer"])[0][:200]
                raise InputError(f"No Ray cluster answers at {address!r}: {reason}") from None

    def run(
        self,
        job: Job,
        step: int,
        keep_logits: bool,
        checkpoint: Checkpoint | None,
        name: str,
        tell: Callable[[int], None],
    ) -> tuple[list[State], np.ndarray]:
        """Observe all batches of ``job`` in shards of ``step`` batches.

        With a checkpoint every finished shard is saved at once; those that are there already are not run again.
        ``keep_logits``: also return the logits ``(n, c)``; ``tell`` is called with the number of examples done.

        Raises:
            InputError: the data's length is not known.
            TweaknnError: a shard failed for good; the message names it, its cause, and what was kept.
        """
        count = job.batches.count
        if count is None:
            raise InputError("The Ray engine needs a data set of known length.")
        ranges = [(a, min(a + step, count)) for a in range(0, count, step)]
        with _by_value(job):
            reference = self.ray.put(Spec.of(job))
        work: Any = self.ray.remote(num_cpus=1, max_retries=self.retries, num_returns=2)(_work)
        watch = _Nodes(self.ray, self.note, len(ranges))
        states: dict[int, Any] = {}
        logits: dict[int, Any] = {}
        waiting: dict[Any, tuple[int, int]] = {}
        for a, b in ranges:
            stored = None if checkpoint is None else checkpoint.load(f"{name}-{a}-{b}")
            if stored is not None:
                arrays, _ = stored
                logits[a] = arrays.pop("logits")
                states[a] = unpack(arrays, np.asarray(job.settings.targets), job.settings.form)
                tell(states[a][0].examples)
                continue
            ref, out = work.remote([reference], f"{reference.hex()}", a, b, keep_logits)
            # Tasks of one shard end together; the logits' reference is small and tells when.
            waiting[out] = (a, b)
            states[a], logits[a] = ref, out
        known = {a: min(b * job.batch, 1 << 62) - a * job.batch for a, b in ranges}
        try:
            while waiting:
                ready, _ = self.ray.wait(list(waiting), num_returns=1, timeout=0.5)
                watch.look(len(waiting))
                for out in ready:
                    a, b = waiting.pop(out)
                    fetched = self._get(out, a, b, len(ranges) - len(waiting) - 1, checkpoint is not None)
                    logits[a] = fetched
                    if checkpoint is not None:
                        states[a] = self._get(states[a], a, b, len(ranges) - len(waiting) - 1, True)
                        checkpoint.save(f"{name}-{a}-{b}", {**pack(states[a]), "logits": fetched}, b)
                    tell(states[a][0].examples if checkpoint is not None else known[a])
        except BaseException:
            for out in waiting:
                self.ray.cancel(out, force=True)
            raise
        found = self._tree([states[a] for a, _ in ranges], checkpoint is not None)
        watch.look(0)
        watch.summary()
        if checkpoint is not None:
            for a, b in ranges:
                checkpoint.forget(f"{name}-{a}-{b}")
        pieces = [logits[a] for a, _ in ranges if len(logits[a])]
        return found, np.concatenate(pieces) if pieces else np.zeros((0, 0), np.float32)

    def _tree(self, shards: list[Any], here: bool) -> list[State]:
        """Merge on the cluster, a few at a time; lost intermediate results are made again by Ray."""
        if here:
            return _merge(*shards)
        merging: Any = self.ray.remote(num_cpus=1, max_retries=self.retries)(_merge)
        while len(shards) > 1:
            shards = [
                merging.remote(*shards[i : i + self.FAN]) if len(shards[i : i + self.FAN]) > 1 else shards[i]
                for i in range(0, len(shards), self.FAN)
            ]
        states = self.ray.get(shards[0])
        # Arrays from the object store are read-only; they are the caller's now.
        return [_owned(state) for state in states]

    def _get(self, ref: Any, a: int, b: int, finished: int, kept: bool) -> Any:
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            said = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
            kind = type(cause) if isinstance(cause, TweaknnError) else TweaknnError
        except self.ray.exceptions.RayError as error:
            said, kind = str(error).strip().splitlines()[0], TweaknnError
        keeps = f"{finished} finished shards are kept" if kept else f"{finished} shards were finished"
        raise kind(f"Shard of batches {a} to {b - 1} failed: {said.rstrip('.')}; {keeps}.")


def _check_answers(address: str | None, seconds: float = 5.0) -> None:
    """InputError when nobody listens at ``HOST:PORT``: Ray itself would go on asking for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except ValueError:
        raise InputError(f"--ray-address {address!r} is no address; write HOST:PORT, or auto.") from None
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"No Ray cluster answers at {address!r}: {reason}.") from None


def _owned(state: State) -> State:
    from dataclasses import replace

    return replace(state, peaks=tuple(np.array(p) for p in state.peaks))


class _Nodes:
    """Watches the cluster and says which nodes were lost."""

    def __init__(self, ray: Any, note: Callable[[str], None], shards: int) -> None:
        self.ray, self.note = ray, note
        self.alive = self._now()
        self.lost: list[str] = []
        note(f"{shards} shard{'s' if shards != 1 else ''} on a Ray cluster of {len(self.alive)} node{'s' if len(self.alive) != 1 else ''}")

    def _now(self) -> dict[str, str]:
        return {n["NodeID"]: n.get("NodeManagerAddress", "?") for n in self.ray.nodes() if n["Alive"]}

    def look(self, waiting: int) -> None:
        now = self._now()
        for node in self.alive.keys() - now.keys():
            self.lost.append(node)
            self.note(
                f"Node {self.alive[node]} ({node[:8]}) was lost; its shards run again on the other {len(now)}, "
                f"{waiting} are not finished"
            )
        for node in now.keys() - self.alive.keys():
            self.note(f"Node {now[node]} ({node[:8]}) joined")
        self.alive = now

    def summary(self) -> None:
        if self.lost:
            self.note(f"Finished with {len(self.alive)} nodes; {len(self.lost)} lost on the way, no shard missing")


@contextlib.contextmanager
def _by_value(job: Job) -> Iterator[None]:
    """Send classes of a user's own files along with the network: other nodes cannot import them."""
    from ray import cloudpickle

    roots = tuple(sysconfig.get_paths()[p] for p in ("stdlib", "purelib", "platlib"))
    dataset = getattr(job.batches.source, "dataset", job.batches.source)
    names = {type(m).__module__ for m in job.reader.model.modules()} | {type(dataset).__module__}
    registered = []
    for name in names:
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        if module is None or path is None or name == "__main__" or name.split(".")[0] == "tweaknn":
            continue
        if not path.startswith(roots):
            cloudpickle.register_pickle_by_value(module)
            registered.append(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
