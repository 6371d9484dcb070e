"""Thousands of deltas on one base: each example of a batch gets its own, in one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tweaknn.delta.attach import Tweaked, attach, check_base, example_input
from tweaknn.delta.rows import Batch, Entry, Keys
from tweaknn.delta.stage import Hooked, Traced
from tweaknn.delta.value import LOGITS, Delta
from tweaknn.errors import DeltaError, InputError, ModelError
from tweaknn.network.clone import share, unwrap
from tweaknn.network.modes import batch_size, call, output_of, placement
from tweaknn.network.tracing import CannotTrace, Trace, trace

Stage = Traced | Hooked


class DeltaBank(nn.Module):
    """One base and many deltas.

    ``bank(x, ["clinic-a", None, "clinic-b"])`` gives each example its own delta (``None``: the base alone) in one pass of the
    base, whatever the deltas are made of: the pass hands out the neurons that the batch's deltas read, and each delta is
    applied to its own rows (:mod:`tweaknn.delta.rows`). All methods may be called from any thread while others infer: a request
    that has begun ends with the deltas it began with.

    Args:
        model: the base.
        deltas: by name.
        check: compare each delta's fingerprint with the base's.

    Raises:
        DeltaError: a delta was made for another base.
        InputError: the network has a delta attached.
    """

    def __init__(self, model: nn.Module, deltas: Mapping[str, Delta] | None = None, *, check: bool = True) -> None:
        super().__init__()
        if isinstance(model, Tweaked):
            raise InputError("A bank's base is a network without deltas; add the attached one to each delta of the bank instead.")
        self.check = check
        self._lock = threading.RLock()
        object.__setattr__(self, "base", model)
        self.net = share(unwrap(model)).requires_grad_(False)  # as of an attached network, see :func:`attach`
        self._like: Delta | None = None  # the first delta without its terms: what all others have to agree with
        self._fingerprint: str | None = None
        self._trace: Trace | None = None
        self._keys = Keys()
        self._entries: dict[str, Entry] = {}
        # plain dictionaries: stages are other forms of ``net``, which a state dict should hold once
        self._stages: dict[str, Stage] = {}
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._options: dict[str, Any] | None = None
        self._asked: dict[str, set[int]] = {}
        self._layers: set[str] = set()  # that hooks are known to reach
        for name, delta in (deltas or {}).items():
            self.add(name, delta)
        self.eval()

    base: nn.Module

    # -- the registry --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """Names of all deltas."""
        return list(self._entries)

    def __getitem__(self, name: str) -> Delta:
        return self._entry(name).delta

    def bytes_of(self, name: str) -> int:
        """Memory that a delta's numbers take in the bank, whatever else is in it."""
        return self._entry(name).bytes

    def add(self, name: str, delta: Delta) -> None:
        """Add a delta, or put it in the place of the one of that name; requests that run keep the old one.

        The first delta, and one that reads layers which ``--layers all`` does not stand for and no other has read, also makes the
        network that reads them, which takes as long as attaching.

        Raises:
            DeltaError: it was made for another base, or sits on other deltas.
            InputError: it changes another output than those that are there.
            ModelError: the base lacks a layer it reads.
        """
        self._check(delta)
        with self._lock:
            self._stage(delta)
            entry = Entry.of(delta, self._keys, placement(self.net)[0])
            self._asked.setdefault(delta.how, set()).update(entry.keys())
            self._entries[name] = entry

    swap = add

    def remove(self, name: str) -> None:
        """Forget a delta; requests that run keep it. Raises InputError when there is none of that name."""
        with self._lock:
            self._entry(name)
            del self._entries[name]

    def train(self, mode: bool = True) -> DeltaBank:
        """Remember ``mode``; the layers stay in eval mode, since their batch norms' statistics are the base's own."""
        self.training = mode
        return self

    # -- use -----------------------------------------------------------------------------------------------------

    def compile(self, **options: Any) -> None:  # type: ignore[override]
        """From now on run the base, and the reading of its neurons, as ``torch.compile(..., **options)`` makes it.

        The registry, its lock and the deltas' own matrices stay outside of the program, so that adding, swapping and removing
        compile nothing anew; only a delta that reads a layer in a way none has read it before does. A base that is read by hooks is
        compiled with ``fullgraph=True`` always.
        """
        with self._lock:
            self._options = options
            self._compiled.clear()
            self._asked = {}
            for entry in self._entries.values():
                self._asked.setdefault(entry.rest.how, set()).update(entry.keys())

    # a compiler that is given the bank itself leaves this frame out and compiles what it calls
    @torch.compiler.disable(recursive=False)
    def forward(self, x: Any, names: Sequence[str | None]) -> Tensor:
        """Logits ``(n, c)``, example ``i`` with delta ``names[i]``.

        Args:
            x: ``(n, ...)``, or a mapping of such tensors, which is given to the base as keyword arguments.
            names: one an example; None is the base alone.

        Raises:
            InputError: an unknown name, or not one name an example.
        """
        n = batch_size(x)
        if isinstance(names, str) or len(names) != n:
            found = f"the text {names!r}" if isinstance(names, str) else str(len(names))
            raise InputError(f"{n} examples need as many names, not {found}.")
        with self._lock:
            entries = [None if name is None else self._entry(name) for name in names]
            kinds = sorted({entry.rest.how for entry in entries if entry is not None}) or sorted(self._stages)[:1]
            runs = {kind: self._run(kind, n) for kind in kinds}
        if not runs:
            return output_of(call(self.net, x))
        if len(runs) == 1:
            return self._pass(x, entries, *runs[kinds[0]])
        # layers by torch.fx's names and by hooks' are read in different forms of the base
        second = [i for i, entry in enumerate(entries) if entry is not None and entry.rest.how == kinds[1]]
        first = [i for i in range(n) if i not in set(second)]
        parts = [
            self._pass(_rows(x, rows), [entries[i] for i in rows], *runs[kind])
            for kind, rows in zip(kinds, (first, second), strict=True)
        ]
        return torch.cat(parts).index_select(0, torch.tensor(first + second, device=parts[0].device).argsort())

    @torch.compiler.disable(recursive=False)
    def _pass(self, x: Any, entries: list[Entry | None], run: Callable[..., Any], keys: Sequence[int] | None) -> Tensor:
        batch, wanted = _asked(x, entries, self._keys, keys)
        try:
            logits, values = run(x, wanted)
        except torch._dynamo.exc.Unsupported as reason:
            raise ModelError(
                "The network cannot be compiled as one graph, as fullgraph=True asks for and a base that is read by hooks has to "
                f"be: {str(reason).splitlines()[0]}."
            ) from None
        return _changed(batch, logits, values)

    def _run(self, kind: str, n: int) -> tuple[Callable[..., Any], Sequence[int] | None]:
        """A stage, and what it is always asked for when it is compiled: the same for every batch, or each would be a program."""
        stage = self._stages[kind]
        one_graph = {"fullgraph": True} if isinstance(stage, Hooked) else {}
        if self._options is None or n == 0:
            # a compiler that is given the bank may break a graph where it likes
            return torch.compiler.disable(stage.forward) if one_graph else stage.forward, None
        if kind not in self._compiled:
            self._compiled[kind] = torch.compile(stage, **{**self._options, **one_graph})
        return self._compiled[kind], sorted(self._asked.get(kind, ()))

    # -- rooms ---------------------------------------------------------------------------------------------------

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise InputError(f"The bank has no delta {name!r}.") from None

    def _check(self, delta: Delta) -> None:
        if self.check and (delta.below or delta.base != self._fingerprint):
            check_base(delta, unwrap(self.base))
            self._fingerprint = delta.base
        like = self._like
        if like is None:
            return
        if delta.head != like.head:
            raise InputError(
                f"The delta changes another output ({delta.head!r}) than this bank's ({like.head!r}); make a bank for each output."
            )
        if delta.n_classes != like.n_classes:
            raise DeltaError(f"This bank's deltas are for {like.n_classes} logits, this one for {delta.n_classes}.")

    def _stage(self, delta: Delta) -> None:
        """A form of the base that can be read where this delta reads; running requests keep the one they have."""
        there = self._stages.get(delta.how)
        layers = set(delta.layers) - {LOGITS}
        new = layers - self._layers
        if there is not None and (not new or (isinstance(there, Traced) and layers <= there.layers)):
            return
        head = self._like.head if self._like is not None else delta.head
        stage: Stage
        if delta.how == "hooks":
            attach(delta, self.base, check=False)  # refuses layers that are never reached
            self._layers |= layers
            stage = there or Hooked(share(self.net), head)
        else:
            if self._trace is None:
                self._trace = self._traced(delta)
            # those that `all` stands for: deltas that read them need no other form
            layers |= {layer.name for layer in self._trace.known}
            stage = Traced(self._trace, layers | (there.layers if isinstance(there, Traced) else set()), head)
        if stage is there:
            return
        self._stages[delta.how] = stage.eval()
        self._compiled.pop(delta.how, None)
        if self._like is None:
            self._like = Entry.of(delta, Keys(), torch.device("cpu")).rest

    def _traced(self, delta: Delta) -> Trace:
        device, dtype = placement(self.net)
        try:
            return trace(self.net, example_input(delta, device, dtype))
        except CannotTrace as reason:
            raise ModelError(f"The bank needs a network that torch.fx can follow: {reason}.") from None

    def _apply(self, fn: Any, recurse: bool = True) -> DeltaBank:
        before = placement(self.net)[0]
        super()._apply(fn, recurse)
        device = placement(self.net)[0]
        with self._lock:
            for stage in self._stages.values():
                stage._apply(fn)  # of tensors that it shares with the bank's own modules, a second time to no effect
            if device != before:
                for name, entry in self._entries.items():
                    self._entries[name] = Entry.of(entry.delta, self._keys, device)
        return self


@torch.compiler.disable
def _asked(x: Any, entries: Sequence[Entry | None], keys: Keys, always: Sequence[int] | None) -> Any:
    batch = Batch(entries, keys, _device(x))
    return batch, batch.wanted(batch.needed if always is None else always, dynamic=always is not None)


@torch.compiler.disable
def _changed(batch: Batch, logits: Tensor, values: Mapping[str, Sequence[Tensor]]) -> Tensor:
    return batch.changed(logits, values)


def _device(x: Any) -> torch.device:
    while not isinstance(x, Tensor):
        x = next(iter(x.values())) if isinstance(x, Mapping) else x[0]
    return x.device


def _rows(x: Any, rows: Sequence[int]) -> Any:
    if isinstance(x, Mapping):
        return {key: _rows(value, rows) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(_rows(value, rows) for value in x)
    return x.index_select(0, torch.tensor(rows, device=x.device))


def load_folder(model: nn.Module, folder: str, **settings: Any) -> DeltaBank:
    """A bank of all ``*.delta`` and ``*.delta.safetensors`` files of a folder, each under its name up to the first dot.

    Raises:
        DeltaError: a file is damaged or was made for another base.
    """
    from pathlib import Path

    files = sorted(path for path in Path(folder).iterdir() if path.name.endswith((".delta", ".delta.safetensors")))
    return DeltaBank(model, {path.name.split(".")[0]: Delta.load(str(path)) for path in files}, **settings)
