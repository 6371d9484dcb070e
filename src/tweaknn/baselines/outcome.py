"""What every method gives back, and how it says that it does not apply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tweaknn.delta import Delta


class NotApplicable(Exception):
    """The method cannot be used on this network or data; the message is the reason, one sentence."""


@dataclass(eq=False)
class Outcome:
    """A changed network, as its logits.

    ``evaluation (m, c)``: on the evaluation part of validation; ``test (n, c)``. ``parameters``: numbers it adds
    or changes.
    ``settings``: what was chosen on the way. ``checkpoints``: test logits of earlier moments of a training, from
    which the
    spread of E over checkpoints is computed (Table 3.4), never a choice. ``delta``: the change as a Δnn, where it
    is one.
    ``seconds`` (wall clock) and ``cpu_seconds`` (of this process): filled in by the runner.
    """

    evaluation: np.ndarray
    test: np.ndarray
    parameters: int
    settings: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[np.ndarray] = field(default_factory=list)
    delta: Delta | None = None
    seconds: float = 0.0
    cpu_seconds: float | None = None
