"""The attached form of networks that torch.fx cannot follow: hooks, on modules of its own."""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from torch import Tensor, nn

from tweaknn.delta.forward import Change, LayerRead
from tweaknn.delta.plan import Primitive, plan
from tweaknn.delta.value import LOGITS, Delta
from tweaknn.errors import ModelError
from tweaknn.network.hooks import value_of
from tweaknn.network.modes import batch_size, call, eval_mode, output_of


class Notes:
    """What the hooks of one call have seen: kept apart by thread, and plain where a compiler follows the code."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._local: Any = threading.local()

    def here(self) -> dict[str, Any]:
        if torch.compiler.is_compiling():
            return self.values
        if not hasattr(self._local, "values"):
            self._local.values = {}
        return self._local.values

    def __deepcopy__(self, memo: dict[int, Any]) -> Notes:
        return Notes()

    def __reduce__(self) -> Any:
        return (Notes, ())


class Noter:
    """A forward hook that reduces a module's output; the ``occurrence``-th call of the module is meant."""

    def __init__(self, notes: Notes, path: str, readers: dict[int, LayerRead]) -> None:
        self.notes = notes
        self.path = path
        self.readers = readers

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        seen = self.notes.here()
        count = seen.get(f"#{self.path}", 0)
        seen[f"#{self.path}"] = count + 1
        if count in self.readers:
            value = value_of(output)
            if value is not None:
                seen[f"{self.path}:{count}"] = self.readers[count](value)


class HookedNet(nn.Module):
    """A network whose modules hand what a delta reads to it.

    The hooks sit on modules that belong to this object alone (:func:`tweaknn.network.clone.share`), never on the base.
    """

    def __init__(self, delta: Delta, model: nn.Module, device: torch.device, example_x: Any = None) -> None:
        super().__init__()
        self.model = model
        self.which = delta.head
        made = plan(delta)
        by_layer: dict[str, list[Primitive]] = {}
        for primitive in made.primitives:
            by_layer.setdefault(primitive.layer, []).append(primitive)
        self.notes = Notes()
        self.readers = nn.ModuleList()
        self.logits_read: LayerRead | None = None
        self.order: list[tuple[str, int]] = []
        modules = dict(_innermost(model).named_modules())
        hooked: dict[str, dict[int, LayerRead]] = {}
        for layer, primitives in by_layer.items():
            reader = LayerRead(primitives, device).eval()
            self.readers.append(reader)
            if layer == LOGITS:
                self.logits_read = reader
                continue
            path, _, occurrence = layer.partition(":")
            if path not in modules or (occurrence and not occurrence.isdigit()):
                raise ModelError(f"The network has no module {layer!r}, which the delta reads.")
            hooked.setdefault(path, {})[int(occurrence or 0)] = reader
        for path, readers in hooked.items():
            modules[path].register_forward_hook(Noter(self.notes, path, readers))
        self.sources = [
            (_key(primitive.layer), by_layer[primitive.layer].index(primitive)) for primitive in made.primitives
        ]
        self.change = Change(made, delta.n_classes, device).eval()
        if example_x is not None:
            self._try(example_x)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        seen = self.notes.here()
        seen.clear()
        output = self.model(*args, **kwargs)
        logits = output_of(output, self.which)
        seen = self.notes.here()
        if self.logits_read is not None:
            seen[LOGITS] = self.logits_read(logits)
        values = [seen[key][p] for key, p in self.sources]
        seen.clear()
        return with_logits(output, logits, self.change(logits, values), self.which)

    def _try(self, x: Any) -> None:
        """One call, to find out here and not in production that a layer is never reached."""
        missing: list[str] = []
        with eval_mode(self), torch.inference_mode():
            self.notes.here().clear()
            try:
                call(self.model, x)
            except Exception:  # zeros may be no valid input for this network; its first real call will tell
                return
            finally:
                seen = dict(self.notes.here())
                self.notes.here().clear()
        missing = [key for key, _ in self.sources if key != LOGITS and key not in seen]
        if missing:
            raise ModelError(f"The network never reaches module {missing[0]!r}, which the delta reads.")
        for key, p in self.sources:
            if key != LOGITS and seen[key][p].shape[0] != batch_size(x):
                raise ModelError(f"Module {key!r} does not give one row an example; the delta cannot read it.")


def _innermost(model: nn.Module) -> nn.Module:
    while isinstance(model, HookedNet):
        model = model.model
    return model


def _key(layer: str) -> str:
    return layer if layer == LOGITS or ":" in layer else f"{layer}:0"


def with_logits(output: Any, old: Tensor, new: Tensor, head: int | str | None) -> Any:
    """What the network returned, with ``new`` in the place of the logits ``old``."""
    if isinstance(output, Tensor):
        return new
    if isinstance(output, (tuple, list)):
        parts = [new if value is old else value for value in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    changed = copy.copy(output)
    if isinstance(changed, dict):
        for key in [key for key, value in changed.items() if value is old]:
            changed[key] = new
    if getattr(changed, "logits", None) is old:
        changed.logits = new
    elif isinstance(head, str) and getattr(changed, head, None) is old:
        setattr(changed, head, new)
    return changed
