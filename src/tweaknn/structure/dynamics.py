"""The step of section 4 on ``theta``, and the controller on ``nu`` that ends at a budget. Pure tensor arithmetic.

All arrays have shape ``(n_gates,)`` and are float64; ``z`` is the sampled gate of the step, ``g`` the derivative of
the mean loss with respect to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .cost import CostModel
from .schedule import Window
from .settings import Settings

FAST, SLOW = 0.95, 0.98
OFF_DECAY = 0.8
CLIP = 3.0


@dataclass
class State:
    """Everything the step remembers."""

    theta: Tensor
    on: Tensor  # running mean of g where z = 1
    off: Tensor  # and where z = 0
    n_on: Tensor
    n_off: Tensor
    m: Tensor
    s: Tensor
    v: Tensor
    still: Tensor  # consecutive steps at theta <= 0.01
    log_nu: float
    step: int = 0

    @classmethod
    def new(cls, n: int, settings: Settings, device: torch.device | str = "cpu") -> State:
        theta = torch.ones(n, dtype=torch.float64, device=device)
        zero = torch.zeros_like(theta)
        on, off, n_on, n_off, m, s, v, still = (zero.clone() for _ in range(8))
        return cls(theta, on, off, n_on, n_off, m, s, v, still, math.log(max(settings.nu, 1e-12)))

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}


def estimate(state: State, g: Tensor, z: Tensor, estimator: str) -> Tensor:
    """This step's estimate of ``Δ = E[loss|z=1] - E[loss|z=0]`` (section 3), and the update of what it remembers.

    trapezoid: the mean of the derivatives at the two end points, each from its own running mean, so that the rare
    end point needs no importance weight (its weight still fades as it becomes unvisited, as in the text).
    weighted: the text's one-sample form, ``g min(1/p_z, 10) / (m_1 + m_0)``. straight-through: ``g``.
    """
    if estimator == "straight-through":
        return g
    p1, p0 = state.theta, 1 - state.theta
    m1, m0 = (p1 / 0.1).clamp(max=1.0), (p0 / 0.1).clamp(max=1.0)
    if estimator == "weighted":
        p = torch.where(z > 0.5, p1, p0)
        return g * (1 / p.clamp(min=1e-12)).clamp(max=10.0) / (m1 + m0)
    is_on = z > 0.5
    state.n_on += is_on
    state.n_off += ~is_on
    rate_on = torch.maximum(torch.full_like(g, 1 - FAST), 1 / state.n_on.clamp(min=1))
    rate_off = torch.maximum(torch.full_like(g, 1 - OFF_DECAY), 1 / state.n_off.clamp(min=1))
    state.on += is_on * rate_on * (g - state.on)
    state.off += ~is_on * rate_off * (g - state.off)
    w1 = m1 * (state.n_on > 0)
    w0 = m0 * (state.n_off > 0)
    return (w1 * state.on + w0 * state.off) / (w1 + w0).clamp(min=1e-12)


def remember(state: State, delta: Tensor, estimator: str) -> None:
    """Running means ``m``, ``s`` and spread ``v`` of ``delta`` (in nats; the text divides by ``nu k`` first)."""
    t = state.step + 1
    fast = 1.0 if estimator == "trapezoid" else max(1 - FAST, 1 / t)  # the trapezoid is a running mean already
    slow = max(1 - SLOW, 1 / t)
    state.m += fast * (delta - state.m)
    state.s += slow * (delta - state.s)
    state.v += slow * ((delta - state.s) ** 2 - state.v)


def shrunk(state: State, prices: Tensor, active: Tensor, family: Tensor | None, estimator: str) -> Tensor:
    """``m/k`` of every gate, drawn towards its layer's mean by as much as it is noise (James and Stein's estimator).

    Units of a layer are alike until something tells them apart: with spread ``var`` between them and ``noise`` of
    the estimates, ``r = mean + max(0, 1 - noise/var) (r - mean)``. ``family`` numbers layers; branches have their own.
    """
    k = prices.clamp(min=1e-12)
    r = state.m / k
    if family is None:
        return r
    noise = state.v / k**2
    if estimator != "trapezoid":  # the variance of a running mean of single steps
        noise = noise * (1 - FAST) / (1 + FAST)
    n = int(family.max()) + 1
    on = active.to(r.dtype)
    count = torch.zeros(n, dtype=r.dtype, device=r.device).index_add(0, family, on).clamp(min=1.0)

    def average(values: Tensor) -> Tensor:
        return torch.zeros_like(count).index_add(0, family, values * on) / count

    mean = average(r)
    around = (r - mean[family]).square()
    keep = (1 - average(noise) / average(around).clamp(min=1e-30)).clamp(0.0, 1.0)
    keep = torch.where(count > 1, keep, torch.ones_like(keep))
    return mean[family] + keep[family] * (r - mean[family])


def spread(r: Tensor, prices: Tensor, active: Tensor) -> float:
    """Root mean square of ``r = m/k`` over gates that may still move (nats for 100 % of the complexity)."""
    moving = active & (prices > 0)
    if not bool(moving.any()):
        return 1.0
    return float(r[moving].square().mean().sqrt()) or 1e-12


def drive(
    state: State, settings: Settings, r: Tensor, prices: Tensor, now: Tensor, nu: float, ramp: float, progress: float,
    scale: float,
) -> Tensor:  # fmt: skip
    """``d`` of section 4; ``prices`` is ``k`` (at Θ = 1), ``now`` the gradient of ``K_β`` at ``theta``, ``r`` is ``m/k``.

        d = ((r + ramp ν c) / scale + ρ prog (1 - 2θ)) / caution,    c = now / k

    The text divides by ``ν``; ``scale`` is the gates' own spread instead, so that a larger ``ν`` always pulls harder
    (divided by ``ν`` the pull is ``c`` at most, which the concave term overcomes as neighbours die and ``c`` falls).
    """
    k = prices.clamp(min=1e-12)
    concave = settings.rho * progress * (1 - 2 * state.theta)
    caution = 1 + settings.kappa * torch.sqrt(state.v * (0.05 / 1.95)) / k / scale
    d = ((r + ramp * nu * now / k) / scale + concave) / caution
    return d.clamp(-CLIP, CLIP)


def control(
    state: State, window: Window, settings: Settings, r: Tensor, prices: Tensor, now: Tensor, metric: Tensor,
    change: float, progress: float, moving: Tensor, scale: float, first: bool,
) -> float:  # fmt: skip
    """The ``log nu`` for which one step changes the budgeted fraction by ``change`` (to first order).

    ``metric`` is that fraction's gradient. The predicted change falls as ``nu`` grows, so bisection finds it; the
    answer is smoothed with the previous one.
    """
    middle = math.log(scale)
    low, high, halvings = middle - 7.0, middle + 7.0, 14
    if not first:  # it moves slowly: a unit around the last answer is plenty
        near = min(max(state.log_nu, low + 1.0), high - 1.0)
        low, high, halvings = near - 1.0, near + 1.0, 7
    for _ in range(halvings):
        mid = 0.5 * (low + high)
        d = drive(state, settings, r, prices, now, math.exp(mid), 1.0, progress, scale)
        moved = (state.theta - d / pace(window, settings)).clamp(0.0, 1.0) - state.theta
        if float((metric * moved * moving).sum()) > change:
            low = mid
        else:
            high = mid
    found = 0.5 * (low + high)
    return found if first else 0.5 * (state.log_nu + found)


def pace(window: Window, settings: Settings) -> float:
    """Steps in which a unit drive moves ``theta`` by one."""
    return max(1.0, settings.speed * (window.end - window.start))


@dataclass(frozen=True)
class Budget:
    """What the controller steers to: ``metric`` (``flops`` or ``params``) from ``start`` to ``target`` in a window."""

    metric: str
    start: float
    target: float
    fraction: float


def advance(
    state: State, settings: Settings, window: Window, cost: CostModel, prices: Tensor, moving: Tensor, *,
    budget: Budget | None = None, family: Tensor | None = None,
) -> None:  # fmt: skip
    """One step on ``state.theta`` in place. ``moving`` marks the gates of this window that may move (bool)."""
    ramp, progress, go = window.phase(state.step, ramped=budget is None)
    if go:
        now = cost.gradient(state.theta)
        r = shrunk(state, prices, moving, family if settings.shrink else None, settings.estimator)
        scale = spread(r, prices, moving)
        if budget is not None:
            metric = cost.params_gradient(state.theta) if budget.metric == "params" else cost.flops_gradient(state.theta)
            change = window.desired(state.step, budget.start, budget.target) - budget.fraction
            first = not window.phase(state.step - 1, False)[2]
            state.log_nu = control(
                state, window, settings, r, prices, now, metric, change, progress, moving, scale, first
            )
        d = drive(state, settings, r, prices, now, math.exp(state.log_nu), ramp, progress, scale)
        state.theta = torch.where(moving, (state.theta - d / pace(window, settings)).clamp(0.0, 1.0), state.theta)
    state.still = torch.where(state.theta <= 0.01, state.still + 1, torch.zeros_like(state.still))
    state.step += 1
