"""The state of Algorithm θ over a stream: running maxima and the mistakes that may still be counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tweaknn.errors import InputError
from tweaknn.theta import kernels
from tweaknn.theta.kernels import CHUNK
from tweaknn.theta.relations import Relations
from tweaknn.theta.synapses import FORMS


@dataclass(frozen=True)
class Kept:
    """Mistakes that may still count: target row, neuron, ratio |V|/m (negative where V < 0 in the signed form)."""

    row: np.ndarray
    neuron: np.ndarray
    ratio: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @staticmethod
    def empty(room: int = 0) -> Kept:
        return Kept(np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.float32))

    def part(self, size: int) -> Kept:
        """The first ``size`` of them, as arrays of their own."""
        return Kept(self.row[:size].copy(), self.neuron[:size].copy(), self.ratio[:size].copy())

    def grown(self, room: int) -> Kept:
        """The same with room for more."""
        larger = Kept.empty(room)
        for a, b in zip((larger.row, larger.neuron, larger.ratio), (self.row, self.neuron, self.ratio)):
            a[: len(b)] = b
        return larger


@dataclass(frozen=True)
class Own:
    """What neurons do on D_t, for the 100 % fall-back (section 3.2.3).

    spoke: ``(c, v)`` uint8, 1 where the neuron is not 0 on some example. total: ``(c, v)`` int64, sum of V in units of
    2^-24, whose sign the signed form takes; None where it was not asked for.
    """

    spoke: np.ndarray
    total: np.ndarray | None = None
    finished: np.ndarray | None = None

    @staticmethod
    def empty(c: int, v: int, total: bool) -> Own:
        sums = np.zeros((c, v), np.int64) if total else None
        return Own(np.zeros((c, v), np.uint8), sums, np.zeros((c, -(-v // CHUNK)), np.uint8))

    def copy(self) -> Own:
        arrays = (self.spoke, self.total, self.finished)
        return Own(*(None if a is None else a.copy() for a in arrays))  # type: ignore[arg-type]

    def fold(self, values: np.ndarray, offset: int, r: Relations) -> None:
        """Take in a batch, in place."""
        if not len(r.own):
            return
        if self.finished is not None:
            kernels.listen(values, offset, r.own, r.own_target, self.spoke, self.finished)
        if self.total is not None:
            kernels.lean(values, offset, r.own, r.own_target, self.total)

    def merged(self, other: Own) -> Own:
        total = None if self.total is None or other.total is None else self.total + other.total
        finished = None
        if self.finished is not None and other.finished is not None:
            finished = self.finished | other.finished
        return Own(self.spoke | other.spoke, total, finished)


@dataclass(frozen=True)
class State:
    """Statistics of ``v`` neurons for ``c`` targets after ``examples`` examples.

    peaks: one array a sign of the weight (one in the plain form), ``(levels, c, v)`` float32: the largest ratios
        |V|/m over D_c, largest first (and of D_t in the signed form). One level gives the plain minimum of the bounds.
    tied: ``(c,)`` bool, D_c holds a tie. mistakes: ``(c,)``, size of D_w so far.
    kept: the mistakes that may count; None when they were given up for lack of room and need a second pass.
    own: see :class:`Own`; None when not asked for.
    """

    targets: np.ndarray
    form: str
    peaks: tuple[np.ndarray, ...]
    tied: np.ndarray
    mistakes: np.ndarray
    examples: int
    kept: Kept | None
    own: Own | None = None

    @property
    def neurons(self) -> int:
        """Number of neurons ``v``."""
        return int(self.peaks[0].shape[2])

    @property
    def levels(self) -> int:
        """The budget q: how many of the largest ratios are kept."""
        return int(self.peaks[0].shape[0])

    @property
    def lowest(self) -> tuple[np.ndarray, np.ndarray]:
        """The limits a mistake has to reach, for positive and negative weights."""
        return self.peaks[0][-1], self.peaks[-1][-1]


def start(
    targets: Sequence[int] | np.ndarray, neurons: int, *, form: str = "plain", levels: int = 1, own: bool = False
) -> State:
    """An empty state. ``levels`` is the budget q: the bound is the q-th smallest instead of the minimum.

    Raises:
        InputError: unknown form, no or repeated targets, no neurons, levels below 1.
    """
    wanted = np.asarray(targets, np.int64).reshape(-1)
    if form not in FORMS:
        raise InputError(f"Unknown form {form!r}; choose one of {', '.join(FORMS)}.")
    if not len(wanted) or len(np.unique(wanted)) != len(wanted) or wanted.min() < 0:
        raise InputError(f"Targets have to be distinct class indices, at least one; got {wanted.tolist()}.")
    if neurons < 1 or levels < 1:
        raise InputError(f"At least one neuron and a budget of at least 1 are needed; got {neurons} and {levels}.")
    c = len(wanted)
    sides = 1 if form == "plain" else 2
    peaks = tuple(np.zeros((levels, c, neurons), np.float32) for _ in range(sides))
    summary = Own.empty(c, neurons, True) if own else None
    return State(wanted, form, peaks, np.zeros(c, bool), np.zeros(c, np.int64), 0, Kept.empty(), summary)
