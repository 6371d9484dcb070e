"""The targets' common bias under ``overall``: the optimum, nobody else moved, and a promise that holds on new examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tweaknn import Promise
from tweaknn.join.operating import operate
from tweaknn.join.settle import targets_alone


def world(seed: int, n: int, c: int, helpful: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base logits, logits that know a little more, labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    y[:c] = np.arange(c)
    base = rng.normal(size=(n, c)).astype(np.float32)
    base[np.arange(n), y] += 1.3
    more = base.copy()
    more[np.arange(n), y] += helpful * rng.random(n).astype(np.float32)
    return base, more, y


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(12, 80), st.integers(3, 6), st.integers(1, 2), st.sampled_from([0.0, 0.05]))
def test_it_is_the_best_common_bias(seed, n, c, k, tolerance):
    base, z, y = world(seed, n, c)
    targets = list(range(k))
    point = operate(base, z, y, targets, Promise("overall", tolerance), alone=True)
    assert set(np.flatnonzero(point.bias)) in (set(), set(targets))
    assert len(set(point.bias[targets])) == 1
    inside, outside = z[:, :k].max(1), z[:, k:].max(1)
    flips = np.sort(outside - inside)
    best = None
    for g in [flips[0] - 1, *(0.5 * (flips[1:] + flips[:-1])), flips[-1] + 1]:
        p = np.where((np.arange(c) < k)[None], z + np.float32(g), z).argmax(1)
        kept = (p == y).sum() >= np.ceil((base.argmax(1) == y).sum() - tolerance * n - 1e-9)
        kept = kept and all((p == y)[y == t].sum() >= (base.argmax(1) == y)[y == t].sum() for t in targets)
        if kept:
            value = np.mean([(p == y)[y == t].mean() for t in targets])
            best = value if best is None else max(best, value)
    assert point.feasible == (best is not None)
    if best is not None:
        assert point.target == pytest.approx(best, abs=1e-9)


def test_new_examples_keep_the_promise_where_free_biases_break_it():
    """The reason it exists: many draws of 200 examples, each judged on 6,000 others."""
    base, z, y = world(0, 30_000, 8, helpful=0.2)
    lost = {True: [], False: []}
    for draw in range(6):
        order = np.random.default_rng(draw).permutation(len(y))
        few, many = order[:200], order[200:6200]
        for alone in lost:
            bias = operate(base[few], z[few], y[few], [0], Promise("overall"), alone=alone).bias
            right = ((z[many] + bias).argmax(1) == y[many]).mean()
            lost[alone].append((base[many].argmax(1) == y[many]).mean() - right)
    assert np.mean(lost[False]) > 0.015
    assert np.mean(lost[True]) < 0.5 * np.mean(lost[False])


def test_all_classes_as_targets_have_a_bias_each():
    base, z, y = world(3, 200, 4)
    point = operate(base, z, y, [0, 1, 2, 3], Promise("overall"), alone=True)
    same = operate(base, z, y, [0, 1, 2, 3], Promise("overall"))
    assert (point.bias == same.bias).all()


@pytest.mark.parametrize(("promise", "expected"), [
    (Promise("overall"), True),
    (Promise("overall", 0.01), True),
    (Promise("overall", weights={"a": 2.0}), True),
    (Promise("floors"), False),
    (Promise("overall", max_drop=0.01), False),
    (Promise("overall", floors={"a": 0.8}), False),
    (Promise("mixed", overall_drop=0.01), False),
])  # fmt: skip
def test_where_it_applies(promise, expected):
    assert targets_alone(promise) is expected


@pytest.mark.parametrize(("said", "hinted"), [(None, True), ("none", False), ("train", False)])
def test_few_validation_examples_say_what_would_help(said, hinted):
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    from tweaknn import SynapticJoin

    torch.manual_seed(0)
    x = torch.randn(260, 6)
    y = (x[:, :3] + 0.8 * torch.randn(260, 3)).argmax(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    parts = TensorDataset(x[:200], y[:200]), TensorDataset(x[200:], y[200:])
    result = SynapticJoin(method="mean", base_saw=said).fit(net, *parts, targets=[0])
    thin = [w for w in result.warnings if "few validation examples" in w]
    assert any("--base-saw none" in w for w in thin) is hinted
    assert "mean" in {c.name for c in result.candidates}
