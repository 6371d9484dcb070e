"""Exact tests of a paired drop: against enumeration of every outcome, for every nuisance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multinomial

from tweaknn.errors import InputError
from tweaknn.measure.paired import (
    _tail,
    above_p_value,
    below_p_value,
    drop_bound,
    drop_p_value,
    least_examples,
    lost_p_value,
)


def outcomes(n):
    return np.array([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)])


def test_tail_against_enumeration():
    n, a, b = 7, 0.2, 0.15
    every = outcomes(n)
    mass = multinomial.pmf(every, n, [a, b, 1 - a - b])
    for most in range(-n, n + 1):
        expected = mass[every[:, 0] - every[:, 1] <= most].sum()
        assert _tail(most, n, np.array([a]), np.array([b]))[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [5, 18])
@pytest.mark.parametrize("allowed", [0.05, 0.2])
def test_the_p_value_is_valid_for_every_nuisance(n, allowed):
    every = outcomes(n)
    p = np.array([drop_p_value(a, b, n, allowed) for a, b, _ in every])
    for won in np.linspace(0, (1 - allowed) / 2, 21):
        mass = multinomial.pmf(every, n, [won + allowed, won, max(0.0, 1 - 2 * won - allowed)])
        for level in (0.01, 0.05, 0.2):
            assert mass[p <= level].sum() <= level + 1e-9


@pytest.mark.parametrize("n", [6, 15])
def test_without_tolerance_it_is_the_sign_test(n):
    every = outcomes(n)
    p = np.array([drop_p_value(a, b, n, 0.0) for a, b, _ in every])
    for each in (0.05, 0.2, 0.5):
        mass = multinomial.pmf(every, n, [each, each, 1 - 2 * each])
        assert mass[p <= 0.05].sum() <= 0.05 + 1e-9


def test_more_loss_is_never_surer():
    p = [drop_p_value(lost, 3, 200, 0.05) for lost in range(15)]
    assert p == sorted(p)
    assert drop_p_value(4, 0, 100, 0.03) == 1.0
    assert 0 < drop_bound(2, 2, 400) < 0.05


def test_least_examples_is_where_the_test_of_the_lost_alone_begins_to_pass():
    for allowed in (0.01, 0.05, 0.2):
        n = least_examples(allowed, 0.95)
        assert lost_p_value(0, n, allowed) <= 0.05 < lost_p_value(0, n - 1, allowed)


def test_binomial_ends():
    assert below_p_value(90, 100, 0.8) < 0.05 < below_p_value(80, 100, 0.8)
    assert above_p_value(3, 100, 0.1) < 0.05 < above_p_value(10, 100, 0.1)


@pytest.mark.parametrize("wrong", [(-1, 0, 5, 0.1), (3, 3, 5, 0.1), (0, 0, 0, 0.1), (0, 0, 5, 1.5)])
def test_bad_counts(wrong):
    with pytest.raises(InputError):
        drop_p_value(*wrong)
