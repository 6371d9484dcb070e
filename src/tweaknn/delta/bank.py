"""Thousands of deltas on one base: each example of a batch gets its own, in one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from tweaknn.delta.attach import Tweaked, attach, check_base, example_input, layered, logits_node, nodes_of
from tweaknn.delta.forward import REDUCTIONS, reading
from tweaknn.delta.plan import Primitive
from tweaknn.delta.quick import reuse
from tweaknn.delta.rows import Key, Row, known, row_of
from tweaknn.delta.value import LOGITS, Delta
from tweaknn.errors import InputError, ModelError
from tweaknn.network.clone import share, unwrap
from tweaknn.network.modes import batch_size, call, output_of, placement
from tweaknn.network.tracing import CannotTrace, Trace, trace


class DeltaBank(nn.Module):
    """One base and many deltas.

    ``bank(x, ["clinic-a", None, "clinic-b"])`` gives each example its own delta (``None``: the base alone). Synapses
    are kept as rows of four tables (address, weight, class, bias), so that a batch costs one pass of the base and the
    gathering of the neurons its deltas name. Deltas with an MLP are attached one by one, and their examples run in
    a pass of their own. All methods may be called from any thread while others infer: a request that has begun ends
    with the deltas it began with.

    Args:
        model: the base.
        deltas: by name.
        capacity: rows to begin with; the tables double when they are full.
        check: compare each delta's fingerprint with the base's.

    Raises:
        DeltaError: a delta was made for another base.
    """

    def __init__(
        self, model: nn.Module, deltas: Mapping[str, Delta] | None = None, *, capacity: int = 64, check: bool = True
    ) -> None:
        super().__init__()
        self.check = check
        self._lock = threading.RLock()
        object.__setattr__(self, "base", model)
        self.net = share(unwrap(model)).requires_grad_(False)  # as of an attached network, see :func:`attach`
        self._fingerprint: str | None = None
        self._trace: Trace | None = None
        self._tables: Tables | None = None
        self._capacity = max(2, capacity)
        self._slots: dict[str, int] = {}
        self._deltas: dict[str, Delta] = {}
        self._attached: dict[str, Tweaked] = {}
        self._heads: set[int | str | None] = set()  # which output the deltas change, one at most
        self._uses: dict[int, int] = {}
        self._free: list[int] = []
        self._retired: set[int] = set()
        self._next = 1  # row 0 changes nothing
        for name, delta in (deltas or {}).items():
            self.add(name, delta)
        self.eval()

    # -- the registry --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._deltas)

    def __contains__(self, name: object) -> bool:
        return name in self._deltas

    @property
    def names(self) -> list[str]:
        """Names of all deltas."""
        return list(self._deltas)

    def __getitem__(self, name: str) -> Delta:
        try:
            return self._deltas[name]
        except KeyError:
            raise InputError(f"The bank has no delta {name!r}.") from None

    @property
    def bytes_per_delta(self) -> int:
        """Memory of one row of the tables."""
        return self._tables.row_bytes if self._tables is not None else 0

    def add(self, name: str, delta: Delta) -> None:
        """Add a delta, or put it in the place of the one of that name; requests that run keep the old one.

        Raises:
            DeltaError: it was made for another base, or sits on other deltas.
            InputError: it changes another output than those that are there.
            ModelError: the base lacks a layer it reads.
        """
        self._check(delta)
        if self._heads and delta.head not in self._heads:
            raise InputError(f"Delta {name!r} changes another output ({delta.head!r}) than this bank's; make a bank for each output.")
        self._heads.add(delta.head)
        row = row_of(delta)
        if row is None:
            attached = attach(delta, self.base, check=False)  # type: ignore[arg-type]
            with self._lock:
                self._forget(name)
                self._attached[name], self._deltas[name] = attached, delta
            return
        with self._lock:
            tables = self._room(delta, row)
            slot = self._free.pop() if self._free else self._next
            self._next = max(self._next, slot + 1)
            tables.write(slot, row)
            self._forget(name)
            self._slots[name], self._deltas[name] = slot, delta

    swap = add

    def remove(self, name: str) -> None:
        """Forget a delta; requests that run keep it. Raises InputError when there is none of that name."""
        with self._lock:
            _ = self[name]
            self._forget(name)

    def train(self, mode: bool = True) -> DeltaBank:
        """Remember ``mode``; the layers stay in eval mode, since their batch norms' statistics are the base's own."""
        self.training = mode
        return self

    # -- use -----------------------------------------------------------------------------------------------------

    def forward(self, x: Any, names: Sequence[str | None]) -> Tensor:
        """Logits ``(n, c)`` of ``x`` ``(n, ...)``, or of a dictionary of such, example ``i`` with delta ``names[i]``.

        Raises:
            InputError: an unknown name, or not one name an example.
        """
        n, device = batch_size(x), placement(self.net)[0]
        if isinstance(names, str) or len(names) != n:
            raise InputError(f"{n} examples need as many names, not {1 if isinstance(names, str) else len(names)}.")
        with self._lease(names) as (slots, attached, net):
            if not attached:
                return net(x, torch.tensor(slots, dtype=torch.int64, device=device))
            parts: list[tuple[Tensor, Tensor]] = []
            for name in {name for name in names if name in attached}:
                rows = torch.tensor([i for i, each in enumerate(names) if each == name], device=device)
                parts.append((rows, output_of(call(attached[name], _some(x, rows)), *self._heads)))  # type: ignore[index]
            rest = [i for i, each in enumerate(names) if each not in attached]
            if rest:
                rows = torch.tensor(rest, device=device)
                parts.append(
                    (rows, net(_some(x, rows), torch.tensor([slots[i] for i in rest], device=device)))
                )
            order = torch.cat([rows for rows, _ in parts]).argsort()
            return torch.cat([logits for _, logits in parts]).index_select(0, order)

    @contextmanager
    def _lease(self, names: Sequence[str | None]) -> Any:
        """Rows for a batch that no one overwrites before it ends."""
        with self._lock:
            slots, attached = [], {}
            for name in names:
                if name is None:
                    slots.append(0)
                elif name in self._slots:
                    slots.append(self._slots[name])
                elif name in self._attached:
                    slots.append(0)
                    attached[name] = self._attached[name]
                else:
                    raise InputError(f"The bank has no delta {name!r}.")
            held = set(slots)
            for slot in held:
                self._uses[slot] = self._uses.get(slot, 0) + 1
            net = self._tables.net if self._tables is not None else _plain(self.net, *self._heads)
        try:
            yield slots, attached, net
        finally:
            with self._lock:
                for slot in held:
                    self._uses[slot] -= 1
                    if not self._uses[slot]:
                        del self._uses[slot]
                        if slot in self._retired:
                            self._retired.discard(slot)
                            self._free.append(slot)

    # -- rooms ---------------------------------------------------------------------------------------------------

    def _check(self, delta: Delta) -> None:
        if not self.check:
            return
        if self._fingerprint is None or delta.below:
            check_base(delta, unwrap(self.base))  # type: ignore[arg-type]
            self._fingerprint = delta.base
        elif delta.base != self._fingerprint:
            check_base(delta, unwrap(self.base))  # type: ignore[arg-type]

    def _forget(self, name: str) -> None:
        slot = self._slots.pop(name, None)
        self._attached.pop(name, None)
        self._deltas.pop(name, None)
        if slot is not None:
            # a row that a running request reads is written again only when the request has ended
            (self._retired.add if slot in self._uses else self._free.append)(slot)

    def _room(self, delta: Delta, row: Row) -> Tables:
        """Tables that hold this row: the ones there are, or larger ones, of which running requests know nothing."""
        tables = self._tables
        full = not self._free and self._next >= self._capacity
        if tables is not None and not full and tables.fits(row):
            return tables
        while not self._free and self._next >= self._capacity:
            self._capacity *= 2
        if self._trace is None:
            device, dtype = placement(self.net)
            try:
                self._trace = trace(self.net, example_input(delta, device, dtype))
            except CannotTrace as reason:
                raise ModelError(f"The bank needs a network that torch.fx can follow: {reason}.") from None
        widths = dict(tables.widths) if tables is not None else {}
        primitives = dict(tables.primitives) if tables is not None else {}
        for key, (primitive, address, _, _) in row.parts.items():
            widths[key] = max(widths.get(key, 0), 1 << (len(address) - 1).bit_length())
            primitives.setdefault(key, primitive)
        device = placement(self.net)[0]
        made = Tables(self._trace, primitives, widths, self._capacity, delta.n_classes, delta.head, device)
        for name, slot in self._slots.items():
            made.write(slot, known(row_of(self._deltas[name])))
        self._tables = made
        return made


class Tables(nn.Module):
    """The rows of all deltas, and the base's graph that reads them."""

    address: Tensor
    weight: Tensor
    column: Tensor
    bias: Tensor

    def __init__(
        self,
        traced: Trace,
        primitives: Mapping[Key, Primitive],
        widths: Mapping[Key, int],
        capacity: int,
        n_classes: int,
        head: int | str | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.primitives, self.widths = dict(primitives), dict(widths)
        self.starts: dict[Key, int] = {}
        total = 0
        for key, width in self.widths.items():
            self.starts[key] = total
            total += width
        self.register_buffer("address", torch.zeros(capacity, total, dtype=torch.int32, device=device))
        self.register_buffer("weight", torch.zeros(capacity, total, device=device))
        small = torch.int16 if n_classes < 1 << 15 else torch.int32
        self.register_buffer("column", torch.zeros(capacity, total, dtype=small, device=device))
        self.register_buffer("bias", torch.zeros(capacity, n_classes, device=device))
        self.net = self._graph(traced, head)

    @property
    def row_bytes(self) -> int:
        return sum(t.element_size() * t.shape[1] for t in (self.address, self.weight, self.column, self.bias))

    def fits(self, row: Row) -> bool:
        return all(self.widths.get(key, 0) >= len(part[1]) for key, part in row.parts.items())

    def write(self, slot: int, row: Row) -> None:
        """Overwrite one row, in four copies whatever the number of layers."""
        total = self.address.shape[1]
        address, column = np.zeros(total, np.int32), np.zeros(total, np.int32)
        weight = np.zeros(total, np.float32)
        for key, (_, where, strength, ends) in row.parts.items():
            start = self.starts[key]
            stop = start + len(where)
            address[start:stop], weight[start:stop], column[start:stop] = where, strength, ends
        for table, values in (
            (self.address, address),
            (self.weight, weight),
            (self.column, column),
            (self.bias, row.bias),
        ):
            table[slot].copy_(torch.from_numpy(values))

    def _graph(self, traced: Trace, head: int | str | None) -> fx.GraphModule:
        module = layered(traced)
        graph, nodes = module.graph, nodes_of(module)
        for name in ("address", "weight", "column", "bias"):
            module.register_buffer(f"_tweaknn_{name}", getattr(self, name))
        last = [node for node in graph.nodes if node.op == "placeholder"][-1]
        with graph.inserting_after(last):
            slots = graph.placeholder("slots")
        with graph.inserting_after(slots):
            table = graph.get_attr("_tweaknn_address")
        with graph.inserting_after(table):
            rows = graph.call_function(torch.index_select, (table, 0, slots))
        output = next(node for node in graph.nodes if node.op == "output")
        logits = logits_node(output.args[0], head)
        values = []
        for key, primitive in self.primitives.items():
            if key[0] != LOGITS and key[0] not in nodes:
                raise ModelError(f"The network has no layer {key[0]!r}, which the delta reads.")
            source = logits if key[0] == LOGITS else nodes[key[0]]
            function, arguments, _ = reading(primitive)
            span = (self.starts[key], self.starts[key] + self.widths[key])
            with graph.inserting_after(source):
                values.append(graph.call_function(_pick, (source, rows, span, function.__name__, arguments)))
        with graph.inserting_before(output):
            tables = [graph.get_attr(f"_tweaknn_{name}") for name in ("weight", "column", "bias")]
            changed = graph.call_function(_changed, (logits, slots, values, *tables))
        output.args = (changed,)
        reuse(module)
        return module


def _pick(x: Tensor, rows: Tensor, span: tuple[int, int], function: str, arguments: tuple[Any, ...]) -> Tensor:
    """Each example's own neurons of one reduced layer: ``(n, width)``."""
    index = rows[:, span[0] : span[1]].long()
    if function == "gather":
        if x.shape[1:] != arguments[0]:
            raise ModelError(f"The deltas read single neurons of a layer of shape {arguments[0]}, not {x.shape[1:]}.")
        return x.flatten(1).gather(1, index).float()
    return REDUCTIONS[function](x, *arguments).gather(1, index)


def _changed(
    logits: Tensor, slots: Tensor, values: Sequence[Tensor], weight: Tensor, column: Tensor, bias: Tensor
) -> Tensor:
    change = bias.index_select(0, slots)
    if values:
        strength = weight.index_select(0, slots)
        # a row's unused places have weight 0, and must stay without effect beside an infinite neuron
        added = torch.where(strength == 0, 0.0, torch.cat(list(values), 1) * strength)
        change = change.scatter_add(1, column.index_select(0, slots).long(), added)
    return logits + change.to(logits.dtype)


def _plain(net: nn.Module, head: int | str | None = None) -> Any:
    return lambda x, slots: output_of(call(net, x), head)


def _some(x: Any, rows: Tensor) -> Any:
    """Some examples of an input."""
    if isinstance(x, Mapping):
        return {key: value.index_select(0, rows) for key, value in x.items()}
    return x.index_select(0, rows)


def load_folder(model: nn.Module, folder: str, **settings: Any) -> DeltaBank:
    """A bank of all ``*.delta`` and ``*.delta.safetensors`` files of a folder, each under its name up to the first dot.

    Raises:
        DeltaError: a file is damaged or was made for another base.
    """
    from pathlib import Path

    files = sorted(path for path in Path(folder).iterdir() if path.name.endswith((".delta", ".delta.safetensors")))
    return DeltaBank(model, {path.name.split(".")[0]: Delta.load(str(path)) for path in files}, **settings)
