"""Algorithm 1 as a plain Python loop in double precision: slow, obvious, the judge of everything faster.

No NumPy arithmetic, no reciprocals, no blocks: every line can be checked against section 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tweaknn.theta.synapses import Synapses


def algorithm_1(
    V: np.ndarray,
    C: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    targets: Sequence[int] | np.ndarray | None = None,
    *,
    form: str = "plain",
    eps1: float = 0.0,
    eps2: float = 1e-4,
    relative: bool = True,
) -> Synapses:
    """Thresholds and counts of every neuron for every target (Algorithm 1; signed form of section 2).

    V: ``(n, v)`` neuron values; C: ``(n, c)`` logits; labels: ``(n,)``. ``relative``: eps2 is a fraction of the
    bound (ours) instead of a number subtracted from it (the dissertation's; its Fig. 3.2 has eps2 = 0.01).
    """
    V, C = np.asarray(V), np.asarray(C)
    values = [[float(x) + eps1 for x in row] for row in V]
    logits = [[float(x) for x in row] for row in C]
    labels = [int(x) for x in labels]
    wanted = list(range(C.shape[1])) if targets is None else [int(t) for t in targets]
    shape = (len(wanted), V.shape[1])
    threshold, count = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    sign, unbounded = np.ones(shape, np.int8), np.zeros(shape, bool)
    silent, mistakes = np.zeros(shape, bool), np.zeros(len(wanted), np.int64)
    for row, j in enumerate(wanted):
        wrong, correct, own = [], [], []  # D_w, D_c, D_t with their margin or slack
        for k, out in enumerate(logits):
            largest = max(out)
            predicted = out.index(largest)  # ties go to the lowest index, as in torch.argmax
            if labels[k] == j and predicted != j:
                wrong.append((k, largest - out[j]))
            elif labels[k] != j and predicted == labels[k]:
                correct.append((k, largest - out[j]))
            elif labels[k] == j:
                rest = [x for other, x in enumerate(out) if other != j]
                own.append((k, out[j] - max(rest) if rest else float("inf")))
        mistakes[row] = len(wrong)
        tie = any(m == 0 for _, m in correct)
        sides = (1,) if form == "plain" else (1, -1)
        found: dict[int, tuple[list[float], list[int], list[bool]]] = {}
        for side in sides:
            bounds: list[float | None] = []
            for i in range(shape[1]):
                bounds.append(_bound(values, i, side, form, correct, own, tie))
            limits = [None if b is None else _less(b, eps2, relative) for b in bounds]
            finite = [x for x in limits if x is not None]
            cap = max(finite) if finite else 0.0
            weights = [cap if x is None else x for x in limits]
            counts = [_count(values, i, side, form, wrong, weights[i]) for i in range(shape[1])]
            found[side] = (weights, counts, [b is None for b in bounds])
        nothing = all(x == 0 for _, counts, _ in found.values() for x in counts)
        for i in range(shape[1]):
            silent[row, i] = all(values[k][i] - eps1 == 0 for k, _ in own)
            side = 1
            if form == "signed":
                if nothing:
                    side = -1 if sum(values[k][i] for k, _ in own) < 0 else 1
                elif found[-1][1][i] > found[1][1][i]:
                    side = -1
            sign[row, i] = side
            threshold[row, i], count[row, i], unbounded[row, i] = (part[i] for part in found[side])
    return Synapses(np.asarray(wanted), threshold, count, sign, unbounded, mistakes, silent)


def _bound(
    values: list[list[float]],
    i: int,
    side: int,
    form: str,
    correct: list[tuple[int, float]],
    own: list[tuple[int, float]],
    tie: bool,
) -> float | None:
    """Smallest |E_c| of neuron i (and, signed, the slack of D_t); None when nothing bounds it."""
    if tie:
        return 0.0
    bounds = []
    for k, margin in correct:
        push = values[k][i] * side
        if (form == "plain" and push != 0) or push > 0:
            bounds.append(margin / abs(push))
    if form == "signed":
        for k, slack in own:
            push = values[k][i] * side
            if push < 0:
                bounds.append(slack / -push)
    return min(bounds) if bounds else None


def _less(bound: float, eps2: float, relative: bool) -> float:
    return max(0.0, bound * (1 - eps2) if relative else bound - eps2)


def _count(
    values: list[list[float]], i: int, side: int, form: str, wrong: list[tuple[int, float]], weight: float
) -> int:
    if weight == 0:
        return 0
    total = 0
    for k, margin in wrong:
        push = values[k][i] * side
        if ((form == "plain" and push != 0) or push > 0) and margin / abs(push) <= weight:
            total += 1
    return total
