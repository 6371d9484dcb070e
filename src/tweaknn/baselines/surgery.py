"""Find the last linear layer of any network, and put something in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tweaknn.baselines.outcome import NotApplicable
from tweaknn.network.modes import call, eval_mode, logits_of, placement, to_model
from tweaknn.network.views import LabelView


def find_head(model: nn.Module, x: torch.Tensor) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer whose output *is* the logits.

    Raises :class:`NotApplicable` when the logits come from something else (a convolution, a layer used twice, one logit for
    both classes).
    """
    outputs: dict[str, list[torch.Tensor]] = {}
    order: list[str] = []
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                outputs.setdefault(name, []).append(output.detach())
                order.append(name)

        return hook

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            handles.append(module.register_forward_hook(watch(name)))
    device, dtype = placement(model)
    try:
        with eval_mode(model), torch.inference_mode():
            logits = logits_of(call(model, to_model(x, device, dtype)))
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(model.named_modules())
    for name in reversed(order):
        module = modules[name]
        same = outputs[name][-1].shape == logits.shape and torch.equal(outputs[name][-1], logits)
        if isinstance(module, nn.Linear) and same:
            if len(outputs[name]) > 1:
                raise NotApplicable("its last linear layer is used several times")
            return name, module
    last = modules[order[-1]] if order else None
    if isinstance(last, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise NotApplicable("its head is a convolution, not a linear layer")
    if isinstance(model, LabelView):
        raise NotApplicable("its head gives one logit for both classes, and a linear layer with a logit a class is needed")
    raise NotApplicable("its logits are not the output of a linear layer")


def last_convolution(model: nn.Module, x: torch.Tensor, before: str) -> tuple[str, nn.Module]:
    """The last hidden layer with weights (convolution or linear) that runs before module ``before``.

    Raises :class:`NotApplicable` when there is none, or only of other kinds.
    """
    order: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            handles.append(module.register_forward_hook(lambda m, i, o, name=name: order.append(name)))
    device, dtype = placement(model)
    try:
        with eval_mode(model), torch.inference_mode():
            call(model, to_model(x, device, dtype))
    finally:
        for handle in handles:
            handle.remove()
    earlier = order[: order.index(before)] if before in order else order
    # A shortcut's 1x1 convolution may run last; the representation is what the wide layers compute.
    modules = dict(model.named_modules())
    wide = [n for n in earlier if isinstance(modules[n], nn.Linear) or max(modules[n].kernel_size) > 1]  # type: ignore[arg-type]
    chosen = (wide or earlier)[-1:]
    if not chosen:
        own = (m for n, m in model.named_modules() if n != before and next(m.parameters(recurse=False), None) is not None)
        if kinds := ", ".join(sorted({type(module).__name__ for module in own})):
            raise NotApplicable(f"its hidden layers ({kinds}) are neither linear nor convolutions")
        raise NotApplicable("it has no hidden layer with weights")
    return chosen[0], modules[chosen[0]]


def replace_module(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put ``new`` in the place of the module called ``name``; returns the network (``new``, when that was all of it)."""
    if not name:
        return new
    parent, _, child = name.rpartition(".")
    holder = model.get_submodule(parent) if parent else model
    if isinstance(holder, (nn.Sequential, nn.ModuleList)) and child.isdigit():
        holder[int(child)] = new
    else:
        setattr(holder, child, new)
    return model
