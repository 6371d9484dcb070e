"""How each kind of operation moves, merges, reads or freezes units. See :mod:`tweaknn.structure.provenance`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .plan import Op

if TYPE_CHECKING:
    from .provenance import Watcher


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros([1] * tensor.dim(), dtype=torch.int64)


def _tensors(values: Any) -> list[Tensor]:
    from .provenance import tensors_in

    return list(tensors_in(values))


def unknown(w: Watcher, name: str, args: Any, kwargs: Any, out: Any) -> None:
    """Freeze everything read; the result belongs to no unit."""
    for t in _tensors((args, kwargs)):
        w.freeze(w.of(t).numpy(), f"read by {name}, which is not supported")
    for t in _tensors(out):
        w.put(t, _zeros(t))


def elementwise(w: Watcher, name: str, args: Any, kwargs: Any, out: Any) -> None:
    """Units at the same place become one; a full-sized constant beside a unit freezes it."""
    result = _tensors(out)[0]
    operands = [t for t in _tensors((args, kwargs)) if t.dim() > 0]
    shape = result.shape
    total: Tensor | None = None
    for t in operands:
        if t.dim() > len(shape):
            return unknown(w, name, args, kwargs, out)
        place = w.where.get(id(t))
        if name == "prelu" and t is operands[-1] and t.numel() > 1:
            channel = 1 if len(shape) > 1 else 0
            units = w.vector(operands[0], channel, "read by prelu across channels")
            w.slot(t, 0, units)
            continue
        lead = [1] * (len(shape) - t.dim())
        ids = w.of(t).reshape(lead + list(w.of(t).shape))
        sizes = lead + list(t.shape)
        if total is None:
            total, total_sizes = ids, sizes
            total_place = place
            continue
        a, b = torch.broadcast_tensors(total, ids)
        varying = [d for d in range(len(shape)) if a.shape[d] > 1]
        a_fixed = any(total_sizes[d] > 1 for d in varying) or not varying
        b_fixed = any(sizes[d] > 1 for d in varying) or not varying
        an, bn = a.numpy(), b.numpy()
        if not varying:  # one unit (or none) each: nothing tells which dimension is its own
            a_fixed = max(total_sizes, default=1) > 1
            b_fixed = max(sizes, default=1) > 1
        both = (an > 0) & (bn > 0)
        if both.any():
            w.union_arrays(an[both], bn[both])
        rider = _ride(w, t, place, ids, sizes, a, varying) or _ride(
            w, None, total_place, total, total_sizes, b, varying
        )
        if not rider:
            if b_fixed:
                w.freeze(an[(an > 0) & (bn == 0)], f"meets a constant in {name}")
            if a_fixed:
                w.freeze(bn[(bn > 0) & (an == 0)], f"meets a constant in {name}")
        total = torch.where(a > 0, a, b)
        total_sizes = [max(x, y) for x, y in zip(total_sizes, sizes)]
        total_place = None
    w.put(result, total if total is not None else _zeros(result))


def _ride(
    w: Watcher, t: Tensor | None, place: tuple[str, str] | None, ids: Tensor, sizes: list[int], other: Tensor,
    varying: list[int],
) -> bool:  # fmt: skip
    """A parameter with one entry a channel (a layer scale) is cut along with the units it meets."""
    if place is None or bool((ids > 0).any()) or len(varying) != 1:
        return False
    d = varying[0]
    if sizes[d] == 1:
        return False
    path, name = place
    module = w.modules[path]
    tensor = t if t is not None else getattr(module, name)
    dim = d - (len(sizes) - tensor.dim())
    if dim < 0:
        return False
    return w.slot(tensor, dim, other.reshape(-1).numpy().astype(np.int64))


def move(w: Watcher, func: Callable[..., Any], name: str, args: Any, kwargs: Any, out: Any) -> None:
    """Move the numbers by the same call."""
    if not args:
        return unknown(w, name, args, kwargs, out)
    data, rest = args[0], args[1:]
    with torch._C.DisableTorchFunction():
        if isinstance(data, (list, tuple)):
            moved = func([w.full(t) for t in data], *rest, **kwargs)
        else:
            ids = w.full(data)
            try:
                moved = func(ids, *rest, **kwargs)
            except RuntimeError:  # view of a broadcast tensor
                moved = func(ids.contiguous(), *rest, **kwargs)
    for t, ids in zip(_tensors(out), _tensors(moved), strict=True):
        w.put(t, ids)


def pad(w: Watcher, func: Callable[..., Any], args: Any, kwargs: Any, out: Any) -> None:
    """Padding adds values of no unit."""
    spec = args[1] if len(args) > 1 else kwargs["pad"]
    ids = w.full(args[0])
    dims = [d for d in range(len(spec) // 2) if spec[2 * d] or spec[2 * d + 1]]
    if all(w.of(args[0]).shape[-1 - d] == 1 for d in dims):  # a border: the same unit as what it surrounds
        w.put(out, w.of(args[0]))
    else:
        w.put(out, torch.nn.functional.pad(ids, spec, value=0))


def spatial(w: Watcher, name: str, args: Any, out: Any) -> None:
    """Pooling and resizing act inside each channel."""
    ids = w.of(args[0])
    for t in _tensors(out):
        if any(s > 1 for s in ids.shape[2:]):
            return unknown(w, name, args, {}, out)
        w.put(t, ids)


def over_dim(w: Watcher, name: str, args: Any, kwargs: Any, out: Any) -> None:
    """A reduction or softmax over dimensions along which the unit does not change."""
    x = args[0]
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if name == "normalize":
        dims = kwargs.get("dim", args[2] if len(args) > 2 else 1)
    if dims is None or isinstance(dims, (bool, float, Tensor)):
        return unknown(w, name, args, kwargs, out)
    dims = [d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)]
    ids = w.of(x)
    if any(ids.shape[d] > 1 for d in dims):
        w.freeze(ids.numpy(), f"{name} mixes channels")
        ids = _zeros(x)
    for t in _tensors(out):
        if t.dim() == x.dim():
            w.put(t, ids)
        else:
            w.put(t, ids.reshape([s for d, s in enumerate(ids.shape) if d not in dims]))


def _arg(args: Any, kwargs: Any, position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def conv(w: Watcher, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """A convolution reads its in-channels and makes new units; grouped and depthwise ones tie them (section 2)."""
    x, weight = args[0], _arg(args, kwargs, 1, "weight")
    bias = _arg(args, kwargs, 2, "bias")
    transposed = "transpose" in name
    groups = _arg(args, kwargs, 7 if transposed else 6, "groups", 1)
    if not transposed and groups != 1 and "groups" not in kwargs and len(args) <= 6:
        groups = 1
    place = w.where.get(id(weight))
    c_in, c_out = x.shape[1], out.shape[1]
    if place is None or (transposed and groups > 1) or x.dim() != weight.dim():
        return unknown(w, name, args, kwargs, out)
    units_in = w.vector(x, 1, f"read across positions by {place[0]}")
    if (units_in == 0).any() and groups > 1:
        w.freeze(units_in, f"shares groups with an ungated channel in {place[0]}")
    kernel = math.prod(weight.shape[2:])
    area = math.prod(x.shape[2:] if transposed else out.shape[2:])
    first = id(weight) not in w.made
    flops, params = 2.0 * kernel * area, float(kernel) * first
    if groups == c_in and groups > 1:  # depthwise, perhaps with several outputs a channel
        units_out = np.repeat(units_in, c_out // c_in)
        w.slot(weight, 0, units_out)
        w.slot(bias, 0, units_out)
        w.made[id(weight)] = units_out
        w.ops.append(Op(place[0], units_out, None, flops, params + float(bias is not None) * first, (), "depthwise"))
        w.along(out, 1, units_out)
        return
    per_in, per_out = c_in // groups, c_out // groups
    if groups > 1:
        for g in range(1, groups):
            w.union_arrays(units_in[:per_in], units_in[g * per_in : (g + 1) * per_in])
    if first:
        w.made[id(weight)] = np.tile(w.new_units(per_out, place[0]), groups)
    units_out = w.made[id(weight)]
    dim_out, dim_in = (1, 0) if transposed else (0, 1)
    w.slot(weight, dim_out, units_out)
    w.slot(weight, dim_in, units_in[:per_in] if groups > 1 else units_in, reads=True)
    w.slot(bias, 0, units_out)
    w.ops.append(
        Op(place[0], units_out[:per_out], units_in[:per_in], flops * groups, params * groups, (), "conv")
    )
    if bias is not None and first:
        w.ops.append(Op(place[0], units_out, None, 0.0, 1.0, (), "bias"))
    w.along(out, 1, units_out)


def linear(w: Watcher, args: Any, kwargs: Any, out: Tensor) -> None:
    """A linear layer reads the last dimension and makes new units."""
    x, weight = args[0], _arg(args, kwargs, 1, "weight")
    bias = _arg(args, kwargs, 2, "bias")
    place = w.where.get(id(weight))
    if place is None:
        return unknown(w, "linear with a computed weight", args, kwargs, out)
    units_in = w.vector(x, -1, f"read across positions by {place[0]}")
    first = id(weight) not in w.made
    if first:
        w.made[id(weight)] = w.new_units(out.shape[-1], place[0])
    units_out = w.made[id(weight)]
    w.slot(weight, 0, units_out)
    w.slot(weight, 1, units_in, reads=True)
    w.slot(bias, 0, units_out)
    rows = out.numel() / out.shape[-1] / w.batch
    w.ops.append(Op(place[0], units_out, units_in, 2.0 * rows, float(first), (), "linear"))
    if bias is not None and first:
        w.ops.append(Op(place[0], units_out, None, 0.0, 1.0, (), "bias"))
    w.along(out, out.dim() - 1, units_out)


def norm(w: Watcher, args: Any, kwargs: Any, out: Tensor) -> None:
    """Batch and instance normalisation act on each channel; their arrays are cut along with it."""
    x = args[0]
    units = w.vector(x, 1, "normalised across positions")
    riders = [_arg(args, kwargs, i, n) for i, n in ((1, "running_mean"), (2, "running_var"), (3, "weight"))]
    riders.append(_arg(args, kwargs, 4, "bias"))
    for t in riders:
        if not w.slot(t, 0, units):
            w.freeze(units, "normalised by a computed array")
        elif t is not None and isinstance(t, torch.nn.Parameter) and id(t) not in w.made:
            w.made[id(t)] = units
            w.ops.append(Op(w.where[id(t)][0], units, None, 0.0, 1.0, (), "norm"))
    w.along(out, 1, units)


def layer_norm(w: Watcher, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """Statistics over channels: cutting one would change the others, so they stay."""
    ids = w.of(args[0])
    dims = range(1, args[0].dim())
    if name != "group_norm":
        shape = _arg(args, kwargs, 1, "normalized_shape")
        dims = range(args[0].dim() - len(shape), args[0].dim())
    if any(ids.shape[d] > 1 for d in dims):
        w.freeze(ids.numpy(), f"{name} takes statistics over channels")
        ids = _zeros(args[0])
    for t in _tensors((args[2:], kwargs)):
        place = w.where.get(id(t))
        if place is not None and id(t) not in w.made:
            w.made[id(t)] = np.zeros(0, dtype=np.int64)
            w.ops.append(Op(place[0], np.zeros(t.numel(), dtype=np.int64), None, 0.0, 1.0, (), "norm"))
    w.put(out, ids)


def _join_heads(w: Watcher, parts: list[Tensor], heads: int, module: str) -> np.ndarray:
    """One unit a head (dimension 1): everything in it is read together."""
    units = np.zeros(heads, dtype=np.int64)
    for h in range(heads):
        found = []
        for t in parts:
            ids = w.of(t).expand(t.shape[0], t.shape[1], *w.of(t).shape[2:])
            each = heads // t.shape[1]
            found.append(np.unique(ids[:, h // each].numpy()))
        ids_h = np.unique(np.concatenate(found))
        live = ids_h[ids_h > 0]
        for u in live[1:]:
            w.union(int(live[0]), int(u))
        if len(live) and (ids_h == 0).any():
            w.freeze(live, "an attention head reads a constant")
        elif len(live):
            units[h] = live[0]
            w.heads.append((int(live[0]), module))
    return units


def attention(w: Watcher, args: Any, kwargs: Any, out: Tensor) -> None:
    """Scaled dot-product attention: one unit a head of queries, keys and values together."""
    q, k, v = (_arg(args, kwargs, i, n) for i, n in enumerate(("query", "key", "value")))
    if q.dim() != 4 or q.shape[1] % k.shape[1]:
        return unknown(w, "attention without a dimension of heads", args, kwargs, out)
    units = _join_heads(w, [q, k, v], q.shape[1], "")
    flops = 2.0 * q.shape[-2] * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    w.ops.append(Op("", units, None, flops * q.shape[0] / w.batch, 0.0, (), "attention"))
    w.along(out, 1, units)


def matmul(w: Watcher, args: Any, kwargs: Any, out: Tensor) -> None:
    """A product of activations by head (written-out attention); any other product freezes what it reads."""
    a, b = args[0], _arg(args, kwargs, 1, "other")
    if out.dim() == 4 and a.dim() == 4 and b.dim() == 4 and a.shape[1] == b.shape[1]:
        units = _join_heads(w, [a, b], a.shape[1], "")
        flops = 2.0 * a.shape[-2] * a.shape[-1] * b.shape[-1] * a.shape[0] / w.batch
        w.ops.append(Op("", units, None, flops, 0.0, (), "attention"))
        w.along(out, 1, units)
    else:
        unknown(w, "a product of activations", args, kwargs, out)


def multihead(w: Watcher, args: Any, kwargs: Any, out: Any) -> None:
    """``nn.MultiheadAttention``: one unit a head; its input and output channels stay."""
    names = ("query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v "
             "add_zero_attn dropout_p out_proj_weight out_proj_bias").split()  # fmt: skip
    a = {n: _arg(args, kwargs, i, n) for i, n in enumerate(names)}
    for n in ("query", "key", "value"):
        w.freeze(w.of(a[n]).numpy(), "read by multi-head attention")
    for t in _tensors(out):
        w.put(t, _zeros(t))
    place = w.where.get(id(a["in_proj_weight"])) if a["in_proj_weight"] is not None else None
    if place is None or a["bias_k"] is not None or a["add_zero_attn"]:
        return
    heads, width = a["num_heads"], a["in_proj_weight"].shape[1]
    if id(a["in_proj_weight"]) in w.made:
        return
    units = w.new_units(heads, place[0])
    w.made[id(a["in_proj_weight"])] = units
    each = np.repeat(units, width // heads)
    w.slot(a["in_proj_weight"], 0, np.tile(each, 3))
    w.slot(a["in_proj_bias"], 0, np.tile(each, 3))
    w.slot(a["out_proj_weight"], 1, each, reads=True)
    q, k = a["query"], a["key"]
    rows, keys = q.numel() / width / w.batch, k.numel() / width / w.batch
    size = width // heads
    stay = np.zeros(width, dtype=np.int64)
    w.ops.append(Op(place[0], each, stay, 2.0 * (rows + 2 * keys), 3.0, (), "linear"))
    w.ops.append(Op(place[0], stay, each, 2.0 * rows, 1.0, (), "linear"))
    w.ops.append(Op(place[0], units, None, 4.0 * rows * keys * size, 0.0, (), "attention"))
    if a["in_proj_bias"] is not None:
        w.ops.append(Op(place[0], each, None, 0.0, 3.0, (), "bias"))
        w.ops.append(Op(place[0], stay, None, 0.0, 1.0, (), "bias"))


def recurrent(w: Watcher, name: str, args: Any, out: Any) -> None:
    """LSTM, GRU, RNN: one unit for the whole sequence, in every layer and direction of the module (section 7)."""
    if len(args) < 9 or not isinstance(args[3], bool):
        return unknown(w, f"{name} over packed sequences", args, {}, out)
    x, _, weights, has_bias, layers, _, _, both_ways, _ = args[:9]
    gates = {"lstm": 4, "gru": 3}.get(name, 1)
    place = w.where.get(id(weights[0]))
    hidden = weights[1].shape[1]
    if place is None or weights[1].shape[0] != gates * hidden or id(weights[0]) in w.made:
        return unknown(w, f"{name} with projections or a second call", args, {}, out)
    for t in _tensors(args[1]):
        if bool((w.of(t) > 0).any()):
            return unknown(w, f"{name} with a computed initial state", args, {}, out)
    units = w.new_units(hidden, place[0])
    w.made[id(weights[0])] = units
    directions, per = 1 + int(both_ways), 4 if has_bias else 2
    units_in = w.vector(x, -1, f"read across positions by {place[0]}")
    steps = x.numel() / x.shape[-1] / w.batch
    for layer in range(layers):
        for d in range(directions):
            own = weights[(layer * directions + d) * per : (layer * directions + d + 1) * per]
            for k, read in ((0, units_in), (1, units)):
                w.slot(own[k], 0, np.tile(units, gates))
                w.slot(own[k], 1, read, reads=True)
                w.ops.append(Op(place[0], units, read, 2.0 * gates * steps, float(gates), (), name))
            for bias in own[2:]:
                w.slot(bias, 0, np.tile(units, gates))
            if has_bias:
                w.ops.append(Op(place[0], units, None, 0.0, 2.0 * gates, (), "bias"))
        units_in = np.tile(units, directions)
    w.along(out[0], out[0].dim() - 1, units_in)
    for t in _tensors(out[1:]):
        w.along(t, t.dim() - 1, units)
