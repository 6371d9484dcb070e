"""What Algorithm θ says about every (class, neuron) pair, and how synapses are ranked.

Shapes: ``c`` target classes, ``v`` neurons; every array is ``(c, v)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tweaknn.errors import InputError

FORMS = ("plain", "signed")


@dataclass(frozen=True)
class Synapses:
    """Threshold and count of every candidate synapse (Algorithm 1, section 2).

    threshold: ``(c, v)`` float32 >= 0, the largest absolute weight that harms no example of D_c; finite always.
    count: ``(c, v)`` int64, how many of the target's mistakes that weight corrects.
    sign: ``(c, v)`` int8, +1 or -1 (always +1 in the plain form); the weight is ``sign * threshold``.
    unbounded: ``(c, v)`` bool, no example of D_c bounds the weight: ``threshold`` is then the largest finite
        threshold of the class (0 when there is none).
    mistakes: ``(c,)`` int64, the size of D_w.
    silent: ``(c, v)`` bool or None: the neuron is 0 on all of D_t; known where the 100 % fall-back needs it.
    """

    targets: np.ndarray
    threshold: np.ndarray
    count: np.ndarray
    sign: np.ndarray
    unbounded: np.ndarray
    mistakes: np.ndarray
    silent: np.ndarray | None = None

    @property
    def weight(self) -> np.ndarray:
        """``(c, v)`` float32: the signed threshold."""
        return self.threshold * self.sign

    @property
    def active(self) -> np.ndarray:
        """``(c, v)`` bool: count at least half of the largest count of the class (Table 3.2); none if all are 0."""
        largest = self.count.max(axis=1, keepdims=True, initial=0)
        return (2 * self.count >= largest) & (largest > 0)

    @property
    def fell_back(self) -> np.ndarray:
        """``(c,)`` bool: all counts of the class are 0, so synapses are ranked by threshold (section 3.2.3)."""
        return self.count.max(axis=1, initial=0) == 0

    def row(self, target: int) -> int:
        """Row of a class index; InputError when it was not observed."""
        found = np.flatnonzero(self.targets == target)
        if not len(found):
            raise InputError(f"class {target} was not observed; observed classes are {self.targets.tolist()}.")
        return int(found[0])

    def rank(self, target: int, n: int | None = None) -> np.ndarray:
        """Neuron indices of ``target``, best first; see :func:`rank`."""
        j = self.row(target)
        silent = None if self.silent is None else self.silent[j]
        return rank(self.count[j], self.threshold[j], silent=silent, n=n)


def rank(
    count: np.ndarray, threshold: np.ndarray, *, silent: np.ndarray | None = None, n: int | None = None
) -> np.ndarray:
    """Order neurons by count, then threshold, then lowest index (section 3); the best ``n`` of them.

    When all counts are 0 (100 % training accuracy) the order is by threshold alone and neurons that are silent on
    the target's correct examples are left out: a dead neuron has no bound and would win (section 3.2.3).

    count, threshold: ``(v,)``; silent: ``(v,)`` bool. Returns int64 indices, at most ``n``.
    """
    candidates = np.arange(len(count))
    if count.max(initial=0) == 0 and silent is not None:
        candidates = candidates[~silent]
    if n is not None and 0 < n < len(candidates):
        # Only neurons at or above the n-th largest count can be among the first n, and of those that are level with it
        # only the ones with the largest thresholds: sort those few, not all.
        c = count[candidates]
        least = nth_largest(np.bincount(c), n)
        above, level = candidates[c > least], candidates[c == least]
        room = n - len(above)
        if room < len(level):
            t = threshold[level]
            level = level[t >= np.partition(t, len(t) - room)[len(t) - room]]
        candidates = np.concatenate([above, level])
    order = candidates[np.lexsort((candidates, -threshold[candidates], -count[candidates]))]
    return order if n is None else order[: max(n, 0)]


def nth_largest(histogram: np.ndarray, n: int) -> int:
    """The n-th largest of small non-negative integers, ``histogram[k]`` of them equal to ``k``; 0 if there are fewer."""
    at_least = np.cumsum(histogram[::-1])[::-1]
    return int(np.flatnonzero(at_least >= n).max(initial=0))


def stack(parts: list[Synapses]) -> Synapses:
    """Join results of neuron blocks along the neuron axis (same targets)."""
    first = parts[0]
    silent = None
    if all(p.silent is not None for p in parts):
        silent = np.concatenate([p.silent for p in parts if p.silent is not None], axis=1)
    names = ("threshold", "count", "sign", "unbounded")
    joined = {name: np.concatenate([getattr(p, name) for p in parts], axis=1) for name in names}
    return replace(first, silent=silent, **joined)
