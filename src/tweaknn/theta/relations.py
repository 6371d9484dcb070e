"""How each example of a batch relates to each target: the sets D_w, D_c, D_t and their inverse margins (section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np

from tweaknn.errors import DataError, InputError, ModelError

TIE = np.float32(1e-30)
"""Margins up to this are ties: the largest logit is reached by two classes."""

FLOAT_MAX = np.float32(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Ladder:
    """The examples of a batch by falling inverse margin, one list a class.

    inverse: ``(c, u)`` float32, falling, 0 behind the end of a list; order: ``(c, u)`` int32, their positions in
    ``Relations.used``.
    """

    inverse: np.ndarray
    order: np.ndarray

    @staticmethod
    def of(inverse: np.ndarray) -> Ladder:
        """Sort the positive part of ``(u, c)``."""
        columns = np.maximum(np.ascontiguousarray(inverse.T), np.float32(0))
        order = np.argsort(-columns, axis=1, kind="stable")
        return Ladder(np.take_along_axis(columns, order, axis=1), order.astype(np.int32))

    def empty(self) -> Ladder:
        """As many classes without an example."""
        return Ladder(np.zeros((len(self.inverse), 1), np.float32), np.zeros((len(self.inverse), 1), np.int32))


@dataclass(frozen=True)
class Relations:
    """A batch seen from ``c`` targets; ``e`` pairs of (mistake, its target).

    used: ``(u,)`` int32, examples of D_c (signed: or D_t) of any target.
    inverse: ``(u, c)`` float32, their 1/margin on D_c, in the signed form -1/slack on D_t, else 0.
    wrong, wrong_target: ``(e,)`` int32, examples of D_w and the row of their target.
    wrong_inverse: ``(e,)`` float32, their 1/margin; infinite for a tie, which any positive weight corrects.
    tied: ``(c,)`` bool, D_c holds a tie: the threshold of every neuron is 0.
    own, own_target: examples of D_t and the row of their target; ``own_tied``: their slack is 0 (signed form).
    """

    used: np.ndarray
    inverse: np.ndarray
    wrong: np.ndarray
    wrong_target: np.ndarray
    wrong_inverse: np.ndarray
    tied: np.ndarray
    own: np.ndarray
    own_target: np.ndarray
    own_tied: np.ndarray

    @cached_property
    def ladders(self) -> tuple[Ladder, Ladder]:
        """The examples of D_c, and in the signed form of D_t, of each target by falling inverse margin."""
        signed = len(self.inverse) > 0 and self.inverse.min() < 0
        correct = Ladder.of(self.inverse)
        return correct, Ladder.of(-self.inverse) if signed else correct.empty()


def relate(logits: np.ndarray, labels: np.ndarray, targets: np.ndarray, form: str = "plain") -> Relations:
    """Sort a batch into D_w, D_c and D_t of every target.

    logits: ``(n, classes)``; labels: ``(n,)`` integers; targets: ``(c,)`` distinct class indices.

    Raises:
        DataError: labels outside the logits' range.
        ModelError: NaN or infinite logits.
        InputError: shapes do not fit.
    """
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    labels = np.ascontiguousarray(labels, dtype=np.int64)
    if logits.ndim != 2 or labels.shape != (len(logits),):
        raise InputError(f"logits {logits.shape} and labels {labels.shape} do not fit: (n, classes) and (n,).")
    n, classes = logits.shape
    if n and not np.isfinite(logits).all():
        k = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise ModelError(f"The logits of example {k} of the batch are NaN or infinite.")
    if n and (labels.min() < 0 or labels.max() >= classes):
        k = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
        raise DataError(f"Example {k} of the batch has label {labels[k]}, but the network has {classes} classes.")
    position = np.full(classes, -1, np.int64)
    position[targets] = np.arange(len(targets))
    c = len(targets)
    inverse = np.zeros((n, c), np.float32)
    used, kind = np.zeros(n, np.bool_), np.zeros(n, np.int8)
    wrong_inverse, tied = np.zeros(n, np.float32), np.zeros(c, np.bool_)
    _relate(logits, labels, np.asarray(targets, np.int64), position, form == "signed", inverse, used, kind,
            wrong_inverse, tied)  # fmt: skip
    wrong, own = np.flatnonzero(kind == 1), np.flatnonzero(kind >= 2)
    return Relations(
        np.flatnonzero(used).astype(np.int32),
        inverse[used],
        wrong.astype(np.int32),
        position[labels[wrong]].astype(np.int32),
        wrong_inverse[wrong],
        tied,
        own.astype(np.int32),
        position[labels[own]].astype(np.int32),
        kind[own] == 3,
    )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _relate(logits, labels, targets, position, signed, inverse, used, kind, wrong_inverse, tied):  # type: ignore[no-untyped-def]
    n, classes = logits.shape
    for k in range(n):
        label = labels[k]
        best = 0
        for j in range(1, classes):
            if logits[k, j] > logits[k, best]:
                best = j
        top = logits[k, best]
        mine = position[label]
        if best != label:
            if mine >= 0:
                kind[k] = 1
                margin = top - logits[k, label]
                wrong_inverse[k] = np.float32(np.inf) if margin <= TIE else np.float32(1.0 / np.float64(margin))
            continue
        for row in range(len(targets)):
            if targets[row] == label:
                continue
            margin = top - logits[k, targets[row]]
            if margin <= TIE:
                tied[row] = True
            else:
                inverse[k, row] = np.float32(1.0 / np.float64(margin))
                used[k] = True
        if mine >= 0:
            kind[k] = 2
            if signed and classes > 1:
                second = np.float32(-np.inf)
                for j in range(classes):
                    if j != label and logits[k, j] > second:
                        second = logits[k, j]
                slack = top - second
                if slack <= TIE:
                    kind[k] = 3
                else:
                    inverse[k, mine] = -np.float32(1.0 / np.float64(slack))
                    used[k] = True
