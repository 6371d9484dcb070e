"""Complexity-aware training in anyone's loop: five lines.

    pruner = ComplexityAware(model, example, optimizer, steps=epochs * len(loader), flops=0.5)
    for x, y in loader:
        loss = criterion(model(x), y); loss.backward()
        optimizer.step(); pruner.step(); optimizer.zero_grad()
    model = pruner.compact()
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import ModelError
from . import deciding, dynamics, history, resume
from .analyse import analyse, keep_working
from .cost import CostModel
from .gating import Gate
from .latency import LatencyBudget
from .plan import Plan
from .rounding import smallest, undecided_share
from .schedule import LAYERS, layers_target, windows
from .settings import BOTH, Settings
from .surgery import cut
from .wrapping import bare, world

DECIDED = 0.02


class ComplexityAware:
    """Gates on the units and branches of ``model``, trained with its weights, and cut out as they close.

    Args:
        model: any module; built-in and compiled or distributed wrappers are looked through.
        example: a batch (or tuple of arguments) the model runs on; two examples are plenty.
        optimizer: the optimiser, or several; their state is cut along with the parameters.
        steps: optimiser steps of the whole run.
        scaler: the :class:`torch.amp.GradScaler`, if one scales the loss.
        plan: gates found before by :func:`tweaknn.structure.analyse` (saves finding them again).
        options: every other field of :class:`tweaknn.structure.Settings` (``nu``, ``alpha``, ``flops``, ...).

    With more than one process the parameters are not touched in mid-run (the reducer knows their shapes): closed
    gates stay at zero until :meth:`operate` or :meth:`compact`, after which the model is to be wrapped anew.

    Raises:
        InputError: an option is out of range, or the budget is below what the gates can reach (the nearest is named).
        ModelError: the model does not run on ``example`` or nothing in it can be gated.
    """

    def __init__(
        self, model: nn.Module, example: Any, optimizer: Optimizer | Iterable[Optimizer] | None = None, *, steps: int,
        scaler: Any = None, plan: Plan | None = None, **options: Any,
    ):  # fmt: skip
        self.settings = Settings(steps=steps, **options)
        self.model = bare(model)
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or [])
        self.scaler = scaler
        found = plan if plan is not None else analyse(self.model, example)
        self.original = dataclasses.replace(found, branches_go=self.settings.beta > 0)
        self.plan = self.original
        if not self.plan.n_gates:
            raise ModelError(
                f"nothing in {type(self.model).__name__} can be gated: "
                + "; ".join(f"{k}: {v}" for k, v in list(self.plan.ungated.items())[:3])
            )
        first = next(self.model.parameters())
        counted = CostModel(self.plan, 0.0).full_params
        total = sum(p.numel() for p in self.model.parameters())
        s = self.settings
        self.cost = CostModel(self.plan, s.alpha, s.beta, extra_params=max(0.0, total - counted), device=first.device)
        self.dtype = torch.float64
        n, device = self.plan.n_gates, first.device
        self.state = dynamics.State.new(n, s, device)
        self.possible = np.ones(n, dtype=bool)
        self.uncut = np.ones(n, dtype=bool)  # gates whose parameters are still there, open or not
        self.generator = torch.Generator().manual_seed(s.seed)
        one = torch.ones(n, dtype=torch.float64, device=device)
        self.prices = self.cost.gradient(one)
        _, families = np.unique(self.plan.families(), return_inverse=True)
        alone = families.max(initial=-1) + 1 + np.arange(len(self.plan.blocks))
        self.family = torch.from_numpy(np.concatenate([families, alone]).astype(np.int64)).to(device)
        self.active = self.prices > 1e-15  # beta of 0 or 1 leaves layers or units alone
        self.may = self.active.cpu().numpy()
        self.is_unit = torch.arange(n, device=device) < self.plan.n_units
        self.windows = windows(s, bool((self.active & ~self.is_unit).any()), bool((self.active & self.is_unit).any()))
        self._window = 0  # the one that is open, or the next
        self._open = False
        self._before: dict[str, Tensor] | None = None
        self.history: list[dict[str, Any]] = []
        self.finished = False
        self.undecided: float | None = None
        self._wavered = 0.0
        self.skipped = 0
        self._astray = 0
        self._budgeted, self._target, self._exchange = deciding.budget_of(self)
        self.latency = LatencyBudget(self.model, example, s.latency) if s.latency is not None else None
        if self.latency is not None:
            self.latency.check(self)
        self._start = 1.0
        z = torch.ones(n + 1, device=device, dtype=first.dtype if first.dtype.is_floating_point else torch.float32)
        z.requires_grad_(True)
        z.register_hook(self._unscale)
        self.gate: Gate | None = Gate(self.model, self.plan, z)
        self._begin()
        self._sample()

    # ---- budgets -----------------------------------------------------------------------------------------------
    def lowest(self) -> np.ndarray:
        """Gates of the smallest working network that ``beta`` allows."""
        return smallest(self.plan) | ~self.may

    def measure(self, alive: np.ndarray, metric: str = "flops") -> float:
        """``flops`` or ``params`` with the gates ``alive`` ``(n_gates,)`` open, as a fraction of the full network's."""
        return self._fraction(torch.from_numpy(alive.astype(np.float64)).to(self.prices.device), metric)

    def _fraction(self, theta: Tensor, metric: str | None) -> float:
        flops, params = self.cost.fractions(theta)
        if metric == BOTH:
            return max(flops, params * self._exchange)
        return params if metric == "params" else flops

    @property
    def _kind(self) -> str | None:
        """What is budgeted now: branches go by FLOPs where both are, units by what is further from its budget."""
        if self._budgeted != BOTH:
            return self._budgeted
        return "flops" if self._window < len(self.windows) and self.windows[self._window].kind == LAYERS else BOTH

    # ---- the loop ----------------------------------------------------------------------------------------------
    def _unscale(self, gradient: Tensor) -> Tensor:
        return gradient / self.scaler.get_scale() if self.scaler is not None else gradient

    def _sample(self) -> None:
        if self.gate is None:
            return
        theta = self.state.theta
        u, play = torch.rand((2, len(theta)), generator=self.generator, dtype=torch.float64).to(theta.device)
        # The trapezoid needs both end points, however they are drawn; branches have too few gates and too little time
        # for a rare end to be seen often enough by itself.
        chance = torch.where(self.is_unit, theta, theta.clamp(0.25, 0.75)) if self.settings.estimator == "trapezoid" else theta
        drawn = torch.where(self._moving() & (play < self.settings.share), u < chance, theta >= 0.5)
        with torch.no_grad():
            z = self.gate.z
            z[:-1] = drawn.to(z.dtype)
            rounded = torch.ones_like(z)
            rounded[:-1] = (theta >= 0.5).to(z.dtype)
            if self.gate.z_eval is z:
                self.gate.z_eval = rounded
            else:
                self.gate.z_eval.copy_(rounded)

    def zero_grad(self) -> None:
        """Forget gradients another objective left on the gates (two networks trained against each other)."""
        if self.gate is not None:
            self.gate.z.grad = None

    def step(self) -> bool:
        """After the optimiser's step: move the gates, sample the next ones. True if the network just got smaller. Raises
        ModelError where no gradient reached the gates, or the loss stays NaN or infinite."""
        if self.gate is None or self.finished:
            self.state.step += 1
            return False
        z = self.gate.z
        if not self._open:  # between windows
            z.grad = None
            self.state.step += 1
            return self._begin() or self._resample()
        if z.grad is None:
            raise ModelError("step() found no gradient on the gates: call it after loss.backward(), once per step")
        g = z.grad[:-1].detach().to(torch.float64)
        z.grad = None
        if world() > 1:
            torch.distributed.all_reduce(g)
            g /= world()
        if not bool(torch.isfinite(g).all()):  # an overflow of mixed precision, or the loop's own trouble
            history.stray(self)
            self.state.step += 1
        else:
            self._astray = 0
            delta = dynamics.estimate(self.state, g, z.detach()[:-1], self.settings.estimator)
            dynamics.remember(self.state, delta, self.settings.estimator)
            dynamics.advance(
                self.state, self.settings, self.windows[self._window], self.cost, self.prices, self._moving(),
                budget=self._budget(), family=self.family,
            )  # fmt: skip
            history.note(self)
        smaller = self._prune()
        self._resample()
        return smaller

    def _resample(self) -> bool:
        if not self.finished:
            self._sample()
        return False

    # ---- windows -----------------------------------------------------------------------------------------------
    def _moving(self) -> Tensor:
        """Gates (bool) whose time it is."""
        if not self._open:
            return torch.zeros_like(self.active)
        return self.active & (~self.is_unit if self.windows[self._window].kind == LAYERS else self.is_unit)

    def _aim(self) -> float:
        """The budgeted fraction the open window ends at."""
        if self._window + 1 < len(self.windows):
            return layers_target(self._target, self.settings.beta)
        return self._target

    def _budget(self) -> dynamics.Budget | None:
        kind, theta = self._kind, self.state.theta
        if kind is None:
            return None
        value, rate = self._fraction(theta, kind), 1.0
        if kind == BOTH:  # steered by the one that is further away, in its own measure
            kind, rate = ("flops", 1.0) if value == self._fraction(theta, "flops") else ("params", self._exchange)
        return dynamics.Budget(kind, self._start / rate, self._aim() / rate, value / rate)

    def _begin(self) -> bool:
        """Open the next window if it is time. True if that ended the pruning, there being nothing left to do."""
        if self._window >= len(self.windows):
            return self._finish()
        if self.state.step < self.windows[self._window].start:
            return False
        if self._kind is not None and self.measure(self.possible, self._kind) <= self._aim() * (1 + 0.5 * self.settings.tolerance):
            return self._decide()
        self._open = True
        if self.windows[self._window].kind == LAYERS and self._kind is not None and self.settings.rewind:
            self._before = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        # What a unit saves in what is left, which is less than in the full network where branches are gone.
        left = torch.from_numpy(self.possible.astype(np.float64)).to(self.prices.device)
        self.prices = torch.where(self._moving(), self.cost.gradient(left), self.prices)
        self.state.theta[self._moving()] = self.settings.theta0
        self._start = self._fraction(self.state.theta, self._kind)
        return False

    def _decide(self) -> bool:
        """Close the open window: its gates become 0 or 1. True if the network got smaller."""
        theta = self.state.theta.cpu().numpy()
        moving = self._moving().cpu().numpy()
        self._wavered += undecided_share(theta[moving]) * float(moving.sum())
        last = self._window + 1 >= len(self.windows)
        if last:
            self._open = False
            return self._finish()
        alive = (theta >= 0.5) & self.possible
        if self._kind is not None and self._open:
            alive = deciding.branches(self, theta)
        settled = self._kind is not None
        deciding.rewind(self)
        alive = self._working(alive)
        smaller = bool((alive != self.possible).any())
        self._close(alive)
        self._open = False
        self._window += 1
        if settled:  # units thin the branches that stayed; they do not take back the decision about them
            self.original = dataclasses.replace(self.original, branches_go=False)
            self.plan = dataclasses.replace(self.plan, branches_go=False)
        self.state.theta = torch.from_numpy(self.possible.astype(np.float64)).to(self.state.theta.device)
        if world() > 1 or not smaller:
            return False
        self.operate()
        return True

    # ---- pruning -----------------------------------------------------------------------------------------------
    def _prune(self) -> bool:
        s, step, window = self.settings, self.state.step, self.windows[self._window]
        last = step >= window.end
        if not last and (s.every == 0 or step % s.every):
            return False
        alive = self._working(self.possible & ~deciding.due(self))
        if not last and self._kind is not None and window.phase(step, False)[2]:
            theta = self.state.theta.cpu().numpy()
            reached = self.measure(self._working(self.possible & (theta > 0.01)), self._kind) <= self._aim() * (1 + 0.5 * s.tolerance)
            last = reached and undecided_share(theta[self._moving().cpu().numpy()]) <= 0.5 * DECIDED
        if last:
            return self._decide()
        if self._kind is not None and window.kind == LAYERS:
            return False  # branches are few: which go together is settled once
        if self._kind is not None and self.measure(alive, self._kind) < self._aim():
            return False  # several closing at once must not overshoot: the end of the window settles it
        if (alive == self.possible).all():
            return False
        if self.latency is not None:  # FLOPs only guess at the time, and what is closed does not come back
            reached_time = self.latency.measure(self, alive)
            self._target = self.latency.flops()
            if reached_time < self.latency.target * (1 - s.tolerance):
                return False
        self._close(alive)
        if world() > 1:
            return False
        self.operate()
        return True

    def _working(self, alive: np.ndarray) -> np.ndarray:
        """``alive`` with everything inside dead branches closed, and no layer left without a unit."""
        return keep_working(self.plan, alive, self.possible, self.state.theta.cpu().numpy())

    def _close(self, alive: np.ndarray) -> None:
        self.possible &= alive
        present = np.zeros(len(alive), dtype=bool)  # units that only lived in a branch now gone went with it
        present[self.plan.n_units :] = True
        for op in self.plan.ops:
            if self.possible[list(op.blocks)].all():
                for units in (op.out_map, op.in_map):
                    if units is not None:
                        present[units[units >= 0]] = True
        self.possible &= present
        dead = torch.from_numpy(~self.possible).to(self.active.device)
        self.state.theta[dead] = 0.0
        self.active &= ~dead

    def _finish(self) -> bool:
        """Every gate becomes 0 or 1; the share that had not decided by itself is kept in ``undecided``."""
        theta = self.state.theta.cpu().numpy()
        if self._open:
            moving = self._moving().cpu().numpy()
            self._wavered += undecided_share(theta[moving]) * float(moving.sum())
        self._open, self._window = False, len(self.windows)
        self.undecided = self._wavered / max(1, self.original.n_gates)
        alive = deciding.everything(self, theta)
        deciding.say_what_was_reached(self, alive)
        if (alive == smallest(self.plan)).all():
            warnings.warn("every gate closed: this is the smallest working network; use a smaller nu", stacklevel=4)
        self._close(alive)
        self.state.theta = torch.from_numpy(self.possible.astype(np.float64)).to(self.state.theta.device)
        self.finished = True
        history.note(self, always=True)
        if world() > 1:
            self._sample()
            return False
        self.operate()
        return True

    def operate(self) -> nn.Module:
        """Cut closed gates out now; returns the network (the same object)."""
        z = self.gate.z if self.gate is not None else None
        if self.gate is not None:
            self.gate.remove()
        self.model, self.plan = cut(self.model, self.plan, self.possible, self.optimizers)
        self.uncut = self.possible.copy()
        if self.finished or z is None:
            self.gate = None
        else:
            evaluation = self.gate.z_eval if self.gate is not None else z
            self.gate = Gate(self.model, self.plan, z)
            self.gate.z_eval = evaluation
        return self.model

    def compact(self) -> nn.Module:
        """Decide every gate, cut, take the gates out: an ordinary module that goes on training or is saved."""
        if not self.finished:
            self._finish()
        if self.gate is not None:
            self.operate()
        return self.model

    # ---- what happened -----------------------------------------------------------------------------------------
    @property
    def fractions(self) -> tuple[float, float]:
        """FLOPs and parameters of the gates still open, as fractions of the full network's."""
        return self.measure(self.possible, "flops"), self.measure(self.possible, "params")

    @property
    def nu(self) -> float:
        """The loss, in nats, that 100 % of the complexity is worth now; a budget's controller moves it."""
        return math.exp(self.state.log_nu)

    @property
    def ungated(self) -> dict[str, str]:
        """What could not be gated, and why."""
        return self.plan.ungated

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly: load it into a new pruner of the full model *before* the model's own."""
        return resume.state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the model to the saved structure and take the gates up where they were. Raises InputError where the state
        belongs to another network or to other settings."""
        resume.restore(self, state)
