from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tweaknn.errors import InputError
from tweaknn.join.splits import holdout


@given(st.integers(0, 1000), st.sampled_from([0.2, 0.25, 0.5, 0.7]))
@settings(max_examples=40, deadline=None)
def test_parts_are_disjoint_whole_and_stratified(seed, share):
    labels = np.random.default_rng(seed).integers(0, 3, size=200)
    first, second = holdout(labels, share=share, seed=seed)
    assert np.array_equal(np.sort(np.concatenate([first, second])), np.arange(200))
    for j in range(3):
        assert abs((labels[second] == j).mean() - (labels == j).mean()) < 0.05
    assert len(second) == pytest.approx(share * 200, abs=6)


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_group_is_never_parted(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 40, size=300)
    labels = (groups + rng.integers(0, 2, size=300)) % 3
    first, second = holdout(labels, groups=groups, seed=seed)
    assert not set(groups[first]) & set(groups[second])


def test_same_seed_same_split():
    labels = np.arange(100) % 4
    assert all(np.array_equal(a, b) for a, b in zip(holdout(labels, seed=3), holdout(labels, seed=3), strict=True))


@pytest.mark.parametrize("share", [0.0, 1.0, -1, 2])
def test_impossible_share(share):
    with pytest.raises(InputError, match="between 0 and 1"):
        holdout(np.zeros(10, int), share=share)


def test_one_group_cannot_be_split():
    with pytest.raises(InputError, match="groups"):
        holdout(np.arange(10) % 2, groups=np.zeros(10))
