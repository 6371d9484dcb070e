"""From running maxima and kept mistakes to thresholds and counts (Algorithm 1, lines 13-19), block by block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tweaknn.errors import InputError
from tweaknn.theta import kernels
from tweaknn.theta.relations import FLOAT_MAX
from tweaknn.theta.state import Own, State
from tweaknn.theta.synapses import Synapses

EPS2 = 1e-4
"""Default ε2, a fraction of the bound: above the rounding of a float32 network, below anything that matters."""


class Finisher:
    """Finishes neurons that are held in several blocks, one block at a time.

    The cap of unbounded neurons and the 100 % fall-back look at all blocks of a class, so every block is read up to
    three times; they may lie on disk.

    Args:
        states: one a block, of the same targets and form.
        eps2: what is taken off the bound, as a fraction of it, or (``relative=False``) as a number.
        counts: a pair of ``(c, v)`` a block, from a second pass, where the mistakes were given up.
        own: what neurons do on D_t, a block each; by default what the states hold.

    Raises:
        InputError: eps2 out of range.
    """

    def __init__(
        self,
        states: Sequence[State],
        *,
        eps2: float = EPS2,
        relative: bool = True,
        counts: Sequence[tuple[np.ndarray, ...]] | None = None,
        own: Sequence[Own | None] | None = None,
    ) -> None:
        if not eps2 >= 0 or (relative and eps2 >= 1):
            raise InputError(f"eps2 is {eps2}; a fraction from 0 to below 1 is needed, or an absolute number >= 0.")
        self.states, self.eps2, self.relative = states, eps2, relative
        self.counts, self.own = counts, own
        self._cap: np.ndarray | None = None
        self._nothing: np.ndarray | None = None

    @property
    def cap(self) -> np.ndarray:
        """``(sides, c)``: smallest positive 1/threshold of each class, i.e. its largest finite threshold."""
        if self._cap is None:
            caps = []
            for b in range(len(self.states)):
                state = self.states[b]
                limits = [limit(p[-1], state.tied, self.eps2, self.relative) for p in state.peaks]
                caps.append([np.where(x > 0, x, np.inf).min(axis=1) for x in limits])
            self._cap = np.minimum.reduce([np.stack(c) for c in caps])
        return self._cap

    @property
    def nothing(self) -> np.ndarray:
        """``(c,)`` bool: no neuron of the class corrects anything (section 3.2.3)."""
        if self._nothing is None:
            self._nothing = np.ones(len(self.states[0].targets), bool)
            for b in range(len(self.states)):
                for counted in self._counted(b, self.needed(b)):
                    self._nothing &= ~counted.any(axis=1)
        return self._nothing

    def needed(self, b: int) -> tuple[np.ndarray, ...]:
        """1/threshold of block ``b`` as float64 ``(c, v)``, one a sign: the ratio a mistake has to reach.

        Infinite where the threshold is 0; that of the cap where nothing bounds the neuron.
        """
        state = self.states[b]
        limits = (limit(p[-1], state.tied, self.eps2, self.relative) for p in state.peaks)
        return tuple(np.where(x == 0, cap[:, None], x) for x, cap in zip(limits, self.cap))

    def _counted(self, b: int, need: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        state = self.states[b]
        if state.kept is None and self.counts is None:
            raise InputError("The mistakes were not kept: count them in a second pass first.")
        if state.kept is None and self.counts is not None:
            return self.counts[b]
        return count(state, need)

    def part(self, b: int) -> Synapses:
        """Thresholds, counts and signs of block ``b``."""
        state, need = self.states[b], self.needed(b)
        counted = self._counted(b, need)
        own = state.own if self.own is None else self.own[b]
        thresholds = [(1 / n).astype(np.float32) for n in need]
        unbounded = [(p[-1] == 0) & ~state.tied[:, None] for p in state.peaks]
        negative = np.zeros(thresholds[0].shape, bool)
        if state.form == "signed":
            negative = counted[1] > counted[0]  # a negative weight only where it corrects strictly more
            if own is not None and own.total is not None:
                negative[self.nothing] = own.total[self.nothing] < 0
        chosen = [np.where(negative, pair[-1], pair[0]) for pair in (thresholds, counted, unbounded)]
        return Synapses(
            targets=state.targets,
            threshold=chosen[0],
            count=chosen[1].astype(np.int64),
            sign=np.where(negative, -1, 1).astype(np.int8),
            unbounded=chosen[2],
            mistakes=state.mistakes,
            silent=None if own is None else own.spoke == 0,
        )


def limit(peak: np.ndarray, tied: np.ndarray, eps2: float, relative: bool) -> np.ndarray:
    """1/threshold before capping, float64 ``(c, v)``: 0 for an unbounded neuron, inf for threshold 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        p = peak.astype(np.float64)
        if relative:
            needed = p / (1 - eps2)
        else:
            room = 1 / p - eps2
            needed = np.where(p == 0, 0.0, np.where(room > 0, 1 / room, np.inf))
    needed[p >= FLOAT_MAX] = np.inf
    needed[tied] = np.inf
    return needed


def count(state: State, need: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """How many kept mistakes reach ``need``: int32 ``(c, v)``, one a sign; none where the threshold is 0."""
    kept = state.kept
    assert kept is not None
    result = tuple(np.zeros(n.shape, np.int32) for n in need)
    kernels.count_kept(kept.row, kept.neuron, kept.ratio, len(kept), need[0], need[-1], result[0], result[-1])
    for counted, n in zip(result, need):
        counted[np.isinf(n)] = 0
    return result
