"""Complexity-aware training in anyone's loop: five lines.

    pruner = ComplexityAware(model, example, optimizer, steps=epochs * len(loader), flops=0.5)
    for x, y in loader:
        loss = criterion(model(x), y); loss.backward()
        optimizer.step(); pruner.step(); optimizer.zero_grad()
    model = pruner.compact()
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import InputError, ModelError
from . import dynamics
from .analyse import analyse, keep_working
from .cost import CostModel
from .gating import Gate
from .latency import LatencyBudget
from .plan import Plan
from .rounding import settle, smallest, undecided_share
from .settings import Settings
from .surgery import cut

SNAPSHOTS = 80
PATIENCE_NAN = 50


def bare(model: nn.Module) -> nn.Module:
    """The user's module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _world() -> int:
    dist = torch.distributed
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
        self.generator = torch.Generator().manual_seed(s.seed)
        one = torch.ones(n, dtype=torch.float64, device=device)
        self.prices = self.cost.gradient(one)
        _, families = np.unique(self.plan.families(), return_inverse=True)
        alone = families.max(initial=-1) + 1 + np.arange(len(self.plan.blocks))
        self.family = torch.from_numpy(np.concatenate([families, alone]).astype(np.int64)).to(device)
        self.active = self.prices > 1e-15  # beta of 0 or 1 leaves layers or units alone
        self.state.theta[~self.active] = 1.0
        self.history: list[dict[str, Any]] = []
        self.finished = False
        self.undecided: float | None = None
        self.skipped = 0
        self._astray = 0
        self._kind, self._target = self._check_budget()
        self.latency = LatencyBudget(self.model, example, s.latency) if s.latency is not None else None
        self._start = self._fraction(self.state.theta)
        z = torch.ones(n + 1, device=device, dtype=first.dtype if first.dtype.is_floating_point else torch.float32)
        z.requires_grad_(True)
        z.register_hook(self._unscale)
        self.gate: Gate | None = Gate(self.model, self.plan, z)
        self._sample()

    # ---- budgets -----------------------------------------------------------------------------------------------
    def _check_budget(self) -> tuple[str | None, float]:
        budget = self.settings.budget
        if budget is None:
            return None, 1.0
        kind, target = budget
        metric = "params" if kind == "params" else "flops"
        low = self.measure(smallest(self.plan) | ~self.active.cpu().numpy(), metric)
        if kind != "latency" and target < low * (1 - self.settings.tolerance):
            raise InputError(f"{kind} {target:g} cannot be met: the smallest working network has {low:.4g} of the full one's")
        return metric, target

    def measure(self, alive: np.ndarray, metric: str = "flops") -> float:
        """FLOPs or parameters of the network with the gates ``alive``, as a fraction of the full network's."""
        theta = torch.from_numpy(alive.astype(np.float64)).to(self.prices.device)
        flops, params = self.cost.fractions(theta)
        return params if metric == "params" else flops

    def _fraction(self, theta: Tensor) -> float:
        flops, params = self.cost.fractions(theta)
        return params if self._kind == "params" else flops

    # ---- the loop ----------------------------------------------------------------------------------------------
    def _unscale(self, gradient: Tensor) -> Tensor:
        return gradient / self.scaler.get_scale() if self.scaler is not None else gradient

    def _sample(self) -> None:
        if self.gate is None:
            return
        theta = self.state.theta
        u = torch.rand(theta.shape[0], generator=self.generator, dtype=torch.float64).to(theta.device)
        drawn = u < theta
        if self.settings.share < 1:
            play = torch.rand(theta.shape[0], generator=self.generator, dtype=torch.float64).to(theta.device)
            drawn = torch.where(play < self.settings.share, drawn, theta >= 0.5)
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
        """After the optimiser's step: move the gates, sample the next ones. True if the network just got smaller."""
        if self.gate is None or self.finished:
            self.state.step += 1
            return False
        z = self.gate.z
        if z.grad is None:
            raise ModelError("step() found no gradient on the gates: call it after loss.backward(), once per step")
        g = z.grad[:-1].detach().to(torch.float64)
        z.grad = None
        if _world() > 1:
            torch.distributed.all_reduce(g)
            g /= _world()
        if not bool(torch.isfinite(g).all()):  # an overflow of mixed precision, or the loop's own trouble
            self.skipped += 1
            self._astray += 1
            if self._astray >= PATIENCE_NAN:
                raise ModelError(
                    f"the gates' gradients were NaN or infinite for {self._astray} steps, up to step {self.state.step + 1}: "
                    "the loss has diverged; lower the learning rate"
                )
            self.state.step += 1
            self._sample()
            return False
        self._astray = 0
        delta = dynamics.estimate(self.state, g, z.detach()[:-1], self.settings.estimator)
        dynamics.remember(self.state, delta, self.settings.estimator)
        fraction = self._fraction(self.state.theta)
        dynamics.advance(
            self.state, self.settings, self.cost, self.prices, self.active, budget=self._kind, start=self._start,
            target=self._target, fraction=fraction, family=self.family,
        )  # fmt: skip
        self._note(fraction)
        smaller = self._prune()
        if not self.finished:
            self._sample()
        return smaller

    def _note(self, fraction: float) -> None:
        step, s = self.state.step, self.settings
        gap = max(1, int(s.end * s.steps) // SNAPSHOTS)
        if step % gap == 0:
            flops, params = self.cost.fractions(self.state.theta)
            self.history.append(
                {"step": step, "nu": math.exp(self.state.log_nu), "flops": flops, "params": params}
                | {"theta": self._by_layer()}
            )

    def _by_layer(self) -> dict[str, float]:
        """Mean ``theta`` of every layer's units, and every branch's, by name."""
        theta = self.state.theta.cpu().numpy()
        groups: dict[str, list[float]] = {}
        for i, name in enumerate(self.plan.unit_names):
            groups.setdefault(name.rsplit(":", 1)[0], []).append(theta[i])
        out = {name: round(float(np.mean(v)), 4) for name, v in groups.items()}
        for b, block in enumerate(self.plan.blocks):
            out[f"branch {block.name}"] = round(float(theta[self.plan.n_units + b]), 4)
        return out

    # ---- pruning -----------------------------------------------------------------------------------------------
    def _closed(self) -> np.ndarray:
        """Gates whose pruning is due: at zero for ``patience`` steps, with the slow estimate agreeing."""
        st, s = self.state, self.settings
        scale = (math.exp(st.log_nu) * self.prices).clamp(min=1e-12)
        pull = self.cost.gradient(st.theta) / self.prices.clamp(min=1e-12)
        due = (st.still >= max(1, s.patience)) & (st.s / scale + pull > 0) & self.active
        if s.attraction:
            from .attraction import inside

            due &= inside(self)
        return due.cpu().numpy()

    def _prune(self) -> bool:
        s, step = self.settings, self.state.step
        last = step >= s.end * s.steps
        if not last and (s.every == 0 or step % s.every):
            return False
        alive = self._working(self.possible & ~self._closed())
        if not last and self._kind is not None and self.state.step > s.warmup * s.steps:
            open_gates = self._working(self.possible & (self.state.theta.cpu().numpy() > 0.01))
            reached = self.measure(open_gates, self._kind) <= self._target * (1 + 0.5 * s.tolerance)
            last = reached or self.measure(alive, self._kind) < self._target  # several closing at once must not overshoot
        if last:
            return self._finish()
        if (alive == self.possible).all():
            return False
        self._close(alive)
        if _world() > 1:
            return False
        if self.latency is not None:
            self.latency.measure(self, self.possible)
            self._target = self.latency.flops()
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
        self.undecided = undecided_share(theta)
        worth = (-self.state.s / self.prices.clamp(min=1e-12)).cpu().numpy()
        target = self._target if self._kind is not None else None
        alive = self.latency.settle(self, theta, worth) if self.latency is not None else settle(
            self.original, theta, worth, self.possible, target=target,
            measure=lambda a: self.measure(a, self._kind or "flops"), tolerance=self.settings.tolerance,
        )  # fmt: skip
        if (alive == smallest(self.plan)).all():
            warnings.warn("every gate closed: this is the smallest working network; use a smaller nu", stacklevel=4)
        self._close(alive)
        self.state.theta = torch.from_numpy(self.possible.astype(np.float64)).to(self.state.theta.device)
        self.finished = True
        self.history.append({"step": self.state.step, "nu": math.exp(self.state.log_nu), "theta": self._by_layer()}
                            | dict(zip(("flops", "params"), self.cost.fractions(self.state.theta))))  # fmt: skip
        if _world() > 1:
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
        return math.exp(self.state.log_nu)

    @property
    def ungated(self) -> dict[str, str]:
        """What could not be gated, and why."""
        return self.plan.ungated

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly: load it into a new pruner of the full model *before* the model's own."""
        return {
            "settings": self.settings.to_dict(),
            "gates": {k: v.detach().cpu().clone() for k, v in self.state.tensors().items()},
            "log_nu": self.state.log_nu,
            "step": self.state.step,
            "possible": torch.from_numpy(self.possible.copy()),
            "active": self.active.cpu().clone(),
            "generator": self.generator.get_state(),
            "z": self.gate.z.detach().cpu().clone() if self.gate is not None else None,
            "finished": self.finished,
            "undecided": self.undecided,
            "target": self._target,
            "history": copy.deepcopy(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the model to the saved structure and take the gates up where they were.

        Raises:
            InputError: the state belongs to another network or to other settings.
        """
        if len(state["possible"]) != self.plan.n_gates:
            raise InputError(f"the saved gates ({len(state['possible'])}) are not this network's ({self.plan.n_gates})")
        if state["settings"] != self.settings.to_dict():
            differ = [k for k, v in self.settings.to_dict().items() if state["settings"].get(k) != v]
            raise InputError(f"the saved run used other settings: {', '.join(differ)}; resume with the same")
        device = self.prices.device
        for name, value in state["gates"].items():
            setattr(self.state, name, value.to(device).clone())
        self.state.log_nu, self.state.step = state["log_nu"], state["step"]
        self.possible = state["possible"].numpy().copy()
        self.active = state["active"].to(device).clone()
        self.finished, self.undecided = state["finished"], state["undecided"]
        self._target = state["target"]
        self.history = copy.deepcopy(state["history"])
        self.generator.set_state(state["generator"])
        if not self.possible.all() and (_world() == 1 or self.finished):
            self.operate()
        if self.gate is not None and state["z"] is not None:
            with torch.no_grad():
                self.gate.z.copy_(state["z"])
                self.gate.z_eval[:-1] = (self.state.theta >= 0.5).to(self.gate.z_eval.dtype)
