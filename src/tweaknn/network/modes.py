"""Run somebody else's network without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tweaknn.errors import ModelError, TweaknnError


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every submodule into eval mode and give each its own flag back afterwards, even after an error."""
    flags = [(module, module.training) for module in model.modules() if module.training]
    for module, _ in flags:
        module.training = False
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def one_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def shape_of(x: Any) -> tuple[int, ...] | str:
    """What a sentence about a batch calls it."""
    return tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__


@contextmanager
def on_batch(x: Any, but: str = "") -> Iterator[None]:
    """What a network's own layers raise on the batch ``x`` as one sentence; ``but`` stands before the reason.

    Raises:
        ModelError: the network does not run on ``x``.
    """
    try:
        yield
    except TweaknnError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(f"The network does not run on a batch of shape {shape_of(x)}{but}: {one_line(error)}") from error


def has_numbers(tensor: Tensor) -> None:
    """Raises ModelError for a weight on the ``meta`` device, which has a shape and nothing in it."""
    if tensor.is_meta:
        raise ModelError("The network's weights are on the device meta, which holds no numbers; load its weights first.")


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating dtype of a network: those of its first floating parameter or buffer. Raises ModelError for ``meta``."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            has_numbers(tensor)
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def to_model(x: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move an input (tensor, mapping or tuple of them) to the network; floats follow its dtype, integers stay."""
    if isinstance(x, Tensor):
        return x.to(device, dtype if x.is_floating_point() else x.dtype, non_blocking=True)
    if isinstance(x, Mapping):
        return {key: to_model(value, device, dtype) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(to_model(value, device, dtype) for value in x)
    return x


def call(model: nn.Module, x: Any) -> Any:
    """Call a network on a tensor, on a mapping as keyword arguments, or on a tuple as positional arguments."""
    if isinstance(x, Mapping):
        return model(**x)
    if isinstance(x, (tuple, list)):
        return model(*x)
    return model(x)


def batch_size(x: Any) -> int:
    """Number of examples in an input."""
    if isinstance(x, Tensor):
        return int(x.shape[0])
    if isinstance(x, Mapping):
        return batch_size(next(iter(x.values())))
    return batch_size(x[0])


def first(x: Any, n: int) -> Any:
    """The first ``n`` examples of an input, repeated when there are fewer."""
    if isinstance(x, Tensor):
        taken = x[:n]
        while 0 < taken.shape[0] < n:
            taken = torch.cat([taken, taken])[:n]
        return taken
    if isinstance(x, Mapping):
        return {key: first(value, n) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(first(value, n) for value in x)
    return x


def output_of(output: Any, head: int | str | None = None) -> Tensor:
    """The head's tensor in whatever a network returned: a tensor, an object or mapping with ``logits``, a tuple.

    ``head`` picks one of several outputs by position or name.

    Raises:
        ModelError: there is no such output.
    """
    value = output
    if head is not None and isinstance(value, Tensor):
        raise ModelError(f"The network has no output {head!r}: it gives a single tensor, so no head needs to be named.")
    if head is not None:
        try:
            value = getattr(value, head) if isinstance(head, str) and hasattr(value, head) else value[head]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ModelError(f"The network has no output {head!r}; its output is a {type(output).__name__}.") from None
    if not isinstance(value, Tensor) and hasattr(value, "logits"):
        value = value.logits
    elif isinstance(value, Mapping):
        # ``out`` is what torchvision's segmentation networks call theirs
        value = next((value[key] for key in ("logits", "out") if key in value), value)
    elif isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        named = f" (it has {', '.join(map(str, list(output)[:8]))})" if isinstance(output, Mapping) else ""
        raise ModelError(
            f"The network returns a {type(output).__name__} without logits; return a tensor (examples, classes) or an "
            f"object with .logits, or name the head{named}."
        )
    return value


def several_outputs(output: Any) -> str:
    """A sentence where a network returned several tensors that could all be logits and the first is taken; else empty."""
    if isinstance(output, Tensor) or hasattr(output, "logits") or not isinstance(output, (tuple, list)):
        return ""
    alike = [k for k, value in enumerate(output) if isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] > 1]
    if len(alike) < 2 or alike[0] != 0:
        return ""
    return (
        f"the network returns {len(output)} outputs, of which {len(alike)} could be logits; the first is taken "
        "(--head says which one is meant)"
    )


def logits_of(output: Any, head: int | str | None = None) -> Tensor:
    """The logits ``(n, c)`` in whatever a network returned, see :func:`output_of`.

    A single logit ``(n, 1)`` or ``(n,)`` and a class a pixel are refused here: see :mod:`tweaknn.network.views`.

    Raises:
        ModelError: there is no such output, or it is not ``(n, c)`` with ``c >= 2``.
    """
    value = output_of(output, head)
    if value.ndim != 2 or value.shape[1] < 2:
        raise ModelError(f"The network's output has shape {tuple(value.shape)}; (examples, classes >= 2) is needed.")
    return value
