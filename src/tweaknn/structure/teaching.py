"""A teacher that may have been trained on other numbers, or with its classes in another order, than the student."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..inputs.preprocess import Preprocess
from ..network.modes import output_of


class Taught(nn.Module):
    """``teacher`` seen by a student: inputs renormalised (``x * factor + shift``, a value a channel), outputs reordered."""

    factor: Tensor | None
    shift: Tensor | None
    order: Tensor | None

    def __init__(self, teacher: nn.Module, factor: Tensor | None, shift: Tensor | None, order: list[int] | None):
        super().__init__()
        self.teacher = teacher
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)
        self.register_buffer("order", None if order is None else torch.tensor(order))

    def forward(self, x: Tensor) -> Any:
        """The teacher's scores of the student's input, in the student's order."""
        if self.factor is not None and self.shift is not None:
            shape = (1, -1) + (1,) * (x.dim() - 2)
            x = x * self.factor.reshape(shape) + self.shift.reshape(shape)
        out = self.teacher(x)
        return out if self.order is None else output_of(out)[:, self.order]


def taught(
    teacher: nn.Module, said: Any, names: Sequence[str] | None, preprocess: Any, classes: Sequence[str], what: str
) -> nn.Module:
    """``teacher`` made to read the student's inputs and answer in its order of classes.

    said: the teacher's own preprocessing, None where nothing is known. names: of its outputs, likewise.

    Raises:
        InputError: it tells other classes apart, or sees other pictures (size, channels) than the student.
    """
    order = None
    unnamed = [
        str(k) for k in range(len(classes))
    ]  # what a folder of `tweaknn train` holds where the data has no names
    if names is not None and unnamed not in (list(names), list(classes)) and list(names) != list(classes):
        if sorted(names) != sorted(classes):
            odd = next(name for name in [*names, *classes] if name not in names or name not in classes)
            raise InputError(f"{what} names its classes otherwise than the data: {odd!r} is in only one of them")
        order = [list(names).index(name) for name in classes]
    factor = shift = None
    if isinstance(said, Preprocess) and isinstance(preprocess, Preprocess):
        plain: dict[str, Any] = {"mean": None, "std": None, "note": "", "interpolation": "bilinear", "channels": None}
        if dataclasses.replace(said, **plain) != dataclasses.replace(preprocess, **plain):
            raise InputError(
                f"{what} sees pictures of another size ({said.describe()}) than the student ({preprocess.describe()}); "
                "give --size so that they agree"
            )
        if (said.mean, said.std) != (preprocess.mean, preprocess.std):
            ours, theirs = _affine(preprocess), _affine(said)
            factor, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
    return teacher if order is None and factor is None else Taught(teacher, factor, shift, order).eval()


def _affine(p: Preprocess) -> tuple[Tensor, Tensor]:
    mean, std = p.mean or (0.0,), p.std or (1.0,)
    n = max(len(mean), len(std))
    return torch.tensor(mean).expand(n), torch.tensor(std).expand(n)
