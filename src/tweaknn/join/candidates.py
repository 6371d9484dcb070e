"""Candidates for a delta: the method's own and the controls, each brought to its operating point by the same rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch

from tweaknn.delta import Delta, Read, synapses
from tweaknn.fit.convex import LogisticProblem
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.settle import settle
from tweaknn.join.table import PooledTable
from tweaknn.measure import negative_log_likelihood

L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4)
"""Strengths tried for the convex fit; validation decides."""

CONTROLS = ("bias", "random-neurons", "last-layer")
"""What any method has to beat: a constant on each logit, neurons drawn by lot, the last hidden layer alone."""

WIDEST = 2048
"""Neurons that one convex fit reads at most: its cost grows with the square of their number."""

MUCH = 300_000_000
"""Rows x neurons x classes beyond which the convex fit leaves the views out."""

ROWS = 10_000
"""Examples that the choice between convex fits looks at; the fit chosen looks at all."""

_ROUGH = 5e-4  # largest gradient entry at which strengths are compared; only the chosen one is solved to its optimum


@dataclass(frozen=True, eq=False)
class Made:
    """A delta before any operating point, its validation logits ``(n, c)``, and what was chosen on the way."""

    delta: Delta
    logits: np.ndarray
    notes: dict[str, Any] = field(default_factory=dict)

    def settle(self, setting: Setting, name: str) -> Candidate:
        """The candidate it is at its operating point."""
        return settle(setting, name, replace(self.delta, kind=name), self.logits, **self.notes)


_KEPT: WeakKeyDictionary[PooledTable, list[tuple[tuple[Any, ...], Made]]] = WeakKeyDictionary()


def once(setting: Setting, key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
    """What ``make`` gives, kept as long as the training table lives: no fit depends on the targets or the promise, so that a join for
    another target on the same tables costs an operating point and nothing else.

    ``key`` says everything beside the tables that the fit depends on.
    """
    kept = _KEPT.setdefault(setting.train, [])
    whole = (*key, setting.seed, setting.limit)
    for other, made in kept:
        if other[1:] == whole and other[0]() is setting.validation:
            return made
    made = make()
    kept.append(((ref(setting.validation), *whole), made))
    return made


def bias_alone(setting: Setting) -> Candidate:
    """Control: nothing but a constant on each logit."""
    held = setting.validation
    loss = negative_log_likelihood(held.logits, held.labels)
    return settle(setting, "bias", replace(setting.frame, kind="bias"), held.logits, log_loss=loss)


def linear(
    setting: Setting, name: str, columns: np.ndarray, grid: Sequence[float] = L2_GRID, **notes: Any
) -> Candidate:
    """:func:`fitted` synapses at their operating point."""
    made = once(setting, (name, columns.tobytes(), tuple(grid)), lambda: fitted(setting, name, columns, grid))
    return Made(made.delta, made.logits, {**made.notes, **notes}).settle(setting, name)


def fitted(
    setting: Setting,
    name: str,
    columns: np.ndarray,
    grid: Sequence[float] = L2_GRID,
    *,
    scale: np.ndarray | None = None,
    sample_weight: np.ndarray | None = None,
    further: bool = True,
) -> Made:
    """Synapses from the pooled neurons ``columns`` to all logits, at the optimum of the convex problem (section 3.2.4),
    its L2 chosen by the log loss on validation.

    Where there are more columns than the delta's size or :data:`WIDEST` allow, the :func:`strongest` of them. The best L2 at the
    weaker end of ``grid`` is followed once further. Augmented views are further examples.

    Args:
        scale: one number a column of the table, see :class:`~tweaknn.fit.convex.LogisticProblem`.
        sample_weight: ``(n,)`` of the training examples.
        further: follow the grid beyond its weaker end.
    """
    train, held = setting.train, setting.validation
    # a class without training examples gets nothing: its best bias would be minus infinity
    present = np.bincount(train.labels, minlength=train.logits.shape[1]) > 0
    columns = affordable(setting, columns, int(present.sum()))
    views = [(train.features, train.logits), *train.views]
    copies = len(views)
    problem = LogisticProblem(
        np.concatenate([x[:, columns] for x, _ in views]) if copies > 1 else train.features[:, columns],
        np.concatenate([z for _, z in views]),
        np.tile(train.labels, copies),
        mask=None if present.all() else present,
        scale=None if scale is None else scale[columns],
        sample_weight=None if sample_weight is None else np.tile(sample_weight, copies),
    )
    features = held.features[:, columns]

    def loss(l2: float) -> float:
        rough = problem.solve(l2, warm=True, tolerance=_ROUGH)
        return negative_log_likelihood(rough.logits(features, held.logits), held.labels)

    strengths = sorted(grid, reverse=True)
    losses = {l2: loss(l2) for l2 in strengths} if len(strengths) > 1 else {strengths[0]: 0.0}
    if further and len(strengths) > 1 and min(losses, key=losses.__getitem__) == strengths[-1]:
        losses[strengths[-1] / 10] = loss(strengths[-1] / 10)
    best = problem.solve(min(losses, key=losses.__getitem__), warm=True)
    logits = best.logits(features, held.logits)
    weight = torch.from_numpy(best.weight.astype(np.float32))[:, present]
    term = synapses(pick(train.reads, columns), weight, np.flatnonzero(present).tolist())
    delta = replace(
        setting.frame, terms=(term,), bias=torch.from_numpy(best.bias.astype(np.float32)), kind=name
    )
    said = {"l2": best.l2, "log_loss": negative_log_likelihood(logits, held.labels), "neurons_read": len(columns)}
    return Made(delta, logits, said)


def affordable(setting: Setting, columns: np.ndarray, classes: int) -> np.ndarray:
    """As many of the columns as a fit to ``classes`` logits may read: the size limit of a delta, and :data:`WIDEST`."""
    most = min(WIDEST, max((setting.limit - setting.train.logits.shape[1]) // max(classes, 1), 1))
    if len(columns) <= most:
        return columns
    score = strength(setting.train, columns)
    return np.sort(columns[np.argsort(-score, kind="stable")[:most]])


def strength(table: PooledTable, columns: np.ndarray) -> np.ndarray:
    """How steeply the loss falls along each column ``(f,)``, over all logits together, where no synapse exists yet.

    The norm of the gradient for a standardised neuron: the penalty at which it would enter a group-sparse fit first. The class
    frequencies are set right beforehand, so that a neuron is not rewarded for a shift that a constant does as well.
    """
    z = table.logits.astype(np.float64)
    onehot = np.eye(z.shape[1])[table.labels]
    for _ in range(20):  # the biases' own fit
        p = _softmax(z)
        z += 0.7 * np.log((onehot.mean(0) + 1e-6) / (p.mean(0) + 1e-6))
    r = (_softmax(z) - onehot).astype(np.float32)
    score = np.empty(len(columns))
    for s in range(0, len(columns), 512):
        x = table.features[:, columns[s : s + 512]]
        std = x.std(0, dtype=np.float64)
        moved = np.abs(x.mean(0, dtype=np.float64))
        slope = (x - x.mean(0)).T @ r / len(x)
        alive = std > 1e-7 * moved + 1e-30
        score[s : s + 512] = np.where(alive, np.linalg.norm(slope, axis=1) / np.where(alive, std, 1.0), 0.0)
    return score


def depth(table: PooledTable) -> np.ndarray:
    """``(f,)`` how far back in the network each column's layer lies: 1 for the last, towards 0 for the first."""
    order = {layer: k for k, layer in enumerate(dict.fromkeys(read.layer for read in table.reads), start=1)}
    return np.concatenate([np.full(int(r.index.numel()), order[r.layer] / len(order)) for r in table.reads])


def last_layer(table: PooledTable) -> np.ndarray:
    """Columns of the last hidden layer."""
    return np.arange(table.features.shape[1])[table.spans()[-1]]


def best_linear(setting: Setting, name: str = "fit") -> Made:
    """The convex fit that validation's log loss prefers: of all layers alike, of all with the early ones penalised more (by the
    fourth power of their depth, so that with many classes and few examples the last ones decide), of the last one alone.

    Layers and penalty are chosen on at most :data:`ROWS` examples without their views; the fit chosen is then solved on all of them,
    and on the views where that is not too much (:data:`MUCH`), for that penalty and a weaker one if there are more rows now.
    """
    table = setting.train
    every, last = np.arange(table.features.shape[1]), last_layer(table)
    n, copies = len(table.labels), 1 + len(table.views)
    some = np.sort(np.random.default_rng(setting.seed).permutation(n)[:ROWS])
    first = replace(setting, train=replace(table, views=()).rows(some) if n > ROWS else replace(table, views=()))
    kinds: dict[str, tuple[np.ndarray, np.ndarray | None]] = {"last": (last, None)}
    if len(last) < len(every):
        kinds |= {"all": (every, None), "graded": (every, depth(table) ** 2)}
    tried = {kind: fitted(first, name, columns, scale=scale) for kind, (columns, scale) in kinds.items()}
    best = min(tried, key=lambda kind: tried[kind].notes["log_loss"])
    made = tried[best]
    if copies > 1 or n > ROWS:
        columns, scale = kinds[best]
        much = n * copies * min(len(columns), WIDEST) * len(setting.classes) > MUCH
        whole = replace(setting, train=replace(table, views=())) if much else setting
        weaker = [made.notes["l2"] / 10] if n > ROWS else []
        again = fitted(whole, name, columns, [made.notes["l2"], *weaker], scale=scale, further=False)
        made = again if again.notes["log_loss"] < made.notes["log_loss"] else made
    return Made(made.delta, made.logits, {**made.notes, "layers_fitted": best})


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def controls(setting: Setting) -> list[Candidate]:
    """The three controls, on the same splits and by the same rule as the method."""
    f = setting.train.features.shape[1]
    rng = np.random.default_rng(setting.seed)
    few = np.sort(rng.choice(f, size=max(1, f // 4), replace=False))
    return [
        bias_alone(setting),
        linear(setting, "random-neurons", few),
        linear(setting, "last-layer", last_layer(setting.train)),
    ]


def pick(reads: Sequence[Read], columns: np.ndarray) -> list[Read]:
    """The reads of some columns (sorted) of a table."""
    chosen = []
    start = 0
    for read in reads:
        stop = start + int(read.index.numel())
        inside = columns[(columns >= start) & (columns < stop)] - start
        if len(inside):
            index = read.index[torch.from_numpy(np.asarray(inside, dtype=np.int64))]
            chosen.append(Read(read.layer, read.reduction, read.shape, read.channel_axis, index))
        start = stop
    return chosen


def fields_of(delta: Delta) -> dict[str, Any]:
    return {name: getattr(delta, name) for name in delta.__dataclass_fields__}
