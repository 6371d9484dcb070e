"""The convex fit against an independent optimiser, closed forms and its own certificate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from tweaknn.errors import InputError
from tweaknn.fit.convex import LogisticProblem, fit_linear, fit_path


def problem(seed, n=200, f=6, c=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, f)) * rng.uniform(0.1, 10, f) + rng.normal(size=f)
    offsets = rng.normal(size=(n, c))
    y = (offsets + (x / x.std(0)) @ rng.normal(size=(f, c)) + rng.gumbel(size=(n, c))).argmax(1)
    return x, offsets, y


def objective(weight, bias, x, offsets, y, l2, a):
    """The definition in the module's docstring, written plainly."""
    logp = log_softmax(offsets + x @ weight + bias, axis=1)
    std = np.sqrt(np.average((x - np.average(x, axis=0, weights=a)) ** 2, axis=0, weights=a))
    return -np.average(logp[np.arange(len(y)), y], weights=a) + 0.5 * l2 * ((weight * std[:, None]) ** 2).sum()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.01, 1e-4]), st.sampled_from(["all", "classes", "synapses"]))
def test_it_is_the_optimum_that_scipy_finds(seed, l2, masked):
    x, offsets, y = problem(seed)
    rng = np.random.default_rng(seed + 1)
    a = rng.uniform(0.5, 2, len(y))
    f, c = x.shape[1], offsets.shape[1]
    mask = np.ones((f, c), bool)
    given_mask = None
    if masked == "classes":
        given_mask = np.arange(c) < 2
        mask &= given_mask
    if masked == "synapses":
        mask = given_mask = rng.random((f, c)) < 0.4
        mask[0, 0] = True
    weight, bias = fit_linear(x, offsets, y, l2=l2, mask=given_mask, sample_weight=a)
    assert (weight[~mask] == 0).all()
    assert (bias[~mask.any(0)] == 0).all()
    open_bias = mask.any(0)

    def plain(v):
        w, b = np.zeros((f, c)), np.zeros(c)
        w[mask], b[open_bias] = v[: mask.sum()], v[mask.sum() :]
        return objective(w, b, x, offsets, y, l2, a)

    ours = plain(np.concatenate([weight[mask], bias[open_bias]]))
    start = np.zeros(mask.sum() + open_bias.sum())
    theirs = minimize(plain, start, method="L-BFGS-B", options={"maxiter": 3000, "maxfun": 10**6, "ftol": 1e-14})
    assert ours <= theirs.fun + 1e-7
    for _ in range(5):  # and no direction leads down
        nudge = rng.normal(size=len(start)) * 1e-3
        assert plain(np.concatenate([weight[mask], bias[open_bias]]) + nudge) >= ours - 1e-10


def test_without_offsets_it_is_scikit_learns_logistic_regression():
    x, _, y = problem(3)
    x = (x - x.mean(0)) / x.std(0)
    l2 = 0.02
    weight, bias = fit_linear(x, np.zeros((len(y), 4)), y, l2=l2)
    theirs = LogisticRegression(C=1 / (l2 * len(y)), tol=1e-10, max_iter=5000).fit(x, y)
    np.testing.assert_allclose(weight.T, theirs.coef_, atol=2e-5)
    np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-5)


def test_the_certificate_is_the_gradient_and_paths_agree_with_single_fits():
    x, offsets, y = problem(4)
    path = fit_path(x, offsets, y, [1e-3, 1e-1, 1e-2])
    assert [fit.l2 for fit in path] == [1e-3, 1e-1, 1e-2]
    for fit in path:
        assert fit.converged
        assert fit.gradient < 1e-6
        single = LogisticProblem(x, offsets, y).solve(fit.l2)
        np.testing.assert_allclose(fit.weight, single.weight, atol=1e-5)


def test_large_tables_in_float32_reach_the_float64_optimum(monkeypatch):
    import tweaknn.fit.convex as convex

    x, offsets, y = problem(5, n=3000, f=20)
    exact = LogisticProblem(x, offsets, y).solve(1e-2)
    monkeypatch.setattr(convex, "_DOUBLE", 0)
    single = LogisticProblem(x.astype(np.float32), offsets, y).solve(1e-2)
    assert single.converged
    np.testing.assert_allclose(single.weight * x.std(0)[:, None], exact.weight * x.std(0)[:, None], atol=2e-3)
    assert abs(single.loss - exact.loss) < 1e-6


def test_doubling_a_weight_is_writing_the_example_twice():
    x, offsets, y = problem(6)
    twice = np.where(y == 2, 2.0, 1.0)
    rows = np.concatenate([np.arange(len(y)), np.flatnonzero(y == 2)])
    first = fit_linear(x, offsets, y, l2=0.01, sample_weight=twice)
    second = fit_linear(x[rows], offsets[rows], y[rows], l2=0.01)
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    np.testing.assert_allclose(first[1], second[1], atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_more_neurons_than_examples_is_the_same_optimum(bias, monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 90)) * np.exp(rng.normal(size=90) * 3)
    x[:, 7], x[:, 8] = 0.0, x[:, 9]
    z, y, a = rng.normal(size=(30, 4)), rng.integers(0, 4, 30), rng.integers(0, 3, 30).astype(float)
    thin = LogisticProblem(x, z, y, sample_weight=a, bias=bias)
    assert thin.x.shape == (30, 30)
    short = thin.solve(1e-3)
    monkeypatch.setattr(LogisticProblem, "_thin", LogisticProblem._full)
    full = LogisticProblem(x, z, y, sample_weight=a, bias=bias).solve(1e-3)
    assert short.converged
    assert full.converged
    assert short.loss == pytest.approx(full.loss, abs=1e-9)
    np.testing.assert_allclose(short.weight * x.std(0)[:, None], full.weight * x.std(0)[:, None], atol=1e-5)
    np.testing.assert_allclose(short.bias, full.bias, atol=1e-4)


def test_dead_and_twin_neurons_do_no_harm():
    x, offsets, y = problem(7)
    dead = np.column_stack([x, np.full(len(y), 3.25), x[:, 0]])
    weight, bias = fit_linear(dead, offsets, y, l2=0.01)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()
    assert (weight[x.shape[1]] == 0).all()
    np.testing.assert_allclose(weight[0], weight[-1], atol=1e-6, err_msg="twins share the work")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"l2": -1.0}, "l2 must be"),
        ({"labels": np.full(200, 9)}, "labels must lie in 0..3"),
        ({"labels": np.zeros(200)}, "integers"),
        ({"offsets": np.full((200, 4), np.nan)}, "offsets of example 0"),
        ({"features": np.full((200, 6), np.inf)}, "Feature 0"),
        ({"features": np.zeros((3, 6))}, "agree in n"),
        ({"sample_weight": -np.ones(200)}, "sample_weight"),
        ({"mask": np.zeros(4, bool)}, "no synapse"),
        ({"mask": np.ones(3, bool)}, "mask must have shape"),
    ],
)
def test_bad_input_says_what_is_wrong(change, said):
    x, offsets, y = problem(8)
    arguments = {"features": x, "offsets": offsets, "labels": y, "l2": 0.1, **change}
    with pytest.raises(InputError, match=said):
        fit_linear(arguments.pop("features"), arguments.pop("offsets"), arguments.pop("labels"), **arguments)
