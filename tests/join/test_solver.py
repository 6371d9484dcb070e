"""The solver of operating points: what must not matter does not, what must hold holds, and exact answers are reached."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from tests.join.problems import example
from tweaknn.join.contest import Contest, predictions
from tweaknn.join.lattice import Lattice, least_biases
from tweaknn.join.operating import operate
from tweaknn.join.promise import Promise

PROMISES = [
    ([1], Promise("floors", 0.02)),
    ([0, 2], Promise("floors")),
    ([0], Promise("overall")),
    ([0, 1], Promise("mixed", max_drop=0.05, specificity={0: 0.7}, weights={0: 2.0})),
]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(PROMISES))
def test_the_order_of_the_examples_does_not_matter(seed, case):
    base, z, y = example(seed, n=200, c=5)
    order = np.random.default_rng(seed + 1).permutation(len(y))
    first = operate(base, z, y, *case)
    second = operate(base[order], z[order], y[order], *case)
    assert np.array_equal(first.bias, second.bias)
    assert first.feasible == second.feasible


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05]))
def test_an_example_nobody_contests_changes_nothing_but_the_shares(seed, tolerance):
    """Under floors for one target, whose optimum is exact: a right example no bias in reach can flip asks for itself and no more."""
    base, z, y = example(seed, n=120, c=4)
    sure = np.full((1, 4), -1000.0, dtype=np.float32)
    sure[0, 2] = 1000.0
    counts = np.bincount(y, minlength=4)
    need = np.ceil(np.bincount(y[base.argmax(1) == y], minlength=4) - tolerance * counts - 1e-9)
    fixed = np.arange(4) == 1
    more = need + (np.arange(4) == 2)
    plain, possible = least_biases(z, y, need, np.zeros(4), fixed)
    again, still = least_biases(np.concatenate([z, sure]), np.append(y, 2), more, np.zeros(4), fixed)
    assert possible == still
    if possible:
        # the span of the logits sets how far past a tie a bias is put
        assert np.abs(plain - again).max() < 1e-3
        assert np.array_equal((z + plain).argmax(1), (z + again).argmax(1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(PROMISES), st.sampled_from([1.0, 30.0]))
def test_feasible_means_kept_on_the_float32_sums(seed, case, scale):
    targets, promise = case
    base, z, y = example(seed, n=300, c=5)
    base, z = (scale * base).astype(np.float32), (scale * z).astype(np.float32)
    point = operate(base, z, y, targets, promise)
    p, counts = (z + point.bias).argmax(1), np.bincount(y, minlength=5)
    after, before = np.bincount(y[p == y], minlength=5), np.bincount(y[base.argmax(1) == y], minlength=5)
    if not point.feasible:
        assert point.reason
        return
    others = np.setdiff1d(np.arange(5), targets)
    if promise.kind == "floors":
        assert (after[others] >= before[others] - promise.tolerance * counts[others] - 1e-9).all()
    if promise.kind != "mixed":
        assert (after[targets] >= before[targets]).all()
    if promise.kind == "overall":
        assert after.sum() >= before.sum()
    if promise.kind == "mixed":
        assert (after >= before - 0.05 * counts - 1e-9).all()
        assert ((p == 0) & (y != 0)).sum() <= 0.3 * (y != 0).sum() + 1e-9


def test_logits_of_another_scale_have_the_same_optimum():
    base, z, y = example(5, n=400, c=6)
    one = operate(base, z, y, [0, 3], Promise("overall", 0.01))
    big = operate(64 * base, 64 * z, y, [0, 3], Promise("overall", 0.01))
    assert one.value == pytest.approx(big.value, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 3.0))
def test_a_contest_leaves_out_only_what_cannot_win(seed, width):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(80, 9)).astype(np.float32)
    centre = rng.normal(size=9) * 0.3
    contest = Contest.around(z, centre, width)
    bias = centre + rng.uniform(0, width, size=9) * 0.999
    kept = np.where(contest.settled >= 0, contest.settled, -1)
    for r, k in enumerate(contest.rows):
        mine = slice(contest.start[r], contest.start[r + 1])
        kept[k] = contest.classes[mine][np.argmax(contest.scores[mine] + bias[contest.classes[mine]])]
    assert np.array_equal(kept, predictions(z, bias))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("many", [False, True])
def test_a_focused_or_warm_climb_ends_where_a_full_one_does(seed, many, monkeypatch):
    """The least point from scratch, from below, near a point, and with the whole table in steps: the same."""
    import tweaknn.join.lattice as lattice_module

    base, z, y = example(seed, n=900, c=14, help_=1.4)
    if many:
        monkeypatch.setattr(lattice_module, "MANY", 10)
    counts, right = np.bincount(y, minlength=14), np.bincount(y[base.argmax(1) == y], minlength=14)
    fixed = np.arange(14) < 3
    lattice = Lattice(z, y, np.ceil(right - 0.1 * counts), fixed)
    start = lattice.least(np.zeros(14))
    assert start.possible
    shifted = np.array([0.1, -0.05, 0.0, *np.zeros(11)])
    slow = _reference(z, y, np.ceil(right - 0.1 * counts), shifted, fixed)
    from_below = lattice.least(shifted, start.bias - 0.05)
    near = lattice.focus(start.bias, 0.6).least(shifted, start.bias - 0.05)
    np.testing.assert_allclose(lattice.least(shifted).bias, slow, atol=1e-5)
    np.testing.assert_allclose(from_below.bias, slow, atol=1e-5)
    assert not near.inside or np.allclose(near.bias, slow, atol=1e-5)


def _reference(z, y, need, bias, fixed, eps=1e-6):
    """The climb as the method note has it, in NumPy."""
    b = np.where(fixed, bias, -1e30)
    for _ in range(5000):
        before = b.copy()
        for j in np.flatnonzero(~fixed):
            rows = y == j
            s = z[rows].astype(float) + b
            s[:, j] = -np.inf
            d = np.sort(s.max(1) - z[rows, j])
            b[j] = max(b[j], d[int(need[j]) - 1] + eps)
        if np.array_equal(before, b):
            return b
    raise AssertionError("no fixed point")


def test_classes_that_outbid_each_other_for_ever_are_found_out():
    """Two classes whose examples all lie on one line cannot both keep more than are separable; nothing is climbed to the ceiling."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 400)
    z = rng.normal(size=(1200, 3)).astype(np.float32)
    need = np.array([300.0, 300.0, 0.0])
    found = Lattice(z, y, need, np.array([False, False, True])).least(np.zeros(3))
    assert not found.possible


def best_by_milp(z, y, gain, need, need_all, room=4.0):
    """The exact optimum of a small problem as a mixed-integer program: which examples are right, and one bias a class."""
    n, c = z.shape
    rows, least = [], []
    m = 2 * room + float(z.max() - z.min())
    for k in range(n):
        for j in range(c):
            if j == y[k]:
                continue
            row = np.zeros(n + c)
            row[n + y[k]], row[n + j], row[k] = 1.0, -1.0, -m
            rows.append(row)
            least.append(z[k, j] - z[k, y[k]] + 1e-5 - m)
    for j in range(c):
        rows.append(np.concatenate([(y == j).astype(float), np.zeros(c)]))
        least.append(need[j])
    rows.append(np.concatenate([np.ones(n), np.zeros(c)]))
    least.append(need_all)
    lower = np.concatenate([np.zeros(n), np.full(c, -room)])
    upper = np.concatenate([np.ones(n), np.full(c, room)])
    lower[n] = upper[n] = 0.0
    found = milp(
        -np.concatenate([gain, np.zeros(c)]),
        constraints=LinearConstraint(np.array(rows), np.array(least)),
        integrality=np.concatenate([np.ones(n), np.zeros(c)]),
        bounds=(lower, upper),
        options={"time_limit": 60, "mip_rel_gap": 0},
    )
    return -found.fun if found.status == 0 else None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["floors", "overall"])
def test_several_targets_reach_the_proven_optimum_of_small_problems(seed, kind):
    base, z, y = example(seed, n=44, c=4)
    targets = [0, 1]
    before, counts = np.bincount(y[base.argmax(1) == y], minlength=4), np.bincount(y, minlength=4)
    need = before.astype(float) if kind == "floors" else np.where(np.isin(np.arange(4), targets), before, 0.0)
    gain = np.where(np.isin(y, targets), 0.5 / counts[y], 0.0)
    best = best_by_milp(z.astype(float), y, gain, need, before.sum() if kind == "overall" else 0.0)
    point = operate(base, z, y, targets, Promise(kind))
    if best is None:
        return
    assert point.feasible
    assert point.value >= best - 1e-6
