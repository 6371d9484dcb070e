"""Which examples fit, which choose, which certify: decided once, said in words, never one for two jobs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tweaknn.errors import InputError
from tweaknn.join.crossfit import folds_of
from tweaknn.join.splits import holdout
from tweaknn.join.table import PooledTable

SCARCE = 200
"""Examples of a class below which none should be kept from the fit: cross-fitting is the default there."""

CERTIFYING = 0.5
"""Share of the examples that may be chosen on which certifies, where a confidence is asked for."""

CROSSABLE = ("best", "fit", "aan", "aan-grouped", "mean", "selected", "stable", "net-gain")
"""Methods that read table T only, and may be fitted fold by fold."""

Masks = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The parts of the data and their jobs.

    Attributes:
        train: what is fitted on (of a cross-fit: everything that is not kept for certifying).
        choice: what the operating point, and between candidates, is chosen on.
        choice_masks: sub-class targets over ``choice``.
        held: what certifies, and its masks; None without a confidence.
        fold: ``(n,)`` of ``train``; None where there is no cross-fit.
        pool_masks: sub-class targets over ``train``, of a cross-fit.
        seen: the examples that are chosen on were part of the base's own training.
        notes: sentences for the user.
    """

    train: PooledTable
    choice: PooledTable
    choice_masks: dict[str, np.ndarray]
    held: tuple[PooledTable, dict[str, np.ndarray]] | None = None
    fold: np.ndarray | None = None
    pool_masks: dict[str, np.ndarray] = field(default_factory=dict)
    seen: bool = False
    notes: list[str] = field(default_factory=list)


def wants_cross(
    asked: bool | None, method: str, labels: np.ndarray, validation: np.ndarray | None, base_saw: str | None
) -> bool:
    """Whether to cross-fit: as ``asked``, else where data is scarce.

    Scarce is a class with fewer than ``2 * SCARCE`` examples where no validation data is given (half of it would be kept from the
    fit), or fewer than ``SCARCE`` validation examples where the base saw neither split. Where the base saw the validation data but
    not the training data, choosing on the latter is the correction.

    Raises:
        InputError: it is asked for with a method that cannot be.
    """
    if method not in CROSSABLE:
        if asked:
            raise InputError(f"Cross-fitting needs one of the methods {', '.join(CROSSABLE)}, not {method}.")
        return False
    if asked is not None:
        return asked
    if validation is None:
        return _fewest(labels) < 2 * SCARCE
    if base_saw == "validation":
        return True
    return base_saw == "none" and _fewest(validation) < SCARCE


def _fewest(labels: np.ndarray) -> int:
    counts = np.bincount(labels)
    return int(counts[counts > 0].min()) if len(labels) else 0


def arrange(
    train: PooledTable,
    validation: PooledTable | None,
    *,
    cross: bool,
    confidence: float | None,
    base_saw: str | None,
    set_aside: bool,
    masks: tuple[Masks, Masks],
    groups: np.ndarray | None,
    validation_groups: np.ndarray | None,
    seed: int,
) -> Arrangement:
    """Part the tables.

    Args:
        train, validation: as read; ``validation`` None where everything is in ``train``.
        cross: cross-fit, see :func:`wants_cross`.
        confidence: if given, a part certifies.
        base_saw: what the base was trained on.
        set_aside: ``validation`` is a part of the user's training data.
        masks: sub-class targets over ``train`` and over ``validation``.
        groups, validation_groups: never parted.

    Raises:
        InputError: too few examples to part; a mask for only one of two splits that are both chosen on.
    """
    notes: list[str] = []
    seen = base_saw == "both" or (base_saw == "validation" and not set_aside) or (base_saw == "train" and set_aside)
    if not cross:
        assert validation is not None
        choice = np.arange(len(validation.labels))
        held = None
        if confidence is not None:
            choice, kept = holdout(validation.labels, share=CERTIFYING, groups=validation_groups, seed=seed + 1)
            notes.append(f"{len(kept)} of {len(validation.labels)} validation examples serve only to certify the promise")
            held = (validation.rows(kept), _some(masks[1], kept))
        return Arrangement(
            train, validation.rows(choice) if confidence is not None else validation, _some(masks[1], choice), held,
            seen=seen, notes=notes,
        )  # fmt: skip
    n = len(train.labels)
    pool, choosable = train, np.ones(n, dtype=bool)
    both = dict(masks[0])
    whole = groups
    if validation is not None:
        pool = _together(train, validation)
        m = len(validation.labels)
        choosable = np.repeat([base_saw in ("none", "validation"), base_saw != "validation"], [n, m])
        for name in masks[1]:
            if name not in masks[0] and choosable[:n].any():
                raise InputError(f"Target {name!r} needs a mask over the training data too: they are chosen on here.")
        both = {
            name: np.concatenate([masks[0].get(name, np.zeros(n, dtype=bool)), masks[1].get(name, np.zeros(m, dtype=bool))])
            for name in {**masks[0], **masks[1]}
        }
        if groups is not None or validation_groups is not None:
            whole = np.unique(
                np.concatenate([_words(groups, n, "train"), _words(validation_groups, m, "validation")]), return_inverse=True
            )[1]
        if base_saw == "validation":
            seen = False
            notes.append(
                "the base saw the validation data, so it serves for the fit alone, and everything is chosen on training examples "
                "the base never saw, out of fold"
            )
    held_rows = np.empty(0, dtype=np.int64)
    if confidence is not None:
        at = np.flatnonzero(choosable)
        _, kept = holdout(pool.labels[at], share=CERTIFYING, groups=None if whole is None else whole[at], seed=seed + 1)
        held_rows = at[kept]
        notes.append(f"{len(kept)} of {len(at)} examples serve only to certify the promise")
    rest = np.setdiff1d(np.arange(len(pool.labels)), held_rows)
    if whole is not None and len(held_rows):
        # a group that certifies must not serve the fit either
        rest = rest[~np.isin(whole[rest], whole[held_rows])]
    held = (_without_views(pool.rows(held_rows)), _some(both, held_rows)) if len(held_rows) else None
    work = pool if len(rest) == len(pool.labels) else pool.rows(rest)
    fold = folds_of(work.labels, choosable[rest], None if whole is None else whole[rest], seed)
    chosen = np.flatnonzero(fold >= 0)
    notes.append(
        f"cross-fitted in {int(fold.max()) + 1} folds: all figures are of {len(chosen)} examples, each under synapses fitted without it"
    )
    pool_masks = _some(both, rest)
    return Arrangement(
        work, _without_views(work.rows(chosen)), _some(pool_masks, chosen), held, fold, pool_masks, seen, notes
    )


def _some(masks: Masks, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: mask[rows] for name, mask in masks.items()}


def _words(groups: np.ndarray | None, n: int, prefix: str) -> np.ndarray:
    own: Sequence[object] = list(groups) if groups is not None else [f"{prefix} example {k}" for k in range(n)]
    return np.array([str(group) for group in own])


def _without_views(table: PooledTable) -> PooledTable:
    return PooledTable(table.features, table.logits, table.labels, table.reads)


def _together(first: PooledTable, second: PooledTable) -> PooledTable:
    """Two tables of the same neurons one after the other; views of the second, where it has none, are itself."""
    own = second.views or tuple((second.features, second.logits) for _ in first.views)
    views = tuple(
        (np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]])) for a, b in zip(first.views, own, strict=True)
    )
    return PooledTable(
        np.concatenate([first.features, second.features]),
        np.concatenate([first.logits, second.logits]),
        np.concatenate([first.labels, second.labels]),
        first.reads,
        views,
    )
