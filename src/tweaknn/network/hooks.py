"""Module hooks: the fall-back for networks that torch.fx cannot follow."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tweaknn.network.layers import ACTIVATION_MODULES, Layer
from tweaknn.network.modes import batch_size, call, eval_mode

_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_MADE_LAST = (nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
_LAST = (*_MADE_LAST, nn.LayerNorm)


@dataclass
class Survey:
    """What hooks can see: see :class:`~tweaknn.network.tracing.Trace`."""

    every: list[Layer]
    known: list[Layer]
    skipped: list[str]


def value_of(output: Any) -> Tensor | None:
    """The tensor in a module's output: itself, or the first tensor of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        return next((value for value in output if isinstance(value, Tensor)), None)
    return None


def survey(model: nn.Module, x: Any) -> Survey:
    """Run once and list every module's output in the order of completion.

    A module called several times gives ``name``, ``name:1``, ``name:2``... ``all`` stands for activation modules and
    for the members of ``ModuleList`` and ``Sequential`` containers that hold others (blocks), or, where a network has
    neither, for every module below the top that is not the last one to finish.
    """
    n = batch_size(x)
    rows: list[tuple[Layer, str]] = []
    values: list[Tensor] = []
    skipped: list[str] = []
    final: set[int] = set()
    blocks = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        for name, child in module.named_children()
        if any(True for _ in child.children())
    }
    modules = dict(model.named_modules())
    axes: dict[int, int] = {}  # of tensors in ``values``, which stay alive and so keep their ids

    def note(name: str, value: Tensor, given: Tensor | None) -> None:
        if value.ndim < 2 or value.shape[0] != n:
            return
        if not value.is_floating_point():
            skipped.append(name)
            return
        path = name.split(":")[0]
        axis = _known_axis(modules[path], value, given, axes)
        if axis is not None:
            axes[id(value)] = axis
        rows.append(
            (Layer(name, tuple(value.shape[1:]), _likely_axis(modules[path], value) if axis is None else axis), path)
        )
        values.append(value)

    with eval_mode(model), torch.inference_mode(), _recording(model, note):
        output = call(model, x)
    handed_out = _tensors(output)  # logits are not hidden
    final.update(i for i, value in enumerate(values) if any(value is tensor for tensor in handed_out))
    every = [layer for i, (layer, _) in enumerate(rows) if i not in final]
    picked = [
        layer
        for i, (layer, path) in enumerate(rows)
        if i not in final and (type(modules[path]).__name__ in ACTIVATION_MODULES or path in blocks)
    ]
    return Survey(every, picked or every, skipped)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if hasattr(output, "values") else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _known_axis(module: nn.Module, value: Tensor, given: Tensor | None, axes: dict[int, int]) -> int | None:
    """Axis of the channels where the way here tells: from the layer that made the tensor, through what keeps its layout.

    What a module is made of does not tell: a ConvNeXt block ends in a linear layer and hands out channels first, and the
    mean over a wrong axis that a layer norm has centred is nothing but rounding.
    """
    if value.ndim == 2:
        return 0
    if id(value) in axes:  # an inner module's output handed on, or an input changed in place
        return axes[id(value)]
    if isinstance(module, _FIRST):
        return 0
    if isinstance(module, _MADE_LAST):
        return value.ndim - 2
    axis = axes.get(id(given))
    if given is None or axis is None or given.ndim != value.ndim:
        return None
    # activations, norms and residual blocks keep the shape; poolings and paddings change the other sides
    plain = not any(True for _ in module.children()) and not any(True for _ in module.parameters(recurse=False))
    kept = given.shape == value.shape or (plain and given.shape[axis + 1] == value.shape[axis + 1])
    return axis if kept else None


def _likely_axis(module: nn.Module, value: Tensor) -> int:
    leaves = [m for m in module.modules() if not any(True for _ in m.children())]
    for leaf in reversed(leaves):
        if isinstance(leaf, _LAST):
            return value.ndim - 2
        if isinstance(leaf, _FIRST):
            return 0
    return value.ndim - 2 if value.ndim == 3 else 0


@contextmanager
def reading(model: nn.Module, names: Sequence[str], sink: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Hand the named outputs to ``sink`` while the block runs, for this thread's calls only."""
    order = {name: k for k, name in enumerate(names)}

    def note(name: str, value: Tensor, given: Tensor | None) -> None:
        if name in order:
            sink(order[name], value)

    with _recording(model, note, {name.split(":")[0] for name in names}):
        yield


@contextmanager
def _recording(
    model: nn.Module, note: Callable[[str, Tensor, Tensor | None], None], paths: set[str] | None = None
) -> Iterator[None]:
    """``note`` gets each output's name, the output, and the module's first input if that was a tensor by position."""
    thread = threading.get_ident()
    calls: Counter[str] = Counter()
    handles = []

    def hook_for(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() != thread:
                return
            count = calls[path]
            calls[path] += 1
            value = value_of(output)
            if value is not None:
                note(f"{path}:{count}" if count else path, value, value_of(args))

        return hook

    try:
        for path, module in model.named_modules():
            if path and (paths is None or path in paths):
                handles.append(module.register_forward_hook(hook_for(path)))
        yield
    finally:
        for handle in handles:
            handle.remove()
