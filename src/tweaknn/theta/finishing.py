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
        self.taken, self.absolute = (eps2, 0.0) if relative else (0.0, eps2)
        self.counts, self.own = counts, own
        self._limits: np.ndarray | None = None
        self._nothing: np.ndarray | None = None

    @property
    def limits(self) -> np.ndarray:
        """``(sides, c)`` float64: 1/threshold of an unbounded neuron, which is the class's largest finite threshold.

        Infinite for a class whose thresholds are all 0: D_c holds a tie, or bounds no neuron at all.
        """
        if self._limits is None:
            first = self.states[0]
            least = [np.full(len(first.targets), FLOAT_MAX, np.float32) for _ in first.peaks]
            for b in range(len(self.states)):
                for peak, out in zip(self.states[b].peaks, least):
                    kernels.smallest_positive(peak[-1], out)
            limits = np.empty((len(least), len(first.targets)))
            for side, out in enumerate(least):
                kernels.needs(out[None], np.zeros(1), self.taken, self.absolute, limits[side : side + 1])
            limits[:, first.tied] = np.inf
            self._limits = limits
        return self._limits

    @property
    def nothing(self) -> np.ndarray:
        """``(c,)`` bool: no neuron of the class corrects anything (section 3.2.3)."""
        if self._nothing is None:
            found = np.zeros(len(self.states[0].targets), bool)
            for b in range(len(self.states)):
                state = self.states[b]
                kept = state.kept
                if kept is None:
                    for counted in self.counted(b):
                        found |= counted.any(axis=1)
                else:
                    kernels.corrects(
                        kept.row, kept.neuron, kept.ratio, len(kept), *state.lowest, self.limits[0], self.limits[-1],
                        self.taken, self.absolute, found,
                    )  # fmt: skip
            self._nothing = ~found
        return self._nothing

    def needed(self, b: int) -> tuple[np.ndarray, ...]:
        """1/threshold of block ``b`` as float64 ``(c, v)``, one a sign: the ratio a mistake has to reach.

        Infinite where the threshold is 0; that of the cap where nothing bounds the neuron.
        """
        state = self.states[b]
        found = []
        for side, peak in enumerate(state.peaks):
            found.append(np.empty(peak.shape[1:]))
            kernels.needs(peak[-1], self.limits[side], self.taken, self.absolute, found[-1])
        return tuple(found)

    def counted(self, b: int) -> tuple[np.ndarray, ...]:
        """How many mistakes each neuron of block ``b`` corrects: int32 ``(c, v)``, one a sign.

        Only kept mistakes are looked at: the others were ruled out by the running maximum.

        Raises:
            InputError: the mistakes were given up and no second pass has counted them.
        """
        state = self.states[b]
        kept = state.kept
        if kept is None:
            if self.counts is None:
                raise InputError("The mistakes were not kept: count them in a second pass first.")
            return self.counts[b]
        result = tuple(np.zeros(peak.shape[1:], np.int32) for peak in state.peaks)
        kernels.count_kept(
            kept.row, kept.neuron, kept.ratio, len(kept), *state.lowest, self.limits[0], self.limits[-1],
            self.taken, self.absolute, result[0], result[-1],
        )  # fmt: skip
        return result

    def sided(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Counts int32 and whether the weight is negative, ``(c, v)`` each: negative only if it corrects strictly
        more, and in the fall-back the sign of the mean on D_t."""
        state, counted = self.states[b], self.counted(b)
        own = state.own if self.own is None else self.own[b]
        if state.form == "plain":
            return counted[0], np.zeros(counted[0].shape, bool)
        negative = counted[1] > counted[0]
        if own is not None and own.total is not None:
            negative[self.nothing] = own.total[self.nothing] < 0
        return np.where(negative, counted[1], counted[0]), negative

    def silent(self, b: int) -> np.ndarray | None:
        """``(c, v)`` bool: the neuron is 0 on all of D_t."""
        own = self.states[b].own if self.own is None else self.own[b]
        return None if own is None else own.spoke == 0

    def threshold(self, b: int, row: int, neurons: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """Thresholds float32 of some neurons of a block for the target in ``row``."""
        peaks = self.states[b].peaks
        out = np.zeros(len(neurons), np.float32)
        for side, peak in enumerate(peaks):
            chosen = np.flatnonzero(negative == bool(side))
            some = np.empty(len(chosen), np.float32)
            kernels.thresholds(peak[-1, row, neurons[chosen]], self.limits[side, row], self.taken, self.absolute, some)
            out[chosen] = some
        return out

    def peak_of(self, threshold: float) -> np.float32:
        """A peak above which no threshold reaches ``threshold``: somewhat above the exact one."""
        with np.errstate(over="ignore"):
            room = threshold + self.absolute
            return np.float32(np.inf if room <= 0 else (1 - self.taken) / room * 1.0001)

    def part(self, b: int) -> Synapses:
        """Thresholds, counts and signs of block ``b``."""
        state = self.states[b]
        count, negative = self.sided(b)
        both = [(1 / need).astype(np.float32) for need in self.needed(b)]
        unbounded = [(p[-1] == 0) & ~state.tied[:, None] for p in state.peaks]
        return Synapses(
            targets=state.targets,
            threshold=np.where(negative, both[-1], both[0]),
            count=count.astype(np.int64),
            sign=np.where(negative, -1, 1).astype(np.int8),
            unbounded=np.where(negative, unbounded[-1], unbounded[0]),
            mistakes=state.mistakes,
            silent=self.silent(b),
        )
