"""Which unit does each value of each tensor belong to: one forward pass, watched.

A :class:`Watcher` runs under PyTorch's function mode, so it sees what a network does whatever its forward pass looks
like (no tracing of Python, no module types of a list). Every tensor gets an integer array of unit numbers that
broadcasts against it; moving data moves the numbers by the very same call, element-wise operations merge the units
that meet, and whatever is not understood freezes the units it reads: they stay, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from .plan import Op, Slot

MOVES = frozenset(
    "view reshape flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t squeeze unsqueeze chunk "
    "split tensor_split split_with_sizes unbind cat concat concatenate stack hstack vstack getitem expand expand_as "
    "repeat roll narrow select index_select flip view_as reshape_as pixel_shuffle pixel_unshuffle channel_shuffle "
    "repeat_interleave tile T mT data".split()
)
SPATIAL = frozenset(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d interpolate upsample lp_pool2d "
    "boolean_dispatch max_pool2d_with_indices".split()
)
ELEMENTWISE = frozenset(
    "relu relu6 silu gelu hardswish hardsigmoid hardtanh sigmoid tanh leaky_relu elu selu celu softplus mish "
    "logsigmoid softsign tanhshrink threshold dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout "
    "feature_alpha_dropout abs exp neg sqrt rsqrt pow square clamp clip add sub rsub mul div truediv rtruediv "
    "multiply divide where maximum minimum contiguous clone to float double half bfloat16 type type_as detach "
    "identity log log1p reciprocal floor erf sin cos iadd imul isub radd rmul pos lerp addcmul".split()
)
OVER_DIM = frozenset(
    "mean sum amax amin max min var std norm logsumexp softmax log_softmax normalize argmax cumsum".split()
)
CONVS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())
RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu".split())


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for v in values:
            yield from tensors_in(v)
    elif isinstance(values, dict):
        for v in values.values():
            yield from tensors_in(v)


class Watcher(TorchFunctionMode):
    """Collects unit numbers, operations and slots during one forward pass of ``model``.

    ``ops`` and ``slots`` hold raw unit numbers; :meth:`root` resolves merged units, ``frozen[root]`` says why a unit
    must stay. Unit 0 means "no unit".
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.where: dict[int, tuple[str, str]] = {}
        for path, module in model.named_modules():
            own = list(module.named_parameters(recurse=False)) + list(module.named_buffers(recurse=False))
            for name, tensor in own:
                self.where.setdefault(id(tensor), (path, name))
        self.modules = dict(model.named_modules())
        self.parent = [0]
        self.names = [""]
        self.frozen: dict[int, str] = {}
        self.ids: dict[int, Tensor] = {}
        self.keep: list[Any] = []  # ids() are only unique while the tensors live
        self.made: dict[int, np.ndarray] = {}  # weight -> its out units: a shared weight keeps its units
        self.reads: dict[int, np.ndarray] = {}
        self.ops: list[Op] = []
        self.slots: list[Slot] = []
        self.seen_slots: set[tuple[int, int]] = set()
        self.heads: list[tuple[int, str]] = []
        self.batch = 1  # examples in the pass: costs are counted for one

    # ---- units -------------------------------------------------------------------------------------------------
    def new_units(self, n: int, module: str) -> np.ndarray:
        start = len(self.parent)
        self.parent.extend(range(start, start + n))
        self.names.extend(f"{module}:{i}" for i in range(n))
        return np.arange(start, start + n, dtype=np.int64)

    def root(self, unit: int) -> int:
        while self.parent[unit] != unit:
            self.parent[unit] = self.parent[self.parent[unit]]
            unit = self.parent[unit]
        return unit

    def union(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            low, high = min(a, b), max(a, b)
            self.parent[high] = low
            if high in self.frozen:
                self.frozen.setdefault(low, self.frozen[high])

    def union_arrays(self, a: np.ndarray, b: np.ndarray) -> None:
        pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
        for x, y in pairs.T:
            self.union(int(x), int(y))

    def freeze(self, units: Any, reason: str) -> None:
        for u in np.unique(np.asarray(units)):
            if u > 0:
                self.frozen.setdefault(self.root(int(u)), reason)

    def is_frozen(self, unit: int) -> str | None:
        return self.frozen.get(self.root(unit))

    # ---- unit numbers of tensors -------------------------------------------------------------------------------
    def of(self, tensor: Tensor) -> Tensor:
        ids = self.ids.get(id(tensor))
        return ids if ids is not None else torch.zeros([1] * tensor.dim(), dtype=torch.int64)

    def full(self, tensor: Tensor) -> Tensor:
        return self.of(tensor).expand(tensor.shape)

    def put(self, tensor: Tensor, ids: Tensor) -> None:
        for d in range(ids.dim()):
            if ids.shape[d] > 1:
                first = ids.narrow(d, 0, 1)
                if bool((ids == first).all()):
                    ids = first
        self.keep.append(tensor)
        self.ids[id(tensor)] = ids.clone()

    def vector(self, tensor: Tensor, dim: int, reason: str) -> np.ndarray:
        """Unit of every index along ``dim``; units that vary along another dimension are frozen."""
        ids = self.of(tensor)
        dim %= max(tensor.dim(), 1)
        size = tensor.shape[dim]
        if any(s > 1 for d, s in enumerate(ids.shape) if d != dim):
            self.freeze(ids.numpy(), reason)
            return np.zeros(size, dtype=np.int64)
        return ids.reshape(-1).expand(size).numpy().astype(np.int64).copy()

    def along(self, tensor: Tensor, dim: int, units: np.ndarray) -> None:
        shape = [1] * tensor.dim()
        shape[dim] = tensor.shape[dim]
        self.put(tensor, torch.from_numpy(units.copy()).reshape(shape))

    def slot(self, tensor: Tensor | None, dim: int, units: np.ndarray, reads: bool = False) -> bool:
        """Remember that ``units`` index ``dim`` of a parameter; False if it is nobody's parameter."""
        if tensor is None:
            return True
        place = self.where.get(id(tensor))
        if place is None:
            return False
        if (id(tensor), dim) not in self.seen_slots:
            self.seen_slots.add((id(tensor), dim))
            self.slots.append(Slot(*place, dim, units.copy(), reads))
        else:  # a shared parameter: whatever indexes the same dimension must go together
            old = next(s for s in self.slots if (s.module, s.name, s.dim) == (*place, dim))
            both = (old.map > 0) & (units > 0)
            self.union_arrays(old.map[both], units[both])
            self.freeze(old.map[(units == 0)], "shared with an ungated use")
            self.freeze(units[(old.map == 0)], "shared with an ungated use")
        return True

    # ---- the mode ----------------------------------------------------------------------------------------------
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        before = {id(t): self.ids.get(id(t)) for t in tensors_in((args, kwargs))}
        out = func(*args, **kwargs)
        results = list(tensors_in(out))
        if results:
            try:
                self._record(func, args, kwargs, out)
            except Exception as error:  # an unforeseen signature must not stop the network: freeze and list
                for t in tensors_in((args, kwargs)):
                    ids = before.get(id(t))
                    if ids is not None:
                        self.freeze(ids.numpy(), f"read by {_name(func)} ({error})")
                for t in results:
                    self.put(t, torch.zeros([1] * t.dim(), dtype=torch.int64))
        return out

    def _record(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        from . import provenance_rules as rules

        name = _name(func)
        if name in ELEMENTWISE or name == "prelu":
            rules.elementwise(self, name, args, kwargs, out)
        elif name in MOVES:
            rules.move(self, func, name, args, kwargs, out)
        elif name == "pad":
            rules.pad(self, func, args, kwargs, out)
        elif name in SPATIAL:
            rules.spatial(self, name, args, out)
        elif name in OVER_DIM:
            rules.over_dim(self, name, args, kwargs, out)
        elif name in CONVS:
            rules.conv(self, name, args, kwargs, out)
        elif name == "linear":
            rules.linear(self, args, kwargs, out)
        elif name in ("batch_norm", "instance_norm"):
            rules.norm(self, args, kwargs, out)
        elif name in ("layer_norm", "rms_norm", "group_norm"):
            rules.layer_norm(self, name, args, kwargs, out)
        elif name == "scaled_dot_product_attention":
            rules.attention(self, args, kwargs, out)
        elif name in ("matmul", "bmm"):
            rules.matmul(self, args, kwargs, out)
        elif name == "multi_head_attention_forward":
            rules.multihead(self, args, kwargs, out)
        elif name in RECURRENT:
            rules.recurrent(self, name, args, out)
        else:
            rules.unknown(self, name, args, kwargs, out)


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", "") or ""
    if name == "__get__":
        name = (resolve_name(func) or "").split(".")[-2]
    name = name.strip("_")
    return {"adaptive_max_pool2d_with_indices": "adaptive_max_pool2d"}.get(name, name)
