"""A network and its data once they are read, and what of the data the user's masks point at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tweaknn.delta import Delta
from tweaknn.errors import InputError
from tweaknn.join.setting import Candidate
from tweaknn.join.table import PooledTable
from tweaknn.network.reader import Reader

TargetMasks = Mapping[str, np.ndarray | tuple[np.ndarray, np.ndarray]]
"""Sub-class targets: name -> mask over the validation data (the training data, where there is no other), or one over each."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The user's data before it is read: ``given`` are the labels of validation data of the user's own, if there is any."""

    train: Any
    validation: Any
    notes: list[str]
    given: np.ndarray | None
    apart: tuple[np.ndarray, np.ndarray] | None
    groups: tuple[np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network and its data after the one pass over them: all that choosing needs.

    Attributes:
        reader: of the network.
        train, validation: examples as they were read; the same where everything is cross-fitted.
        train_table, validation_table: their pooled neurons and logits.
        classes: names of the logits.
        frame: a delta without terms.
        notes: sentences for the user.
        cross: fits and choices go fold by fold.
        apart: positions in the user's training data of ``train`` and ``validation``, where the latter was set aside from it.
        groups: of ``train`` and ``validation``.
        work: floating-point operations of the network for one example, 0 where they cannot be counted.
        fits: what was fitted already; fits do not depend on the targets, so a second target costs an operating point only.
    """

    reader: Reader
    train: Any
    validation: Any
    train_table: PooledTable
    validation_table: PooledTable
    classes: list[str]
    frame: Delta
    notes: list[str]
    cross: bool = False
    apart: tuple[np.ndarray, np.ndarray] | None = None
    groups: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    work: int = 0
    fits: dict[tuple[Any, ...], list[Candidate]] = field(default_factory=dict, repr=False)


def masks_of(
    masks: TargetMasks | None, n_train: int, n_validation: int, alone: bool, apart: tuple[np.ndarray, np.ndarray] | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Sub-class targets over the training and over the validation examples as they were read.

    Raises:
        InputError: a mask of another length, or not of booleans.
    """
    over: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    for name, value in (masks or {}).items():
        pair = value if isinstance(value, tuple) else (None, value)
        if alone or apart is not None:  # there is one split only, which may have been parted
            given = np.asarray(pair[0] if pair[0] is not None else pair[1])
            _check_mask(name, given, n_train if apart is None else n_train + n_validation, "training")
            if apart is None:
                over[0][name] = over[1][name] = given
            else:
                over[0][name], over[1][name] = given[apart[0]], given[apart[1]]
            continue
        for part, mask, n, what in zip(over, pair, (n_train, n_validation), ("training", "validation"), strict=True):
            if mask is not None:
                _check_mask(name, np.asarray(mask), n, what)
                part[name] = np.asarray(mask)
    return over


def _check_mask(name: str, mask: np.ndarray, n: int, what: str) -> None:
    if mask.dtype != bool or mask.shape != (n,):
        raise InputError(f"The mask of target {name!r} must be {n} booleans, one for each {what} example, got shape {mask.shape}.")
