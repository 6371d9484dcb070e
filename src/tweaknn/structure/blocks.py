"""Residual branches: found in the forward pass of the module that adds them, and taken out of it again.

A module's own forward pass is traced shallowly with torch.fx (its children are opaque), so a branch is whatever ends
in an addition to a shortcut, in any class. Taking a branch out re-traces the module, replaces the addition by the
shortcut and drops the children nobody calls any more: the result is a plain :class:`torch.fx.GraphModule` with the
same child names.
"""

from __future__ import annotations

import operator
import warnings

import torch
from torch import fx, nn

from ..errors import ModelError
from .plan import Block

_ADDS = {operator.add, operator.iadd, torch.add}


class _Shallow(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _trace(module: nn.Module) -> fx.Graph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Shallow().trace(module)


def _is_add(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in _ADDS
    return node.op == "call_method" and node.target in ("add", "add_", "__add__", "__iadd__")


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        n = stack.pop()
        if n not in seen:
            seen.add(n)
            stack.extend(n.all_input_nodes)
    return seen


def _weight(module: nn.Module, nodes: set[fx.Node]) -> int:
    names = {str(n.target) for n in nodes if n.op == "call_module"}
    return sum(p.numel() for name in names for p in module.get_submodule(name).parameters())


def _branch(module: nn.Module, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """``(branch, shortcut)`` of a residual addition, or None."""
    if len(node.args) < 2 or not all(isinstance(a, fx.Node) for a in node.args[:2]):
        return None
    one, two = node.args[:2]
    assert isinstance(one, fx.Node)
    assert isinstance(two, fx.Node)
    up_one, up_two = _ancestors(one), _ancestors(two)
    if two in up_one:
        return one, two
    if one in up_two:
        return two, one
    common = up_one & up_two
    if not any(n.op in ("placeholder", "call_module", "call_function", "call_method") for n in common):
        return None
    own_one, own_two = _weight(module, up_one - common), _weight(module, up_two - common)
    if own_one == own_two:
        return None
    return (one, two) if own_one > own_two else (two, one)


def _anchor(module: nn.Module, node: fx.Node) -> fx.Node | None:
    """The last child of its own in a branch: past a dropout or stochastic depth that several branches share."""
    calls = [str(n.target) for n in node.graph.nodes if n.op == "call_module"]
    while node.op == "call_module" and len(node.users) == 1:
        if calls.count(str(node.target)) == 1:
            return node
        if any(True for _ in module.get_submodule(str(node.target)).parameters()) or len(node.all_input_nodes) != 1:
            return None
        node = node.all_input_nodes[0]
    return None


def _ends_in(module: nn.Module, node: fx.Node, last: str) -> bool:
    """Whether a branch's last child is ``last``, but for children without parameters after it."""
    while node.op == "call_module":
        if str(node.target) == last:
            return True
        if any(True for _ in module.get_submodule(str(node.target)).parameters()) or len(node.all_input_nodes) != 1:
            return False
        node = node.all_input_nodes[0]
    return False


def _calls(graph: fx.Graph) -> set[str]:
    return {str(n.target) for n in graph.nodes if n.op == "call_module"}


def _without(graph: fx.Graph, module: nn.Module, last: str) -> set[str] | None:
    """Take the addition of child ``last`` out of ``graph`` (in place); the children no longer called."""
    for node in list(graph.nodes):
        if not _is_add(node):
            continue
        pair = _branch(module, node)
        if pair is None or not _ends_in(module, pair[0], last):
            continue
        before = _calls(graph)
        for user in list(node.users):
            _not_in_place(user)
        node.replace_all_uses_with(pair[1])
        graph.erase_node(node)
        _sweep(graph)
        return before - _calls(graph)
    return None


def _not_in_place(user: fx.Node) -> None:
    """What overwrote the sum must not overwrite the shortcut: an earlier operation may need it for its gradient."""
    if user.op == "call_module":
        user.meta["overwrites"] = True
    elif user.op == "call_method" and str(user.target).endswith("_") and not str(user.target).startswith("_"):
        user.target = str(user.target)[:-1]
    elif user.target is operator.iadd:
        user.target = operator.add
    elif user.kwargs.get("inplace"):
        user.kwargs = {**user.kwargs, "inplace": False}


def _sweep(graph: fx.Graph) -> None:
    """Drop nodes nobody uses (also in-place ones of a dead branch, which fx itself keeps)."""
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


def branches_of(module: nn.Module, owner: str) -> tuple[list[Block], dict[str, str]]:
    """The residual branches of one module's own forward pass, and those it has but cannot gate, with the reason."""
    found: list[Block] = []
    refused: dict[str, str] = {}
    try:
        graph = _trace(module)
    except Exception:
        return [], {}
    lasts: list[str] = []
    for node in graph.nodes:
        if not _is_add(node):
            continue
        pair = _branch(module, node)
        if pair is None:
            continue
        anchor = _anchor(module, pair[0])
        if anchor is None:
            if _weight(module, _ancestors(pair[0]) - _ancestors(pair[1])):
                refused[f"{owner or 'the network'}: {node.name}"] = "the branch does not end in a module of its own"
            continue
        lasts.append(str(anchor.target))
    for last in lasts:
        copy = _trace(module)
        gone = _without(copy, module, last)
        if not gone or last not in gone:
            refused[f"{owner}.{last}"] = "shared with other parts of the forward pass"
            continue
        if not owner:
            refused[last] = "added in the outermost forward pass"
            continue
        if _baked_mode(module):
            refused[f"{owner}.{last}"] = "its forward pass depends on the training mode"
            continue
        found.append(Block(owner, last, tuple(sorted(gone))))
    return found, refused


def _baked_mode(module: nn.Module) -> bool:
    """Whether tracing would freeze a choice that depends on ``module.training``."""
    was = module.training
    try:
        codes = []
        for mode in (True, False):
            module.training = mode
            codes.append(_trace(module).python_code("self").src)
        return codes[0] != codes[1]
    except Exception:
        return True
    finally:
        module.training = was


def remove_branches(module: nn.Module, lasts: list[str]) -> nn.Module:
    """``module`` without the branches that end in the children ``lasts``; children keep their names.

    Raises:
        ModelError: a branch is not there (the module is not the one the structure was made from).
    """
    graph = _trace(module)
    for last in lasts:
        if _without(graph, module, last) is None:
            raise ModelError(f"the branch ending in {last!r} is not in {type(module).__name__}; use the original network")
    graph.lint()
    for node in graph.nodes:
        if node.meta.get("overwrites"):
            for part in module.get_submodule(str(node.target)).modules():
                if getattr(part, "inplace", False) is True:
                    setattr(part, "inplace", False)  # noqa: B010
    cut = fx.GraphModule(module, graph, class_name=type(module).__name__)
    cut.train(module.training)
    return cut


def find_blocks(model: nn.Module) -> tuple[list[Block], dict[str, str]]:
    """All residual branches of a network by their owners' paths, and the ones left ungated with the reason."""
    blocks: list[Block] = []
    refused: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)) or not any(True for _ in module.children()):
            continue
        if type(module).__module__.startswith("torch.nn."):
            continue
        own, no = branches_of(module, path)
        blocks += own
        refused |= no
    return blocks, refused
