"""The best synapses of all blocks, without sorting, or even looking at, most of them.

A mistake that the running maximum has passed is out of the count for good (see :mod:`tweaknn.theta.statistics`), so the
kept ones bound every count from above and are the only ones that are counted. Histograms of the counts tell the n-th
largest count of each class; thresholds are worked out for the few neurons that reach it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tweaknn.theta import kernels
from tweaknn.theta.blocks import Block
from tweaknn.theta.finishing import Finisher
from tweaknn.theta.state import State
from tweaknn.theta.synapses import nth_largest, rank


@dataclass(frozen=True)
class Ranked:
    """The best synapses of one target, best first; all arrays ``(n,)``.

    layer: position in ``Reader.layers``; index: position within the (reduced) layer, row-major;
    weight: signed threshold; count: mistakes it corrects.
    """

    target: int
    layer: np.ndarray
    index: np.ndarray
    weight: np.ndarray
    count: np.ndarray
    fell_back: bool


def histograms(finisher: Finisher) -> np.ndarray:
    """``(c, largest possible count + 1)`` int64: how many neurons of each class have each count."""
    first = finisher.states[0]
    found = np.zeros((len(first.targets), int(first.mistakes.max(initial=0)) + 1), np.int64)
    for b in range(len(finisher.states)):
        kernels.tally(_counts(finisher, b)[0], found)
    return found


def best(
    finisher: Finisher, blocks: Sequence[Block], tallies: np.ndarray, rows: dict[int, int], n: int
) -> dict[int, Ranked]:
    """The ``n`` best of each target (section 3: by count, then threshold, then position), over all blocks.

    tallies: of :func:`histograms`; rows: row of each wanted target.
    """
    nothing = finisher.nothing
    races = {t: _Race(j, n, tallies[j], bool(nothing[j])) for t, j in rows.items()}
    for b, block in enumerate(blocks):
        state = finisher.states[b]
        counts, negative = _counts(finisher, b)
        silent = finisher.silent(b) if any(race.fell_back for race in races.values()) else None
        for race in races.values():
            race.enter(finisher, b, block, state, counts, negative, silent)
    return {t: race.result(t) for t, race in races.items()}


class _Race:
    """The n best of one target so far, and what a neuron needs to be among them."""

    def __init__(self, row: int, n: int, tally: np.ndarray, fell_back: bool) -> None:
        self.row, self.n, self.fell_back = row, n, fell_back
        self.least = nth_largest(tally, n)
        # Places left for neurons level with the n-th largest count: the one that takes the last sets the bar for others.
        self.places = n - int(tally[self.least + 1 :].sum())
        self.bar = 0.0
        self.found: list[tuple[np.ndarray, ...]] = []

    def enter(
        self,
        finisher: Finisher,
        b: int,
        block: Block,
        state: State,
        counts: np.ndarray,
        negative: np.ndarray | None,
        silent: np.ndarray | None,
    ) -> None:
        j = self.row
        cut = finisher.peak_of(self.bar)
        if negative is None:
            i = kernels.hopeful(counts[j], state.peaks[0][-1, j], self.least, cut)
        else:
            lowest = np.where(negative[j], state.peaks[1][-1, j], state.peaks[0][-1, j])
            i = kernels.hopeful(counts[j], lowest, self.least, cut)
        if self.fell_back and silent is not None:
            i = i[~silent[j, i]]
        if not len(i):
            return
        some = np.zeros(len(i), bool) if negative is None else negative[j, i]
        threshold = finisher.threshold(b, j, i, some)
        order = rank(counts[j, i], threshold, n=self.n)
        i, weight = i[order], np.where(some, -threshold, threshold)[order]
        piece = (np.full(len(i), block.layer), i + block.offset, weight, counts[j, i].astype(np.int64))
        self.found.append(piece)
        merged = self.columns()
        self.found = [merged]
        level = np.sort(abs(merged[2][merged[3] == self.least]))
        if len(level) >= self.places > 0:
            self.bar = float(level[len(level) - self.places])

    def result(self, target: int) -> Ranked:
        layer, index, weight, count = self.columns()
        return Ranked(target, layer, index, weight, count, self.fell_back)

    def columns(self) -> tuple[np.ndarray, ...]:
        """Layer, index, weight and count of the best so far."""
        if not self.found:
            none = np.zeros(0, np.int64)
            return none, none, np.zeros(0, np.float32), none
        layer, index, weight, count = (np.concatenate(column) for column in zip(*self.found))
        order = rank(count, abs(weight), n=self.n)
        return layer[order], index[order], weight[order], count[order]


def active(tallies: np.ndarray) -> np.ndarray:
    """``(c,)`` how many neurons have at least half of the largest count of their class (Table 3.2)."""
    sizes = np.arange(tallies.shape[1])
    top = largest(tallies)[:, None]
    return np.where((2 * sizes >= top) & (top > 0), tallies, 0).sum(axis=1)


def largest(tallies: np.ndarray) -> np.ndarray:
    """``(c,)`` the largest count of each class."""
    return np.where(tallies > 0, np.arange(tallies.shape[1]), 0).max(axis=1)


def _counts(finisher: Finisher, b: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Counts of a block, and where the weight is negative; None in the plain form, where it never is."""
    if len(finisher.states[b].peaks) == 1:
        return finisher.counted(b)[0], None
    return finisher.sided(b)
