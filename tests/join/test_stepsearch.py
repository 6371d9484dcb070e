"""The exact scale search against trying a scale in every gap between critical scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tweaknn.join.stepsearch import Limits, best_scale, correct_by_class


def brute_force(logits, direction, target, labels, limits):
    """Best allowed value over one scale inside every interval on which nothing changes."""
    others = np.delete(logits, target, axis=1).max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        critical = (others - logits[:, target]) / direction
    critical = np.unique(critical[np.isfinite(critical) & (critical > 0)])
    edges = np.concatenate([[0.0], critical])
    inside = np.concatenate([[0.0], (edges[:-1] + edges[1:]) / 2, [edges[-1] * 1.5 + 1.0]])
    best = None
    for scale in inside:
        moved = logits.copy()
        moved[:, target] += scale * direction
        correct = correct_by_class(moved, labels)
        if limits.allows(correct):
            key = (round(limits.value(correct), 9), int(correct.sum()))
            best = key if best is None or key > best else best
    return best


@st.composite
def problems(draw):
    n, c = draw(st.integers(1, 12)), draw(st.integers(2, 4))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    # float64 throughout: critical scales of random numbers are distinct, and brute force sees the same ones
    logits = rng.normal(size=(n, c))
    direction = rng.normal(size=n) * rng.integers(0, 2, size=n)
    labels = rng.integers(0, c, size=n)
    target = draw(st.integers(0, c - 1))
    base = correct_by_class(logits, labels)
    give = draw(st.integers(0, 2))
    least = np.maximum(base - give, 0) if draw(st.booleans()) else np.zeros(c, int)
    overall = max(int(base.sum()) - give, 0) if draw(st.booleans()) else 0
    weight = np.zeros(c)
    weight[target] = 1 / max(1, int((labels == target).sum()))
    return logits, direction, target, labels, Limits(least, overall, weight)


@given(problems())
@settings(max_examples=300, deadline=None)
def test_finds_what_brute_force_finds(problem):
    logits, direction, target, labels, limits = problem
    expected = brute_force(*problem)
    step = best_scale(logits, direction, target, labels, limits)
    assert (step is None) == (expected is None)
    if step is not None:
        assert (round(step.value, 9), step.overall) == expected
        moved = logits.copy()
        moved[:, target] += step.scale * direction
        correct = correct_by_class(moved, labels)
        assert limits.allows(correct), "the promise holds at the returned scale"
        assert limits.value(correct) == pytest.approx(step.value)


def test_a_tie_goes_to_the_lowest_index():
    # class 1 meets class 0 exactly at scale 1 and wins only beyond it
    logits = np.array([[1.0, 0.0], [1.0, 0.0]])
    step = best_scale(
        logits, np.array([1.0, 1.0]), 1, np.array([1, 1]), Limits(np.zeros(2, int), 0, np.array([0, 0.5]))
    )
    assert step is not None
    assert step.scale > 1.0
    assert step.value == 1.0


def test_nothing_allowed_is_none():
    logits = np.array([[0.0, 1.0]])
    limits = Limits(np.array([1, 0]), 0, np.array([0.0, 1.0]))
    assert best_scale(logits, np.array([1.0]), 1, np.array([0]), limits) is None
