"""Surgery: cut dead units and branches out of a network, its optimisers and its plan (section 5).

Parameters stay the same objects (only their data shrinks), so optimisers, tied weights and parameter groups keep
working; every optimiser tensor that had a parameter's shape is cut the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .blocks import remove_branches
from .layers import HeadAttention
from .plan import Attribute, Op, Plan, Slot


def cut(
    model: nn.Module, plan: Plan, alive: np.ndarray, optimizers: Iterable[Optimizer] = ()
) -> tuple[nn.Module, Plan]:  # fmt: skip
    """Keep the gates in ``alive`` (bool, ``(n_gates,)``) and physically remove the others, in place.

    Returns the network (the same object) and the plan of what is left, with the same gate numbers: maps only lose
    entries, so ``theta`` and its history keep their meaning.
    """
    optimizers = list(optimizers)
    dead_blocks = [b for i, b in enumerate(plan.blocks) if not alive[plan.n_units + i]]
    model, plan = _cut_blocks(model, plan, dead_blocks)
    ok = np.append(alive[: plan.n_units], True)  # CONSTANT (-1) reads the last entry
    _replace_attention(model, plan, ok)
    cuts: dict[int, tuple[nn.Module, str, list[tuple[int, Tensor]]]] = {}
    slots: list[Slot] = []
    touched: set[str] = set()
    for slot in plan.slots:
        keep = ok[slot.map]
        if not keep.all():
            module = model.get_submodule(slot.module)
            tensor: Tensor | None = module._parameters.get(slot.name)
            if tensor is None:
                tensor = module._buffers[slot.name]
            assert tensor is not None
            entry = cuts.setdefault(id(tensor), (module, slot.name, []))
            entry[2].append((slot.dim, torch.from_numpy(np.flatnonzero(keep))))
            touched.add(slot.module)
        slots.append(Slot(slot.module, slot.name, slot.dim, slot.map[keep], slot.reads))
    for module, name, dims in cuts.values():
        _shrink(module, name, dims, optimizers)
    for path in touched:
        refresh(model.get_submodule(path))
    for a in plan.attributes:
        setattr(model.get_submodule(a.module), a.name, int(alive[list(a.gates)].sum()) * a.per_gate)
    ops = []
    for o in plan.ops:
        kept_in = None if o.in_map is None else o.in_map[ok[o.in_map]]
        ops.append(Op(o.module, o.out_map[ok[o.out_map]], kept_in, o.flops, o.params, o.blocks, o.kind))
    attributes = [
        Attribute(a.module, a.name, tuple(g for g in a.gates if alive[g]), a.per_gate) for a in plan.attributes
    ]
    return model, replace(plan, ops=ops, slots=slots, attributes=attributes)


def _cut_blocks(model: nn.Module, plan: Plan, dead: list) -> tuple[nn.Module, Plan]:
    present = dict(model.named_modules())
    by_owner: dict[str, list[str]] = {}
    for block in dead:
        if block.name in present:  # branches inside a dead branch went with it
            by_owner.setdefault(block.owner, []).append(block.last)
    for owner in sorted(by_owner, key=lambda path: -path.count(".")):
        parent, _, child = owner.rpartition(".")
        model.get_submodule(parent).set_submodule(child, remove_branches(model.get_submodule(owner), by_owner[owner]))
    if not dead:
        return model, plan
    gone = lambda path: any(b.holds(path) for b in dead)  # noqa: E731
    ops = [o for o in plan.ops if not gone(o.module)]
    slots = [s for s in plan.slots if not gone(s.module)]
    attributes = [a for a in plan.attributes if not gone(a.module)]
    return model, replace(plan, ops=ops, slots=slots, attributes=attributes)


def _replace_attention(model: nn.Module, plan: Plan, ok: np.ndarray) -> None:
    for slot in plan.slots:
        if slot.name == "in_proj_weight" and not ok[slot.map].all():
            module = model.get_submodule(slot.module)
            if isinstance(module, nn.MultiheadAttention):
                parent, _, child = slot.module.rpartition(".")
                model.get_submodule(parent).set_submodule(child, HeadAttention.like(module))


def _take(tensor: Tensor, dims: list[tuple[int, Tensor]]) -> Tensor:
    form = torch.contiguous_format
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        form = torch.channels_last
    for dim, index in dims:
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor.contiguous(memory_format=form).clone(memory_format=torch.preserve_format)


def _shrink(
    module: nn.Module, name: str, dims: list[tuple[int, Tensor]], optimizers: list[Optimizer]
) -> None:  # fmt: skip
    tensor = module._parameters.get(name)
    if tensor is None:
        buffer = module._buffers[name]
        assert buffer is not None
        module._buffers[name] = _take(buffer, dims)
        return
    shape = tensor.shape
    gradient = tensor.grad
    tensor.grad = None
    smaller = _take(tensor.data, dims)
    # A loss of the last step may still hold the parameter's gradient accumulator, which remembers the old shape;
    # autograd drops it when the data change their type, so they pass through another one on the way.
    tensor.data = smaller.new_empty(0, dtype=torch.float64 if smaller.dtype != torch.float64 else torch.float32)
    tensor.data = smaller
    if gradient is not None:
        tensor.grad = _take(gradient, dims)
    for optimizer in optimizers:
        state = optimizer.state.get(tensor, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() == len(shape) > 0:
                # Factored moments (Adafactor) have a 1 where they are means over a dimension.
                own = [(dim, index) for dim, index in dims if value.shape[dim] == shape[dim] > 1 or value.shape == shape]
                state[key] = _take(value, own) if own else value


def refresh(module: nn.Module) -> None:
    """Bring a module's own description (``in_channels``, ``num_features``, ...) in line with its parameters."""
    if isinstance(module, nn.modules.conv._ConvNd):
        a, b = module._parameters["weight"].shape[:2]  # type: ignore[union-attr]
        if module.transposed:
            module.in_channels, module.out_channels = a, b * module.groups
        elif module.groups > 1 and module.groups == module.in_channels:  # depthwise
            multiple = module.out_channels // module.in_channels
            module.out_channels = a
            module.in_channels = module.groups = a // multiple
        else:
            module.out_channels, module.in_channels = a, b * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module._parameters["weight"].shape  # type: ignore[union-attr]
    elif isinstance(module, (nn.modules.batchnorm._NormBase,)):
        known = [t for t in (module._parameters.get("weight"), module._buffers.get("running_mean")) if t is not None]
        if known:
            module.num_features = known[0].shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module._parameters["weight"].shape[0]  # type: ignore[union-attr]
    elif isinstance(module, nn.RNNBase):
        module.hidden_size = module._parameters["weight_hh_l0"].shape[1]  # type: ignore[union-attr]
        module.input_size = module._parameters["weight_ih_l0"].shape[1]  # type: ignore[union-attr]
        if "_flat_weights" in module.__dict__:
            module.__dict__["_flat_weights"] = [module._parameters[n] for n in module._flat_weights_names]
            module.flatten_parameters()
    elif isinstance(module, HeadAttention):
        module.num_heads = module._parameters["in_proj_weight"].shape[0] // 3 // module.head_dim  # type: ignore[union-attr]
        module.out_proj.in_features = module.out_proj._parameters["weight"].shape[1]  # type: ignore[union-attr]
