"""Which classes contest which examples: the few scores that can decide a prediction while biases stay in a box.

Of 100 logits of an example all but a handful lie so far below the best that no bias in reach lifts them past it. A :class:`Contest`
keeps the others, by example and by class, for biases near a reference: a class is left out of an example when its score there is
more than ``width`` below the best. While the differences of biases from the reference spread by at most ``width - window``, a score
that was left out stays more than ``window`` behind, so a line search of that length over what is kept is exact. Examples that only
one class contests cannot change their prediction; they are counted once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np


@dataclass(frozen=True, eq=False)
class Contest:
    """Scores within ``width`` of the best at biases ``centre``, of examples that at least two classes contest.

    Attributes:
        centre: (c,) reference biases.
        width: how far below the best a score may lie to be kept.
        rows: (m,) the contested examples.
        start: (m + 1,) entries of each of them, in order of class; ``classes`` and ``scores`` (e,) hold what they are.
        first: (c + 1,) entries of each class in ``entries`` (e,), which points into ``classes`` and ``scores``; ``row_of`` (e,) is the
            place in ``rows`` of each entry.
        settled: (n,) the predicted class of an example that is not contested, else -1.
    """

    centre: np.ndarray
    width: float
    rows: np.ndarray
    start: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    first: np.ndarray
    entries: np.ndarray
    row_of: np.ndarray
    settled: np.ndarray

    def reaches(self, bias: np.ndarray, window: float) -> bool:
        """Whether a line search of length ``window`` from ``bias`` is exact."""
        moved = bias - self.centre
        return float(moved.max() - moved.min()) + window <= self.width

    @property
    def parts(self) -> tuple:
        """What the compiled search takes."""
        return (self.centre, self.width, self.rows, self.start, self.classes, self.scores, self.first, self.entries, self.row_of)

    @classmethod
    def around(cls, z: np.ndarray, bias: np.ndarray, width: float, everybody: bool = False) -> Contest:
        """Collect what is contested among the scores ``z`` (n, c) around ``bias`` (c,); ``everybody``: the other examples as well."""
        centre = np.array(bias, dtype=np.float64)
        counts, settled = _count(z, centre, width)
        if everybody:
            settled[:] = -1
        rows = np.flatnonzero(settled < 0)
        start = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts[rows], out=start[1:])
        classes, scores, per_class = _collect(z, centre, width, rows, start)
        first = np.zeros(z.shape[1] + 1, np.int64)
        np.cumsum(per_class, out=first[1:])
        entries, row_of = _by_class(start, classes, first)
        return cls(centre, width, rows, start, classes, scores, first, entries, row_of, settled)


@nb.njit(cache=True)
def _count(z, bias, width):  # pragma: no cover - compiled
    n, c = z.shape
    counts, settled = np.empty(n, np.int64), np.full(n, -1, np.int64)
    s = np.empty(c)
    for k in range(n):
        best, at = -np.inf, 0
        for j in range(c):
            s[j] = z[k, j] + bias[j]
            best = max(best, s[j])
        least = best - width
        count = 0
        for j in range(c):
            if s[j] >= least:
                count += 1
                at = j
        counts[k] = count
        if count == 1:
            settled[k] = at
    return counts, settled


@nb.njit(cache=True)
def _collect(z, bias, width, rows, start):  # pragma: no cover - compiled
    c = z.shape[1]
    classes, scores = np.empty(start[-1], np.int32), np.empty(start[-1])
    per_class = np.zeros(c, np.int64)
    s = np.empty(c)
    for r in range(len(rows)):
        k = rows[r]
        best = -np.inf
        for j in range(c):
            s[j] = z[k, j] + bias[j]
            best = max(best, s[j])
        e = start[r]
        for j in range(c):
            if s[j] >= best - width:
                classes[e], scores[e] = j, z[k, j]
                per_class[j] += 1
                e += 1
    return classes, scores, per_class


@nb.njit(cache=True)
def _by_class(start, classes, first):  # pragma: no cover - compiled
    entries, row_of = np.empty(len(classes), np.int64), np.empty(len(classes), np.int64)
    at = first[:-1].copy()
    for r in range(len(start) - 1):
        for e in range(start[r], start[r + 1]):
            row_of[e] = r
            entries[at[classes[e]]] = e
            at[classes[e]] += 1
    return entries, row_of


@nb.njit(cache=True)
def predictions(z, bias):  # pragma: no cover - compiled
    """Best class of every row of ``z + bias`` in the arithmetic of ``z`` (ties to the lowest index, as ``torch.argmax``)."""
    n, c = z.shape
    out = np.empty(n, np.int64)
    for k in range(n):
        best, at = z[k, 0] + bias[0], 0
        for j in range(1, c):
            s = z[k, j] + bias[j]
            if s > best:
                best, at = s, j
        out[k] = at
    return out
