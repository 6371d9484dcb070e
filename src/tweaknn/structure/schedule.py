"""When gates move: first whole branches, then, in what is left, units.

Units and branches decided at once decide each other: many cheap, noisy decisions about units make a branch look too
cheap to be worth removing, and thin branches stay that cost more than they give. Branches are few, so they decide
early and in full width, which also saves the most training time; the smaller network then trains for a while with
every gate open before its units decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import Settings

LAYERS, UNITS = "layers", "units"
OPENING = 0.05  # of a window: gates are sampled, theta does not move
ARRIVE = 0.8  # of a window: a budget is reached in expectation, and what is undecided is made to decide
FEWEST = 20  # steps branches have to decide in, if a quarter of the time for pruning has as many
FORCE = 30.0  # how many times stronger the concave term is at the end of a window than at ARRIVE


@dataclass(frozen=True)
class Window:
    """Steps ``[start, end)`` in which the gates of one kind are sampled and move."""

    kind: str
    start: int
    end: int

    def along(self, step: int) -> float:
        return (step - self.start) / max(self.end - self.start, 1)

    def phase(self, step: int, ramped: bool) -> tuple[float, float, bool]:
        """``(ramp, progress, moving)``: the price's ramp, the concave term's factor, and whether ``theta`` moves.

        Gates move first and decide in the second half; in the last part the concave term grows until nothing can stay
        undecided, so that the end is the objective's doing and not a rounding.
        """
        along = self.along(step)
        if along < OPENING:
            return 0.0, 0.0, False
        progress = min(1.0, max(0.0, (along - 0.5) / (ARRIVE - 0.5)))
        if along > ARRIVE:
            progress = math.exp(math.log(FORCE) * min(1.0, (along - ARRIVE) / (1 - ARRIVE)))
        return (min(1.0, (along - OPENING) / 0.25) if ramped else 1.0), progress, True

    def desired(self, step: int, start: float, target: float) -> float:
        """The budget's fraction wanted after ``step``: from ``start`` down to ``target`` at :data:`ARRIVE`."""
        along = (self.along(step + 1) - OPENING) / (ARRIVE - OPENING)
        return start + (target - start) * min(1.0, max(0.0, along))


def windows(settings: Settings, layers: bool, units: bool) -> list[Window]:
    """The windows of a run; ``layers`` and ``units`` say which kinds of gates may move at all."""
    s, n = settings, settings.steps
    start, decided, opened, end = (round(f * n) for f in s.times)
    found = []
    if layers:
        some = min(FEWEST, round(0.25 * end))
        found.append(Window(LAYERS, start, max(decided, start + some, start + 1)))
    if units:
        begin = max([opened, *(w.end for w in found)])
        found.append(Window(UNITS, begin, max(end, begin + 1)))
    return found


def layers_target(target: float, beta: float) -> float:
    """The fraction of a budget branches alone go down to: ``target ** (1 - (1 - beta)^3)``.

    All of it at ``beta`` = 1, nothing at 0, and seven eighths of the reduction (in logarithms) at ½: whole branches are
    coarse steps and go as far as they can, units make up the rest. With three quarters, units had a third of the FLOPs
    left to save, and thinned everything for it.
    """
    return float(target ** (1 - (1 - beta) ** 3))
