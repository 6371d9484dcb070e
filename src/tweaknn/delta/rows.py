"""What a bank keeps of a delta, and what it adds to the logits of a batch in which every example has its own.

A delta is taken apart by term. Few synapses are a list (which neuron, how strong, which class), so that those of a whole
batch are one gathering and one scattering whatever their number. Everything else (MLPs, synapses from all channels) is applied
by its own matrices to its rows of features, which are put together once for all deltas that read the same neurons: a product
a delta reads its weights once and copies nothing, where a product over stacked matrices of one row each has to copy them
first and takes several times as long.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from tweaknn.delta.forward import Change, reading
from tweaknn.delta.heads import MLP, Head, Linear
from tweaknn.delta.plan import Primitive, kind_of, plan
from tweaknn.delta.stage import Step
from tweaknn.delta.value import Delta, Read, Term
from tweaknn.network.pooling import width

LONGEST = 256
"""Synapses of a term that are kept as a list: four times a matrix's memory each, and no kernels of their own."""

User = tuple[Head, bool, list[int]]
"""A dense term's head, whether it ends in all classes in order, and the examples it is for."""

Layout = tuple[str, str, tuple[int, ...], int]
"""A read without its addresses: layer, reduction, shape, channel axis."""

SYNAPSE = np.dtype([("key", "<i4"), ("place", "<i4"), ("weight", "<f4"), ("column", "<i4")])


class Key(NamedTuple):
    """One reduction of one layer, ``kind`` as in :class:`tweaknn.delta.plan.Primitive`."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    channel_axis: int

    def step(self, places: Tensor | None) -> Step:
        """How a stage computes it."""
        if self.kind == "position":
            return "", (self.shape,), places
        function, arguments, _ = reading(Primitive(*self, torch.empty(0), True))
        return function.__name__, arguments, None


class Keys:
    """All keys that a bank's deltas have named so far; numbers are never given twice."""

    def __init__(self) -> None:
        self.all: list[Key] = []
        self.numbers: dict[Key, int] = {}
        self.reads: WeakValueDictionary[bytes, Reads] = WeakValueDictionary()
        self.layouts: dict[Layout, Layout] = {}

    def number(self, key: Key) -> int:
        if key not in self.numbers:
            self.all.append(key)
            self.numbers[key] = len(self.all) - 1
        return self.numbers[key]


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Reads:
    """A term's reads without an object each: a delta of 40 synapses in 19 layers is 27 kB of Python as a value."""

    layouts: tuple[Layout, ...]  # of each read, shared by all deltas
    keys: tuple[int, ...]
    counts: tuple[int, ...]
    index: np.ndarray

    @classmethod
    def of(cls, reads: Sequence[Read], keys: Keys) -> Reads:
        layouts = tuple((read.layer, read.reduction, read.shape, read.channel_axis) for read in reads)
        layouts = tuple(keys.layouts.setdefault(layout, layout) for layout in layouts)
        numbers = tuple(keys.number(Key(r.layer, kind_of(r), r.shape, r.channel_axis)) for r in reads)
        counts = tuple(int(read.index.numel()) for read in reads)
        index = np.concatenate([read.index.numpy() for read in reads]) if reads else np.zeros(0, np.int64)
        return cls(layouts, numbers, counts, index)

    def shared(self, keys: Keys) -> Reads:
        """The one object for all deltas that read the same neurons in the same order."""
        content = repr((self.layouts, self.counts)).encode() + self.index.tobytes()
        return keys.reads.setdefault(hashlib.blake2b(content).digest(), self)

    def parts(self) -> list[tuple[int, np.ndarray, bool]]:
        """``(key, positions, whether these are the whole reduced layer in order)`` of each read."""
        found, start = [], 0
        for key, count, (_, reduction, shape, axis) in zip(self.keys, self.counts, self.layouts):
            index = self.index[start : start + count]
            every = count == width(reduction, shape, axis) and bool((np.diff(index) == 1).all())
            found.append((key, index, every))
            start += count
        return found

    def scale(self, keys: Keys) -> np.ndarray:
        """``(f,)``: what turns the sums that stages hand out into means."""
        factors = []
        for key in self.keys:
            _, kind, shape, axis = keys.all[key]
            factors.append(shape[axis] / math.prod(shape) if kind == "sum" else 1.0)
        return np.repeat(np.array(factors), self.counts)

    def unpacked(self) -> tuple[Read, ...]:
        ends = np.cumsum(self.counts)[:-1]
        return tuple(
            Read(*layout, torch.from_numpy(index))
            for layout, index in zip(self.layouts, np.split(self.index, ends), strict=True)
        )


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """A delta in a bank.

    Attributes:
        rest: the delta without its terms.
        terms: its terms.
        synapses: the listed ones, :data:`SYNAPSE`.
        dense: the terms that are applied by their matrices, and whether they end in all classes in order.
        bias: ``(c,)`` or None where there is none.
        maps: for a class a pixel: the module of all terms, and the keys and positions of what it reads.
    """

    rest: Delta
    terms: tuple[tuple[Reads, Head], ...]
    synapses: np.ndarray
    dense: tuple[tuple[Reads, Head, bool], ...]
    bias: np.ndarray | None
    maps: tuple[Change, list[tuple[int, Tensor | None]]] | None

    @classmethod
    def of(cls, delta: Delta, keys: Keys, device: torch.device) -> Entry:
        rest = replace(delta, terms=())
        terms: list[tuple[Reads, Head]] = [(Reads.of(term.reads, keys), term.head) for term in delta.terms]
        if any(read.reduction == "pixel" for term in delta.terms for read in term.reads):
            made = plan(delta)
            asked = [
                (keys.number(Key(p.layer, p.kind, p.shape, p.channel_axis)), None if p.every else p.index.to(device))
                for p in made.primitives
            ]
            change = Change(made, delta.n_classes, device).eval()
            return cls(rest, tuple(terms), np.zeros(0, SYNAPSE), (), None, (change, asked))
        listed, dense = [], []
        for t, (reads, head) in enumerate(terms):
            if isinstance(head, Linear) and head.parameters <= LONGEST:
                listed.append(_listed(reads, head, keys))
            else:
                reads = reads.shared(keys)
                head = _on(head, device)
                terms[t] = reads, head
                every = torch.equal(head.columns.cpu(), torch.arange(delta.n_classes))
                dense.append((reads, head, every))
        synapses = np.concatenate(listed) if listed else np.zeros(0, SYNAPSE)
        bias = delta.bias.detach().float().cpu().numpy() if bool(delta.bias.any()) else None
        return cls(rest, tuple(terms), synapses, tuple(dense), bias, None)

    @property
    def delta(self) -> Delta:
        """The delta as it was added."""
        return replace(self.rest, terms=tuple(Term(reads.unpacked(), head) for reads, head in self.terms))

    @property
    def bytes(self) -> int:
        """Its numbers and the list made of them; reads that several deltas share count for each."""
        heads = sum(t.numel() * t.element_size() for _, head in self.terms for t in head.tensors().values())
        index = sum(reads.index.nbytes for reads, _ in self.terms)
        bias = self.rest.bias.numel() * self.rest.bias.element_size()
        maps = sum(t.numel() * t.element_size() for t in self.maps[0].buffers()) if self.maps is not None else 0
        return heads + index + bias + self.synapses.nbytes + maps

    def keys(self) -> Iterable[int]:
        """Numbers of all keys it needs."""
        if self.maps is not None:
            return [key for key, _ in self.maps[1]]
        return [key for reads, _ in self.terms for key in reads.keys]


def _on(head: Head, device: torch.device) -> Head:
    if device.type == "cpu":  # the delta's own numbers: a bank of many must not hold them twice
        return head
    if isinstance(head, Linear):
        return Linear(head.weight.to(device), head.columns.to(device))
    return MLP(
        tuple(w.to(device) for w in head.w1),
        head.b1.to(device),
        head.w2.to(device),
        head.columns.to(device),
        head.activation,
    )


def _listed(reads: Reads, head: Linear, keys: Keys) -> np.ndarray:
    weight = head.weight.detach().float().cpu().numpy()
    source, column = np.nonzero(weight)
    found = np.empty(len(source), SYNAPSE)
    found["key"] = np.repeat(np.array(reads.keys, np.int32), reads.counts)[source]
    found["place"] = reads.index[source]
    found["weight"] = weight[source, column] * reads.scale(keys)[source]
    found["column"] = head.columns.cpu().numpy()[column]
    return found


class Batch:
    """What the deltas of a batch read and add; ``entries[i]`` is example ``i``'s, None for the base alone."""

    def __init__(self, entries: Sequence[Entry | None], keys: Keys, device: torch.device) -> None:
        self.entries, self.numbers, self.keys, self.device = entries, keys, keys.all, device
        rows: dict[Entry, list[int]] = {}
        for i, entry in enumerate(entries):
            if entry is not None:
                rows.setdefault(entry, []).append(i)
        self.rows = rows
        self.bias = any(entry.bias is not None for entry in rows)
        self.dense: dict[Reads, list[User]] = {}
        for entry, mine in rows.items():
            for reads, head, every in entry.dense:
                self.dense.setdefault(reads, []).append((head, every, mine))
        self.needed: set[int] = set()
        self._places: dict[int, list[np.ndarray]] = {}
        self._spans: dict[tuple[Reads, int], tuple[int, int]] = {}
        self._list()
        for reads, users in self.dense.items():
            self._ask(reads, [i for _, _, mine in users for i in mine])
        for entry in rows:
            if entry.maps is not None:
                self.needed.update(key for key, _ in entry.maps[1])

    def _list(self) -> None:
        """The synapses of all examples, sorted by what they read."""
        lists = [entry.synapses if entry is not None else None for entry in self.entries]
        lengths = [len(each) if each is not None else 0 for each in lists]
        self.synapses = None
        if not any(lengths):
            return
        every = np.concatenate([each for each in lists if each is not None])
        row = np.repeat(np.arange(len(lists)), lengths)
        order = np.argsort(every["key"], kind="stable")
        every, row = every[order], row[order]
        used, starts = np.unique(every["key"], return_index=True)
        ends = np.append(starts[1:], len(every))
        places = every["place"] + row * np.repeat(self._sizes(used), ends - starts)
        self.synapses = every["weight"], every["column"], row
        self.slices: list[tuple[int, np.ndarray]] = []
        for key, start, end in zip(used.tolist(), starts.tolist(), ends.tolist()):
            self.needed.add(key)
            if self.keys[key].kind == "position":
                self._places[key] = [places[start:end]]
            self.slices.append((key, places[start:end]))

    def _sizes(self, used: np.ndarray) -> np.ndarray:
        sizes = []
        for key in used.tolist():
            _, kind, shape, axis = self.keys[key]
            sizes.append(width("grid2" if kind == "quarters" else kind if kind != "sum" else "mean", shape, axis))
        return np.array(sizes)

    def _ask(self, reads: Reads, rows: list[int]) -> None:
        """The single neurons of a dense term, example by example."""
        for part, (key, index, _) in enumerate(reads.parts()):
            self.needed.add(key)
            if self.keys[key].kind == "position":
                wanted = self._places.setdefault(key, [])
                start = sum(len(each) for each in wanted)
                wanted.append((np.array(rows)[:, None] * math.prod(self.keys[key].shape) + index).reshape(-1))
                self._spans[reads, part] = start, start + len(rows) * len(index)

    def wanted(self, keys: Iterable[int], dynamic: bool = False) -> dict[str, tuple[Step, ...]]:
        """What a stage is asked for, by layer. ``dynamic``: for a compiled stage, which must not see how many single
        neurons there are; none or one would be a case of its own."""
        steps: dict[str, list[Step]] = {}
        self.where: dict[int, tuple[str, int]] = {}
        for key in sorted(keys):
            places: Tensor | None = None
            if self.keys[key].kind == "position":
                asked = [*self._places.get(key, ()), *([np.zeros(2, np.int64)] if dynamic else ())]
                places = torch.from_numpy(np.concatenate(asked)).to(self.device)
                if dynamic:
                    torch._dynamo.maybe_mark_dynamic(places, 0)
            mine = steps.setdefault(self.keys[key].layer, [])
            self.where[key] = self.keys[key].layer, len(mine)
            mine.append(self.keys[key].step(places))
        return {layer: tuple(each) for layer, each in steps.items()}

    def changed(self, logits: Tensor, values: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """``logits`` ``(n, c, ...)`` with every example's own delta added."""
        if not self.rows:
            return logits
        if logits.ndim == 1:
            return self.changed(logits.unsqueeze(1), values).squeeze(1)
        # sums over thousands of positions do not fit half precision
        with torch.autocast(logits.device.type, enabled=False):
            found = {key: values[layer][place] for key, (layer, place) in self.where.items()}
            change = self._change(logits, found)
            if change is not None:
                logits = logits + change.to(logits.dtype).reshape(*change.shape, *(1 for _ in logits.shape[2:]))
            for entry, rows in self.rows.items():
                if entry.maps is not None:
                    logits = self._mapped(entry.maps, rows, logits, found)
        return logits

    def _change(self, logits: Tensor, found: Mapping[int, Tensor]) -> Tensor | None:
        if not (self.bias or self.dense or self.synapses):
            return None
        n, c = logits.shape[:2]
        change = torch.zeros(n, c, device=logits.device)
        if self.bias:
            nothing = np.zeros(c, np.float32)
            each = [nothing if e is None or e.bias is None else e.bias for e in self.entries]
            change = torch.from_numpy(np.stack(each)).to(logits.device)
        if self.synapses is not None:
            weight, column, row = self.synapses
            values = []
            for key, places in self.slices:
                if self.keys[key].kind == "position":
                    values.append(found[key][: len(places)])
                else:
                    values.append(found[key].reshape(-1).index_select(0, torch.from_numpy(places).to(self.device)))
            added = torch.cat(values) * torch.from_numpy(weight).to(self.device)
            ends = torch.from_numpy(row * c + column).to(self.device)
            change = change.view(-1).index_add(0, ends, added).view(n, c)
        for reads, users in self.dense.items():
            change = self._multiplied(change, reads, users, found)
        return change

    def _multiplied(self, change: Tensor, reads: Reads, users: Sequence[User], found: Mapping[int, Tensor]) -> Tensor:
        rows = [i for _, _, mine in users for i in mine]
        features = self._features(reads, rows, found)
        added = change.new_zeros(len(rows), change.shape[1])
        start = 0
        for head, every, mine in users:
            end = start + len(mine)
            result = head(features[start:end])
            if every:
                added[start:end] = result
            else:
                added[start:end, head.columns.to(added.device)] = result
            start = end
        return change.index_add(0, torch.tensor(rows, device=change.device), added)

    def _features(self, reads: Reads, rows: list[int], found: Mapping[int, Tensor]) -> Tensor:
        """What a dense term reads for these examples: ``(len(rows), f)``."""
        whole = rows == list(range(len(self.entries)))
        chosen = torch.tensor(rows, device=self.device)
        parts = []
        for part, (key, index, every) in enumerate(reads.parts()):
            value = found[key]
            if self.keys[key].kind == "position":
                start, end = self._spans[reads, part]
                parts.append(value[start:end].view(len(rows), -1))
                continue
            if not whole:
                value = value[rows[0] : rows[0] + 1] if len(rows) == 1 else value.index_select(0, chosen)
            parts.append(value if every else value.index_select(1, torch.from_numpy(index).to(self.device)))
        features = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        scale = reads.scale(self.numbers)
        return features if (scale == 1).all() else features * torch.from_numpy(scale.astype(np.float32)).to(self.device)

    def _mapped(
        self,
        maps: tuple[Change, list[tuple[int, Tensor | None]]],
        rows: list[int],
        logits: Tensor,
        found: Mapping[int, Tensor],
    ) -> Tensor:
        chosen = torch.tensor(rows, device=logits.device)
        change, asked = maps
        values = []
        for key, index in asked:
            value = found[key].index_select(0, chosen)
            values.append(value if index is None else value.index_select(1, index))
        return logits.index_copy(0, chosen, change(logits.index_select(0, chosen), values))
