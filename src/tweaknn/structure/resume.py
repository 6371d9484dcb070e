"""The state of complexity-aware training as plain tensors and numbers, and going on from it exactly."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError

if TYPE_CHECKING:
    from .pruner import ComplexityAware


def state_of(pruner: ComplexityAware) -> dict[str, Any]:
    """Everything :func:`restore` needs."""
    return {
        "settings": pruner.settings.to_dict(),
        "gates": {k: v.detach().cpu().clone() for k, v in pruner.state.tensors().items()},
        "log_nu": pruner.state.log_nu,
        "step": pruner.state.step,
        "possible": torch.from_numpy(pruner.possible.copy()),
        "uncut": torch.from_numpy(pruner.uncut.copy()),
        "active": pruner.active.cpu().clone(),
        "prices": pruner.prices.cpu().clone(),
        "generator": pruner.generator.get_state(),
        "z": pruner.gate.z.detach().cpu().clone() if pruner.gate is not None else None,
        "finished": pruner.finished,
        "undecided": pruner.undecided,
        "target": pruner._target,
        "window": (pruner._window, pruner._open, pruner._start, pruner._wavered),
        "before": None if pruner._before is None else {k: v.cpu() for k, v in pruner._before.items()},
        "history": copy.deepcopy(pruner.history),
    }


def restore(pruner: ComplexityAware, state: dict[str, Any]) -> None:
    """Cut the model to the saved structure and take the gates up where they were.

    Raises:
        InputError: the state belongs to another network or to other settings.
    """
    if len(state["possible"]) != pruner.plan.n_gates:
        raise InputError(f"the saved gates ({len(state['possible'])}) are not this network's ({pruner.plan.n_gates})")
    if state["settings"] != pruner.settings.to_dict():
        differ = [k for k, v in pruner.settings.to_dict().items() if state["settings"].get(k) != v]
        raise InputError(f"the saved run used other settings: {', '.join(differ)}; resume with the same")
    device = pruner.prices.device
    for name, value in state["gates"].items():
        setattr(pruner.state, name, value.to(device).clone())
    pruner.state.log_nu, pruner.state.step = state["log_nu"], state["step"]
    pruner.active = state["active"].to(device).clone()
    pruner.prices = state["prices"].to(device).clone()
    pruner.undecided = state["undecided"]
    pruner._target = state["target"]
    pruner._window, pruner._open, pruner._start, pruner._wavered = state["window"]
    before = state["before"]
    pruner._before = None if before is None else {k: v.to(device).clone() for k, v in before.items()}
    if pruner._window > 0 and pruner._kind is not None:
        pruner.original = dataclasses.replace(pruner.original, branches_go=False)
        pruner.plan = dataclasses.replace(pruner.plan, branches_go=False)
    pruner.history = copy.deepcopy(state["history"])
    pruner.generator.set_state(state["generator"])
    # The shapes the model was saved with: with several processes closed gates are not cut out until the end.
    pruner.possible = state.get("uncut", state["possible"]).numpy().copy()
    pruner.finished = state["finished"] and state["z"] is None
    if not pruner.possible.all() or pruner.finished:
        pruner.operate()
    pruner.possible, pruner.finished = state["possible"].numpy().copy(), state["finished"]
    if pruner.gate is not None and state["z"] is not None:
        with torch.no_grad():
            pruner.gate.z.copy_(state["z"])
            pruner.gate.z_eval[:-1] = (pruner.state.theta >= 0.5).to(pruner.gate.z_eval.dtype)
