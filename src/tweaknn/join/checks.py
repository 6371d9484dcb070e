"""Settings of a join that contradict each other, or that nothing would look at: said before the network runs, never ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tweaknn.errors import InputError
from tweaknn.join.aans import AANChoice
from tweaknn.join.arrange import CROSSABLE
from tweaknn.join.methods import METHODS, check_method
from tweaknn.join.promise import Promise

if TYPE_CHECKING:
    from tweaknn.join.run import SynapticJoin

WITH_AAN = ("best", "aan", "aan-grouped", "mean")
"""Methods that an :class:`~tweaknn.join.aans.AANChoice` is for."""

COUNTING = ("theta", "retrain-1", "retrain-2", "schedule")
"""Methods that run Algorithm 1, which has a form."""


def check(join: SynapticJoin, named: bool, worst: int | None, masks: Any) -> None:
    """Whether the settings of ``join`` go with each other and with its targets: ``named`` ones, the ``worst``, or ``masks``.

    Raises:
        InputError: unknown or contradictory settings, or one that the method does not look at.
    """
    if join.method not in METHODS:
        raise InputError(f"Unknown method {join.method!r}; choose one of {', '.join(METHODS)}.")
    if named + (worst is not None) + bool(masks) != 1:
        raise InputError("Name the target classes, or how many of the worst to take, or sub-classes; one of the three.")
    if join.method not in CROSSABLE and (masks or join.confidence is not None):
        what = "Sub-classes need" if masks else "A confidence needs"
        raise InputError(f"{what} one of the methods {', '.join(CROSSABLE)}, not {join.method}.")
    if join.confidence is not None and not 0.5 <= join.confidence < 1:
        raise InputError(f"The confidence must lie between 0.5 and 1, such as 0.95, not at {join.confidence}.")
    if join.caution is not None and not (np.isfinite(join.caution) and join.caution >= 0):
        raise InputError(f"The caution must be a number of standard errors of at least 0, not {join.caution}.")
    if worst is not None and worst < 1:
        raise InputError(f"The number of worst classes must be at least 1, not {worst}.")
    check_method(join.method, join.schedule, join.solver, join.views)
    if join.base_saw not in (None, "train", "validation", "both", "none"):
        raise InputError(f"base_saw is {join.base_saw!r}; it takes train, validation, both or none.")
    _check_used(join)


def _check_used(join: SynapticJoin) -> None:
    """Raises InputError for a setting that would be ignored."""
    if isinstance(join.promise, Promise) and join.tolerance not in (0.0, join.promise.tolerance):
        raise InputError(
            f"The join's tolerance is {join.tolerance} and its promise's {join.promise.tolerance}; say it in the promise alone."
        )
    if join.method not in WITH_AAN and join.aan != AANChoice():
        raise InputError(f"The size and the form of an AAN are for the methods {', '.join(WITH_AAN)}; {join.method} makes none.")
    if join.method == "aan-grouped" and join.aan.form == "dense":
        raise InputError("The method aan-grouped has no dense form; use --method aan.")
    if join.form not in ("plain", "signed"):
        raise InputError(f"Unknown form {join.form!r}; choose plain or signed.")
    if join.method not in COUNTING and join.form != "plain":
        raise InputError(f"The form {join.form} is for the methods {', '.join(COUNTING)}, which count; {join.method} does not.")
    if join.method == "theta" and join.caution:
        raise InputError("The method theta keeps its promise by the letter, as the dissertation does; no caution goes with it.")
    if join.views == 0 and join.augment is not None:
        raise InputError("There are to be no views, so nothing would be augmented; leave either out.")
