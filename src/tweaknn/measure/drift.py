"""Whether two samples of logits look alike: small quantised fingerprints, compared by exact counts.

A fingerprint holds how often each class is called, and a histogram (tenths of the first sample) of the margin between the two largest
logits; with a change's logits too, of how much that change moves the margin of the base's own call - a number made of all the neurons
it reads. Two fingerprints are compared by chi-square tests of homogeneity, one a histogram, at a common level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2_contingency

from tweaknn.errors import InputError

ALARM = 0.001
"""False-alarm rate of the notice, all histograms together."""

LARGE = 0.05
"""Total variation distance below which a difference is not worth a notice, however significant."""

WORDS = {
    "calls": "the classes are called in other proportions",
    "margin": "the base is {} sure of its calls",
    "effect": "the neurons that the delta reads behave differently",
}


@dataclass(frozen=True)
class Drift:
    """Comparison of new data with a fingerprint.

    Attributes:
        drifted: at least one histogram differs, significantly and by enough to matter.
        p_values, distances: of each histogram; distances are total variation, 0..1.
        sentence: what differs, in words; empty where nothing does.
    """

    drifted: bool
    p_values: dict[str, float]
    distances: dict[str, float]
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(vars(self))


def fingerprint(base: ArrayLike, tweaked: ArrayLike | None = None) -> dict[str, Any]:
    """Counts of logits ``(n, c)``, of the ``base`` and, if given, with a change (``tweaked``); JSON-ready, some 20
    numbers and one a class."""
    z = np.asarray(base, dtype=np.float32)
    found: dict[str, Any] = {"n": len(z), "calls": np.bincount(z.argmax(1), minlength=z.shape[1]).tolist()}
    for name, values in _values(z, None if tweaked is None else np.asarray(tweaked, dtype=np.float32)).items():
        edges = np.unique(np.quantile(values, np.linspace(0.1, 0.9, 9)).astype(np.float32))
        edges = np.unique([float(f"{edge:.4g}") for edge in edges])
        found[name] = {"edges": edges.tolist(), "counts": _histogram(values, edges).tolist()}
    return found


def compare(old: dict[str, Any], base: ArrayLike, tweaked: ArrayLike | None = None, level: float = ALARM) -> Drift:
    """Whether logits ``(n, c)`` look like those of the fingerprint ``old``.

    ``level``: how often unchanged data may raise the alarm, all histograms together.

    Raises:
        InputError: ``old`` is not a fingerprint, or of another number of classes.
    """
    z = np.asarray(base, dtype=np.float32)
    try:
        calls = np.asarray(old["calls"], dtype=np.int64)
        if len(calls) != z.shape[1]:
            raise InputError(f"The fingerprint is of {len(calls)} classes, the logits are of {z.shape[1]}.")
        pairs = {"calls": (calls, np.bincount(z.argmax(1), minlength=z.shape[1]))}
        new = _values(z, None if tweaked is None else np.asarray(tweaked, dtype=np.float32))
        for name, values in new.items():
            if name in old:
                edges = np.asarray(old[name]["edges"], dtype=float)
                pairs[name] = (np.asarray(old[name]["counts"], dtype=np.int64), _histogram(values, edges))
                if len(pairs[name][0]) != len(edges) + 1:
                    raise InputError(f"The fingerprint's histogram of {name} does not fit together.")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("This is not a fingerprint of a join's data.") from None
    p_values = {name: _p_value(a, b) for name, (a, b) in pairs.items()}
    distances = {name: _distance(a, b) for name, (a, b) in pairs.items()}
    differs = [name for name in pairs if p_values[name] * len(pairs) < level and distances[name] > LARGE]
    words = []
    for name in differs:
        a, b = (counts / counts.sum() for counts in pairs[name])
        less = np.cumsum(b)[: len(b) // 2 + 1].mean() > np.cumsum(a)[: len(a) // 2 + 1].mean()
        words.append(WORDS[name].format("less" if less else "more"))
    sentence = ""
    if words:
        listed = ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
        sentence = f"these examples differ from those the join chose on: {listed}; what it promised may not hold here"
    return Drift(bool(differs), p_values, distances, sentence)


def _values(z: np.ndarray, tweaked: np.ndarray | None) -> dict[str, np.ndarray]:
    two = np.partition(z, -2, axis=1)[:, -2:]
    found = {"margin": two[:, 1] - two[:, 0]}
    if tweaked is not None and not np.array_equal(tweaked, z):
        change = tweaked - z
        rows = np.arange(len(z))
        top = z.argmax(1)
        rest = change.copy()
        rest[rows, top] = np.nan
        found["effect"] = change[rows, top] - np.nanmean(rest, axis=1)
    return found


def _histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


def _p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Chi-square test of homogeneity; cells too thin for it are put together first."""
    both = np.stack([a, b]).astype(float)
    expected = both.sum(0) * min(a.sum(), b.sum()) / max(1.0, both.sum())
    thin = expected < 5
    if thin.any():
        both = np.concatenate([both[:, ~thin], both[:, thin].sum(1, keepdims=True)], axis=1)
        both = both[:, both.sum(0) > 0]
        last = both[:, -1].sum() * min(a.sum(), b.sum()) / max(1.0, both.sum())
        if both.shape[1] > 1 and last < 5:
            both = np.concatenate([both[:, :-2], both[:, -2:].sum(1, keepdims=True)], axis=1)
    if both.shape[1] < 2 or not both.sum(1).all():
        return 1.0
    return float(chi2_contingency(both, correction=False)[1])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Total variation of the two histograms beyond what sampling alone gives, at least 0."""
    n, m = max(1, a.sum()), max(1, b.sum())
    pooled = (a + b) / (n + m)
    apart = 0.5 * np.abs(a / n - b / m).sum()
    chance = 0.5 * np.sqrt(2 / np.pi) * np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m)).sum()
    return float(max(0.0, apart - chance))
