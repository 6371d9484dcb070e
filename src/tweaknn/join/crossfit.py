"""Cross-fitting: every example serves for the fit and for the choice, never for both at once.

The examples are parted into folds; what is fitted on all folds but one is judged on that one, and the operating point is chosen on
these out-of-fold logits of all of them (Stone 1974; Chernozhukov et al. 2018 call it cross-fitting). The delta handed over is the
mean of the folds' deltas: synapses average to as many synapses, small networks stand side by side, each with its share of the
permitted size. So it is one delta, and each of its parts was judged on examples it had not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from tweaknn.errors import InputError
from tweaknn.join.apply import average
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.settle import settle
from tweaknn.join.splits import quietly
from tweaknn.join.table import PooledTable
from tweaknn.measure import tempered_log_loss

MANY = 10_000
"""Examples up to which there are five folds; above, two, which cost no more than two fits."""


def folds_of(labels: np.ndarray, choosable: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """``(n,)`` fold of each example, -1 for those that only serve for the fit.

    Args:
        labels: ``(n,)``.
        choosable: ``(n,)`` which may be chosen on.
        groups: ``(n,)`` of anything sortable; a group stays in one fold. None: no groups.
        seed: of the shuffle.

    Raises:
        InputError: too few examples or groups for two folds.
    """
    at = np.flatnonzero(choosable)
    most = int(np.unique(labels[at], return_counts=True)[1].max()) if len(at) else 0
    k = min(5 if len(labels) <= MANY else 2, most)
    if groups is not None:
        k = min(k, len(np.unique(groups[at])))
    if k < 2:
        raise InputError(
            f"{len(at)} examples are too few to fit and to choose on (no class, or no two groups, to part); give more."
        )
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(k, shuffle=True, random_state=seed)
    fold = np.full(len(labels), -1)
    parts = quietly(splitter, labels[at], None if groups is None else groups[at])
    for number, (_, test) in enumerate(parts):
        fold[at[test]] = number
    return fold


def cross_fitted(
    make: Callable[[Setting], Sequence[Candidate]],
    setting: Setting,
    pool: PooledTable,
    fold: np.ndarray,
    subclasses: dict[str, np.ndarray],
    say: Callable[[int], None] = lambda done: None,
    *,
    split_limit: bool = False,
) -> list[Candidate]:
    """Candidates of ``make`` for ``setting``, fitted and judged fold by fold.

    Args:
        make: gives the candidates of one split; it is called with settings that are not operated.
        setting: its ``validation`` holds the rows of ``pool`` with a fold, in their order.
        pool: all examples.
        fold: ``(n,)`` as of :func:`folds_of`.
        subclasses: name -> ``(n,)`` masks over ``pool``.
        say: called with the number of folds done.
        split_limit: the candidates' small networks will stand side by side, so each fold has its share of the permitted size.

    Returns:
        Each candidate once, its figures from out-of-fold logits, its delta the mean of the folds'.
    """
    chosen = np.flatnonzero(fold >= 0)
    k = int(fold.max()) + 1
    found: list[dict[str, Candidate]] = []
    logits: dict[str, np.ndarray] = {}
    for number in range(k):
        held = np.flatnonzero(fold == number)
        part = replace(
            setting,
            train=pool.rows(np.flatnonzero(fold != number)),
            validation=pool.rows(held),
            subclasses={},
            targets=tuple(range(len(setting.classes))) if subclasses else setting.targets,
            operated=False,
            limit=setting.limit // k if split_limit else setting.limit,
        )
        part = replace(part, targets=tuple(j for j in part.targets if (part.validation.labels == j).any()) or _any(part))
        fits = {candidate.name: candidate for candidate in make(part)}
        found.append(fits)
        at = np.searchsorted(chosen, held)
        for name, candidate in fits.items():
            out = logits.setdefault(name, setting.validation.logits.copy())
            out[at] = candidate.logits
        say(number + 1)
    names = [name for name in found[0] if all(name in fits for fits in found)]
    done = []
    for name in names:
        delta = average([fits[name].delta for fits in found])
        if delta.parameters > max(setting.limit, *(fits[name].delta.parameters for fits in found)):
            continue  # one delta of permitted size, or none
        notes = {"folds": k, "log_loss": tempered_log_loss(logits[name], setting.validation.labels)}
        grids = [fits[name].notes["l2"] for fits in found if "l2" in fits[name].notes]
        done.append(settle(setting, name, delta, logits[name], **notes, **({"l2": grids} if grids else {})))
    return done


def _any(part: Setting) -> tuple[int, ...]:
    """A target for a fold that holds none of the real ones; nothing is chosen there."""
    return (int(part.validation.labels[0]),)
