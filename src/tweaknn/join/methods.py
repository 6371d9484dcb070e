"""The named methods of a join beside ``theta``: which synapses or small network is fitted on table T.

``best`` (the default) lets validation choose between ``fit`` and ``aan``; ``retrain-1`` and ``retrain-2`` solve for the weights of
the dissertation's own synapses (section 3.2.4), ``selected`` reads a few stable neurons only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tweaknn.delta import LOGITS, MLP, Linear, Read, Term, synapses
from tweaknn.errors import InputError
from tweaknn.fit.aan import AANFit, AANSettings, fit_aan
from tweaknn.fit.convex import fit_path
from tweaknn.fit.selection import group_sparse
from tweaknn.join.candidates import L2_GRID, controls, linear, pick
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.settle import settle
from tweaknn.join.table import PooledTable
from tweaknn.measure import negative_log_likelihood

if TYPE_CHECKING:
    from tweaknn.join.run import SynapticJoin
    from tweaknn.network.reader import Reader

METHODS = ("best", "fit", "aan", "aan-grouped", "selected", "retrain-1", "retrain-2", "theta")

LEAST_AAN = 500
"""Training examples below which ``best`` does not try an MLP."""


def table_candidates(method: str, setting: Setting) -> list[Candidate]:
    """Candidates of a method that reads table T only, its controls included.

    Raises:
        InputError: the method is none of these.
    """
    plain = means(setting.train)
    small = replace(setting, train=columns_of(setting.train, plain), validation=columns_of(setting.validation, plain))
    every = np.arange(len(plain))
    if method == "fit":
        own = [linear(small, "fit", every)]
    elif method == "selected":
        own = [selected(small)]
    elif method in ("aan", "aan-grouped"):
        own = [aan(setting, method)]
    elif method == "best":
        own = [linear(small, "fit", every)]
        if len(setting.train.labels) >= LEAST_AAN:
            own.append(aan(setting, "aan"))
    else:
        raise InputError(f"Unknown method {method!r}; choose one of {', '.join(METHODS)}.")
    return [*own, *controls(small)]


def reductions_of(method: str) -> tuple[str, ...]:
    """Poolings of every layer that a method reads."""
    return ("mean", "max") if method in ("best", "aan", "aan-grouped") else ("mean",)


def last_stage(reader: Reader) -> list[str]:
    """Names of the layers that have the last layers' resolution, at most two: where a 2 x 2 grid is worth its place."""
    maps = [layer for layer in reader.layers if len(layer.spatial) == 2 and min(layer.spatial) > 1]
    return [layer.name for layer in maps if layer.spatial == maps[-1].spatial][-2:] if maps else []


def means(table: PooledTable) -> np.ndarray:
    """Columns of the first pooling of each layer (its mean)."""
    seen: set[str] = set()
    chosen = []
    for read, span in zip(table.reads, table.spans(), strict=True):
        if read.layer not in seen:
            seen.add(read.layer)
            chosen.append(np.arange(span.start, span.stop))
    return np.concatenate(chosen)


def columns_of(table: PooledTable, columns: np.ndarray) -> PooledTable:
    """Some (sorted) columns of a table."""
    if len(columns) == table.features.shape[1]:
        return table
    reads = tuple(pick(table.reads, columns))
    return replace(table, features=np.ascontiguousarray(table.features[:, columns]), reads=reads)


def aan(setting: Setting, name: str, settings: AANSettings | None = None) -> Candidate:
    """An AAN (chapter 4) on all columns of the table, at its operating point; ``aan-grouped``: a hidden group a stage.

    The epoch is chosen by the log loss on validation, and so is whether the base's logits are damped.
    """
    train, held = setting.train, setting.validation
    if settings is None:
        n = len(train.labels)
        batch = int(np.clip(n // 40, 32, 1024))
        settings = AANSettings(seed=setting.seed, batch=batch, rate=3e-3 * (batch / 1024) ** 0.5)
    groups = stages(train) if name == "aan-grouped" else None
    validation = (held.features, held.logits, held.labels)
    found = fit_aan(
        train.features, train.logits, train.labels, settings, groups=groups, validation=validation, views=train.views
    )
    logits = found.logits(held.features, held.logits)
    delta = replace(setting.frame, terms=terms_of(found, train), bias=torch.from_numpy(found.bias), kind=name)
    hidden, epochs = int(found.b1.size), len(found.history)
    return settle(setting, name, delta, logits, hidden=hidden, epochs=epochs, damping=found.damping)


def terms_of(found: AANFit, table: PooledTable) -> tuple[Term, ...]:
    """An AAN as terms of a delta: the MLP, and the synapses from the logits to themselves that damp them."""
    c = len(found.bias)
    reads: list[Read] = []
    for columns in found.columns:
        reads += pick(table.reads, columns)
    w1 = tuple(torch.from_numpy(w) for w in found.w1)
    head = MLP(w1, torch.from_numpy(found.b1), torch.from_numpy(found.w2), torch.arange(c), "relu")
    terms = [Term(tuple(reads), head)]
    if found.damping != 1.0:
        own = Read(LOGITS, "position", (c,), 0, torch.arange(c))
        terms.append(Term((own,), Linear(torch.eye(c) * (found.damping - 1.0), torch.arange(c))))
    return tuple(terms)


def stages(table: PooledTable) -> list[np.ndarray]:
    """Columns of each stage: layers of one resolution (or, without maps, of one width) together (Fig. 4.1a)."""
    found: dict[Any, list[np.ndarray]] = {}
    for read, span in zip(table.reads, table.spans(), strict=True):
        spatial = tuple(n for axis, n in enumerate(read.shape) if axis != read.channel_axis)
        key = spatial if spatial else ("flat", read.shape)
        found.setdefault(key, []).append(np.arange(span.start, span.stop))
    return [np.concatenate(parts) for parts in found.values()]


def selected(setting: Setting, most: int = 40) -> Candidate:
    """``most`` neurons that a group-sparse fit keeps, refitted without that penalty."""
    table = setting.train
    chosen = np.sort(group_sparse(table.features, table.logits, table.labels, most).order[:most])
    return linear(setting, "selected", chosen)


def retrained(join: SynapticJoin, setting: Setting, reader: Reader, train: Any, validation: Any) -> list[Candidate]:
    """Synaptic retraining-1 or -2: the dissertation's synapses, their weights at the optimum of the convex problem.

    Variant 2 doubles the target's loss. Only the join's synapses take part; then the operating point.
    """
    from tweaknn.join.dissertation import theta_candidates

    found = {c.name: c for c in theta_candidates(join, setting, reader, train, validation)}
    base = found["theta"].delta
    small = [found[name] for name in found if name != "theta"]
    if not base.terms:
        return [*found.values()]
    values = [_values(reader, part, base.terms, join.batch_size, join.bar) for part in (train, validation)]
    c = len(setting.classes)
    mask = np.zeros((values[0].shape[1], c), dtype=bool)
    start = 0
    for term in base.terms:
        assert isinstance(term.head, Linear), "the dissertation's join is linear"
        rows, columns = np.nonzero(term.head.weight.numpy())
        mask[start + rows, term.head.columns.numpy()[columns]] = True
        start += term.neurons
    labels = setting.train.labels
    heavier = 2.0 if join.method == "retrain-2" else 1.0
    weights = np.where(np.isin(labels, setting.targets), heavier, 1.0)
    fits = fit_path(values[0], setting.train.logits, labels, L2_GRID, mask=mask, sample_weight=weights)
    held, held_labels = setting.validation.logits, setting.validation.labels
    scored = [(negative_log_likelihood(f.logits(values[1], held), held_labels), k) for k, f in enumerate(fits)]
    best = fits[min(scored)[1]]
    reads = [read for term in base.terms for read in term.reads]
    term = synapses(reads, torch.from_numpy(best.weight.astype(np.float32)), range(c))
    bias = torch.from_numpy(best.bias.astype(np.float32))
    delta = replace(setting.frame, terms=(term,), bias=bias, kind=join.method)
    logits = best.logits(values[1], held)
    return [settle(setting, join.method, delta, logits, l2=best.l2, synapses=int(mask.sum())), *small]


def _values(
    reader: Reader, examples: Any, terms: tuple[Term, ...], batch_size: int, bar: Callable[[str, int], Any]
) -> np.ndarray:
    """Values (n, f) of the neurons the terms read, in one pass."""
    reads = [read for term in terms for read in term.reads]
    position = {layer.name: k for k, layer in enumerate(reader.layers)}
    blocks = []
    done = 0
    with bar("Reading chosen neurons", len(examples)) as progress:
        for x, y in examples.loader(batch_size):
            row: list[np.ndarray | None] = [None] * len(reads)

            def sink(k: int, activation: torch.Tensor, row: list = row) -> None:
                for r, read in enumerate(reads):
                    if position[read.layer] == k:
                        row[r] = read.pick(activation).float().cpu().numpy()

            reader(x, sink)
            blocks.append(np.concatenate([part for part in row if part is not None], axis=1))
            done += len(y)
            progress(done)
    return np.concatenate(blocks)
