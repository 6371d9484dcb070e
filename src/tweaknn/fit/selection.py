"""Selection worth its name: which few neurons serve the logits, and whether two halves of the data agree.

``group_sparse``: one penalty on the norm of a neuron's weights to *all* logits, so that it serves all or none (group lasso), by
accelerated proximal gradient steps with restarts on standardised features, along a path of penalties.
``stability``: how often a neuron is kept over random halves (Meinshausen and Buhlmann 2010).
``net_gains``: Algorithm 1 without its minimum, which hangs on one borderline example: mistakes corrected less examples harmed at the
best weight of each (neuron, target).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tweaknn.errors import InputError


@dataclass(frozen=True)
class Selection:
    """``order``: (k,) neurons by the penalty at which they entered, first the earliest; ``strength``: (f,) norm of the weights at the
    end of the path, for standardised neurons; ``penalties``: the path."""

    order: np.ndarray
    strength: np.ndarray
    penalties: np.ndarray


def group_sparse(
    features: Any, offsets: Any, labels: Any, most: int, *, sample_weight: Any = None, path: int = 12, steps: int = 40
) -> Selection:
    """Follow the group-lasso path until ``most`` neurons are in.

    Args:
        features: (n, f); offsets: (n, c) base logits; labels: (n,).
        most: neurons wanted, at least 1.
        sample_weight: (n,) or None.
        path: penalties tried, falling geometrically from the one that keeps nothing.
        steps: proximal steps at each (warm starts make few enough).

    Raises:
        InputError: ``most`` is not positive, shapes disagree.
    """
    if most < 1:
        raise InputError(f"At least one neuron has to be selected, not {most}.")
    x = torch.as_tensor(np.asarray(features, dtype=np.float32))
    z = torch.as_tensor(np.asarray(offsets, dtype=np.float32))
    y = torch.as_tensor(np.asarray(labels)).long()
    if x.ndim != 2 or len(x) != len(z) or len(x) != len(y):
        raise InputError("features (n, f), offsets (n, c) and labels (n,) must agree in n.")
    n, f = x.shape
    c = z.shape[1]
    a = torch.ones(n) if sample_weight is None else torch.as_tensor(np.asarray(sample_weight, dtype=np.float32))
    a = (a / a.sum()).unsqueeze(1)
    std, mean = torch.std_mean(x, 0, correction=0)
    x = (x - mean) / torch.where(std > 1e-7 * mean.abs() + 1e-12, std, torch.inf)
    onehot = torch.nn.functional.one_hot(y, c).float()
    # The loss's curvature is at most half the largest eigenvalue of the second moments (Bohning 1992).
    v = torch.ones(f)
    for _ in range(20):
        v = x.T @ (a.squeeze(1) * (x @ v))
        v = v / v.norm().clamp_min(1e-12)
    rate = 1 / (0.5 * float(v @ (x.T @ (a.squeeze(1) * (x @ v)))) * 1.05 + 1e-6)
    w, b = torch.zeros(f, c), torch.zeros(c)

    def slope(w: torch.Tensor, b: torch.Tensor):
        r = ((z + x @ w + b).softmax(1) - onehot) * a
        return x.T @ r, r.sum(0)

    for _ in range(50):  # the biases first: a shift of the class frequencies is no neuron's merit
        b = b - 2.0 * slope(w, b)[1]
    start = float(slope(w, b)[0].norm(dim=1).max())
    penalties = start * np.geomspace(0.9, 0.02, path)
    entered = np.full(f, path, dtype=np.int64)
    for k, penalty in enumerate(penalties):
        momentum_w, momentum_b, t = w, b, 1.0
        for _ in range(steps):
            gw, gb = slope(momentum_w, momentum_b)
            step = momentum_w - rate * gw
            norm = step.norm(dim=1, keepdim=True)
            new = step * (1 - rate * penalty / norm.clamp_min(1e-12)).clamp_min(0)
            new_b = momentum_b - rate * gb
            if float(((momentum_w - new) * (new - w)).sum()) > 0:
                t = 1.0  # restart: the momentum points uphill (O'Donoghue and Candes 2015)
            after = (1 + (1 + 4 * t * t) ** 0.5) / 2
            momentum_w, momentum_b = new + (t - 1) / after * (new - w), new_b + (t - 1) / after * (new_b - b)
            w, b, t = new, new_b, after
        kept = (w.norm(dim=1) > 0).numpy()
        entered[kept & (entered == path)] = k
        if kept.sum() >= most:
            break
    strength = w.norm(dim=1).numpy()
    order = np.lexsort((-strength, entered))
    return Selection(order[: max(most, int((entered < path).sum()))], strength, penalties[: k + 1])


def stability(
    features: Any, offsets: Any, labels: Any, most: int, *, rounds: int = 10, seed: int = 0
) -> np.ndarray:
    """Share (f,) of ``rounds`` random halves (complementary pairs) in which each neuron is among the first ``most``, from neuron
    values ``(n, f)``, logits ``(n, c)`` and labels ``(n,)``."""
    x, z, y = np.asarray(features), np.asarray(offsets), np.asarray(labels)
    rng = np.random.default_rng(seed)
    hits = np.zeros(x.shape[1])
    for _ in range((rounds + 1) // 2):
        order = rng.permutation(len(y))
        for half in (order[: len(y) // 2], order[len(y) // 2 :]):
            hits[group_sparse(x[half], z[half], y[half], most).order[:most]] += 1
    return hits / (2 * ((rounds + 1) // 2))


def net_gains(features: Any, offsets: Any, labels: Any, targets: Any) -> np.ndarray:
    """Largest net gain ``(targets, f)`` of one synapse by itself, as an integer number of examples.

    A synapse of weight ``w`` on a neuron ``V`` flips example ``k`` to the target where ``w * V[k] > m[k]`` (section 2): a mistake of the
    target's that way is corrected, a right example of another class is harmed, a right one of the target's where ``w * V[k]`` is below
    minus its slack is harmed too. Both signs of ``w`` are tried; values are taken less their mean, as a bias would. Exact, by sorting.

    Args:
        features: (n, f); offsets: (n, c) base logits; labels: (n,); targets: class indices.

    Raises:
        InputError: shapes disagree.
    """
    x = np.asarray(features, dtype=np.float64)
    z, y = np.asarray(offsets, dtype=np.float64), np.asarray(labels)
    if x.ndim != 2 or len(x) != len(z) or len(x) != len(y):
        raise InputError("features (n, f), offsets (n, c) and labels (n,) must agree in n.")
    x = x - x.mean(0)
    right = z.argmax(1) == y
    gains = np.zeros((len(targets), x.shape[1]), dtype=np.int64)
    for row, j in enumerate(targets):
        rival = np.delete(z, j, axis=1).max(1)
        margin = rival - z[:, j]  # above 0: another class wins
        wrong, others, own = (y == j) & ~right, (y != j) & right, (y == j) & right
        # a flip towards the target where w V > margin, away from it where w V < margin
        worth = np.where(wrong, 1, np.where(others, -1, 0))
        use = wrong | others | own
        for column in range(x.shape[1]):
            for sign in (1.0, -1.0):
                v = sign * x[use, column]
                m, value = margin[use], np.where(own[use], -1, worth[use])
                moves = np.where(own[use], v < 0, v > 0)
                with np.errstate(divide="ignore", invalid="ignore"):
                    at = np.where(moves, m / v, np.inf)
                order = np.argsort(at[moves], kind="stable")
                steps, sums = at[moves][order], np.cumsum(value[moves][order])
                if len(steps):
                    last = np.append(steps[1:] != steps[:-1], True)  # equal weights flip together
                    gains[row, column] = max(gains[row, column], int(sums[last].max(initial=0)))
    return gains


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Share of neurons that two equally long selections ``(k,)`` have in common."""
    return len(np.intersect1d(first, second)) / max(1, len(first))
