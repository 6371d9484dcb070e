"""Statistics of one block of neurons while the data streams by: :class:`~tweaknn.theta.statistics.State`, in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tweaknn.theta import kernels
from tweaknn.theta.blocks import Block
from tweaknn.theta.relations import Relations
from tweaknn.theta.sieve import Sieve
from tweaknn.theta.state import Kept, Own, State, start
from tweaknn.theta.statistics import fold, keep, no_room


class Accumulator:
    """Folds micro-batches into one block's state. Buffers are reused; nothing is allocated in the steady state."""

    def __init__(
        self, block: Block, targets: Sequence[int] | np.ndarray, form: str, budget: int = 1, own: bool = False
    ) -> None:
        self.block = block
        empty = start(targets, block.size, form=form, levels=budget)
        self._state = empty
        self._tied, self._mistakes, self._examples = empty.tied.copy(), empty.mistakes.copy(), 0
        self._kept: Kept | None = Kept.empty(1024)
        c = len(empty.targets)
        self._own = Own.empty(c, block.size, form == "signed") if own else None
        self._filled = 0
        self._sieve = Sieve(c, block.size, len(empty.peaks)) if budget == 1 and (c > 1 or form == "signed") else None

    def load(self, state: State) -> None:
        """Go on from a state (taken over, not copied)."""
        self._state = state
        if self._sieve is not None:
            self._sieve = Sieve(len(state.targets), self.block.size, len(state.peaks))
        self._tied, self._mistakes, self._examples = state.tied.copy(), state.mistakes.copy(), state.examples
        self._kept = None if state.kept is None else state.kept.grown(max(1024, len(state.kept)))
        self._filled = 0 if state.kept is None else len(state.kept)
        self._own = state.own

    def fold(self, values: np.ndarray, relations: Relations) -> None:
        """values: ``(n, size of the layer)`` float32, C-contiguous, all of the layer's neurons."""
        state, r = self._state, relations
        if self._sieve is None:
            fold(state.peaks, values, self.block.offset, r, state.form)
        else:
            self._sieve.fold(tuple(p[0] for p in state.peaks), values, self.block.offset, r)
            no_room(state.peaks, values, self.block.offset, r, state.form)
        if self._own is not None:
            self._own.fold(values, self.block.offset, r)
        if self._kept is not None and len(r.wrong):
            first = 0
            while True:
                first, self._filled = keep(state, values, self.block.offset, r, self._kept, self._filled, first)
                if first == len(r.wrong):
                    break
                self.prune()
                if len(self._kept) - self._filled < max(self.block.size, len(self._kept) // 2):
                    self._kept = self._kept.grown(self._filled + max(self.block.size, len(self._kept)))

    def note(self, relations: Relations, n: int) -> None:
        """Count the micro-batch's examples and mistakes."""
        self._tied |= relations.tied
        self._mistakes += np.bincount(relations.wrong_target, minlength=len(self._tied))
        self._examples += n

    def prune(self) -> None:
        """Forget mistakes that can no longer count."""
        if self._kept is not None:
            plus, minus = self._state.lowest
            kept = self._kept
            self._filled = kernels.prune(kept.row, kept.neuron, kept.ratio, self._filled, plus, minus)

    @property
    def kept_bytes(self) -> int:
        """Room taken by the list of mistakes."""
        return 0 if self._kept is None else 12 * len(self._kept)

    @property
    def filled_bytes(self) -> int:
        return 0 if self._kept is None else 12 * self._filled

    def shrink(self) -> None:
        """Prune and give back what is not needed."""
        self.prune()
        if self._kept is not None:
            self._kept = self._kept.part(self._filled)

    def give_up(self) -> None:
        """Drop the list of mistakes: they will be counted in a second pass."""
        self._kept, self._filled = None, 0

    def state(self) -> State:
        """The state so far; its arrays are those that later calls write to."""
        self.prune()
        s = self._state
        kept = None if self._kept is None else self._kept.part(self._filled)
        return State(s.targets, s.form, s.peaks, self._tied, self._mistakes, self._examples, kept, self._own)
