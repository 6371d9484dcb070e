"""Every measure against an independent reference: scikit-learn, scipy, or a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score, roc_curve
from sklearn.metrics import confusion_matrix as sk_confusion

from tweaknn.errors import InputError
from tweaknn.measure import (
    auroc_binary,
    class_scores,
    combined,
    confusion_matrix,
    error_e,
    holm,
    mcnemar,
    measure,
    paired_difference,
    pareto_front,
    sensitivity_at_specificity,
    strongest_confusions,
    tempered_log_loss,
    wilson,
    worst_drop,
)


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    logits = rng.normal(size=(400, 5)).round(1) + 1.5 * np.eye(5)[labels]
    return logits, labels


def test_measure_matches_scikit_learn(case):
    logits, labels = case
    p = softmax(logits, axis=1)
    m = measure(logits, labels)
    assert m.n == 400
    assert m.overall == pytest.approx((logits.argmax(1) == labels).mean(), abs=0)
    assert m.balanced == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert m.nll == pytest.approx(log_loss(labels, p))
    for j in range(5):
        assert m.auroc[j] == pytest.approx(roc_auc_score(labels == j, p[:, j]), abs=1e-6)
        assert m.per_class[j] == pytest.approx((logits.argmax(1)[labels == j] == j).mean())
    assert m.counts.tolist() == np.bincount(labels).tolist()


def test_ece_matches_a_plain_loop(case):
    logits, labels = case
    p = softmax(logits, axis=1)
    confidence, right = p.max(1), p.argmax(1) == labels
    expected = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert measure(logits, labels).ece == pytest.approx(expected)


def test_ece_known_answer():
    # Sure and always right is calibrated; sure and always wrong is off by the whole confidence.
    sure = np.array([[100.0, 0.0], [100.0, 0.0]])
    assert measure(sure, [0, 0]).ece == pytest.approx(0.0)
    assert measure(sure, [1, 1]).ece == pytest.approx(1.0)


def test_absent_classes_are_null_and_left_out():
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [2.0, 1.0, 0.0]])
    m = measure(logits, [0, 1, 1])
    assert m.balanced == pytest.approx(0.75)
    assert np.isnan(m.per_class[2])
    assert np.isnan(m.auroc[2])
    d = m.to_dict(["a", "b", "c"])
    assert d["per_class"] == {"a": 1.0, "b": 0.5, "c": None}
    assert d["auroc"]["c"] is None


def test_ties_go_to_the_lowest_index():
    assert measure(np.zeros((2, 3)), [0, 1]).overall == 0.5


def test_one_class_only_has_no_auroc():
    assert np.isnan(measure(np.eye(2), [0, 0]).auroc).all()


def test_scores_are_log_odds(case):
    p = softmax(case[0], axis=1)
    np.testing.assert_allclose(class_scores(case[0]), np.log(p / (1 - p)), atol=1e-9)


def test_scores_rank_where_probabilities_saturate():
    z = np.array([[800.0, 0.0], [900.0, 0.0], [0.0, 900.0], [0.0, 800.0]])
    assert (np.diff(class_scores(z)[[2, 3, 0, 1], 0]) > 0).all()
    assert np.isfinite(measure(z, [0, 0, 1, 1]).nll)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=25))
def test_auroc_is_the_share_of_ordered_pairs(pairs):
    scores, positive = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    p, n = scores[positive], scores[~positive]
    got = auroc_binary(scores, positive)
    if len(p) == 0 or len(n) == 0:
        assert np.isnan(got)
    else:
        assert got == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a in p for b in n]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=25),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
)
def test_sensitivity_is_the_best_threshold(pairs, specificity):
    scores, positive = np.array([float(a) for a, _ in pairs]), np.array([b for _, b in pairs])
    got = sensitivity_at_specificity(scores, positive, specificity)
    if positive.all() or not positive.any():
        assert np.isnan(got)
        return
    fpr, tpr, _ = roc_curve(positive, scores, drop_intermediate=False)
    assert got == pytest.approx(max(t for f, t in zip(fpr, tpr) if 1 - f >= specificity - 1e-12))


def test_error_e_and_worst_drop_known_answers():
    assert error_e([0.8, 0.6, 0.5], [0.5, 0.9, 0.1]) == pytest.approx(np.sqrt((0.09 + 0.16) / 3))
    assert error_e([0.8, 0.6], [0.9, 0.6]) == 0.0
    drop, where = worst_drop([0.8, 0.6, 0.5], [0.5, 0.9, 0.1])
    assert (drop, where) == (pytest.approx(-0.4), 2)
    assert error_e([0.8, np.nan], [0.5, np.nan]) == pytest.approx(0.3)
    assert worst_drop([np.nan, 0.5], [np.nan, 0.7])[1] == 1
    assert worst_drop([0.1, 0.5], [0.4, 0.7])[0] == pytest.approx(0.2)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 10), (500, 1000), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_matches_scipy(k, n, level):
    expected = binomtest(k, n).proportion_ci(level, method="wilson")
    assert wilson(k, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_is_nan():
    assert np.isnan(wilson(0, 0)).all()


def test_holm_known_answers():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_combined_p_is_valid_for_tests_that_depend_on_one_another():
    assert combined([0.02]) == 0.02
    assert combined([0.02, 0.9]) == pytest.approx(0.04)
    assert combined([0.5, 0.02, 0.001]) == pytest.approx(0.03)  # 3/2 of the middle one
    assert combined([0.8, 0.9, 1.0]) == 1.0
    rng = np.random.default_rng(0)
    p = rng.random(4000)
    assert np.mean([combined([v] * 3) < 0.05 for v in p]) <= 0.05  # three times the same test is no more evidence


def test_mcnemar_known_answers():
    a = np.array([True] * 10 + [False] * 2 + [True] * 5)
    b = np.array([False] * 10 + [True] * 2 + [True] * 5)
    assert mcnemar(a, b) == pytest.approx(binomtest(2, 12).pvalue)
    assert mcnemar(a, b) == mcnemar(b, a)
    assert mcnemar(a, a) == 1.0


def test_paired_difference_covers():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        a = rng.random(200) < 0.8
        b = np.where(rng.random(200) < 0.1, ~a, a)
        _, low, high = paired_difference(a, b)
        hits += low <= 0.2 * 0.1 - 0.8 * 0.1 <= high
    assert 0.92 <= hits / 400 <= 0.99


def test_confusions(case):
    logits, labels = case
    predicted = logits.argmax(1)
    wrong = sk_confusion(labels, predicted)
    assert (confusion_matrix(predicted, labels, 5) == wrong).all()
    top = strongest_confusions(predicted, labels, 3)
    np.fill_diagonal(wrong, 0)
    assert [c for _, _, c in top] == sorted(wrong.ravel(), reverse=True)[:3]
    assert all(wrong[t, p] == c for t, p, c in top)
    assert strongest_confusions([0, 1], [0, 1]) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_pareto_front_is_what_nobody_beats(points):
    a, b = np.array([p for p, _ in points]), np.array([q for _, q in points])
    front = pareto_front(a, b)
    expected = {
        (x, y) for x, y in points if not any((u >= x and v >= y) and (u > x or v > y) for u, v in points)
    }
    assert {(int(a[k]), int(b[k])) for k in front} == expected
    assert len(front) == len(expected)
    assert (np.diff(a[front]) > 0).all()


def test_bad_input_names_the_example():
    z = np.zeros((4, 2))
    z[2, 1] = np.nan
    with pytest.raises(InputError, match="example 2"):
        measure(z, [0, 0, 0, 0])
    z[2, 1], z[1, 0] = 0.0, np.inf
    with pytest.raises(InputError, match="example 1"):
        measure(z, [0, 0, 0, 0])
    with pytest.raises(InputError, match="the first is 5 at example 3"):
        measure(np.zeros((4, 2)), [0, 0, 0, 5])
    with pytest.raises(InputError, match="-1"):
        measure(np.zeros((2, 2)), [0, -1])
    with pytest.raises(InputError, match="shape"):
        measure(np.zeros((4, 2)), [0])
    with pytest.raises(InputError, match="whole"):
        measure(np.zeros((1, 2)), [0.5])
    with pytest.raises(InputError, match="at least one"):
        measure(np.zeros((0, 2)), [])
    with pytest.raises(InputError):
        wilson(3, 2)
    with pytest.raises(InputError):
        mcnemar([True], [True, False])


def test_tempered_log_loss_is_the_best_of_all_temperatures():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 300)
    z = rng.normal(size=(300, 5)) + 1.5 * np.eye(5)[y]
    best = min(log_loss(y, softmax(beta * z, axis=1), labels=range(5)) for beta in np.linspace(0.2, 3, 500))
    assert tempered_log_loss(z, y) == pytest.approx(best, abs=1e-4)
    for beta in (0.3, 1, 5):
        assert tempered_log_loss(beta * z, y) == pytest.approx(best, abs=1e-4)
    assert tempered_log_loss(z, y, most=100) == pytest.approx(best, abs=0.15)
