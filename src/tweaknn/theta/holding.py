"""Which activations may be kept by reference until the logits exist, instead of being copied.

A copy of every activation costs a tenth of a ResNet-20's forward pass. A reference costs nothing but is only right if
nobody writes to the tensor afterwards: in-place operations follow many activations. The traced graph shows who reads
it; whatever is not known to leave its input alone counts as a writer.
"""

from __future__ import annotations

import operator

import torch.nn.functional as F
from torch import fx, nn

from tweaknn.network.reader import Reader

_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.Linear,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Softmax,
    nn.Embedding,
)
"""Modules that leave their input alone and return memory of their own, unless they have ``inplace`` set."""
_FRESH_FUNCTIONS = frozenset(
    (
        "add sub mul truediv matmul mean sum amax relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid cat softmax "
        "linear conv1d conv2d conv3d batch_norm layer_norm avg_pool2d pad scaled_dot_product_attention"
    ).split()
)
_ALIASES = frozenset(
    (
        "view reshape flatten permute transpose contiguous squeeze unsqueeze chunk split unbind getitem getattr expand "
        "detach size dim shape"
    ).split()
)
_FUNCTIONS = frozenset((operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul, F.relu))


def keepable(reader: Reader) -> list[bool]:
    """For every layer of the reader: whether no later operation of the network writes to its output."""
    none = [False] * len(reader.layers)
    graph = getattr(reader._module, "graph", None)
    if reader.how != "fx" or not isinstance(graph, fx.Graph):
        return none
    modules = dict(reader._module.named_modules())
    for node in graph.nodes:
        if node.op == "call_module" and type(modules[str(node.target)]).__name__ == "Tap":
            none[modules[str(node.target)].k] = _untouched(node.all_input_nodes[0], node, modules)
    return none


def _untouched(node: fx.Node, tap: fx.Node, modules: dict[str, nn.Module]) -> bool:
    # An activation module returns its own input when it works in place: then whoever reads that input sees it too.
    source, todo, seen = node, [node], {node}
    while _may_return_input(source, modules) and source.all_input_nodes:
        source = source.all_input_nodes[0]
        todo.append(source)
        seen.add(source)
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    while todo:
        current = todo.pop()
        for user in current.users:
            if user is tap or user in seen or order[user] <= order[node] or user.op == "output":
                continue
            if user.target is operator.iadd and user.args[0] is not current:
                continue  # added to something else
            kind = _effect(user, modules)
            if kind == "writes":
                return False
            if kind == "alias":
                seen.add(user)
                todo.append(user)
    return True


def _may_return_input(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return node.op.startswith("call") and _effect(node, modules) != "fresh"


def _effect(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """``fresh``: reads only, returns new memory; ``alias``: may return its input; ``writes``: may change it."""
    if node.kwargs.get("inplace") is True or "out" in node.kwargs or True in node.args[1:]:
        return "writes"
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module).__name__ == "Tap":
            return "fresh"
        if getattr(module, "inplace", False):
            return "writes"
        if isinstance(module, _FRESH_MODULES):
            return "fresh"
        if (
            isinstance(module, (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd))
            or "Pool" in type(module).__name__
        ):
            return "alias"
        return "writes"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in _ALIASES or name in ("dropout", "adaptive_avg_pool2d", "max_pool2d"):
        return "alias"
    if name in _FRESH_FUNCTIONS or node.target in _FUNCTIONS:
        return "fresh"
    return "writes"
