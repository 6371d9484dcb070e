"""Δnn as a value: which neurons it reads, what it adds to which logits, and for which base it was made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tweaknn.delta.heads import Head, Linear
from tweaknn.errors import DeltaError, InputError
from tweaknn.network.pooling import REDUCTIONS, pool, width

if TYPE_CHECKING:
    from tweaknn.delta.attach import Tweaked

LOGITS = "@logits"
"""Name of the pseudo-layer that holds the base's own logits."""


@dataclass(frozen=True, eq=False)
class Read:
    """Addresses of neurons of one layer.

    Attributes:
        layer: the layer's name, or :data:`LOGITS`.
        reduction: ``position``, ``mean``, ``max`` or ``grid2``, see :func:`tweaknn.network.pooling.pool`.
        shape: of one example's output of that layer.
        channel_axis: which axis of ``shape`` counts the channels.
        index: ``(k,)`` int64, positions within the reduced layer.
    """

    layer: str
    reduction: str
    shape: tuple[int, ...]
    channel_axis: int
    index: Tensor

    @property
    def available(self) -> int:
        """How many neurons the reduced layer has."""
        return width(self.reduction, self.shape, self.channel_axis)

    def pick(self, activation: Tensor) -> Tensor:
        """``(n, *shape) -> (n, k)``. Raises DeltaError for a layer that is read at each pixel."""
        if self.reduction == "pixel":
            raise DeltaError(f"Layer {self.layer} is read at each pixel; it has no values of a whole picture.")
        values = pool(activation, self.channel_axis, self.reduction)
        return values.index_select(1, self.index.to(values.device))

    def check(self) -> None:
        """Raises DeltaError for an unknown reduction, an impossible shape or addresses outside the layer."""
        if self.reduction not in REDUCTIONS:
            raise DeltaError(f"The delta reads neurons by {self.reduction!r}, which this version does not know.")
        if not self.shape or not 0 <= self.channel_axis < len(self.shape) or min(self.shape) < 1:
            raise DeltaError(f"The delta reads layer {self.layer} of the impossible shape {self.shape}.")
        if self.index.dtype != torch.int64 or self.index.ndim != 1:
            raise DeltaError(f"The delta's neuron addresses in {self.layer} are not a list of integers.")
        if self.index.numel() and (int(self.index.min()) < 0 or int(self.index.max()) >= self.available):
            raise DeltaError(f"The delta reads a neuron outside layer {self.layer}, which has {self.available}.")


@dataclass(frozen=True, eq=False)
class Term:
    """One head and the neurons it reads, in the order of its inputs."""

    reads: tuple[Read, ...]
    head: Head

    @property
    def neurons(self) -> int:
        """How many neurons the reads name together: the number of the head's inputs."""
        return sum(int(read.index.numel()) for read in self.reads)


@dataclass(frozen=True, eq=False)
class Delta:
    """A change to a trained classifier that leaves the classifier alone: ``logits + Σ head(neurons) + bias``.

    Attributes:
        terms: heads with the neurons they read; none for a mere bias.
        bias: ``(c,)``, added to the logits.
        base: fingerprint of the base network it was made for.
        input_shape: of one example.
        input_dtype: such as ``float32``.
        classes: names of the logits, when known.
        how: ``fx`` or ``hooks``: which kind of names the layers have.
        head: which of the base's outputs it changes, when there are several.
        kind: the method that made it (``fit``, ``theta``, ``bias``, ...).
        meta: whatever else is worth keeping and fits JSON: settings, validation figures, controls.
        below: content hashes of the deltas that lie between the base and this one, lowest first.

    Raises:
        DeltaError: shapes, classes or addresses do not fit together, or a number is NaN or infinite.
    """

    terms: tuple[Term, ...]
    bias: Tensor
    base: str
    input_shape: tuple[int, ...]
    input_dtype: str = "float32"
    classes: tuple[str, ...] | None = None
    how: str = "fx"
    head: int | str | None = None
    kind: str = "delta"
    meta: dict[str, Any] = field(default_factory=dict)
    below: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bias.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            raise DeltaError(f"The delta's bias holds {self.bias.dtype}, not floating-point numbers.")
        if self.bias.ndim != 1 or self.bias.numel() < 1 or not bool(torch.isfinite(self.bias).all()):
            raise DeltaError("The delta's bias is not one finite number a class.")
        if self.classes is not None and len(self.classes) != self.n_classes:
            raise DeltaError(f"The delta has {self.n_classes} logits and {len(self.classes)} class names.")
        shapes: dict[str, tuple[Any, ...]] = {}
        for term in self.terms:
            for read in term.reads:
                read.check()
                if shapes.setdefault(read.layer, (read.shape, read.channel_axis)) != (read.shape, read.channel_axis):
                    raise DeltaError(f"The delta reads layer {read.layer} in two shapes.")
            term.head.check(self.n_classes)
            if term.neurons != term.head.inputs:
                raise DeltaError(f"The delta reads {term.neurons} neurons for {term.head.inputs} inputs.")

    # -- facts ---------------------------------------------------------------------------------------------------

    @property
    def n_classes(self) -> int:
        """Number of logits ``c``."""
        return int(self.bias.numel())

    @property
    def parameters(self) -> int:
        """Numbers it holds: weights, and biases that are not zero."""
        return sum(term.head.parameters for term in self.terms) + int((self.bias != 0).sum())

    @property
    def layers(self) -> list[str]:
        """Names of the layers it reads."""
        return list(dict.fromkeys(read.layer for term in self.terms for read in term.reads))

    @property
    def touched(self) -> list[int]:
        """Classes whose logits it can change."""
        columns = {int(j) for term in self.terms for j in term.head.columns}
        return sorted(columns | {int(j) for j in self.bias.nonzero().flatten()})

    def __repr__(self) -> str:
        neurons = sum(term.neurons for term in self.terms)
        return (
            f"Delta(kind={self.kind!r}, neurons={neurons}, parameters={self.parameters}, "
            f"classes touched={len(self.touched)} of {self.n_classes}, base={self.base[:12]})"
        )

    # -- algebra -------------------------------------------------------------------------------------------------

    def __add__(self, other: Delta) -> Delta:
        """Both changes at once. Commutative up to the order of floating-point sums.

        Whether one undoes what the other promises shows on data only: :func:`tweaknn.delta.combine.combine` measures it.

        Raises:
            InputError: the deltas belong to different bases or outputs, sit on others, or name different classes.
        """
        if not isinstance(other, Delta):
            return NotImplemented
        if self.base != other.base:
            raise InputError(
                f"These deltas cannot be combined: one was made for base {self.base[:12]}, the other for "
                f"{other.base[:12]}; combine deltas of one base."
            )
        if self.below != other.below:
            raise InputError("These deltas cannot be combined: they do not sit on the same deltas; attach one on the other.")
        if self.how != other.how:
            raise InputError(f"These deltas cannot be combined: they name layers otherwise ({self.how} and {other.how}).")
        if self.head != other.head:
            raise InputError(f"These deltas cannot be combined: they change different outputs ({self.head!r} and {other.head!r}).")
        if self.n_classes != other.n_classes or (self.classes and other.classes and self.classes != other.classes):
            raise InputError("These deltas cannot be combined: they name different classes.")
        return replace(
            self,
            terms=self.terms + other.terms,
            bias=self.bias + other.bias,
            classes=self.classes or other.classes,
            kind=self.kind if self.kind == other.kind else "combined",
            meta={"parts": [self.meta, other.meta]},
        )

    def __radd__(self, other: object) -> Delta:
        """``sum(deltas)`` begins with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, factor: float) -> Delta:
        """The same change, ``factor`` times as strong."""
        terms = tuple(Term(term.reads, term.head.scaled(float(factor))) for term in self.terms)
        return replace(self, terms=terms, bias=self.bias * float(factor))

    __rmul__ = __mul__

    def __neg__(self) -> Delta:
        return self * -1.0

    def __sub__(self, other: Delta) -> Delta:
        return self + (-other)

    def on(self, other: Delta) -> Delta:
        """The same change, made for ``nn + other``: its file then says that ``other`` lies below it.

        Raises:
            InputError: they were made for different bases.
        """
        from tweaknn.delta.file import delta_hash

        if self.base != other.base:
            raise InputError(f"Base {self.base[:12]} of this delta is not that of the one below, {other.base[:12]}.")
        return replace(self, below=(*other.below, delta_hash(other)))

    def only(self, classes: Sequence[int | str]) -> Delta:
        """Only what changes the logits of these classes."""
        wanted = {self.class_index(name) for name in classes}
        terms = []
        for term in self.terms:
            keep = torch.tensor([i for i, j in enumerate(term.head.columns.tolist()) if j in wanted], dtype=torch.int64)
            if keep.numel():
                terms.append(Term(term.reads, term.head.restricted(keep)))
        mask = torch.tensor([j in wanted for j in range(self.n_classes)])
        return replace(self, terms=tuple(terms), bias=torch.where(mask, self.bias, torch.zeros_like(self.bias)))

    def class_index(self, name: int | str) -> int:
        """Position of the class ``name``, which may be a position already.

        Raises:
            InputError: there is no such class; the message lists them.
        """
        if isinstance(name, int) and 0 <= name < self.n_classes:
            return name
        if self.classes and name in self.classes:
            return self.classes.index(str(name))
        if str(name).isdigit() and int(name) < self.n_classes and not self.classes:
            return int(name)
        known = ", ".join(self.classes) if self.classes else f"0..{self.n_classes - 1}"
        raise InputError(f"The delta has no class {name!r}; its classes are {known}.")

    # -- use -----------------------------------------------------------------------------------------------------

    def attach(self, model: nn.Module, *, check: bool = True, example_x: Any = None) -> Tweaked:
        """A new module computing ``nn + Δnn``; ``model`` is shared, not copied and not changed.

        Args:
            model: the base it was made for.
            check: compare fingerprints (reads every parameter once).
            example_x: an input for networks whose inputs are not one tensor of ``input_shape``.

        Raises:
            DeltaError: it was made for another base; the message names both fingerprints.
            ModelError: the base lacks a layer the delta reads.
        """
        from tweaknn.delta.attach import attach

        return attach(self, model, check=check, example_x=example_x)

    def save(self, path: str) -> None:
        """Write the Δnn file: temporary file first, then rename. Raises DeltaError when it cannot be written."""
        from tweaknn.delta.file import save

        save(self, path)

    @staticmethod
    def load(path: str) -> Delta:
        """Read a Δnn file. Raises DeltaError when it is truncated, altered, foreign or of a newer format."""
        from tweaknn.delta.file import load

        return load(path)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> Delta:
        """From a folder or the Hub, see :func:`tweaknn.delta.hub.from_pretrained`."""
        from tweaknn.delta.hub import from_pretrained

        return from_pretrained(name, revision=revision, token=token)

    def save_pretrained(self, folder: str | os.PathLike[str], *, base_model: str | None = None) -> Path:
        """Into a folder with its model card, see :func:`tweaknn.delta.hub.save_pretrained`."""
        from tweaknn.delta.hub import save_pretrained

        return save_pretrained(self, folder, base_model=base_model)

    def push_to_hub(
        self, repo_id: str, *, base_model: str | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """To the Hub with its model card, see :func:`tweaknn.delta.hub.push_to_hub`."""
        from tweaknn.delta.hub import push_to_hub

        return push_to_hub(self, repo_id, base_model=base_model, private=private, token=token)

    def with_bias(self, bias: Tensor) -> Delta:
        """The same delta with ``bias`` ``(c,)`` added to its own: how an operating point is set."""
        return replace(self, bias=self.bias + bias.to(self.bias))


def synapses(reads: Sequence[Read], weight: Tensor, columns: Sequence[int]) -> Term:
    """A term of linear synapses: ``weight`` is ``(f, k)`` from the read neurons to the ``k`` classes ``columns``."""
    return Term(tuple(reads), Linear(weight.float(), torch.tensor(list(columns), dtype=torch.int64)))
