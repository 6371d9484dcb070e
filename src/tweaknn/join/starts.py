"""Where the search of an operating point begins, which classes it moves together, and how hard it tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tweaknn.join.counting import TargetSet
from tweaknn.join.search import Search
from tweaknn.join.smooth import smooth_point


@dataclass(frozen=True)
class Effort:
    """How hard to search; the defaults take under a second for 50,000 examples of 100 classes.

    Lengths are in medians of the lead of the best score over the next. ``stages``: (window, price of broken rules) of the climbs from each
    start; ``sweeps`` of each; ``pairs``: most pairs of classes that are moved together at the end; ``steps`` and ``trials`` of the pattern
    search over several targets; ``smooth_rows``, ``temperatures`` of the smoothed starts; ``large``: examples times classes above which
    less is tried; ``kicks``: random ones at the best point, at most ``work`` over examples times classes; ``blows``: their size, and the
    window of the climb after them.
    """

    stages: tuple[tuple[float, float], ...] = ((2.5, 2.0), (1.0, 10.0), (1.0, 1000.0), (0.33, 1000.0))
    sweeps: int = 4
    pairs: int = 60
    steps: tuple[float, ...] = (0.6, 0.25, 0.12, 0.06, 0.03, 0.015, 0.007)
    trials: int = 60
    smooth_rows: int = 4000
    large: int = 1_000_000
    kicks: int = 500
    work: float = 1.5e7
    blows: tuple[tuple[float, float], ...] = ((0.01, 0.08), (0.05, 0.08), (0.2, 0.33), (0.8, 0.33))
    temperatures: tuple[float, ...] = (0.15, 0.05)


LIGHT = Effort(kicks=60)
"""For points that are only compared with one another; the one that is taken is searched for in earnest."""

QUICK = Effort(stages=((0.66, 1000.0), (0.2, 1000.0)), sweeps=4, pairs=0, steps=(0.1,), trials=12, temperatures=(), kicks=0)
"""From one operating point to a neighbouring one, whose biases are among the starts."""


def moves_of(c: int, sets: list[TargetSet], effort: Effort) -> tuple[np.ndarray, np.ndarray]:
    """Sets of classes to move together: each alone, the targets as one; and the same with all pairs, for few classes."""
    moves = [np.arange(c) == j for j in range(c)]
    together = np.isin(np.arange(c), [t.position for t in sets if t.position is not None])
    if 1 < together.sum() < c:
        moves.append(together)
    alone = np.array(moves)
    if c * (c - 1) // 2 <= effort.pairs:
        moves += [np.isin(np.arange(c), pair) for pair in combinations(range(c), 2)] if c > 2 else []
    return alone, np.array(moves)


def starts_of(search: Search, given: Sequence[np.ndarray], effort: Effort, large: bool) -> list[np.ndarray]:
    starts = [np.zeros(search.c), *(np.asarray(b, dtype=np.float64) for b in given)]
    if not effort.temperatures:
        return starts
    unit = search.unit
    bias = np.zeros(search.c)
    for t in effort.temperatures:
        bias = smooth_point(search, t * unit, effort.smooth_rows if not large else effort.smooth_rows // 2, bias)
        starts.append(bias.copy())
    return [*starts[1:-2], starts[-1]] if large else starts
