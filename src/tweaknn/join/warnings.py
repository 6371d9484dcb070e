"""Sentences a user should read before trusting a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from torch import nn

from tweaknn.delta import Delta
from tweaknn.join.arrange import Arrangement
from tweaknn.join.promise import Promise
from tweaknn.join.setting import CAUTION
from tweaknn.join.table import PooledTable

FEW = 100
"""Below so many validation examples a floor on a class's accuracy holds only by several points either way."""


SHARED = 0.05
"""Share of the validation examples that may be met among the training examples before it is said: data repeat themselves a little."""

SEEN = 2.0
"""How many times the caution is taken where the base was trained on the examples that are chosen on: a judgement, whose effect could not
be measured (docs/results/operating.md)."""


def thin_warnings(
    labels: np.ndarray, classes: Sequence[str], targets: Sequence[int], promise: Promise, *, may_cross: bool = False
) -> list[str]:
    """Classes whose validation examples are too few for what is promised of them, and what would help (``may_cross``: cross-fitting,
    which is not done only because nobody said what the base saw)."""
    counts = np.bincount(labels, minlength=len(classes))
    watched = range(len(classes)) if promise.kind == "floors" or promise.max_drop is not None else targets
    thin = [(classes[j], int(counts[j])) for j in watched if counts[j] < FEW]
    if not thin:
        return []
    some = ", ".join(f"{name} ({n})" for name, n in thin[:6]) + (", ..." if len(thin) > 6 else "")
    said = f"the promise rests on few validation examples of {some}; on new data it holds only by several points"
    if may_cross:
        said += "; if the base saw neither split, --base-saw none lets every example serve for the fit and for the choice"
    return [said]


def probability_warnings(table: PooledTable) -> list[str]:
    """Whether the network's outputs are probabilities: everything here is made for logits."""
    sums = table.logits.sum(1)
    if (table.logits < 0).any() or not np.allclose(sums, 1.0, atol=1e-3):
        return []
    return [
        "the network's outputs are probabilities, and synapses are fitted to logits: log losses, calibration and the convex fit are not "
        "what they could be; give the network without its last softmax"
    ]


def promise_warnings(promise: Promise) -> list[str]:
    """A mixed promise without a rule: what is not written is not promised."""
    rules = (promise.max_drop, promise.overall_drop)
    if promise.kind != "mixed" or promise.floors or promise.specificity or promise.costs is not None or rules != (None, None):
        return []
    return [
        "the promise is mixed and holds no rule, so nothing limits what the other classes pay; add a floor, --max-drop, --overall-drop, "
        "a specificity or --costs"
    ]


def base_saw_warnings(
    base_saw: str | None, train: PooledTable, validation: PooledTable, plan: Arrangement
) -> list[str]:
    """Whether the examples that are chosen on were part of the base's own training, as told or as the accuracies suggest."""
    if plan.seen:
        return [
            "the base was trained on the examples the operating point is chosen on, which flatters whatever fits hardest: every rule is "
            "kept with more caution for that, but expect less on new data; better give --validation data the base never saw"
        ]
    if base_saw is not None:
        return []
    right_v, n_v = int((validation.logits.argmax(1) == validation.labels).sum()), len(validation.labels)
    if validation is not train:
        gap, p = _gap(train, validation)
        if p < 0.01 and gap > 0.02:
            return [
                f"the base is {100 * gap:.1f} points better on validation than on train: validation was probably part of its own "
                "training; more caution is taken for that; say so with --base-saw, or give other validation data"
            ]
        if p < 0.01 and gap < -0.02:
            return [
                f"the base is {-100 * gap:.1f} points better on train than on validation: it was probably trained on the former, "
                "so the fit sees easier examples than it will meet"
            ]
    if right_v == n_v:
        return ["the base makes no mistake on validation, which suggests that it was trained on it"]
    return []


def overlap_warnings(train: PooledTable, validation: PooledTable) -> list[str]:
    """Whether the same examples were given for the fit and for the choice: then every figure is one of training."""
    if validation is train:
        return []
    # The same example gives the same logits, but for its neighbours in a batch; what many share (saturated or repeated rows) tells nothing.
    # A single logit tells too little by itself: some neurons stand beside it, in units of their own spread.
    some = np.unique(np.linspace(0, train.features.shape[1] - 1, min(16, train.features.shape[1])).astype(int))
    spread = np.maximum(train.features[:, some].std(0), 1e-6)
    once = []
    for table in (train, validation):
        keys = np.round(np.column_stack([table.logits[:, :16], table.features[:, some] / spread, table.labels]), 3) + 0.0
        rows, counts = np.unique(keys, axis=0, return_counts=True)
        once.append({row.tobytes() for row in rows[counts == 1]})
    both = len(once[0] & once[1])
    if both < max(3, SHARED * len(validation.labels)):
        return []
    return [
        f"at least {both} of the {len(validation.labels)} validation examples are among the training examples as well: what was fitted to "
        "them is chosen on them, so these figures flatter and the promise means little; leave --validation out, or give other examples"
    ]


def size_warnings(delta: Delta | None, model: nn.Module) -> list[str]:
    """Whether a delta has more numbers than the network it mends, which a small or pruned one hardly wants."""
    base = sum(p.numel() for p in model.parameters())
    if delta is None or delta.parameters <= base:
        return []
    return [
        f"the change has {delta.parameters:,} numbers, more than the network it mends ({base:,}); where size matters, --method theta, "
        "selected or fit may hand over fewer"
    ]


def cautious(base_saw: str | None, prepared: Any, plan: Arrangement) -> float:
    """The default caution in standard errors: :data:`~tweaknn.join.setting.CAUTION`, and more where the base saw, or seems to have
    seen, the examples that are chosen on (:data:`SEEN`)."""
    if plan.seen:
        return CAUTION * SEEN
    train, validation = prepared.train_table, prepared.validation_table
    if base_saw is None and validation is not train:
        gap, p = _gap(train, validation)
        if p < 0.01 and gap > 0.02:
            return CAUTION * SEEN
    if base_saw is None and bool((validation.logits.argmax(1) == validation.labels).all()):
        return CAUTION * SEEN
    return CAUTION


def _gap(train: PooledTable, validation: PooledTable) -> tuple[float, float]:
    """Accuracy on validation less accuracy on train, and its p-value (Fisher)."""
    right_t, right_v = (int((t.logits.argmax(1) == t.labels).sum()) for t in (train, validation))
    n_t, n_v = len(train.labels), len(validation.labels)
    p = float(stats.fisher_exact([[right_t, n_t - right_t], [right_v, n_v - right_v]])[1])
    return right_v / n_v - right_t / n_t, p
