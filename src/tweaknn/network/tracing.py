"""Name every hidden output of a network with torch.fx, functional activations included."""

from __future__ import annotations

import math
import operator
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from tweaknn.network.layers import ACTIVATION_FUNCTIONS, ACTIVATION_MODULES, Layer
from tweaknn.network.modes import call, eval_mode, first

_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_SAME_VALUES = {"flatten", "reshape", "view", "contiguous", "clone", "squeeze", "unsqueeze", "detach", "to", "float"}
_NOTHING_NEW = (nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.AlphaDropout)
_POOLING = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
)
_POOLING_NAMES = {
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "avg_pool1d",
    "max_pool2d",
    "_max_pool2d",
    "boolean_dispatch",
    "mean",
    "dropout",
}
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention, nn.Embedding)
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)


@dataclass
class Trace:
    """A traced network.

    Attributes:
        graph: the graph, whose nodes' ``name`` attributes are unique.
        root: the network itself; modules are shared with it, never copied.
        every: all hidden outputs, in execution order.
        nodes: the node of each layer's name.
        known: the layers that ``all`` stands for.
        logits: the output node of the network.
    """

    graph: fx.Graph
    root: nn.Module
    every: list[Layer]
    known: list[Layer]
    nodes: dict[str, fx.Node]
    skipped: list[str]


class CannotTrace(Exception):
    """torch.fx cannot follow this network; module hooks are used instead."""


def trace(model: nn.Module, x: Any) -> Trace:
    """Trace a network in eval mode and check on ``x`` that the trace computes what the network computes.

    Raises:
        CannotTrace: for any reason; the caller falls back to hooks.
    """
    if not isinstance(x, Tensor):
        raise CannotTrace("the input is not a single tensor")
    x = first(x, 2)
    with eval_mode(model), torch.inference_mode():
        try:
            # 'eval' tracing: dropout and friends fold to what they are at inference
            tracer = OwnThreadTracer(autowrap_modules=(math,))
            with _TRACING:
                graph = tracer.trace(model)
            module = fx.GraphModule(model, graph)
            recorder = _Recorder(module)
            replayed = recorder.run(x)
            reference = call(model, x)
        except Exception as error:  # fx raises anything a network's own Python can raise
            raise CannotTrace(f"{type(error).__name__}: {error}".splitlines()[0][:200]) from None
    if not _same(replayed, reference):
        raise CannotTrace("the trace computes something else than the network")
    names = {node: name for node, name in tracer.node_to_qualname.items() if node.op != "output"}
    return _describe(graph, model, recorder.meta, names, int(x.shape[0]))


_TRACING = threading.Lock()


class OwnThreadTracer(NodePathTracer):
    """Traces this thread's calls only.

    While torch.fx traces, it replaces ``nn.Module.__call__`` for the whole process; a network that another thread runs
    meanwhile would be taken for part of the traced one, and fail.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Recorder(fx.Interpreter):
    """Runs the graph once and notes every node's shape and dtype, never its values."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.meta: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.meta[n.name] = (tuple(value.shape), value.dtype)
        return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_same(u, v) for u, v in zip(a, b, strict=True))
    return type(a) is type(b) and not isinstance(a, Tensor)


def _describe(
    graph: fx.Graph,
    model: nn.Module,
    meta: dict[str, tuple[tuple[int, ...], torch.dtype]],
    names: dict[fx.Node, str],
    n: int,
) -> Trace:
    modules = dict(model.named_modules())
    outputs = {node for node in graph.nodes if node.op == "output"}
    final = _only_output(outputs)
    axes: dict[fx.Node, int] = {}
    every: list[Layer] = []
    nodes: dict[str, fx.Node] = {}
    skipped: list[str] = []
    for node in graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method") or node.name not in meta:
            continue
        shape, dtype = meta[node.name]
        axes[node] = _channel_axis(node, modules, meta, axes)
        if node in final or len(shape) < 2 or shape[0] != n:
            continue
        name = names.get(node, node.name)
        if not dtype.is_floating_point:
            skipped.append(name)
            continue
        nodes[name] = node
        every.append(Layer(name, shape[1:], axes[node] - 1))
    known_nodes = _hidden(graph, modules, meta, {nodes[layer.name] for layer in every}, final)
    known = [layer for layer in every if nodes[layer.name] in known_nodes]
    return Trace(graph, model, every, known, nodes, skipped)


def _only_output(outputs: set[fx.Node]) -> set[fx.Node]:
    """The nodes handed out by the network: logits are not hidden."""
    final: set[fx.Node] = set()
    for node in outputs:
        final.update(node.all_input_nodes)
    return final


def _function_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _is_activation(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__ in ACTIVATION_MODULES
    return _function_name(node) in ACTIVATION_FUNCTIONS


def _hidden(
    graph: fx.Graph,
    modules: dict[str, nn.Module],
    meta: dict[str, tuple[tuple[int, ...], torch.dtype]],
    candidates: set[fx.Node],
    final: set[fx.Node],
) -> set[fx.Node]:
    """Activations, residual sums that no activation follows, and what the last linear layer reads."""
    chosen = {node for node in candidates if _is_activation(node, modules)}
    for node in candidates:
        if node.target in _ADDS and len([a for a in node.args if isinstance(a, fx.Node) and a.name in meta]) == 2:
            shapes = {meta[a.name][0] for a in node.all_input_nodes if a.name in meta}
            if len(shapes) == 1 and not all(_is_activation(user, modules) for user in node.users):
                chosen.add(node)
    last = _last_input(graph, modules, final)
    if last is not None and last in candidates and not _only_pools(last, chosen, modules):
        chosen.add(last)
    return chosen


def _last_input(graph: fx.Graph, modules: dict[str, nn.Module], final: set[fx.Node]) -> fx.Node | None:
    for node in reversed(list(graph.nodes)):
        linear = (node.op == "call_module" and isinstance(modules[str(node.target)], (nn.Linear, nn.Conv2d))) or (
            node.op == "call_function" and _function_name(node) == "linear"
        )
        if linear:
            return node.all_input_nodes[0] if node.all_input_nodes else None
    return None


def _only_pools(node: fx.Node, chosen: set[fx.Node], modules: dict[str, nn.Module]) -> bool:
    """Whether a node merely reshapes or pools a layer that is counted already."""
    while node not in chosen:
        passes = (
            isinstance(modules[str(node.target)], (*_NOTHING_NEW, *_POOLING))
            if node.op == "call_module"
            else _function_name(node) in _SAME_VALUES | _POOLING_NAMES
        )
        if not passes or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return True


def _channel_axis(
    node: fx.Node,
    modules: dict[str, nn.Module],
    meta: dict[str, tuple[tuple[int, ...], torch.dtype]],
    axes: dict[fx.Node, int],
) -> int:
    """Axis (batch included) that counts channels: last after linear layers and layer norms, first after convolutions,
    carried through permutations and everything that keeps the number of axes."""
    ndim = len(meta[node.name][0])
    module = modules[str(node.target)] if node.op == "call_module" else None
    name = _function_name(node)
    if ndim < 2:
        return 0
    if isinstance(module, _CHANNELS_LAST) or name in ("linear", "layer_norm", "scaled_dot_product_attention"):
        return ndim - 1
    if isinstance(module, _CHANNELS_FIRST) or name.startswith("conv"):
        return 1
    source = next((a for a in node.all_input_nodes if a in axes and a.name in meta), None)
    if source is not None and len(meta[source.name][0]) == ndim:
        axis = axes[source]
        dims = _permutation(node, name, ndim)
        return dims.index(axis) if dims else axis
    return ndim - 1 if ndim == 3 else 1


def _permutation(node: fx.Node, name: str, ndim: int) -> list[int] | None:
    args: list[Any] = [a for a in node.args[1:] if not isinstance(a, fx.Node)]
    dims: Any
    if name == "permute":
        dims = args[0] if args and isinstance(args[0], (tuple, list)) else args or node.kwargs.get("dims")
        if dims and len(dims) == ndim and all(isinstance(d, int) for d in dims):
            return [int(d) % ndim for d in dims]
    if name in ("transpose", "swapaxes") and len(args) == 2 and all(isinstance(a, int) for a in args):
        dims = list(range(ndim))
        a, b = int(args[0]) % ndim, int(args[1]) % ndim
        dims[a], dims[b] = dims[b], dims[a]
        return dims
    return None
