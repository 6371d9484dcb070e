"""K in closed form against brute force over every setting of the gates, and its gradient against differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tweaknn.structure import CostModel, Plan, analyse
from tweaknn.structure.plan import Block, Op

from .nets import ZOO, make


def brute(plan: Plan, cost: CostModel, theta: np.ndarray, units_on: bool = False, layers_on: bool = False) -> float:
    """Expectation over all 2^n gate settings of the counted complexity, in plain loops."""
    total = 0.0
    for z in itertools.product((0, 1), repeat=plan.n_gates):
        p = np.prod([t if on else 1 - t for t, on in zip(theta, z)])
        gates = list(z)
        if units_on:
            gates[: plan.n_units] = [1] * plan.n_units
        if layers_on:
            gates[plan.n_units :] = [1] * len(plan.blocks)
        sum_ = 0.0
        for o in plan.ops:
            if not all(gates[b] for b in o.blocks):
                continue
            outs = sum(1 if g < 0 else gates[g] for g in o.out_map)
            ins = 1 if o.in_map is None else sum(1 if g < 0 else gates[g] for g in o.in_map)
            price = cost.alpha * o.flops / cost.full_flops + (1 - cost.alpha) * o.params / cost.full_params
            sum_ += price * outs * ins
        total += p * sum_
    return float(total)


def mixture(plan: Plan, cost: CostModel, theta: np.ndarray) -> float:
    b = cost.beta
    return (
        2 * min(b, 1 - b) * brute(plan, cost, theta)
        + max(0, 1 - 2 * b) * brute(plan, cost, theta, layers_on=True)
        + max(0, 2 * b - 1) * brute(plan, cost, theta, units_on=True)
    )


def random_plan(rng: np.random.Generator) -> Plan:
    """Operations with coupled, repeated, self-reading and constant indices, in nested branches."""
    n_units, n_blocks = int(rng.integers(1, 6)), int(rng.integers(0, 3))
    ops = []
    for _ in range(int(rng.integers(1, 5))):
        out = rng.integers(-1, n_units, size=int(rng.integers(1, 6)))
        in_map = rng.integers(-1, n_units, size=int(rng.integers(1, 6))) if rng.random() < 0.7 else None
        if in_map is not None and rng.random() < 0.3:
            in_map = out
        blocks = tuple(int(n_units + b) for b in range(n_blocks) if rng.random() < 0.5)
        ops.append(Op("", out, in_map, float(rng.random() + 0.1), float(rng.random() + 0.1), blocks))
    return Plan(n_units, ops, [], [Block("a", str(i), ()) for i in range(n_blocks)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
def test_closed_form_is_the_expectation(seed: int, alpha: float, beta: float) -> None:
    rng = np.random.default_rng(seed)
    plan = random_plan(rng)
    cost = CostModel(plan, alpha, beta)
    theta = rng.random(plan.n_gates)
    got = float(cost.value(torch.from_numpy(theta)))
    assert got == pytest.approx(mixture(plan, cost, theta), rel=1e-10, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
def test_gradient_is_the_difference_of_closing_a_gate(seed: int, alpha: float, beta: float) -> None:
    """K is multilinear, so a derivative is exactly what opening the gate adds."""
    rng = np.random.default_rng(seed)
    plan = random_plan(rng)
    cost = CostModel(plan, alpha, beta)
    theta = torch.from_numpy(rng.random(plan.n_gates))
    got = cost.gradient(theta)
    for g in range(plan.n_gates):
        on, off = theta.clone(), theta.clone()
        on[g], off[g] = 1.0, 0.0
        assert float(got[g]) == pytest.approx(float(cost.value(on) - cost.value(off)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["mlp", "residual", "dense", "grouped", "transformer"])
def test_full_cost_is_torchs_own_count(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, x = make(name)
    model.eval()
    cost = CostModel(analyse(model, x), 0.5)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert cost.full_flops == pytest.approx(counter.get_total_flops() / len(x), rel=1e-9)
    extra = sum(p.numel() for n, p in model.named_parameters() if name == "mlp" and n == "net.3.weight")
    assert cost.full_params == sum(p.numel() for p in model.parameters()) - extra


@pytest.mark.parametrize("name", [n for n in ZOO if n not in ("lstm", "gru", "multihead", "mlp")])
def test_cut_network_costs_what_the_closed_form_says(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from tweaknn.structure.analyse import keep_working
    from tweaknn.structure.surgery import cut

    model, x = make(name)
    plan = analyse(model, x)
    cost = CostModel(plan, 0.5)
    alive = keep_working(plan, np.random.default_rng(0).random(plan.n_gates) < 0.6)
    model, _ = cut(model, plan, alive)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    flops, params = cost.fractions(torch.from_numpy(alive.astype(float)))
    assert flops * cost.full_flops == pytest.approx(counter.get_total_flops() / len(x), rel=1e-9)
    assert params * cost.full_params == pytest.approx(sum(p.numel() for p in model.parameters()), rel=1e-9)
