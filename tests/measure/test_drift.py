"""Drift notices: rarely without a cause, always with one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tweaknn.errors import InputError
from tweaknn.measure.drift import compare, fingerprint


def sample(rng, n, c=10, sure=2.0, shares=None):
    y = rng.choice(c, n, p=shares)
    z = rng.normal(size=(n, c))
    z[np.arange(n), y] += sure
    return z.astype(np.float32), (z + 0.5 * rng.normal(size=(n, c)) * (z > 1)).astype(np.float32)


def test_false_alarms_are_rare():
    rng = np.random.default_rng(0)
    alarms = 0
    for k in range(200):
        n, m = [(300, 300), (2000, 500), (200, 4000), (60, 60)][k % 4]
        old, old_after = sample(rng, n)
        new, new_after = sample(rng, m)
        alarms += compare(fingerprint(old, old_after), new, new_after).drifted
    assert alarms <= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [({"sure": 0.8}, "less sure"), ({"shares": [0.4, *[0.6 / 9] * 9]}, "other proportions"), ({"sure": 4.0}, "more sure")],
)
def test_drift_is_noticed_and_named(change, said):
    rng = np.random.default_rng(1)
    found = compare(fingerprint(*sample(rng, 1000)), *sample(rng, 1000, **change))
    assert found.drifted
    assert said in found.sentence


def test_neurons_that_behave_differently_are_noticed_where_the_base_does_not_tell():
    rng = np.random.default_rng(2)
    base, after = sample(rng, 1500)
    other, _ = sample(rng, 1500)
    found = compare(fingerprint(base, after), other, other + 2 * rng.normal(size=other.shape).astype(np.float32))
    assert found.drifted
    assert "neurons" in found.sentence
    assert "proportions" not in found.sentence


def test_a_fingerprint_is_small_and_survives_json():
    rng = np.random.default_rng(3)
    base, after = sample(rng, 5000)
    kept = json.loads(json.dumps(fingerprint(base, after)))
    assert len(json.dumps(kept)) < 600
    assert not compare(kept, base, after).drifted


@pytest.mark.parametrize("wrong", [{}, {"calls": [1, 2]}, {"calls": "x"}, {"calls": [1] * 10, "margin": {"edges": [1.0], "counts": [1]}}])
def test_what_is_no_fingerprint(wrong):
    with pytest.raises(InputError):
        compare(wrong, np.zeros((5, 10), dtype=np.float32))


def test_constant_logits_do_not_break_it():
    z = np.ones((50, 3), dtype=np.float32)
    assert not compare(fingerprint(z, z), z, z).drifted
