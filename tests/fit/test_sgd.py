"""Synaptic retraining by SGD: towards the convex optimum, from the join's weights, only on the synapses that exist."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from tweaknn.errors import InputError
from tweaknn.fit.convex import LogisticProblem
from tweaknn.fit.sgd import SGDSettings, fit_sgd


def problem(seed=0, n=800, f=6, c=3):
    rng = np.random.default_rng(seed)
    x = np.abs(rng.normal(size=(n, f))) * rng.uniform(0.5, 3, f)
    z = rng.normal(size=(n, c))
    y = (z + x @ rng.normal(size=(f, c)) + rng.gumbel(size=(n, c))).argmax(1)
    mask = rng.random((f, c)) < 0.6
    mask[0, 0] = True
    return x, z, y, mask


def loss(w, x, z, y, a):
    return -np.average(log_softmax(z + x @ w, axis=1)[np.arange(len(y)), y], weights=a)


@pytest.mark.parametrize("heavier", [1.0, 2.0])
def test_it_comes_near_the_optimum_that_the_convex_solver_reaches(heavier):
    x, z, y, mask = problem()
    a = np.where(y == 0, heavier, 1.0)
    w = fit_sgd(x, z, y, np.zeros(mask.shape), mask, SGDSettings(iterations=6000, rate=0.03), sample_weight=a)
    best = LogisticProblem(x, z, y, mask=mask, sample_weight=a, bias=False).solve(0.0)
    assert not best.bias.any()
    start, reached, optimum = (loss(v, x, z, y, a) for v in (np.zeros(mask.shape), w, best.weight))
    assert optimum <= reached + 1e-9
    assert reached - optimum < 0.02 * (start - optimum)
    assert (w[~mask] == 0).all()


def test_the_optimum_without_a_bias_is_scipys():
    from scipy.optimize import minimize

    x, z, y, mask = problem(3, n=200)
    a = np.ones(len(y))
    ours = LogisticProblem(x, z, y, mask=mask, bias=False).solve(0.0).weight

    def plain(v):
        w = np.zeros(mask.shape)
        w[mask] = v
        return loss(w, x, z, y, a)

    theirs = minimize(plain, np.zeros(mask.sum()), method="L-BFGS-B", options={"maxiter": 3000, "ftol": 1e-14})
    assert loss(ours, x, z, y, a) <= theirs.fun + 1e-7


def test_the_same_seed_gives_the_same_weights_and_the_start_matters():
    x, z, y, mask = problem()
    few = SGDSettings(iterations=20, rate=1e-3)
    start = np.where(mask, 0.3, 0.0)
    one, two = (fit_sgd(x, z, y, start, mask, few) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, fit_sgd(x, z, y, start, mask, SGDSettings(iterations=20, rate=1e-3, seed=1)))
    assert np.abs(one - start).max() < np.abs(start).max(), "a few steps stay near the join's weights"


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"momentum": 1.0}])
def test_bad_settings(wrong):
    with pytest.raises(InputError, match="SGD"):
        SGDSettings(**wrong)


def test_a_rate_that_is_too_high_is_said():
    x, z, y, mask = problem()
    with pytest.raises(InputError, match="lower"):
        fit_sgd(x * 1e30, z, y, np.zeros(mask.shape), mask, SGDSettings(iterations=50, rate=1e30, relative=False))
    with pytest.raises(InputError, match="agree"):
        fit_sgd(x, z[:5], y, np.zeros(mask.shape), mask)
