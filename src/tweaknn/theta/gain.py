"""The weight of largest net gain: mistakes corrected less examples harmed (section 8, beyond Algorithm 1).

Algorithm 1 stops at the first example of D_c that would be harmed, so the threshold hangs on a handful of borderline
images. A state with budget q knows the q smallest bounds and every mistake up to the q-th, hence the net gain of every
weight up to there, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tweaknn.errors import InputError
from tweaknn.theta.finishing import EPS2
from tweaknn.theta.state import State


@dataclass(frozen=True)
class NetGain:
    """Best weights within the budget; all ``(c, v)``.

    weight: float32 signed; gain: corrected - harmed; corrected, harmed: numbers of examples at that weight.
    certain: whether no weight beyond the budget can do better (at most all mistakes against ``levels`` harmed).
    """

    weight: np.ndarray
    gain: np.ndarray
    corrected: np.ndarray
    harmed: np.ndarray
    certain: np.ndarray


def net_gain(state: State, *, eps2: float = EPS2) -> NetGain:
    """The weight of largest net gain of every synapse, among weights that harm fewer than ``state.levels`` examples.

    Among equal gains the smaller weight, i.e. fewer harmed. Weights stand just below a bound (by the fraction eps2),
    as thresholds do. A neuron whose bounds are fewer than the budget is capped at its class's largest finite bound.

    Raises:
        InputError: the state gave its mistakes up.
    """
    if state.kept is None:
        raise InputError("The mistakes were not kept; give more memory for a net-gain threshold.")
    _, c, v = state.peaks[0].shape
    shape = (c, v)
    result = NetGain(
        np.zeros(shape, np.float32), np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64),
        np.zeros(shape, bool),
    )  # fmt: skip
    for side, peak in enumerate(state.peaks):
        sign = -1 if side else 1
        mine = state.kept.ratio * sign > 0
        row, neuron = state.kept.row[mine], state.kept.neuron[mine]
        ratio = abs(state.kept.ratio[mine]).astype(np.float64)
        bounds = peak.astype(np.float64) / (1 - eps2)  # 1/weight just below each bound, largest first
        largest = np.where(peak > 0, bounds, np.inf).min(axis=(0, 2))  # of each class: 1/weight of the cap
        for level in range(state.levels):
            need = np.where(bounds[level] == 0, largest[:, None], bounds[level])
            need[state.tied] = np.inf
            reached = ratio >= need[row, neuron]
            corrected = np.bincount((row * v + neuron)[reached], minlength=c * v).reshape(shape)
            corrected = np.where(np.isinf(need), 0, corrected)
            # At the weight of this bound all larger ratios, i.e. smaller bounds, harm somebody.
            harmed = (bounds[:level] >= need).sum(axis=0) if level else np.zeros(shape, np.int64)
            gain = corrected - harmed
            better = gain > result.gain
            with np.errstate(divide="ignore"):
                result.weight[better] = (sign / need)[better].astype(np.float32)
            result.gain[better], result.corrected[better] = gain[better], corrected[better]
            result.harmed[better] = harmed[better]
    limit = state.mistakes[:, None] - state.levels
    whole = np.logical_and.reduce([p[-1] == 0 for p in state.peaks])
    result.certain[:] = (result.gain >= limit) | (whole & ~state.tied[:, None])
    return result
