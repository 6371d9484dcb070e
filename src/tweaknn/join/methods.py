"""The named methods of a join beside ``theta``: which synapses or small network is fitted on table T.

``best`` (the default) lets validation choose between ``fit``, ``aan`` and their ``mean``; ``retrain-1`` and ``retrain-2`` solve for the
weights of the dissertation's own synapses (section 3.2.4), ``schedule`` alternates joins and retrainings (Table 3.9), and the
selections (``selected``, ``stable``, ``net-gain``) read a few neurons only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from tweaknn.delta import Linear, synapses
from tweaknn.errors import InputError
from tweaknn.join.aans import LARGEST, LEAST, AANChoice, aan, blended, fits
from tweaknn.join.candidates import Candidate, best_linear, controls, once, pick
from tweaknn.join.selected import SELECTIONS, selected
from tweaknn.join.setting import Setting
from tweaknn.join.settle import settle
from tweaknn.join.table import PooledTable, read_values

if TYPE_CHECKING:
    from tweaknn.join.run import SynapticJoin
    from tweaknn.network.reader import Reader

METHODS = ("best", "fit", "aan", "aan-grouped", "mean", *SELECTIONS, "retrain-1", "retrain-2", "schedule", "theta")

SOLVERS = ("convex", "sgd")


def check_method(method: str, schedule: str | None, solver: str, views: int | None) -> None:
    """Raises InputError where a join's settings contradict each other."""
    if (method == "schedule") != (schedule is not None):
        raise InputError("The method schedule and a schedule such as J100+R100+J10 go together; give both or neither.")
    if schedule is not None:
        from tweaknn.join.schedule import parse

        parse(schedule)
    if solver not in SOLVERS:
        raise InputError(f"Unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}.")
    if solver != "convex" and method not in ("retrain-1", "retrain-2", "schedule"):
        raise InputError(
            f"The solver {solver} is for the methods retrain-1, retrain-2 and schedule; {method} is solved otherwise."
        )
    if views is not None and views < 0:
        raise InputError(f"The number of views must be at least 0, not {views}.")


def table_candidates(method: str, setting: Setting, choice: AANChoice | None = None) -> list[Candidate]:
    """Candidates of a method that reads table T only, its controls included.

    Raises:
        InputError: the method is none of these, or an AAN of the size asked for does not fit.
    """
    small = of_means(setting)
    if method == "controls":
        own = []
    elif method == "fit":
        own = [once(small, ("fit",), lambda: best_linear(small)).settle(small, "fit")]
    elif method in SELECTIONS and method != "mixed":
        own = [selected(small, method)]
    elif method in ("aan", "aan-grouped"):
        own = [once(setting, (method, choice), lambda: aan(setting, method, choice)).settle(setting, method)]
    elif method == "best":
        own = best(setting, small, choice)
    elif method == "mean":  # the convex fit alone where there are too few examples for an AAN
        own = best(setting, small, choice)[-1:]
    else:
        raise InputError(f"Unknown method {method!r}; choose one of {', '.join(METHODS)}.")
    return [*own, *controls(small)]


def best(setting: Setting, small: Setting, choice: AANChoice | None = None) -> list[Candidate]:
    """The default's own candidates: the convex fit, an AAN where there are examples enough for one, and their mean."""
    # each of the two has room for half of what a delta may hold, so that their mean has room as well
    half = replace(small, limit=setting.limit // 2)
    fit = once(half, ("fit",), lambda: best_linear(half))
    own = [fit.settle(small, "fit")]
    room = min(LARGEST, setting.limit - fit.delta.parameters)
    if len(setting.train.labels) < LEAST or not fits(setting, room):
        return own
    net = once(setting, ("aan", choice, room), lambda: aan(setting, "aan", choice, room))
    return [*own, net.settle(setting, "aan"), blended(setting, fit, net).settle(setting, "mean")]


_SMALL: WeakKeyDictionary[PooledTable, PooledTable] = WeakKeyDictionary()


def of_means(setting: Setting) -> Setting:
    """The setting with tables of every layer's mean alone, made once for each table."""
    plain = means(setting.train)
    for table in (setting.train, setting.validation):
        if table not in _SMALL and len(plain) < table.features.shape[1]:
            _SMALL[table] = columns_of(table, plain)
    train, held = (_SMALL.get(table, table) for table in (setting.train, setting.validation))
    return replace(setting, train=train, validation=held)


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
    """Some (sorted) columns of a table and of its views."""
    if len(columns) == table.features.shape[1]:
        return table
    reads = tuple(pick(table.reads, columns))
    views = tuple((np.ascontiguousarray(x[:, columns]), z) for x, z in table.views)
    return replace(table, features=np.ascontiguousarray(table.features[:, columns]), reads=reads, views=views)


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
    own = [read for term in base.terms for read in term.reads]
    values = []
    for part in (train, validation):
        with join.bar("Reading chosen neurons", len(part)) as progress:
            values.append(read_values(reader, part.loader(join.batch_size), own, progress=progress))
    c = len(setting.classes)
    mask = np.zeros((values[0].shape[1], c), dtype=bool)
    start = 0
    for term in base.terms:
        assert isinstance(term.head, Linear), "the dissertation's join is linear"
        rows, columns = np.nonzero(term.head.weight.numpy())
        mask[start + rows, term.head.columns.numpy()[columns]] = True
        start += term.neurons
    from tweaknn.join.schedule import retrain

    start_weights = np.zeros(mask.shape)
    start = 0
    for term in base.terms:
        start_weights[start : start + term.neurons, term.head.columns.numpy()] = term.head.weight.numpy()  # type: ignore[union-attr]
        start += term.neurons
    labels = [setting.train.labels, setting.validation.labels]
    offsets = [setting.train.logits, setting.validation.logits]
    heavier = 2.0 if join.method == "retrain-2" else 1.0
    weight = retrain(
        join.solver, values, offsets, labels, start_weights, mask,
        targets=setting.targets, heavier=heavier, seed=setting.seed,
    )  # fmt: skip
    term = synapses(own, torch.from_numpy(weight.astype(np.float32)), range(c))
    delta = replace(setting.frame, terms=(term,), kind=join.method)
    logits = (offsets[1] + values[1] @ weight.astype(np.float32)).astype(np.float32)
    return [settle(setting, join.method, delta, logits, solver=join.solver, synapses=int(mask.sum())), *small]
