"""Read a network's hidden neurons in one stream: each layer is handed over once, while it exists."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from tweaknn.errors import ModelError
from tweaknn.network import hooks
from tweaknn.network.inplace import reuse_memory
from tweaknn.network.layers import choose
from tweaknn.network.modes import (
    batch_size,
    call,
    eval_mode,
    first,
    logits_of,
    on_batch,
    one_line,
    placement,
    several_outputs,
    shape_of,
    to_model,
)
from tweaknn.network.tracing import CannotTrace, Trace, trace
from tweaknn.network.views import PixelView, at_pixels

Sink = Callable[[int, Tensor], None]
"""Called with (position in ``Reader.layers``, activation ``(n, *layer.shape)``); the tensor is valid inside the call
only, since an in-place operation may follow it. Copy or reduce it there."""


class Reader:
    """Reads the hidden outputs of a network, whose modules are shared and never changed.

    Args:
        model: any network with one output ``(n, c)`` of logits, see :func:`~tweaknn.network.modes.logits_of`.
        example_x: an input to learn the shapes from: tensor, mapping of keyword arguments or tuple.
        layers: ``"all"`` (every activation, residual sums that no activation follows, the last linear layer's input),
            ``"stages"`` (the last of these at each resolution), or names.
        head: which output, when there are several.

    Attributes:
        layers: what is read, in execution order.
        maps: of a segmentation network the layers as maps, ``layers`` as a pixel sees them; else the same as ``layers``.
        how: ``"fx"`` or ``"hooks"``, and :attr:`why` says why not fx.
        skipped: outputs that hold integers or booleans.
        remark: a sentence for the user where the first of several outputs was taken without being asked for; else empty.

    Raises:
        ModelError: no hidden neuron is left, a name is unknown, or the network cannot be run on ``example_x``.
    """

    def __init__(
        self,
        model: nn.Module,
        example_x: Any,
        layers: str | Sequence[str] = "all",
        head: int | str | None = None,
    ) -> None:
        self.model = model
        self.head = head
        self.device, self.dtype = placement(model)
        x = to_model(example_x, self.device, self.dtype)
        if batch_size(x) == 0:
            raise ModelError("The network's layers cannot be found out without an example: the input is empty.")
        self._run_once(x)
        self._shape = shape_of(x)
        self.why = ""
        try:
            traced = trace(model, x)
            self.how = "fx"
            self.every, self.skipped = traced.every, traced.skipped
            self.layers = choose(layers, traced.known, traced.every)
            self._module: nn.Module = tapped(traced, [layer.name for layer in self.layers], first(x, 2))
        except CannotTrace as reason:
            self.how, self.why = "hooks", str(reason)
            found = hooks.survey(model, x)
            self.every, self.skipped = found.every, found.skipped
            self.layers = choose(layers, found.known, found.every)
            self._module = model
        self._local = threading.local()
        self.maps = self._whole = list(self.layers)
        if isinstance(model, PixelView):
            # a pixel sees the channels at its own place of every map, and nothing of what is no map
            seen = [(k, layer) for k, whole in enumerate(self.layers) if (layer := model.seen(whole)) is not None]
            if not seen:
                raise ModelError("The segmentation network has no layer of maps.")
            self._places = {k: place for place, (k, _) in enumerate(seen)}
            self.maps = [self.layers[k] for k, _ in seen]
            self.layers = [layer for _, layer in seen]

    def _run_once(self, x: Any) -> None:
        try:
            with eval_mode(self.model), torch.inference_mode():
                output = call(self.model, x)
                logits_of(output, self.head)
                self.remark = several_outputs(output) if self.head is None else ""
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"The network does not run on an input of shape {shape_of(x)}: {one_line(error)}; "
                "check the preprocessing (--size, --mean, --std, --preprocess)."
            ) from error

    @property
    def neurons(self) -> int:
        """Number of neurons of all layers that are read."""
        return sum(layer.size for layer in self.layers)

    def __call__(self, x: Any, sink: Sink) -> Tensor:
        """Run one batch, handing each layer to ``sink`` as soon as it exists.

        Returns:
            Logits ``(n, c)``, float32 (float64 for a network in double precision).

        Raises:
            ModelError: a layer has another shape than at the start, or the network does not run on this batch.
        """
        x = to_model(x, self.device, self.dtype)

        def checked(k: int, value: Tensor) -> None:
            if tuple(value.shape[1:]) != self.layers[k].shape:
                raise ModelError(
                    f"Layer {self.layers[k].name} has {tuple(value.shape[1:])} neurons in this batch and had "
                    f"{self.layers[k].shape}; give all inputs one size."
                )
            sink(k, value)

        if isinstance(self.model, PixelView):
            whole, asked = checked, x[:, -1]

            def checked(k: int, value: Tensor) -> None:
                if k in self._places:
                    whole(self._places[k], at_pixels(value, asked, self._whole[k].channel_axis))

        known = f", though it does on one of shape {self._shape}"
        with on_batch(x, known), eval_mode(self.model), torch.inference_mode():
            if self.how == "fx":
                with _sinking(self._module, checked):
                    output = self._module(x)
            else:
                with hooks.reading(self.model, [layer.name for layer in self._whole], checked):
                    output = call(self.model, x)
            logits = logits_of(output, self.head)
        return logits if logits.dtype == torch.float64 else logits.float()


class Tap(nn.Module):
    """Hands what passes to the sink of the running thread; placed in the graph right behind the neuron it reads."""

    def __init__(self, k: int, sinks: threading.local) -> None:
        super().__init__()
        self.k = k
        self.sinks = sinks

    def forward(self, value: Tensor) -> None:
        self.sinks.sink(self.k, value)


def tapped(traced: Trace, names: Sequence[str], x: Any = None) -> fx.GraphModule:
    """The traced network with a :class:`Tap` behind each named layer, before any in-place operation can change it.

    x: an input; with it the copy reuses memory where that leaves every bit of the logits as it is.
    """
    plain = _tapped(traced, names, reuse=False)
    if x is None:
        return plain
    lean = _tapped(traced, names, reuse=True)
    with eval_mode(traced.root), torch.inference_mode():
        outputs = []
        for module in (plain, lean):
            with _sinking(module, lambda k, value: None), suppress(RuntimeError):
                outputs.append(module(x))
    return lean if len(outputs) == 2 and _equal(*outputs) else plain


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(_equal(a[k], b[k]) for k in a)
    return all(_equal(u, v) for u, v in zip(a, b)) if isinstance(a, (tuple, list)) else False


def _tapped(traced: Trace, names: Sequence[str], reuse: bool) -> fx.GraphModule:
    sinks = threading.local()
    copy = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = copy.graph_copy(traced.graph, mapping)
    copy.output(result)
    module = fx.GraphModule(traced.root, copy)
    for k, name in enumerate(names):
        node = mapping[traced.nodes[name]]
        module.add_submodule(f"_tweaknn_tap_{k}", Tap(k, sinks))
        with copy.inserting_after(node):
            copy.call_module(f"_tweaknn_tap_{k}", (node,))
    if reuse:
        shapes = {mapping[traced.nodes[layer.name]]: layer.shape for layer in traced.every}
        reuse_memory(copy, dict(module.named_modules()), shapes)
    module.recompile()
    object.__setattr__(module, "_tweaknn_sinks", sinks)
    return module


@contextmanager
def _sinking(module: nn.Module, sink: Sink) -> Iterator[None]:
    sinks: threading.local = module._tweaknn_sinks  # type: ignore[assignment]
    sinks.sink = sink
    try:
        yield
    finally:
        del sinks.sink
