"""A base that hands out, beside its logits, whatever the deltas of a batch read: one pass for all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from tweaknn.delta.attach import layered, nodes_of
from tweaknn.delta.forward import REDUCTIONS
from tweaknn.delta.hooked import Notes
from tweaknn.delta.quick import reuse
from tweaknn.delta.value import LOGITS
from tweaknn.errors import ModelError
from tweaknn.network.hooks import value_of
from tweaknn.network.modes import call, output_of
from tweaknn.network.tracing import Trace

Step = tuple[str, tuple[Any, ...], Tensor | None]
"""One reduction of a layer: a name of :data:`tweaknn.delta.forward.REDUCTIONS`, its arguments, None; or, for single neurons,
``""``, the layer's shape, and positions in the whole batch's flattened output."""

Wanted = Mapping[str, Sequence[Step]]
"""Steps by layer. A program compiled for it depends on the steps but not on how many single neurons each takes."""


def tap(x: Tensor, wanted: Wanted, layer: str) -> list[Tensor]:
    """What is wanted of a layer's output ``x`` ``(n, ...)``, a tensor a step; nothing is computed that is not."""
    if layer not in wanted:
        return []
    return [
        REDUCTIONS[name](x, *arguments) if places is None else _neurons(x, places, *arguments)
        for name, arguments, places in wanted[layer]
    ]


def _neurons(x: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    # one logit an example may come without an axis of its own
    if x.shape[1:] != shape and not (x.ndim == 1 and shape == (1,)):
        raise ModelError(
            f"The deltas read single neurons of a layer of shape {shape}, which is {tuple(x.shape[1:])} for this input; "
            "give inputs of the size they were made for."
        )
    if x.is_contiguous():
        return x.view(-1).index_select(0, places).float()
    return x[torch.unravel_index(places, x.shape)].float()  # another memory format: without copying the layer


class Traced(nn.Module):
    """A network that torch.fx follows: layers are read inside its graph.

    Args:
        traced: the network.
        layers: names of the layers that can be asked for.
        head: which of its outputs holds the logits.

    Raises:
        ModelError: it has no such layer.
    """

    def __init__(self, traced: Trace, layers: Collection[str], head: int | str | None) -> None:
        super().__init__()
        self.head, self.layers = head, frozenset(layers)
        self.net = layered(traced)
        graph, nodes = self.net.graph, nodes_of(self.net)
        # in front of the network's own inputs, some of which may have defaults
        with graph.inserting_before(next(iter(graph.nodes))):
            wanted = graph.placeholder("tweaknn_wanted")
        seen = {}
        for layer in sorted(self.layers - {LOGITS}):
            if layer not in nodes:
                raise ModelError(f"The network has no layer {layer!r}, which the delta reads.")
            # right behind the neuron, before any in-place operation can change it
            with graph.inserting_after(nodes[layer]):
                seen[layer] = graph.call_function(tap, (nodes[layer], wanted, layer))
        output = next(node for node in graph.nodes if node.op == "output")
        output.args = ((output.args[0], fx.immutable_collections.immutable_dict(seen)),)
        reuse(self.net)

    def forward(self, x: Any, wanted: Wanted) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Logits, and the values of each layer's steps."""
        inputs = () if isinstance(x, Mapping) else x if isinstance(x, (tuple, list)) else (x,)
        named = x if isinstance(x, Mapping) else {}
        output, seen = self.net.forward(wanted, *inputs, **named)
        logits = output_of(output, self.head)
        return logits, {**seen, LOGITS: tap(logits, wanted, LOGITS)}


class Noter:
    """A forward hook: the ``count``-th call of module ``path`` is layer ``path:count``, or ``path`` for the first."""

    def __init__(self, notes: Notes, path: str) -> None:
        self.notes, self.path = notes, path

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        here = self.notes.here()
        if "wanted" not in here:  # another thread's call, or one that is not the bank's
            return
        count = here.get(f"#{self.path}", 0)
        here[f"#{self.path}"] = count + 1
        value = value_of(output)
        for layer in (f"{self.path}:{count}", self.path) if count == 0 else (f"{self.path}:{count}",):
            if value is not None and layer in here["wanted"]:
                here["seen"][layer] = tap(value, here["wanted"], layer)


class Hooked(nn.Module):
    """Any other network: layers are read by hooks, on modules that belong to this object alone.

    Every module has its hook from the start: a compiler does not look whether hooks have changed, and would go on with a
    program that knows nothing of a new one. Compiled it has to be one graph: between two, another thread may come.

    Args:
        model: modules of its own (:func:`tweaknn.network.clone.share`).
        head: see :class:`Traced`.
    """

    def __init__(self, model: nn.Module, head: int | str | None) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.notes = Notes()
        for path, module in model.named_modules():
            if path and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                module.register_forward_hook(Noter(self.notes, path))

    def forward(self, x: Any, wanted: Wanted) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """See :meth:`Traced.forward`."""
        here = self.notes.here()
        here.clear()
        seen: dict[str, list[Tensor]] = {}
        here["wanted"], here["seen"] = wanted, seen
        try:
            logits = output_of(call(self.model, x), self.head)
        finally:
            here.clear()
        for layer in wanted:
            if layer != LOGITS and layer not in seen:
                raise ModelError(f"The network never reached module {layer!r}, which a delta reads.")
        return logits, {**seen, LOGITS: tap(logits, wanted, LOGITS)}
