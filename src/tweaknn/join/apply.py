"""A delta's logits from table T: no forward pass of the base."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tweaknn.delta import LOGITS, MLP, Delta, Linear, Read, Term
from tweaknn.errors import InputError
from tweaknn.join.table import PooledTable


def contribution(delta: Delta, table: PooledTable, chunk: int = 8192) -> np.ndarray:
    """What ``delta`` adds to the logits of the table's examples, ``(n, c)`` float32, its bias included.

    Raises:
        InputError: the delta reads a neuron that the table does not hold.
    """
    columns = [_columns(term, table) for term in delta.terms]
    n, c = table.logits.shape
    out = np.tile(delta.bias.float().numpy(), (n, 1))
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        for term, where in zip(delta.terms, columns, strict=True):
            parts = [
                table.logits[rows][:, index] if from_logits else table.features[rows][:, index]
                for from_logits, index in where
            ]
            values = torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))
            out[rows][:, term.head.columns.numpy()] += term.head(values).numpy()
    return out


def tweaked_logits(delta: Delta, table: PooledTable) -> np.ndarray:
    """Logits ``(n, c)`` of base and delta together. Errors as :func:`contribution`."""
    return table.logits + contribution(delta, table)


def _columns(term: Term, table: PooledTable) -> list[tuple[bool, np.ndarray]]:
    held = {(read.layer, read.reduction): (read, span) for read, span in zip(table.reads, table.spans(), strict=True)}
    found = []
    for read in term.reads:
        index = read.index.numpy()
        if read.layer == LOGITS:
            found.append((True, index))
            continue
        if (read.layer, read.reduction) not in held:
            raise InputError(f"The table does not hold {read.reduction} of layer {read.layer}, which the delta reads.")
        own, span = held[read.layer, read.reduction]
        position = np.full(read.available, -1)
        position[own.index.numpy()] = np.arange(span.start, span.stop)
        if (position[index] < 0).any():
            raise InputError(f"The table does not hold every neuron of layer {read.layer} that the delta reads.")
        found.append((False, position[index]))
    return found


def average(deltas: list[Delta]) -> Delta:
    """The mean of deltas of one base, as one delta.

    All synapses together become one set of synapses, no more than there are different ones. Small networks that read the same neurons
    stand side by side, each with its share of the output: as many hidden neurons as they have together.
    """
    first, share = deltas[0], 1.0 / len(deltas)
    bias = torch.stack([delta.bias.double() for delta in deltas]).mean(0).float()
    every = [term for delta in deltas for term in delta.terms]
    synapses = [term for term in every if isinstance(term.head, Linear)]
    nets = [term for term in every if not isinstance(term.head, Linear)]
    terms = [*_linear(synapses, share), *_side_by_side(nets, share)]
    return replace(first, terms=tuple(terms), bias=bias)


def _linear(terms: list[Term], share: float) -> list[Term]:
    """Synapses summed up address by address, ``share`` of each."""
    if not terms:
        return []
    layers: dict[tuple[str, str], Read] = {}
    used: dict[tuple[str, str], torch.Tensor] = {}
    for term in terms:
        for read in term.reads:
            key = (read.layer, read.reduction)
            layers[key] = read
            used[key] = torch.cat([used[key], read.index]).unique() if key in used else read.index.unique()
    start, total = {}, 0
    for key, index in used.items():
        start[key] = total
        total += int(index.numel())
    columns = torch.cat([term.head.columns for term in terms]).unique()
    weight = torch.zeros(total, len(columns), dtype=torch.float64)
    for term in terms:
        head = term.head
        assert isinstance(head, Linear)
        rows = torch.cat(
            [start[r.layer, r.reduction] + torch.searchsorted(used[r.layer, r.reduction], r.index) for r in term.reads]
        )
        at = torch.searchsorted(columns, head.columns)
        weight.index_put_((rows[:, None], at[None, :]), head.weight.double() * share, accumulate=True)
    reads = [replace(layers[key], index=index) for key, index in used.items()]
    return [Term(tuple(reads), Linear(weight.float(), columns))]


def _side_by_side(terms: list[Term], share: float) -> list[Term]:
    """Small networks of the same inputs and outputs as one."""
    groups: dict[tuple[object, ...], list[Term]] = {}
    for k, term in enumerate(terms):
        head = term.head
        assert isinstance(head, MLP)
        where = tuple((read.layer, read.reduction, read.index.numpy().tobytes()) for read in term.reads)
        dense = len(head.w1) == 1
        groups.setdefault((where, head.columns.numpy().tobytes(), head.activation, dense or k), []).append(term)
    found = []
    for group in groups.values():
        heads = [term.head for term in group if isinstance(term.head, MLP)]
        if len(heads) == 1:
            found.append(Term(group[0].reads, heads[0].scaled(share)))
            continue
        w1 = (torch.cat([head.w1[0] for head in heads], dim=1),)
        b1, w2 = torch.cat([head.b1 for head in heads]), torch.cat([head.w2 * share for head in heads])
        found.append(Term(group[0].reads, MLP(w1, b1, w2, heads[0].columns, heads[0].activation)))
    return found
