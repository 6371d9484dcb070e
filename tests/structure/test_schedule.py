"""Branches first, then units: when gates move, which branches go, and that nothing stays undecided."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tweaknn.structure import ComplexityAware
from tweaknn.structure.analyse import analyse
from tweaknn.structure.rounding import opens, order_of_branches, settle_branches, streams
from tweaknn.structure.schedule import LAYERS, UNITS, layers_target, windows
from tweaknn.structure.settings import Settings

from .nets import Residual, images, make
from .test_pruner import loop, start


class Stages(torch.nn.Module):
    """Two stages of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        widths = (6, 6, 6, 12, 12, 12)
        self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = torch.nn.Sequential(
            *(Residual(a, b, 1 + (a != b)) for a, b in itertools.pairwise((6, *widths)))
        )
        self.head = torch.nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.conv(x)).mean((2, 3)))


@given(st.floats(0.01, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_layers_target_lies_between_one_and_the_budget_and_falls_with_beta(target: float, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert target * (1 - 1e-9) <= layers_target(target, high) <= layers_target(target, low) <= 1.0
    assert layers_target(target, 0.0) == 1.0
    assert layers_target(target, 1.0) == pytest.approx(target)
    assert layers_target(target, 0.5) == pytest.approx(target ** (7 / 8))


@given(st.integers(1, 500), st.booleans(), st.booleans())
def test_windows_follow_each_other_and_have_steps(steps: int, layers: bool, units: bool) -> None:
    found = windows(Settings(steps=steps), layers, units)
    assert [w.kind for w in found] == [LAYERS] * layers + [UNITS] * units
    assert all(w.end > w.start >= 0 for w in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


def test_branches_decide_before_units_move() -> None:
    model, optimizer, pruner = start(steps=100, flops=0.4)
    n = pruner.original.n_units
    units = pruner.windows[1].start
    for step in range(100):
        loop(model, pruner, optimizer, 1, start=step)
        theta = pruner.state.theta
        if step + 1 < units:
            assert bool((theta[:n][pruner.possible[:n]] == 1).all())
        else:
            assert bool(((theta[n:] == 0) | (theta[n:] == 1)).all())


@pytest.mark.parametrize("options", [
    {"flops": 0.5}, {"flops": 0.25}, {"params": 0.4}, {"nu": 1.0}, {"nu": 0.05}, {"flops": 0.5, "beta": 0.0},
    {"flops": 0.5, "estimator": "straight-through"}, {"flops": 0.5, "estimator": "weighted"},
])  # fmt: skip
def test_every_gate_decides_by_itself(options: dict) -> None:
    model, optimizer, pruner = start(steps=80, width=16, **options)
    loop(model, pruner, optimizer, 80)
    assert pruner.finished
    assert pruner.undecided is not None
    assert pruner.undecided <= 0.02


@pytest.mark.parametrize("rewind", [True, False])
def test_training_starts_anew_once_branches_are_decided(rewind: bool) -> None:
    model, optimizer, pruner = start(steps=80, flops=0.4, rewind=rewind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(pruner.windows[0].end):
        if pruner._window == 0:  # a window may end early, and training after it moves the weights
            loop(model, pruner, optimizer, 1, start=step)
    assert pruner._window == 1
    left = dict(pruner.model.named_parameters())
    assert 0 < len(left) < len(before)
    assert all(torch.equal(p, before[name]) for name, p in left.items()) == rewind
    assert all(not optimizer.state.get(p) for p in left.values()) == rewind


def test_streams_are_stages() -> None:
    plan = analyse(Stages(), images())
    assert streams(plan).tolist() == [0, 0, 0, 3, 3, 3]


def test_the_branch_that_opens_a_stage_is_told_by_its_shortcut() -> None:
    assert opens(analyse(Stages(), images())).tolist() == [False, False, False, True, False, False]
    assert not opens(analyse(*make("transformer"))).any()


def test_streams_without_gates_are_told_by_width() -> None:
    model, example, *_ = make("transformer")
    plan = analyse(model, example)
    assert len(plan.blocks) > 1
    assert len(set(streams(plan).tolist())) == 1


def test_the_last_branch_of_a_stage_goes_last() -> None:
    plan = analyse(Stages(), images())
    pruner = ComplexityAware(Stages(), images(), None, steps=10, plan=plan)
    theta = np.ones(plan.n_gates)
    theta[plan.n_units :] = [0.0, 0.1, 0.2, 0.7, 0.8, 0.9]  # the first stage looks worthless
    args = (plan, theta, np.zeros(plan.n_gates), np.ones(plan.n_gates, dtype=bool))
    two = np.ones(plan.n_gates, dtype=bool)
    two[plan.n_units + np.array([0, 1, 3, 4])] = False
    aim = pruner.measure(two)
    kept = settle_branches(*args, aim=aim, floor=0.5 * aim, measure=pruner.measure)
    assert kept[plan.n_units :].tolist() == [False, False, True, True, False, False]  # the one that opens a stage stays
    assert kept[: plan.n_units].all()


def test_the_order_of_branches_is_that_in_which_they_go_one_by_one() -> None:
    plan = analyse(Stages(), images())
    theta = np.ones(plan.n_gates)
    theta[plan.n_units :] = [0.0, 0.1, 0.2, 0.7, 0.8, 0.9]
    order, before = order_of_branches(plan, theta, np.zeros(plan.n_gates), np.ones(plan.n_gates, dtype=bool))
    assert order == [0, 1, 4, 5, 2, 3]  # the first stage keeps its last, the second the one that opens it, to the end
    assert before == 5


def left_of(weight: list[float], gone: list[int], rest: float) -> list[int]:
    """Branches of a network of two stages that are kept for 0.92 of a cost of ``rest`` and a ``weight`` each, some ``gone`` before."""
    plan = analyse(Stages(), images())
    start = np.ones(plan.n_gates, dtype=bool)
    start[plan.n_units + np.array(gone)] = False
    one = np.ones(plan.n_gates)
    kept = settle_branches(
        plan, one, one, start, aim=0.92, floor=0.5,
        measure=lambda a: a[: plan.n_units].mean() * (rest + np.array(weight) @ a[plan.n_units :]),
    )  # fmt: skip
    return np.flatnonzero(kept[plan.n_units :]).tolist()


def test_no_stage_is_emptied_to_come_a_little_nearer() -> None:
    """A cheap block that is all its stage has, beside dearer ones with company that would overshoot."""
    assert left_of(weight=[0.25, 0.0, 0.25, 0.1, 0.0, 0.0], gone=[1, 4, 5], rest=0.4) == [0, 2, 3]


def test_a_stage_keeps_the_block_that_opens_it_while_units_have_a_part_of_the_way_to_go() -> None:
    plan = analyse(Stages(), images())
    pruner = ComplexityAware(Stages(), images(), None, steps=10, plan=plan)
    alone = np.ones(plan.n_gates, dtype=bool)
    alone[plan.n_units + np.array([0, 1, 4, 5])] = False  # one block a stage: the second stage's opens it
    emptied = alone.copy()
    emptied[plan.n_units :] = False
    aim = pruner.measure(emptied)
    theta, worth = np.ones(plan.n_gates), np.zeros(plan.n_gates)
    for floor, left in ((0.8 * aim, [3]), (aim, [])):  # units go on from there, or have nothing left to do
        kept = settle_branches(plan, theta, worth, alone.copy(), aim=aim, floor=floor, measure=pruner.measure)
        assert np.flatnonzero(kept[plan.n_units :]).tolist() == left


def test_the_block_that_opens_a_stage_does_not_go_before_its_equal() -> None:
    # the opening one would come nearer to the aim
    assert left_of(weight=[0.2, 0.0, 0.0, 0.08, 0.22, 0.0], gone=[1, 2, 5], rest=0.5) == [0, 3, 4]


def test_branches_never_take_the_network_below_the_budget() -> None:
    plan = analyse(Stages(), images())
    pruner = ComplexityAware(Stages(), images(), None, steps=10, plan=plan)
    rng = np.random.default_rng(0)
    for target in (0.9, 0.6, 0.4, 0.2):
        theta = rng.random(plan.n_gates)
        kept = settle_branches(
            plan, theta, theta, np.ones(plan.n_gates, dtype=bool), aim=target, floor=target, measure=pruner.measure
        )
        assert pruner.measure(kept) >= target
        closed = plan.n_units + np.flatnonzero(~kept[plan.n_units :])
        assert len(closed) or all(pruner.measure(_without(plan.n_gates, b)) < target for b in range(plan.n_units, plan.n_gates))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_budget_leaves_alone_what_beta_does(beta: float) -> None:
    model, optimizer, pruner = start(steps=60, flops=0.6, beta=beta)
    n = pruner.original.n_units
    before = [list(p.shape) for p in model.parameters()]
    loop(model, pruner, optimizer, 60)
    kept = pruner.possible
    if beta == 0:
        assert kept[n:].all()
        assert not kept[:n].all()
    else:  # what is left of the branches that stay is as wide as it was
        assert not kept[n:].all()
        left = [list(p.shape) for p in pruner.model.parameters()]
        assert len(left) < len(before)
        assert all(shape in before for shape in left)


def _without(n: int, gate: int) -> np.ndarray:
    alive = np.ones(n, dtype=bool)
    alive[gate] = False
    return alive


def test_without_a_budget_the_network_learns_before_branches_decide() -> None:
    """Nothing but the loss holds a branch back then, and a network that has learnt nothing loses nothing by any of them."""
    layers, units = windows(Settings(steps=1000), True, True)
    assert (layers.start, layers.end, units.start, units.end) == (150, 300, 300, 500)
    layers, units = windows(Settings(steps=1000, flops=0.3), True, True)
    assert (layers.start, layers.end, units.start, units.end) == (0, 20, 100, 400)
    asked = Settings(steps=1000, warmup=0.0, end=0.2)
    assert (asked.warmup, asked.end) == (0.0, 0.2)
    for options in ({"end": 0.1}, {"layers": 0.05}, {"units": 0.1}, {"end": 0.2, "flops": 0.5}, {"units": 0.0, "flops": 0.5}):
        Settings(steps=1000, **options)  # what is not said makes room for what is
