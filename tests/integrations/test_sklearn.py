"""``MendedClassifier`` under scikit-learn's own checks, and what its labels may be."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from tests.integrations.test_habits import half_trained, table
from tweaknn.errors import InputError
from tweaknn.integrations import MendedClassifier


class AnyWidth(nn.Module):
    """A network for tables of any width: scikit-learn's checks bring many, and most networks take one."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.fold = nn.AdaptiveAvgPool1d(4)
        self.first = nn.Linear(4, 8)
        self.act = nn.ReLU()
        self.last = nn.Linear(8, outputs)

    def forward(self, x):
        return self.last(self.act(self.first(self.fold(x.unsqueeze(1)).flatten(1))))


def checked() -> MendedClassifier:
    torch.manual_seed(0)
    return MendedClassifier(network=AnyWidth(4))


EXPECTED_TO_FAIL = {
    "check_estimators_overwrite_params": "joblib's hash tells a torch module from its own copy, fitted or not; that the base keeps its "
    "bits is tested by its fingerprint",
    "check_classifiers_classes": "two or three words for a network of four outputs: which is which has to be said by outputs=",
}


@parametrize_with_checks([checked()], expected_failed_checks=lambda estimator: EXPECTED_TO_FAIL)
def test_scikit_learns_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


NET = half_trained()
X, Y = table()
NAMES = np.array(["bee", "cow", "ant"])
"""What the outputs mean, not in sorted order."""


@pytest.fixture(scope="module")
def by_position() -> MendedClassifier:
    return MendedClassifier(network=NET, targets=[1]).fit(X, Y)


def test_labels_that_are_words(by_position):
    said = MendedClassifier(network=NET, targets=["cow"], outputs=NAMES).fit(X, NAMES[Y])
    assert said.classes_.tolist() == ["ant", "bee", "cow"]
    assert said.output_indices_.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(said.predict(X), NAMES[by_position.predict(X)])
    np.testing.assert_allclose(said.predict_proba(X), by_position.predict_proba(X)[:, [2, 0, 1]], atol=1e-6)
    assert said.score(X, NAMES[Y]) == by_position.score(X, Y)


@pytest.mark.parametrize("labels", [np.array(["a", "b", "c"]), np.array([0.0, 1.0, 2.0]), np.array([-7, 3, 40])])
def test_sorted_labels_belong_to_the_outputs_in_their_order(labels, by_position):
    mended = MendedClassifier(network=NET, targets=[labels[1].item()]).fit(X, labels[Y])
    assert mended.classes_.tolist() == labels.tolist()
    found = mended.predict(X)
    assert found.dtype == labels.dtype
    np.testing.assert_array_equal(found, labels[by_position.predict(X)])


def test_only_labels_that_were_seen_are_predicted():
    seen = Y != 1
    mended = MendedClassifier(network=NET).fit(X[seen], Y[seen])
    assert mended.classes_.tolist() == [0, 2]
    assert set(mended.predict(X)) <= {0, 2}
    assert mended.predict_proba(X).shape == (len(X), 2)
    assert mended.decision_function(X).shape == (len(X),)
    np.testing.assert_array_equal(mended.decision_function(X) > 0, mended.predict(X) == 2)


@pytest.mark.parametrize(
    "settings, labels, words",
    [
        ({}, NAMES[Y % 2], "outputs="),  # two words for three outputs: which?
        ({}, np.arange(len(Y)) % 4, "outputs="),  # more labels than outputs
        ({"outputs": NAMES[:2]}, NAMES[Y], "3 outputs"),
        ({"outputs": ["bee", "bee", "cow"]}, NAMES[Y], "3 outputs"),
        ({"outputs": ["bee", "cow", "dog"]}, NAMES[Y], "'ant' is none"),
        ({"targets": ["dog"]}, NAMES[Y], "'dog' is no label"),
        ({}, np.zeros(len(Y)), "one class"),
    ],
)
def test_labels_that_fit_no_output(settings, labels, words):
    with pytest.raises(InputError, match=words):
        MendedClassifier(network=NET, **settings).fit(X, labels)
