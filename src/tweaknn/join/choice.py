"""Which candidate is handed over: the best on validation, as far as validation can tell.

The candidate with the highest target value is often just the luckiest of several (the winner's curse), the more so the fewer examples
the targets have. Those that the data cannot tell from it, within :data:`SURE` standard errors of the paired difference, keep the same
promise and are asked a second question, which all validation examples answer: whose log loss *as fitted* is lowest. Those whose
arithmetic is more than a tenth of the base's give way to lighter ones first. Arithmetic is counted, not timed: a busy machine must not
decide which delta somebody gets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.size import WORK, share_of

SURE = 1.0
"""Standard errors of the difference within which two candidates count as equally good for the targets."""


def ordered(candidates: Sequence[Candidate], setting: Setting) -> list[Candidate]:
    """Candidates, the one to be handed over first; then by what they do for the targets on validation."""
    ranked = sorted(candidates, key=_merit, reverse=True)
    if not ranked or not ranked[0].point.feasible:
        return ranked
    level = [c for c in ranked if c.point.feasible and as_good(c, ranked[0], setting)]
    helping = [c for c in level if c.point.value > c.point.base_value + 1e-12]
    if not helping:
        return ranked
    light = [c for c in helping if (share_of(c.delta, setting.work) or 0.0) <= WORK]
    helping = light or helping
    best = min(helping, key=lambda c: (round(_log_loss(c), 9), -c.point.value, c.delta.parameters))
    return [best, *(c for c in ranked if c is not best)]


def _merit(candidate: Candidate) -> tuple[bool, float, float, int]:
    point = candidate.point
    overall = candidate.comparison.tweaked.overall
    return point.feasible, round(point.value, 12), overall, -candidate.delta.parameters


def as_good(candidate: Candidate, best: Candidate, setting: Setting) -> bool:
    """Whether the candidate's target accuracy is within :data:`SURE` standard errors of the best one's: those of the mean over
    targets of a paired difference."""
    labels = setting.validation.labels
    masks = list(setting.subclasses.values()) or [labels == j for j in setting.targets]
    variance = 0.0
    for rows in masks:
        n = max(int(rows.sum()), 1)
        d = (best.logits[rows].argmax(1) == labels[rows]).astype(float) - (candidate.logits[rows].argmax(1) == labels[rows])
        variance += float(((d - d.mean()) ** 2).sum()) / n**2
    error = np.sqrt(variance) / max(len(masks), 1)
    return best.point.value - candidate.point.value <= SURE * error + 1e-12


def _log_loss(candidate: Candidate) -> float:
    """As fitted, before biases were moved for the targets' sake; of the operating point where nothing was fitted by it."""
    return float(candidate.notes.get("log_loss", candidate.comparison.tweaked.nll))
