"""Algorithm θ against a plain loop, known answers and its own algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tweaknn.errors import DataError, InputError, ModelError
from tweaknn.theta import kernels
from tweaknn.theta.reference import algorithm_1
from tweaknn.theta.state import start
from tweaknn.theta.statistics import finish, merge, theta_all, update
from tweaknn.theta.synapses import rank

FIELDS = ("threshold", "count", "sign", "unbounded", "active", "mistakes", "silent")


def same(a, b, rtol=2e-6):
    np.testing.assert_allclose(a.threshold, b.threshold, rtol=rtol, atol=0)
    for field in FIELDS[1:]:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


def tables(rng, n=60, v=17, c=4, negative=True, right=0.8):
    V = rng.normal(size=(n, v)).astype(np.float32)
    V[rng.random(V.shape) < 0.3] = 0
    if not negative:
        V = abs(V)
    C = rng.normal(size=(n, c)).astype(np.float32)
    labels = np.where(rng.random(n) < right, C.argmax(1), rng.integers(c, size=n))
    return V, C, labels


@st.composite
def small_tables(draw, negative=True):
    """Coarse values: ties of logits, of bounds and of thresholds, zeros, silent and unbounded neurons are common."""
    n, v, c = draw(st.integers(1, 12)), draw(st.integers(1, 6)), draw(st.integers(2, 4))
    V = draw(hnp.arrays(np.float32, (n, v), elements=st.integers(-3 if negative else 0, 3).map(float)))
    C = draw(hnp.arrays(np.float32, (n, c), elements=st.integers(0, 4).map(float)))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, c - 1)))
    return V, C, labels


@settings(max_examples=400, deadline=None)
@given(small_tables(), st.sampled_from(["plain", "signed"]), st.integers(1, 5))
def test_coarse_tables_agree_with_the_loop(case, form, batch):
    V, C, labels = case
    same(theta_all(V, C, labels, form=form, batch_size=batch), algorithm_1(V, C, labels, form=form))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["plain", "signed"]), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_random_tables_agree_with_the_loop(seed, form, right):
    V, C, labels = tables(np.random.default_rng(seed), right=right)
    same(theta_all(V, C, labels, form=form, batch_size=16), algorithm_1(V, C, labels, form=form))


@settings(max_examples=200, deadline=None)
@given(small_tables(negative=False))
def test_signed_equals_plain_on_non_negative_neurons(case):
    plain, signed = (theta_all(*case, form=form) for form in ("plain", "signed"))
    same(plain, signed, rtol=0)


@settings(max_examples=100, deadline=None)
@given(small_tables())
def test_mirrored_neurons_get_mirrored_weights(case):
    V, C, labels = case
    a, b = theta_all(V, C, labels, form="signed"), theta_all(-V, C, labels, form="signed")
    different = a.sign != b.sign  # equal counts both ways keep the positive sign in both
    np.testing.assert_array_equal(a.count, b.count)
    np.testing.assert_array_equal(a.threshold[different], b.threshold[different])


def test_figure_3_2():
    V, C, labels = [[0.3], [0.5]], [[0.3, 0.6], [0.2, 0.9]], [0, 1]
    for function in (theta_all, algorithm_1):
        found = function(np.array(V), np.array(C), np.array(labels), [0], eps2=0.01, relative=False)
        assert found.threshold[0, 0] == pytest.approx(1.39, abs=1e-6)
        assert found.count[0, 0] == 1


def test_a_weight_at_the_threshold_harms_nobody_and_corrects_what_it_counts():
    rng = np.random.default_rng(3)
    for form in ("plain", "signed"):
        V, C, labels = tables(rng, n=200, right=0.7, negative=form == "signed")
        found = theta_all(V, C, labels, form=form)
        for row, j in enumerate(found.targets):
            for i in range(V.shape[1]):
                out = C.astype(np.float64)
                out[:, j] += float(found.weight[row, i]) * V[:, i]
                before, after = C.argmax(1), out.argmax(1)
                assert not ((before == labels) & (after != labels)).any()
                won = (labels == j) & (before != j) & (after == j)
                assert won.sum() == found.count[row, i]


@pytest.mark.parametrize("form", ["plain", "signed"])
@pytest.mark.parametrize("budget", [1, 3])
def test_any_sharding_gives_the_same_bits(form, budget):
    rng = np.random.default_rng(0)
    V, C, labels = tables(rng, n=160)
    batches = [slice(a, a + 16) for a in range(0, 160, 16)]
    whole = theta_all(V, C, labels, form=form, budget=budget)
    for cuts in ([3], [1, 2, 9], list(range(1, 10))):
        order = rng.permutation(10)
        shards = []
        for part in np.split(order, cuts):
            state = start(range(4), 17, form=form, levels=budget, own=True)
            for b in part:
                state = update(state, V[batches[b]], C[batches[b]], labels[batches[b]])
            shards.append(state)
        while len(shards) > 1:  # a random tree
            a, b = shards.pop(rng.integers(len(shards))), shards.pop(rng.integers(len(shards)))
            shards.append(merge(a, b))
        same(finish(shards[0]), whole, rtol=0)


def test_budget_is_the_qth_smallest_bound():
    rng = np.random.default_rng(1)
    V, C, labels = tables(rng, n=200, negative=False)
    V += 0.01
    for q in (1, 2, 5):
        found = theta_all(V, C, labels, budget=q, batch_size=32)
        for j in range(4):
            right = (C.argmax(1) == labels) & (labels != j)
            margin = C.max(1).astype(np.float64) - C[:, j]
            bounds = np.sort(margin[right, None] / V[right], axis=0)[q - 1] * (1 - 1e-4)
            np.testing.assert_allclose(found.threshold[j], bounds, rtol=1e-6)
            wrong = (C.argmax(1) != labels) & (labels == j)
            counts = (margin[wrong, None] / V[wrong] <= bounds).sum(0)
            np.testing.assert_array_equal(found.count[j], counts)


def test_update_and_merge_leave_their_arguments_alone():
    V, C, labels = tables(np.random.default_rng(2))
    a = update(start([0, 1], 17, own=True), V, C, labels)
    before = [p.copy() for p in a.peaks], a.kept.ratio.copy(), a.own.total.copy()
    update(a, V * 2, C, labels)
    merge(a, update(start([0, 1], 17, own=True), V * 3, C, labels))
    np.testing.assert_array_equal(a.peaks[0], before[0][0])
    np.testing.assert_array_equal(a.kept.ratio, before[1])
    np.testing.assert_array_equal(a.own.total, before[2])


def test_a_tie_gives_threshold_and_count_0():
    V = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    C = np.array([[1.0, 1.0], [0.0, 2.0], [3.0, 1.0]])
    found = theta_all(V, C, np.array([0, 1, 1]), [1])
    assert (found.threshold == 0).all()
    assert (found.count == 0).all()


def test_unbounded_neurons_are_capped_and_said():
    V = np.array([[1.0, 0.0], [2.0, 4.0]])
    C = np.array([[3.0, 1.0], [3.0, 1.0]])
    found = theta_all(V, C, np.array([0, 1]), [1], eps2=0)
    np.testing.assert_array_equal(found.unbounded, [[False, True]])
    np.testing.assert_array_equal(found.threshold, [[2.0, 2.0]])
    np.testing.assert_array_equal(found.count, [[1, 1]])


def test_no_correct_example_at_all_gives_weight_0():
    found = theta_all(np.ones((2, 2)), np.array([[1.0, 0], [1, 0]]), np.array([1, 1]), [1])
    assert (found.threshold == 0).all()
    assert found.unbounded.all()


def test_full_accuracy_falls_back_to_thresholds_without_silent_neurons():
    V = np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 4.0, 2.0, 0.0], [0.0, 3.0, 3.0, 1.0]])
    C = np.array([[0.0, 5.0], [5.0, 1.0], [5.0, 1.0]])
    found = theta_all(V, C, np.array([1, 0, 0]), [1])
    assert found.fell_back.all()
    np.testing.assert_array_equal(found.rank(1), [2, 1])


def test_fall_back_sign_is_that_of_the_mean_on_correct_examples():
    V = np.array([[-1.0], [2.0], [-2.0]])
    C = np.array([[0.0, 5.0], [5.0, 1.0], [5.0, 1.0]])
    found = theta_all(V, C, np.array([1, 0, 0]), [1], form="signed", eps2=0)
    assert found.weight[0, 0] == -2.0


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.int64, 12, elements=st.integers(0, 3)),
    hnp.arrays(np.float32, 12, elements=st.integers(0, 3).map(float)),
    st.integers(0, 14),
)
def test_rank_is_by_count_then_threshold_then_index(count, threshold, n):
    expected = sorted(range(12), key=lambda i: (-count[i], -threshold[i], i))
    assert rank(count, threshold).tolist() == expected
    assert rank(count, threshold, n=n).tolist() == expected[:n]


def test_half_precision_is_widened():
    V, C, labels = tables(np.random.default_rng(5))
    V = V.astype(np.float16)
    same(theta_all(V, C, labels), theta_all(V.astype(np.float32), C, labels), rtol=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["plain", "signed"])
@pytest.mark.parametrize("budget", [1, 2])
def test_bad_values_and_logits_are_refused(bad, form, budget):
    C = np.array([[2.0, 1], [3, 1], [0, 1], [1, 0]])
    labels = np.array([0, 0, 1, 1])
    for k in range(2):
        V = np.ones((4, 3), np.float32)
        V[k, 1] = bad
        with pytest.raises(ModelError, match=f"example {k}"):
            theta_all(V, C, labels, form=form, budget=budget)
    C[2, 0] = bad
    with pytest.raises(ModelError, match="example 2"):
        theta_all(np.ones((4, 3)), C, labels)


def test_bad_arguments():
    V, C, labels = tables(np.random.default_rng(0))
    with pytest.raises(DataError, match="label 4"):
        theta_all(V, C, np.where(np.arange(60) == 7, 4, labels))
    with pytest.raises(InputError, match="class 9"):
        theta_all(V, C, labels, [9])
    with pytest.raises(InputError, match="distinct"):
        theta_all(V, C, labels, [1, 1])
    with pytest.raises(InputError, match="form"):
        theta_all(V, C, labels, form="both")
    with pytest.raises(InputError, match="differ"):
        theta_all(V[:-1], C, labels)
    with pytest.raises(InputError, match="floating"):
        theta_all(V > 0, C, labels)
    with pytest.raises(InputError, match="eps2"):
        theta_all(V, C, labels, eps2=1.0)


@pytest.mark.parametrize("rows", range(1, 10))
def test_one_class_folds_four_examples_at_a_time_like_one_at_a_time(rows):
    rng = np.random.default_rng(rows)
    V = rng.normal(size=(12, 5003)).astype(np.float32)
    V[3, 70] = np.nan
    used = np.sort(rng.choice(12, rows, replace=False)).astype(np.int32)
    inverse, peak = rng.random((rows, 1), dtype=np.float32), rng.random((1, 4990), dtype=np.float32)
    want = np.maximum.reduce([peak[0], *(abs(V[k, 5:4995]) * g for k, g in zip(used, inverse[:, 0]))])  # keeps NaN, as it must
    kernels.fold_plain(V, 5, used, inverse, peak)
    np.testing.assert_array_equal(peak[0], want)
    assert np.isnan(peak).any() == (3 in used)
