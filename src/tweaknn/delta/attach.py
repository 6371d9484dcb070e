"""``nn + Δnn`` as an ordinary module: the base's weights are shared, its neurons read inside the traced graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from tweaknn.delta.forward import Change, gather, neurons, one_by_one, reading
from tweaknn.delta.hooked import HookedNet
from tweaknn.delta.plan import Primitive, plan
from tweaknn.delta.quick import quicken, reuse
from tweaknn.delta.value import LOGITS, Delta
from tweaknn.errors import DeltaError, ModelError
from tweaknn.network.clone import share, unwrap
from tweaknn.network.fingerprint import fingerprint
from tweaknn.network.modes import call, placement
from tweaknn.network.tracing import CannotTrace, Trace, trace


def attach(delta: Delta, model: nn.Module, *, check: bool = True, example_x: Any = None) -> Tweaked:
    """See :meth:`tweaknn.delta.Delta.attach`."""
    stack = model.stack if isinstance(model, Tweaked) else ()
    root = model.root if isinstance(model, Tweaked) else unwrap(model)
    if check:
        check_base(delta, root, stack)
    net = share(root).requires_grad_(False)  # an optimiser that is given these weights must not move the base's
    device, dtype = placement(net)
    if example_x is None:
        example_x = example_input(delta, device, dtype)
    for each in (*stack, delta):
        net = _one(each, net, root, device, example_x)
    return Tweaked(delta, model, net, (*stack, delta), root)


def example_input(delta: Delta, device: torch.device, dtype: torch.dtype, n: int = 2) -> Tensor:
    """``n`` inputs of zeros as the delta describes them."""
    x = torch.zeros(n, *delta.input_shape, dtype=getattr(torch, delta.input_dtype, torch.float32), device=device)
    return x.to(dtype) if x.is_floating_point() else x


def check_base(delta: Delta, root: nn.Module, stack: tuple[Delta, ...] = ()) -> None:
    """Raises DeltaError, naming both, when ``delta`` was made for another base or for other deltas below it."""
    from tweaknn.delta.file import delta_hash

    found = fingerprint(root)
    if found != delta.base:
        raise DeltaError(
            f"This delta was made for a base with fingerprint {delta.base[:16]}..., this network's is "
            f"{found[:16]}...; load the weights it was made for."
        )
    if not delta.below and not stack:
        return
    below = tuple(delta_hash(each) for each in stack)
    if delta.below and delta.below != below:
        wanted = ", ".join(name[:16] for name in delta.below)
        there = ", ".join(name[:16] for name in below) or "none"
        raise DeltaError(f"This delta sits on other deltas ({wanted}), attached are {there}; attach those first.")


class Tweaked(nn.Module):
    """A base network and a delta, as one module in eval mode.

    Its modules are its own, its weights lie in the base's memory: moving it, turning it to half precision or quantising
    it leaves the base alone, and so does loading a state dict. It is not for training: its weights ask for no gradients, and
    ``train()`` is accepted and keeps every layer in eval mode, so that no batch norm moves the base's statistics.

    Attributes:
        base: what the delta was attached to, the very object that was given.
        delta: the delta.
        stack: all deltas between the root and the output, lowest first.
        root: the network below them all.
    """

    def __init__(
        self, delta: Delta, base: nn.Module, net: nn.Module, stack: tuple[Delta, ...], root: nn.Module
    ) -> None:
        super().__init__()
        self.net = net
        # not registered: ``net`` holds the base's weights already, and a state dict should hold them once
        for name, value in (("base", base), ("delta", delta), ("stack", stack), ("root", root)):
            object.__setattr__(self, name, value)
        self.training = False

    base: nn.Module
    delta: Delta
    stack: tuple[Delta, ...]
    root: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base returns, with the delta's part added to its logits."""
        # past the wrappers that torch.fx puts around its modules' calls; nobody hangs hooks on ``net``
        return self.net.forward(*args, **kwargs)

    def train(self, mode: bool = True) -> Tweaked:
        """Remember ``mode``; the layers stay in eval mode."""
        self.training = mode
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module, into memory of its own: the base keeps its weights."""
        for parameter in self.net.parameters():
            parameter.data = parameter.data.clone()  # tied weights are one parameter and stay so
        for module in self.net.modules():
            for name, tensor in module._buffers.items():
                module._buffers[name] = None if tensor is None else tensor.clone()
        return super().load_state_dict(state_dict, strict, assign)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tweaked:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def __reduce__(self) -> Any:
        # pickled as what it is made of: torch.fx would trace its graph again, and through our functions
        return _again, (self.delta, self.base)

    def detach(self) -> nn.Module:
        """What the delta was attached to; it was never changed."""
        return self.base


def _again(delta: Delta, base: nn.Module) -> Tweaked:
    return attach(delta, base, check=False)


def _one(delta: Delta, net: nn.Module, root: nn.Module, device: torch.device, example_x: Any) -> nn.Module:
    """One more delta around ``net``, which is the shared copy of the root or the same with deltas below."""
    if delta.how == "hooks":
        return HookedNet(delta, net, device, example_x)
    if isinstance(net, Layered):
        return insert(delta, net, device)
    try:
        traced = trace(net, example_x)
    except CannotTrace as reason:
        raise ModelError(
            f"The delta names layers as torch.fx does, which cannot follow this network: {reason}."
        ) from None
    return insert(delta, layered(traced), device)


class Layered(fx.GraphModule):
    """A traced network with deltas in its graph. It has no names of its own: they could be those of the network's parts."""


def nodes_of(module: Layered) -> dict[str, fx.Node]:
    """The nodes of its layers, by name."""
    return {node.meta["tweaknn"]: node for node in module.graph.nodes if "tweaknn" in node.meta}


def layered(traced: Trace) -> Layered:
    """A copy of a traced network's graph, ready for deltas."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(traced.graph, mapping))
    # names are kept in the nodes: they survive deep copies, and a delta on top finds them again
    for name, node in traced.nodes.items():
        mapping[node].meta["tweaknn"] = name
    module = Layered(traced.root, graph)
    quicken(module)
    return module


def insert(delta: Delta, module: Layered, device: torch.device) -> Layered:
    """Put a delta into the graph of a traced network: reads behind the layers, the change before the output."""
    nodes = nodes_of(module)
    output = next(node for node in module.graph.nodes if node.op == "output")
    logits = logits_node(output.args[0], delta.head)
    made = plan(delta)
    level = sum(str(node.target).startswith("_tweaknn_change_") for node in module.graph.nodes)
    values = []
    single = one_by_one(made)
    for position, primitive in enumerate(made.primitives):
        source = logits if primitive.layer == LOGITS else _source(primitive.layer, nodes)
        values.append(_read(module, primitive, source, f"_tweaknn_index_{level}_{position}", device, single))
    name = f"_tweaknn_change_{level}"
    module.add_submodule(name, Change(made, delta.n_classes, device).eval())
    with module.graph.inserting_before(output):
        tweaked = module.graph.call_module(name, (logits, values))
    output.args = (fx.map_arg(output.args[0], lambda node: tweaked if node is logits else node),)
    reuse(module)  # a neuron that is read now must outlive the ReLU behind it
    return module


def _read(
    module: Layered, primitive: Primitive, source: fx.Node, name: str, device: torch.device, single: bool
) -> fx.Node:
    """Nodes that reduce a layer, as plain calls: at batch 1 a submodule each would cost more than the sums do."""
    function, arguments, indexed = reading(primitive)
    graph = module.graph
    # right behind the neuron, before any in-place operation can change it
    with graph.inserting_after(source):
        if not indexed:
            return graph.call_function(function, (source, *arguments))
        module.register_buffer(name, primitive.index.to(device))
        index = graph.get_attr(name)
    with graph.inserting_after(index):
        if function is gather:
            if not single:
                return graph.call_function(gather, (source, index, *arguments))
            places = torch.stack(torch.unravel_index(primitive.index, primitive.shape), 1).tolist()
            return graph.call_function(neurons, (source, index, *arguments, places))
        value = graph.call_function(function, (source, *arguments))
    with graph.inserting_after(value):
        return graph.call_function(torch.index_select, (value, 1, index))


def _source(layer: str, nodes: Mapping[str, fx.Node]) -> fx.Node:
    if layer not in nodes:
        raise ModelError(f"The network has no layer {layer!r}, which the delta reads.")
    return nodes[layer]


def logits_node(result: Any, head: int | str | None) -> fx.Node:
    """The node that holds the logits in what a traced network returns.

    Raises:
        ModelError: there is no such output.
    """
    value = result
    if not isinstance(value, fx.Node):
        if head is not None:
            try:
                value = value[head]
            except (KeyError, IndexError, TypeError):
                raise ModelError(f"The network has no output {head!r}, which the delta changes.") from None
        elif isinstance(value, dict):
            value = value.get("logits", value.get("out"))
        elif isinstance(value, (tuple, list)) and value:
            value = value[0]
    if not isinstance(value, fx.Node):
        raise ModelError("The traced network's logits cannot be told from its other outputs; name the head.")
    return value


__all__ = ["Tweaked", "attach", "call", "check_base", "example_input", "insert", "layered", "logits_node", "nodes_of"]
