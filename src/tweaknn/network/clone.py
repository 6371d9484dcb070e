"""A second set of modules on the same weights, so that whatever is done to it leaves the first alone."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_REGISTRIES = ("_parameters", "_buffers", "_modules")


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``'s and ``DataParallel``'s wrappers."""
    while True:
        inner = model.__dict__.get("_modules", {}).get("_orig_mod")
        if inner is None and isinstance(model, (DataParallel, DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def share(model: nn.Module) -> nn.Module:
    """A copy of a network's modules in eval mode whose parameters and buffers lie in the same memory.

    Hooks, training flags, devices and dtypes of the copy are its own: ``copy.half()`` or quantisation in place leave
    ``model`` as it was, and no tensor is copied. Forward hooks a user put on ``model`` are kept. TorchScript modules
    cannot be taken apart and are shared whole.
    """
    tensors: dict[int, Tensor] = {}
    modules: dict[int, nn.Module] = {}

    def tensor(old: Tensor | None) -> Tensor | None:
        if old is None or isinstance(old, nn.parameter.UninitializedTensorMixin):  # type: ignore[attr-defined]
            return old
        if id(old) not in tensors:
            with torch.no_grad():
                alias = old.detach()
            if isinstance(old, nn.Parameter):
                alias = nn.Parameter(alias, requires_grad=old.requires_grad and not old.is_inference())
            tensors[id(old)] = alias
        return tensors[id(old)]

    def module(old: nn.Module) -> nn.Module:
        if isinstance(old, torch.jit.ScriptModule):
            return old
        if id(old) not in modules:
            new = _empty(old)
            modules[id(old)] = new
            new.__dict__.update(old.__dict__)
            for key, value in old.__dict__.items():
                if key in _REGISTRIES or key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                    new.__dict__[key] = type(value)(value)
            for name, value in old._parameters.items():
                new._parameters[name] = tensor(value)  # type: ignore[assignment]
            for name, buffer in old._buffers.items():
                new._buffers[name] = tensor(buffer)
            for name, child in old._modules.items():
                new._modules[name] = child if child is None else module(child)
            new.__dict__["training"] = False
        return modules[id(old)]

    top = module(model)
    for new in modules.values():
        if isinstance(new, fx.GraphModule):
            new.graph = copy.deepcopy(new.graph)  # writes the class's code
    for new in modules.values():
        for key, value in new.__dict__.items():
            if key not in _REGISTRIES:
                new.__dict__[key] = _rebound(value, modules, tensors)
    return top


def _empty(old: nn.Module) -> nn.Module:
    """A module of the same class. A graph module's code lies in a class of its own, so that recompiling one changes no other."""
    if not isinstance(old, fx.GraphModule):
        return object.__new__(type(old))
    new = fx.GraphModule.__new__(type(old))
    type(new).__name__ = type(old).__name__
    return new


def _rebound(value: Any, modules: dict[int, nn.Module], tensors: dict[int, Tensor]) -> Any:
    """Attributes that point back into the old network point into the new one: bound methods, lists of modules."""
    if isinstance(value, nn.Module):
        return modules.get(id(value), value)
    if isinstance(value, Tensor):
        return tensors.get(id(value), value)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, modules.get(id(value.__self__), value.__self__))
    if type(value) in (list, tuple) and any(isinstance(item, (nn.Module, MethodType)) for item in value):
        return type(value)(_rebound(item, modules, tensors) for item in value)
    if type(value) is dict and any(isinstance(item, (nn.Module, MethodType)) for item in value.values()):
        return {key: _rebound(item, modules, tensors) for key, item in value.items()}
    return value
