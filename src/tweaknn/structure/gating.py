"""Gates in a network: parameters are read through their gates while training, and nothing else changes.

A unit's gate multiplies what its consumers read. That product is taken on the consumers' weights (or on their input,
where that is smaller), not on the activations, so it costs a pass over the weights a step. The module keeps its
parameters, their names and its forward pass; only reading ``module.weight`` gives the gated tensor, the way
:mod:`torch.nn.utils.parametrize` does it. Branch gates scale the affine part of the branch's last normalisation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .plan import Plan

_CLASSES: dict[tuple[type, tuple[str, ...]], type] = {}
_AFFINE = (nn.modules.batchnorm._BatchNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Gate:
    """The gates of one network copy and who reads them.

    ``z`` (``(n_gates + 1,)``, the last entry always one) is the leaf that collects gradients in training mode;
    ``z_eval`` takes its place in evaluation mode.
    """

    def __init__(self, model: nn.Module, plan: Plan, z: Tensor):
        self.z = z
        self.z_eval = z
        self.undo: list[tuple[nn.Module, type]] = []
        self.hooks: list[Any] = []
        sites: dict[str, list[tuple[str, int, Tensor]]] = {}
        for slot in plan.slots:
            if slot.reads and (slot.map >= 0).any():
                sites.setdefault(slot.module, []).append((slot.name, slot.dim, _index(slot.map, plan, z)))
        present = dict(model.named_modules())
        for b, block in enumerate(plan.blocks):
            number = plan.n_units + b
            last = present.get(block.name)
            if last is None:  # cut out already
                continue
            index = torch.tensor([number], device=z.device)
            own = dict(last.named_parameters(recurse=False))
            if isinstance(last, _AFFINE) and "weight" in own:
                for name in own:
                    sites.setdefault(block.name, []).append((name, -1, index))
            else:
                self.hooks.append(last.register_forward_hook(_OutputGate(self, index)))
        for path, entries in sites.items():
            self._install(model.get_submodule(path), entries)

    def _install(self, module: nn.Module, entries: list[tuple[str, int, Tensor]]) -> None:
        by_name: dict[str, list[tuple[int, Tensor]]] = {}
        for name, dim, index in entries:
            by_name.setdefault(name, []).append((dim, index))
        module.__dict__["_tweaknn_gates"] = (self, by_name)
        self.undo.append((module, type(module)))
        recurrent = isinstance(module, nn.RNNBase)
        names = ("_flat_weights",) if recurrent else tuple(sorted(by_name))
        module.__class__ = _gated_class(type(module), names)

    def remove(self) -> None:
        """Take the gates out: the modules are what they were."""
        for module, cls in reversed(self.undo):
            module.__class__ = cls
            module.__dict__.pop("_tweaknn_gates", None)
        for hook in self.hooks:
            hook.remove()
        self.undo, self.hooks = [], []


class _OutputGate:
    def __init__(self, gate: Gate, index: Tensor):
        self.gate, self.index = gate, index

    def __call__(self, module: nn.Module, args: Any, out: Any) -> Any:
        z = (self.gate.z if module.training else self.gate.z_eval)[self.index[0]]
        if isinstance(out, Tensor):
            return out * z.to(out.dtype)
        return (out[0] * z.to(out[0].dtype), *out[1:])


def _index(values: np.ndarray, plan: Plan, z: Tensor) -> Tensor:
    """Gate numbers with constants pointing at the extra entry of ``z`` that is always one."""
    return torch.from_numpy(np.where(values < 0, plan.n_gates, values)).to(z.device)


def _scaled(module: nn.Module, name: str) -> Any:
    gate, by_name = module.__dict__["_tweaknn_gates"]
    weight = module._parameters[name]
    if weight is None:
        return None
    source = gate.z if module.training else gate.z_eval
    for dim, index in by_name.get(name, ()):
        z = source.index_select(0, index).to(weight.dtype)
        if dim >= 0:
            shape = [1] * weight.dim()
            shape[dim] = -1
            z = z.view(shape)
        weight = weight * z
    return weight


def _gated_class(cls: type, names: tuple[str, ...]) -> type:
    key = (cls, names)
    if key not in _CLASSES:
        body: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        for name in names:
            if name == "_flat_weights":
                body[name] = property(_flat, _set_flat)
            else:
                body[name] = property(partial(_scaled, name=name))
        _CLASSES[key] = type(cls.__name__, (cls,), body)
    return _CLASSES[key]


def _flat(module: Any) -> list[Any]:
    return [_scaled(module, name) for name in module.__dict__["_flat_weights_names"]]


def _set_flat(module: Any, value: list[Any]) -> None:
    """nn.RNNBase rewrites its list of weights when it is moved; the parameters are what counts."""


@contextlib.contextmanager
def gated(model: nn.Module, plan: Plan, values: Tensor) -> Iterator[None]:
    """``model`` with its gates at ``values`` (``(n_gates,)``) inside the block."""
    gate = Gate(model, plan, torch.cat([values, values.new_ones(1)]))
    try:
        yield
    finally:
        gate.remove()
