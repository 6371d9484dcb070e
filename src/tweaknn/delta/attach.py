"""``nn + Δnn`` as an ordinary module: the base's modules are shared, its neurons read inside the traced graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from tweaknn.delta.heads import MLP, Linear
from tweaknn.delta.value import LOGITS, Delta, Read
from tweaknn.errors import DeltaError, ModelError
from tweaknn.network import hooks
from tweaknn.network.fingerprint import fingerprint
from tweaknn.network.modes import call, logits_of, placement
from tweaknn.network.pooling import pool
from tweaknn.network.tracing import CannotTrace, trace


def attach(delta: Delta, model: nn.Module, *, check: bool = True, example_x: Any = None) -> Tweaked:
    """See :meth:`tweaknn.Delta.attach`."""
    if check:
        found = fingerprint(model)
        if found != delta.base:
            raise DeltaError(
                f"This delta was made for a base with fingerprint {delta.base[:16]}..., this network's is "
                f"{found[:16]}...; load the weights it was made for."
            )
    device, dtype = placement(model)
    if delta.how == "hooks":
        return Tweaked(delta, model, HookedNet(delta, model, device))
    if example_x is None:
        example_dtype = getattr(torch, delta.input_dtype, torch.float32)
        example_x = torch.zeros(2, *delta.input_shape, dtype=example_dtype, device=device)
        example_x = example_x.to(dtype) if example_x.is_floating_point() else example_x
    try:
        traced = trace(model, example_x)
    except CannotTrace as reason:
        raise ModelError(
            f"The delta names layers as torch.fx does, which cannot follow this network: {reason}."
        ) from None
    return Tweaked(delta, model, _graph(delta, traced.graph, traced.root, traced.nodes, device))


class Tweaked(nn.Module):
    """A base network and a delta, as one module.

    Attributes:
        base: the base network, the very object that was given.
        delta: the delta.
    """

    def __init__(self, delta: Delta, base: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        # not registered: ``net`` holds the base's modules already, and a state dict should hold them once
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "delta", delta)
        self.training = base.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base returns, with the delta's part added to its logits."""
        return self.net(*args, **kwargs)

    def detach(self) -> nn.Module:
        """The base again; it was never changed."""
        return self.base  # type: ignore[return-value]


class ReadLayer(nn.Module):
    """Reduces a layer and picks the neurons somebody needs: ``(n, *shape) -> (n, k)``."""

    index: Tensor

    def __init__(self, read: Read, device: torch.device) -> None:
        super().__init__()
        self.reduction = read.reduction
        self.channel_axis = read.channel_axis
        self.every = bool(torch.equal(read.index, torch.arange(read.available)))
        self.register_buffer("index", read.index.to(device))

    def forward(self, activation: Tensor) -> Tensor:
        values = pool(activation, self.channel_axis, self.reduction)
        return values if self.every else values.index_select(1, self.index)


class HeadModule(nn.Module):
    """Adds all terms and the bias to the logits; logits that no term names are passed on bit for bit."""

    bias: Tensor
    touched: Tensor

    def __init__(self, delta: Delta, device: torch.device) -> None:
        super().__init__()
        self.counts = [len(term.reads) for term in delta.terms]
        self.terms = nn.ModuleList(_HeadTerm(term.head, device) for term in delta.terms)
        touched = delta.touched
        self.everywhere = touched == list(range(delta.n_classes))
        where = {j: position for position, j in enumerate(touched)}
        for module, term in zip(self.terms, delta.terms, strict=True):
            positions = torch.tensor([where[int(j)] for j in term.head.columns], dtype=torch.int64)
            module.everywhere = len(positions) == len(touched) and bool(  # type: ignore[assignment]
                torch.equal(positions, torch.arange(len(touched)))
            )
            module.register_buffer("positions", positions.to(device))
        self.register_buffer("touched", torch.tensor(touched, dtype=torch.int64, device=device))
        self.register_buffer("bias", delta.bias[touched].float().to(device))

    def forward(self, logits: Tensor, *values: Tensor) -> Tensor:
        change = self.bias.expand(logits.shape[0], -1)
        start = 0
        for count, term in zip(self.counts, self.terms, strict=True):
            part = term(torch.cat(values[start : start + count], dim=1) if count > 1 else values[start])
            change = change + part if term.everywhere else change.index_add(1, term.positions, part)
            start += count
        change = change.to(logits.dtype)
        if self.everywhere:
            return logits + change
        return logits.index_add(1, self.touched, change) if self.touched.numel() else logits


class _HeadTerm(nn.Module):
    def __init__(self, head: Linear | MLP, device: torch.device) -> None:
        super().__init__()
        self.kind = head
        for name, tensor in head.tensors().items():
            if name != "columns":
                self.register_buffer(name.replace(".", "_"), tensor.float().to(device))

    def forward(self, features: Tensor) -> Tensor:
        if isinstance(self.kind, Linear):
            return features @ self.weight  # type: ignore[operator]
        groups = tuple(getattr(self, f"w1_{g}") for g in range(len(self.kind.w1)))
        head = MLP(groups, self.b1, self.w2, self.kind.columns, self.kind.activation)  # type: ignore[arg-type]
        return head(features)


def _graph(
    delta: Delta, graph: fx.Graph, root: nn.Module, nodes: Mapping[str, fx.Node], device: torch.device
) -> fx.GraphModule:
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = new.graph_copy(graph, mapping)
    module = fx.GraphModule(root, _closed(new, result))
    logits = _logits_node(result, delta.head)
    values: list[fx.Node] = []
    seen: dict[tuple[str, str, bytes], fx.Node] = {}
    for read in (read for term in delta.terms for read in term.reads):
        key = (read.layer, read.reduction, read.index.numpy().tobytes())
        if key not in seen:
            source = logits if read.layer == LOGITS else _source(read, nodes, mapping)
            name = f"_tweaknn_read_{len(seen)}"
            module.add_submodule(name, ReadLayer(read, device))
            # right behind the neuron, before any in-place operation can change it
            with module.graph.inserting_after(source):
                seen[key] = module.graph.call_module(name, (source,))
        values.append(seen[key])
    module.add_submodule("_tweaknn_head", HeadModule(delta, device))
    output = next(node for node in module.graph.nodes if node.op == "output")
    with module.graph.inserting_before(output):
        tweaked = module.graph.call_module("_tweaknn_head", (logits, *values))
    output.args = (fx.map_arg(output.args[0], lambda node: tweaked if node is logits else node),)
    module.recompile()
    return module


def _closed(graph: fx.Graph, result: Any) -> fx.Graph:
    graph.output(result)
    return graph


def _source(read: Read, nodes: Mapping[str, fx.Node], mapping: Mapping[fx.Node, fx.Node]) -> fx.Node:
    if read.layer not in nodes:
        raise ModelError(f"The network has no layer {read.layer!r}, which the delta reads.")
    return mapping[nodes[read.layer]]


def _logits_node(result: Any, head: int | str | None) -> fx.Node:
    value = result
    if not isinstance(value, fx.Node):
        if head is not None:
            value = value[head]
        elif isinstance(value, dict):
            value = value.get("logits")
        elif isinstance(value, (tuple, list)) and value:
            value = value[0]
    if not isinstance(value, fx.Node):
        raise ModelError("The traced network's logits cannot be told from its other outputs; name the head.")
    return value


class HookedNet(nn.Module):
    """The form for networks that torch.fx cannot follow: hooks for the length of a call."""

    def __init__(self, delta: Delta, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.which = delta.head
        self.reads_of: dict[str, list[int]] = {}
        reads = [read for term in delta.terms for read in term.reads]
        self.names: Sequence[str] = list(dict.fromkeys(read.layer for read in reads if read.layer != LOGITS))
        self.layer_of = [read.layer for read in reads]
        self.readers = nn.ModuleList(ReadLayer(read, device) for read in reads)
        self._tweaknn_head = HeadModule(delta, device)
        known = {name for name, _ in model.named_modules()}
        for name in self.names:
            if name.split(":")[0] not in known:
                raise ModelError(f"The network has no module {name!r}, which the delta reads.")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values: dict[int, Tensor] = {}

        def sink(k: int, activation: Tensor) -> None:
            for r, layer in enumerate(self.layer_of):
                if layer == self.names[k]:
                    values[r] = self.readers[r](activation)

        with hooks.reading(self.model, self.names, sink):
            output = self.model(*args, **kwargs)
        logits = logits_of(output, self.which)
        for r, layer in enumerate(self.layer_of):
            if layer == LOGITS:
                values[r] = self.readers[r](logits)
        return _with_logits(
            output, logits, self._tweaknn_head(logits, *(values[r] for r in range(len(self.layer_of)))), self.which
        )


def _with_logits(output: Any, old: Tensor, new: Tensor, head: int | str | None) -> Any:
    if isinstance(output, Tensor):
        return new
    if isinstance(output, (tuple, list)):
        return type(output)(new if value is old else value for value in output)
    changed = copy.copy(output)
    if isinstance(changed, dict):
        for key in [key for key, value in changed.items() if value is old]:
            changed[key] = new
    if getattr(changed, "logits", None) is old:
        changed.logits = new
    elif isinstance(head, str) and getattr(changed, head, None) is old:
        setattr(changed, head, new)
    return changed


__all__ = ["HeadModule", "HookedNet", "ReadLayer", "Tweaked", "attach", "call"]
