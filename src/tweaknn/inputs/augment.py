"""Augmented copies of a batch: what ``--augment`` names.

``flip`` mirrors left and right, ``shift`` moves a picture by up to an eighth of each side (its border is repeated), ``noise`` adds a
tenth of each input's standard deviation. Each takes ``(x, generator)`` and returns a batch of the same shape, made from the generator
alone, so that the same seed reads the same views.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tweaknn.errors import DataError, InputError
from tweaknn.inputs.userfile import load_function, split_spec

NAMES = ("flip", "shift", "noise")

Augment = Callable[[Tensor, torch.Generator], Tensor]


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures ``(n, c, h, w)``, mirrored left and right."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    out = x.clone()
    out[mirrored] = x[mirrored].flip(-1)
    return out


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures ``(n, c, h, w)`` moved by up to an eighth of each side, at least a pixel; the border is repeated."""
    n, _, h, w = x.shape
    down, right = max(1, h // 8), max(1, w // 8)
    dy = torch.randint(-down, down + 1, (n, 1), generator=generator)
    dx = torch.randint(-right, right + 1, (n, 1), generator=generator)
    rows = (torch.arange(h) + dy).clamp(0, h - 1)
    columns = (torch.arange(w) + dx).clamp(0, w - 1)
    each = torch.arange(n).view(n, 1, 1)
    return x.movedim(1, 3)[each, rows.view(n, h, 1), columns.view(n, 1, w)].movedim(3, 1)


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise of a tenth of the batch's standard deviation (of each column, for tables ``(n, d)``)."""
    spread = x.float().std(0, correction=0) if x.ndim == 2 else x.float().std(correction=0)
    return x + (0.1 * spread * torch.randn(x.shape, generator=generator)).to(x.dtype)


@dataclass(frozen=True)
class Augmentation:
    """What a specification names, ready to be called; ``source`` identifies it in a stored table's key.

    Called, it raises InputError for an input it does not work on, DataError if the user's function fails or changes the batch's
    shape.
    """

    spec: str
    steps: tuple[Augment, ...]
    source: str

    def __call__(self, x: Any, generator: torch.Generator) -> Any:
        """An augmented batch.

        Raises:
            InputError: the input is not what the augmentation works on.
            DataError: the user's function fails, or changes the batch's shape.
        """
        for name, step in zip(self.spec.split(","), self.steps, strict=True):
            if step in (flip, shift) and not (isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()):
                raise InputError(
                    f"The augmentation {name} is for pictures (n, channels, height, width), and an input here is {_shape(x)}; "
                    "use --augment noise, file.py:function, or --views 0."
                )
            if step is noise and not (isinstance(x, Tensor) and x.is_floating_point()):
                raise InputError(
                    f"The augmentation noise is for floating-point inputs, and an input here is {_shape(x)}; "
                    "use --augment file.py:function, or --views 0."
                )
            try:
                out = step(x, generator)
            except Exception as problem:
                if step in (flip, shift, noise):
                    raise
                raise DataError(f"The augmentation {self.spec} fails: {type(problem).__name__}: {problem}") from problem
            if isinstance(x, Tensor) and (not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype):
                raise DataError(
                    f"The augmentation {self.spec} must return a batch like the one it was given, {_shape(x)}, not {_shape(out)}."
                )
            x = out
        return x


def augmentation(spec: str) -> Augmentation:
    """The augmentation a user named: ``flip,shift`` (any of :data:`NAMES`, in order), or ``file.py:function``.

    The function is called as ``function(x, generator)``, with a batch ``(n, ...)`` as the network gets it and a seeded
    ``torch.Generator`` to draw from, and returns another of its shape and type.

    Raises:
        InputError: an unknown name, or a file or function that is not there.
    """
    if split_spec(spec) is not None:
        function = load_function(spec)
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):
            source = ""
        return Augmentation(spec, (function,), f"{spec} {source}")
    known: dict[str, Augment] = {"flip": flip, "shift": shift, "noise": noise}
    names = [name.strip() for name in spec.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(
            f"--augment takes {', '.join(NAMES)}, several with commas between, or file.py:function; not {spec!r}."
        )
    return Augmentation(",".join(names), tuple(known[name] for name in names), ",".join(names))


def _shape(x: Any) -> str:
    return f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
