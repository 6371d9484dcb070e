"""Candidates for a delta: the method's own and the controls, each brought to its operating point by the same rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tweaknn.delta import Delta, Read, synapses
from tweaknn.fit.convex import LinearFit, fit_path
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.settle import settle
from tweaknn.measure import negative_log_likelihood

L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4)
"""Strengths tried for the convex fit; validation decides."""

CONTROLS = ("bias", "random-neurons", "last-layer")
"""What any method has to beat: a constant on each logit, neurons drawn by lot, the last hidden layer alone."""


def bias_alone(setting: Setting) -> Candidate:
    """Control: nothing but a constant on each logit."""
    return settle(setting, "bias", _renamed(setting.frame, "bias"), setting.validation.logits)


def linear(
    setting: Setting, name: str, columns: np.ndarray, grid: Sequence[float] = L2_GRID, **notes: Any
) -> Candidate:
    """:func:`fitted` synapses at their operating point."""
    delta, logits, l2 = fitted(setting, name, columns, grid)
    return settle(setting, name, delta, logits, l2=l2, neurons_read=len(columns), **notes)


def fitted(
    setting: Setting, name: str, columns: np.ndarray, grid: Sequence[float] = L2_GRID
) -> tuple[Delta, np.ndarray, float]:
    """Synapses from the pooled neurons ``columns`` to all logits, at the optimum of the convex problem (section 3.2.4),
    its L2 chosen by the log loss on validation.

    Returns:
        The delta before any operating point, its validation logits ``(n, c)``, the L2.
    """
    # a class without training examples gets nothing: its best bias would be minus infinity
    present = np.bincount(setting.train.labels, minlength=setting.train.logits.shape[1]) > 0
    fits = fit_path(
        setting.train.features[:, columns],
        setting.train.logits,
        setting.train.labels,
        grid,
        mask=None if present.all() else present,
    )
    features = setting.validation.features[:, columns]
    scored: list[tuple[float, int, LinearFit, np.ndarray]] = []
    for position, fit in enumerate(fits):
        logits = fit.logits(features, setting.validation.logits)
        scored.append((negative_log_likelihood(logits, setting.validation.labels), position, fit, logits))
    _, _, best, logits = min(scored, key=lambda row: row[:2])
    weight = torch.from_numpy(best.weight.astype(np.float32))
    term = synapses(pick(setting.train.reads, columns), weight, range(logits.shape[1]))
    bias = torch.from_numpy(best.bias.astype(np.float32))
    delta = Delta(**{**fields_of(setting.frame), "terms": (term,), "bias": bias, "kind": name})
    return delta, logits, best.l2


def controls(setting: Setting) -> list[Candidate]:
    """The three controls, on the same splits and by the same rule as the method."""
    f = setting.train.features.shape[1]
    last = np.arange(f)[setting.train.spans()[-1]]
    rng = np.random.default_rng(setting.seed)
    few = np.sort(rng.choice(f, size=max(1, f // 4), replace=False))
    return [
        bias_alone(setting),
        linear(setting, "random-neurons", few),
        linear(setting, "last-layer", last),
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


def _renamed(delta: Delta, kind: str) -> Delta:
    return Delta(**{**fields_of(delta), "kind": kind})
