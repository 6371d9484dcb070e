"""Candidates for a delta: the method's own and the controls, each brought to its operating point by the same rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch

from tweaknn.delta import LOGITS, Delta, Linear, Read, Term, synapses
from tweaknn.fit.convex import LogisticProblem
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.settle import settle
from tweaknn.join.table import PooledTable
from tweaknn.measure import tempered_log_loss

L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4)
"""Strengths tried for the convex fit; validation decides."""

DAMPINGS = (0.25, 1.0)
"""Multiples of the base's logits under the synapses, tried in this order; validation decides. A network is surer of the images it was
trained on than it deserves to be, and small weights cannot take that back: with all of its logits, a penalty that suits the synapses
leaves the sum overconfident, and one that does not lets them fit noise."""

CONTROLS = ("bias", "random-neurons", "last-layer")
"""What any method has to beat: a constant on each logit, neurons drawn by lot, the last hidden layer alone."""

WIDEST = 2048
"""Neurons that one convex fit reads at most: its cost grows with the square of their number."""

MUCH = 300_000_000
"""Rows x neurons x classes beyond which the convex fit leaves the views out."""

ROWS = 10_000
"""Examples and views that the choice between convex fits looks at; the fit chosen looks at all."""

_WORSE = 0.005  # nats by which a penalty must be worse than the best so far for the path to end
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
    loss = tempered_log_loss(held.logits, held.labels)
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
    dampings: Sequence[float] = DAMPINGS,
) -> Made:
    """Synapses from the pooled neurons ``columns`` to all logits, at the optimum of the convex problem (section 3.2.4),
    its L2 and the damping of the base's logits chosen on validation.

    What is compared is the log loss at the temperature that suits each best: how sure the sum is on the whole changes no prediction.
    Where there are more columns than the delta's size or :data:`WIDEST` allow, the :func:`strongest` of them. The best L2 at the
    weaker end of ``grid`` is followed once further. Augmented views are further examples.

    Args:
        scale: one number a column of the table, see :class:`~tweaknn.fit.convex.LogisticProblem`.
        sample_weight: ``(n,)`` of the training examples.
        further: follow the grid beyond its weaker end.
        dampings: multiples of the base's logits that are tried; other than 1 only where a c x c matrix is a small part of the limit.
    """
    train, held = setting.train, setting.validation
    # a class without training examples gets nothing: its best bias would be minus infinity
    present = np.bincount(train.labels, minlength=train.logits.shape[1]) > 0
    c = train.logits.shape[1]
    dampings = [d for d in dampings if d == 1.0 or (present.all() and may_damp(setting))] or [1.0]
    matrix = c * c if min(dampings) < 1 else 0
    columns = affordable(replace(setting, limit=setting.limit - matrix), columns, int(present.sum()))
    views = [(train.features, train.logits), *train.views]
    copies = len(views)
    offsets = np.concatenate([z for _, z in views])
    problem = LogisticProblem(
        np.concatenate([x[:, columns] for x, _ in views]) if copies > 1 else train.features[:, columns],
        offsets,
        np.tile(train.labels, copies),
        mask=None if present.all() else present,
        scale=None if scale is None else scale[columns],
        sample_weight=None if sample_weight is None else np.tile(sample_weight, copies),
    )
    features = held.features[:, columns]

    def loss(l2: float, damping: float) -> float:
        rough = problem.solve(l2, warm=True, tolerance=_ROUGH)
        return tempered_log_loss(rough.logits(features, np.float32(damping) * held.logits), held.labels)

    strengths = sorted(grid, reverse=True)
    tried: dict[tuple[float, float], float] = {}
    for damping in dampings if len(strengths) * len(dampings) > 1 else ():
        problem.restart(damping * offsets)
        least = np.inf
        for l2 in strengths:
            tried[damping, l2] = loss(l2, damping)
            least = min(least, tried[damping, l2])
            if tried[damping, l2] > least + _WORSE:
                break  # the loss along the path is as good as convex: weaker penalties are worse still
        if further and len(strengths) > 1 and min(tried, key=tried.__getitem__) == (damping, strengths[-1]):
            tried[damping, strengths[-1] / 10] = loss(strengths[-1] / 10, damping)
    damping, strength = min(tried, key=tried.__getitem__) if tried else (dampings[0], strengths[0])
    if not tried or damping != dampings[-1]:
        problem.restart(damping * offsets)
    best = problem.solve(strength, warm=True)
    logits = best.logits(features, np.float32(damping) * held.logits)
    weight = torch.from_numpy(best.weight.astype(np.float32))[:, present]
    terms = [synapses(pick(train.reads, columns), weight, np.flatnonzero(present).tolist()), *damped(damping, c)]
    delta = replace(setting.frame, terms=tuple(terms), bias=torch.from_numpy(best.bias.astype(np.float32)), kind=name)
    said = {
        "l2": best.l2, "damping": damping, "log_loss": tempered_log_loss(logits, held.labels), "neurons_read": len(columns),
    }  # fmt: skip
    return Made(delta, logits, said)


def may_damp(setting: Setting) -> bool:
    """Whether the c x c matrix that damps logits is a small part of what a delta may hold."""
    return 4 * setting.train.logits.shape[1] ** 2 <= setting.limit


def damped(damping: float, c: int) -> list[Term]:
    """The synapses from each of ``c`` logits to itself that multiply it by ``damping``; none where that is 1."""
    if damping == 1.0:
        return []
    own = Read(LOGITS, "position", (c,), 0, torch.arange(c))
    return [Term((own,), Linear(torch.eye(c) * (damping - 1.0), torch.arange(c)))]


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

    Layers, penalty and damping are chosen on at most :data:`ROWS` rows, views counted; the fit chosen is then solved on all examples,
    and on their views where that is not too much (:data:`MUCH`), for that penalty and a weaker one.
    """
    table = setting.train
    every, last = np.arange(table.features.shape[1]), last_layer(table)
    n, copies = len(table.labels), 1 + len(table.views)
    few = max(ROWS // copies, 1)
    some = np.sort(np.random.default_rng(setting.seed).permutation(n)[:few])
    first = replace(setting, train=table.rows(some)) if n > few else setting
    kinds: dict[str, tuple[np.ndarray, np.ndarray | None]] = {"last": (last, None)}
    if len(last) < len(every):
        kinds |= {"all": (every, None), "graded": (every, depth(table) ** 2)}
    tried = {kind: fitted(first, name, columns, scale=scale) for kind, (columns, scale) in kinds.items()}
    best = min(tried, key=lambda kind: tried[kind].notes["log_loss"])
    made = tried[best]
    if n > few:
        columns, scale = kinds[best]
        much = n * copies * min(len(columns), WIDEST) * len(setting.classes) > MUCH
        whole = replace(setting, train=replace(table, views=())) if much else setting
        near = [made.notes["l2"], made.notes["l2"] / 10]  # more rows need a weaker penalty
        again = fitted(whole, name, columns, near, scale=scale, further=False, dampings=[made.notes["damping"]])
        made = again if again.notes["log_loss"] < made.notes["log_loss"] else made
    return Made(made.delta, made.logits, {**made.notes, "layers_fitted": best})


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def by_lot(setting: Setting) -> np.ndarray:
    """Positions of a quarter of the neurons, drawn."""
    f = setting.train.features.shape[1]
    return np.sort(np.random.default_rng(setting.seed).choice(f, size=max(1, f // 4), replace=False))


def controls(setting: Setting) -> list[Candidate]:
    """The three controls, on the same splits and by the same rule as the method."""
    return [
        bias_alone(setting),
        linear(setting, "random-neurons", by_lot(setting)),
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
