"""What a delta computes from the neurons it reads: a linear map (synapses) or a small MLP (AAN)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tweaknn.errors import DeltaError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


@dataclass(frozen=True, eq=False)
class Linear:
    """Synapses: ``columns`` of the logits get ``features @ weight`` added.

    Attributes:
        weight: ``(f, k)``, in logits per unit of the neuron's value.
        columns: ``(k,)`` classes the synapses end in.
    """

    weight: Tensor
    columns: Tensor

    @property
    def inputs(self) -> int:
        """Number of neurons read, ``f``."""
        return int(self.weight.shape[0])

    @property
    def parameters(self) -> int:
        """Number of synapses, i.e. of weights that are not zero."""
        return int((self.weight != 0).sum())

    def __call__(self, features: Tensor) -> Tensor:
        """``(n, f) -> (n, k)``."""
        return features @ self.weight.to(features)

    def scaled(self, factor: float) -> Linear:
        """The same with what it adds multiplied by ``factor``."""
        return Linear(self.weight * factor, self.columns)

    def restricted(self, keep: Tensor) -> Linear:
        """Only the columns at the positions ``keep``."""
        return Linear(self.weight[:, keep], self.columns[keep])

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names the file has for them."""
        return {"weight": self.weight, "columns": self.columns}

    def check(self, n_classes: int) -> None:
        """Raises DeltaError when shapes do not fit or a weight is not finite."""
        if self.weight.ndim != 2:
            raise DeltaError(f"The synapses' weights have {self.weight.ndim} axes instead of 2.")
        _check_columns(self.columns, int(self.weight.shape[1]), n_classes)
        _check_finite("synapses' weights", self.weight)


@dataclass(frozen=True, eq=False)
class MLP:
    """An augmentation with active neurons (dissertation, chapter 4): one hidden layer, dense or in groups.

    Attributes:
        w1: one ``(f_g, h_g)`` a group; group ``g`` reads the next ``f_g`` features. One group is a dense layer.
        b1: ``(h,)`` with ``h`` the sum of ``h_g``.
        w2: ``(h, k)``.
        columns: ``(k,)`` classes.
        activation: ``relu``, ``gelu``, ``silu`` or ``tanh``.
    """

    w1: tuple[Tensor, ...]
    b1: Tensor
    w2: Tensor
    columns: Tensor
    activation: str = "relu"

    @property
    def inputs(self) -> int:
        """Number of neurons read, ``f``."""
        return sum(int(w.shape[0]) for w in self.w1)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(w.numel() for w in self.w1) + self.b1.numel() + self.w2.numel()

    def __call__(self, features: Tensor) -> Tensor:
        """``(n, f) -> (n, k)``."""
        if len(self.w1) == 1:
            hidden = features @ self.w1[0].to(features)
        else:
            parts = features.split([int(w.shape[0]) for w in self.w1], dim=1)
            hidden = torch.cat([part @ w.to(features) for part, w in zip(parts, self.w1, strict=True)], dim=1)
        return ACTIVATIONS[self.activation](hidden + self.b1.to(features)) @ self.w2.to(features)

    def scaled(self, factor: float) -> MLP:
        """The same with what it adds multiplied by ``factor``."""
        return MLP(self.w1, self.b1, self.w2 * factor, self.columns, self.activation)

    def restricted(self, keep: Tensor) -> MLP:
        """Only the columns at the positions ``keep``."""
        return MLP(self.w1, self.b1, self.w2[:, keep], self.columns[keep], self.activation)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names the file has for them."""
        groups = {f"w1.{g}": w for g, w in enumerate(self.w1)}
        return {**groups, "b1": self.b1, "w2": self.w2, "columns": self.columns}

    def check(self, n_classes: int) -> None:
        """Raises DeltaError for an unknown activation, sizes that do not fit, or a weight that is not finite."""
        if self.activation not in ACTIVATIONS:
            raise DeltaError(f"The delta's activation {self.activation!r} is unknown to this version.")
        hidden = sum(int(w.shape[1]) if w.ndim == 2 else -1 for w in self.w1)
        if not self.w1 or self.b1.shape != (hidden,) or self.w2.ndim != 2 or self.w2.shape[0] != hidden:
            raise DeltaError("The delta's MLP does not fit together: hidden sizes of its layers differ.")
        _check_columns(self.columns, int(self.w2.shape[1]), n_classes)
        for name, tensor in self.tensors().items():
            if name != "columns":
                _check_finite(f"MLP's {name}", tensor)


Head = Linear | MLP


def _check_columns(columns: Tensor, k: int, n_classes: int) -> None:
    if columns.dtype != torch.int64 or columns.shape != (k,):
        raise DeltaError(f"The delta names {tuple(columns.shape)} classes for {k} outputs.")
    if k and (int(columns.min()) < 0 or int(columns.max()) >= n_classes or columns.unique().numel() != k):
        raise DeltaError(f"The delta names classes outside 0..{n_classes - 1}, or one of them twice.")


def _check_finite(what: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
        raise DeltaError(f"The delta's {what} hold NaN or infinite values; it was not saved by a healthy run.")
