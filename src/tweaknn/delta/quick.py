"""Plain layers called past ``nn.Module.__call__``: the same kernels on the same tensors, a few microseconds earlier.

At batch 1 half of what a small network's layer costs is Python around its kernel; at batch 128 much of it is memory that
a ReLU takes for a second copy of its input. An attached delta adds kernels of its own; what is saved here pays for them.
Compilers, hooks and anything out of the ordinary get the module's own call.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F


def _own_call(module: nn.Module, kind: type[nn.Module]) -> bool:
    # the layer may have been replaced or parametrised since the graph was made; compilers first, who would guard on all that is asked
    return bool(
        torch.compiler.is_compiling()
        or type(module) is not kind
        or module._forward_hooks
        or module._forward_pre_hooks
        or module.training
    )


def convolution(module: Any, x: Tensor) -> Tensor:
    """``nn.Conv2d`` with zero padding."""
    if _own_call(module, nn.Conv2d):
        return module(x)
    own = module._parameters
    return torch.conv2d(x, own["weight"], own["bias"], module.stride, module.padding, module.dilation, module.groups)


def normalisation(module: Any, x: Tensor) -> Tensor:
    """``nn.BatchNorm2d`` in eval mode."""
    if _own_call(module, nn.BatchNorm2d):
        return module(x)
    own, kept = module._parameters, module._buffers
    return torch.batch_norm(
        x,
        own["weight"],
        own["bias"],
        kept["running_mean"],
        kept["running_var"],
        False,
        0.0,
        module.eps,
        torch.backends.cudnn.enabled,
    )


def rectified(x: Tensor, relu: nn.Module | None, maker: nn.Module | None, alone: bool) -> Tensor:
    """A ReLU of ``x``, written over it where nobody else reads it: bit for bit the same, and a layer's memory is neither taken
    nor faulted in.

    ``relu``: the module that it is, or None for a function; ``maker``: the module ``x`` comes from, or None for a sum; ``alone``: no
    other node of the graph reads ``x``.
    """
    if torch.compiler.is_compiling():
        return F.relu(x) if relu is None else relu(x)
    if relu is not None and (type(relu) is not nn.ReLU or relu._forward_hooks or relu._forward_pre_hooks):
        return relu(x)
    # a normalisation that was replaced (by an identity, say) may have handed back its own input, a hook may keep its output
    fresh = maker is None or not _own_call(maker, nn.BatchNorm2d)
    if alone and fresh and type(x) is Tensor and not x.requires_grad:
        return x.relu_()
    return F.relu(x)


def _function(module: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    # exact types: a subclass, or a parametrised or quantised module, may do anything
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return convolution
    if type(module) is nn.BatchNorm2d and module.running_mean is not None and not module.training:
        return normalisation
    return None


LATER = 4
"""Steps by which a value outlives its last use."""

_FREED = re.compile(r";  ((?:\w+ = )+None)$")


def _free_later(body: list[str]) -> list[str]:
    """torch.fx frees each value right behind its last use, so that the largest tensors lie at the end of the heap, which
    glibc then hands back to the system after every layer, to fault it in again for the next: twice the page faults of the
    network's own code, whose variables live a few steps longer. Here they do so, too."""
    lines: list[str] = []
    waiting: list[str] = []
    for line in body:
        found = _FREED.search(line.rstrip("\n"))
        if found is None or line.lstrip().startswith("return"):
            lines.append(line)
            continue
        waiting.append(found.group(1))
        freed = f";  {waiting.pop(0)}" if len(waiting) > LATER else ""
        lines.append(line[: found.start()] + freed + "\n")
    return lines


_LOOKUP = re.compile(r"(\w+) = ((?:getattr\()*self\b.*)")


def _look_up(line: str, modules: Collection[str]) -> str:
    """A module reached through its parents' dictionaries: ``nn.Module.__getattr__`` runs once for each name on the way."""
    found = _LOOKUP.fullmatch(line)
    path = None if found is None else _path(ast.parse(found.group(2), mode="eval").body)
    if found is None or not path or ".".join(path) not in modules:
        return line
    return f"{found.group(1)} = self" + "".join(f"._modules[{name!r}]" for name in path)


def _path(value: ast.expr) -> list[str] | None:
    """The names in ``getattr(self.a, "0").b``; None for any other expression."""
    if isinstance(value, ast.Name) and value.id == "self":
        return []
    if isinstance(value, ast.Attribute):
        before, name = _path(value.value), value.attr
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "getattr":
        before, name = _path(value.args[0]), str(getattr(value.args[1], "value", ""))
    else:
        return None
    return None if before is None else [*before, name]


def _transformer(modules: Collection[str]) -> Callable[[list[str]], list[str]]:
    return lambda body: _free_later([_look_up(line, modules) for line in body])


def quicken(module: fx.GraphModule) -> None:
    """Replace the graph's calls of such modules in place; nodes keep their ``meta``."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        function = _function(module.get_submodule(str(node.target)))
        if function is not None:
            _replace(graph, node, function)
    for node in list(graph.nodes):
        _rectify(module, node)
    names = frozenset(name for name, _ in module.named_modules())
    graph.on_generate_code(lambda _: _transformer(names))
    reuse(module)


def reuse(module: fx.GraphModule) -> None:
    """Tell each ReLU whether it alone reads its input, after the graph has changed; recompiles."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is rectified:
            node.args = (*node.args[:3], len(node.args[0].users) == 1)
    module.recompile()


def _rectify(module: fx.GraphModule, node: fx.Node) -> None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_function" or len(node.args) != 1:
        return
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if layer is not None:
        fits = type(layer) is nn.ReLU and not node.kwargs
    else:
        fits = node.target in (F.relu, torch.relu, "relu") and not node.kwargs.get("inplace")
    # only what makes a tensor of its own may be written over; a view or an in-place operation may not
    if not fits or source.target not in (normalisation, operator.add, torch.add) or "out" in source.kwargs:
        return
    graph = module.graph
    with graph.inserting_before(node):
        relu = None if layer is None else graph.get_attr(str(node.target))
        maker = source.args[0] if source.target is normalisation else None
        made = graph.call_function(rectified, (source, relu, maker, False))
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _replace(graph: fx.Graph, node: fx.Node, function: Callable[[Any, Tensor], Tensor]) -> None:
    with graph.inserting_before(node):
        own = graph.get_attr(str(node.target))
        made = graph.call_function(function, (own, node.args[0]))
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
