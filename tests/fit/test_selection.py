"""Selections against plain references: proximal gradient in float64, brute force over weights, counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from tweaknn.errors import InputError
from tweaknn.fit.selection import agreement, group_sparse, net_gains, stability


def problem(seed, n=300, f=12, c=4, useful=3):
    """Only the first ``useful`` neurons say anything about the labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, f)) * rng.uniform(0.5, 4, f) + rng.normal(size=f)
    z = rng.normal(size=(n, c))
    w = rng.normal(size=(useful, c)) * 1.5
    y = (z + (x / x.std(0))[:, :useful] @ w + rng.gumbel(size=(n, c))).argmax(1)
    return x, z, y


def plain_path(x, z, y, penalties, steps=4000):
    """Group lasso by plain proximal gradient steps in float64, each penalty from zero: the definition, slowly."""
    n, f = x.shape
    c = z.shape[1]
    x = (x - x.mean(0)) / x.std(0)
    onehot = np.eye(c)[y]
    rate = 1 / (0.5 * np.linalg.eigvalsh(x.T @ x / n)[-1] + 0.5)
    out = []
    for penalty in penalties:
        w, b = np.zeros((f, c)), np.zeros(c)
        for _ in range(steps):
            r = (softmax(z + x @ w + b, axis=1) - onehot) / n
            step = w - rate * (x.T @ r)
            norm = np.linalg.norm(step, axis=1, keepdims=True)
            w = step * np.maximum(0, 1 - rate * penalty / np.maximum(norm, 1e-300))
            b = b - rate * r.sum(0)
        value = -log_softmax(z + x @ w + b, axis=1)[np.arange(n), y].mean() + penalty * np.linalg.norm(w, axis=1).sum()
        out.append((w, value))
    return out


@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_that_of_plain_proximal_gradients(seed):
    x, z, y = problem(seed)
    found = group_sparse(x, z, y, most=12, path=6, steps=400)
    reference = plain_path(x, z, y, found.penalties)
    np.testing.assert_allclose(found.strength, np.linalg.norm(reference[-1][0], axis=1), atol=3e-3, rtol=0.015)
    # a neuron enters at the first penalty at which the reference keeps it
    entered = np.array([next((k for k, (w, _) in enumerate(reference) if np.linalg.norm(w[i]) > 1e-3), 99) for i in range(12)])
    assert (np.diff(entered[found.order]) >= 0).all()


def test_the_first_penalty_is_where_the_first_neuron_enters():
    x, z, y = problem(7)
    top = group_sparse(x, z, y, most=1, path=40).penalties[0] / 0.9
    (nothing, _), (something, _) = plain_path(x, z, y, [top * 1.01, top * 0.97])
    assert not np.linalg.norm(nothing, axis=1).any()
    assert np.linalg.norm(something, axis=1).any()


def test_useful_neurons_come_first_and_halves_agree_on_them():
    x, z, y = problem(1, n=4000, f=40, useful=3)
    assert set(group_sparse(x, z, y, 3).order[:3]) == {0, 1, 2}
    halves = [group_sparse(x[h::2], z[h::2], y[h::2], 3).order[:3] for h in (0, 1)]
    assert agreement(*halves) == 1.0
    often = stability(x, z, y, 3, rounds=6)
    assert (often[:3] == 1).all()
    assert often[3:].max() < 1


def test_weights_count_as_repetitions():
    x, z, y = problem(2)
    weight = np.where(y == 1, 3.0, 1.0)
    rows = np.concatenate([np.arange(len(y)), np.repeat(np.flatnonzero(y == 1), 2)])
    once = group_sparse(x, z, y, 12, sample_weight=weight, path=5)
    # standardisation is over the rows as they are, so compare through the very same spread
    again = group_sparse(x[rows], z[rows], y[rows], 12, path=5)
    assert set(once.order[:3]) == set(again.order[:3])


def test_a_dead_neuron_never_enters():
    x, z, y = problem(3)
    x[:, 5] = 7.25
    found = group_sparse(x, z, y, 12, path=30)
    assert found.strength[5] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_net_gain_is_the_best_weight_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    n, c = 25, 2  # of two classes: every mistake corrected is the target's or a loss to it, so counting is the same
    x, z, y = rng.normal(size=(n, 3)), rng.normal(size=(n, c)), rng.integers(0, c, n)
    for j in range(c):
        found = net_gains(x, z, y, [j])[0]
        for i in range(3):
            v = x[:, i] - x[:, i].mean()
            # what brute force may also win: the other class's mistakes, which net_gains does not count
            others = (y != j) & (z.argmax(1) != y)
            keep = ~others
            assert found[i] == brute_on(v[keep], z[keep], y[keep], j)


def brute_on(v, z, y, j):
    right = z.argmax(1) == y
    rival = np.delete(z, j, 1).max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        critical = (rival - z[:, j]) / v
    critical = np.unique(critical[np.isfinite(critical)])
    between = np.concatenate([(critical[1:] + critical[:-1]) / 2, [critical[0] - 1, critical[-1] + 1, 0.0]])
    best = 0
    for w in between:
        moved = z.copy()
        moved[:, j] += w * v
        now = moved.argmax(1) == y
        best = max(best, int((now & ~right).sum() - (right & ~now).sum()))
    return best


@pytest.mark.parametrize(
    "call",
    [
        lambda x, z, y: group_sparse(x, z, y, 0),
        lambda x, z, y: group_sparse(x[:5], z, y, 1),
        lambda x, z, y: net_gains(x[:5], z, y, [0]),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InputError):
        call(*problem(0))
