"""Who is handed over: the best on validation, and among those it cannot tell apart the one that fits best."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from tweaknn.join.choice import ordered


@dataclass
class Fake:
    """As much of a candidate as choosing looks at."""

    name: str
    logits: np.ndarray
    point: SimpleNamespace
    comparison: SimpleNamespace
    delta: SimpleNamespace
    notes: dict = field(default_factory=dict)


def fake(name, right, labels, loss, feasible=True, base=0.5):
    logits = np.zeros((len(labels), 2), np.float32)
    predicted = np.where(right, labels, 1 - labels)
    logits[np.arange(len(labels)), predicted] = 1
    value = float(right[labels == 0].mean())
    return Fake(
        name, logits, SimpleNamespace(feasible=feasible, value=value, base_value=base),
        SimpleNamespace(tweaked=SimpleNamespace(overall=float(right.mean()), nll=loss)), SimpleNamespace(parameters=10), {"log_loss": loss},
    )  # fmt: skip


def setting(n):
    labels = np.repeat([0, 1], n)
    return labels, SimpleNamespace(validation=SimpleNamespace(labels=labels), targets=(0,), subclasses={}, work=0)


def wrong(n, count, start=0):
    right = np.ones(2 * n, bool)
    right[start : start + count] = False
    return right


def test_a_clear_winner_is_handed_over_whatever_its_loss():
    labels, s = setting(100)
    found = ordered([fake("lucky", wrong(100, 30), labels, 0.1), fake("good", wrong(100, 10), labels, 0.9)], s)
    assert [c.name for c in found] == ["good", "lucky"]


def test_within_a_standard_error_the_better_fit_wins():
    labels, s = setting(100)
    # 10 and 12 mistakes on different examples: a difference of 2 with a standard error of about 4.7
    found = ordered([fake("lucky", wrong(100, 10), labels, 0.9), fake("fits", wrong(100, 12, 40), labels, 0.1)], s)
    assert found[0].name == "fits"
    # 2 of the very same examples: 10 of the mistakes are shared, the difference is certain to 1.4
    found = ordered([fake("lucky", wrong(100, 10), labels, 0.9), fake("fits", wrong(100, 12), labels, 0.1)], s)
    assert found[0].name == "lucky"


def test_what_breaks_the_promise_or_does_not_help_is_never_chosen_for_its_loss():
    labels, s = setting(20)
    best = fake("best", wrong(20, 8), labels, 0.9)
    broken = fake("broken", wrong(20, 8, 3), labels, 0.1, feasible=False)
    useless = fake("useless", wrong(20, 10, 3), labels, 0.1, base=0.5)
    assert ordered([useless, broken, best], s)[0].name == "best"


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_the_order_of_the_candidates_does_not_matter(order):
    labels, s = setting(50)
    made = [fake(str(k), wrong(50, 5 + k, 7 * k), labels, 0.3 - 0.1 * k) for k in range(3)]
    assert [c.name for c in ordered([made[k] for k in order], s)] == ["2", "0", "1"]
