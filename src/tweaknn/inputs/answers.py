"""Examples whose answer is not one class: several labels an example, or a class a pixel."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tweaknn.errors import DataError, InputError
from tweaknn.inputs.examples import Examples

VOID = 255
"""A mask's value that stands for no class, as in most data sets; negative values do too."""


def one_label(examples: Examples, label: int, name: str) -> Examples:
    """Examples with several labels ``(n, l)`` as examples of two classes: whether one label is given."""
    given = several(examples)
    part = examples.relabelled(given[:, label].astype(np.int64), [f"not {name}", name])
    part.answers = None
    return part


def several(examples: Examples) -> np.ndarray:
    """Labels ``(n, l)`` of 0 and 1. Raises DataError when the data has one answer an example."""
    if examples.answers is None or examples.answers.ndim != 2:
        raise DataError(f"{examples.name}: several labels an example, y of shape (examples, labels), are needed.")
    given = examples.answers
    wrong = ~np.isin(given, (0, 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            f"{examples.name}: several labels an example are 0 or 1 each; example {row}, label {column} is "
            f"{given[row, column]}."
        )
    return given


class PixelExamples(Examples):
    """Pictures with masks as examples of one pixel each, ``pixels`` of every picture, drawn by lot once.

    Behaves as :class:`~tweaknn.inputs.examples.Examples` does, with a row a pixel: pictures in order, pixels row by row.
    Batches hold whole pictures, whose last channel tells :class:`~tweaknn.network.views.PixelView` which pixels are meant.

    Args:
        examples: of pictures, with masks ``(n, h, w)`` of class positions; :data:`VOID` and negative values are no class.
        pixels: of each picture at most; pictures with fewer that have a class are left out, unless all have fewer.

    Raises:
        DataError: no masks, masks of another size than the pictures, classes outside ``n_classes``, or nothing but void.
    """

    preprocess: Any = None

    def __init__(
        self, examples: Examples, pixels: int, n_classes: int, classes: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        masks = examples.answers
        if masks is None or masks.ndim != 3:
            raise DataError(
                f"{examples.name}: the network gives a class a pixel; masks are needed, y of shape (examples, height, width)."
            )
        x, _ = examples.batch([0])
        if x.ndim != 4 or tuple(x.shape[2:]) != masks.shape[1:]:
            raise DataError(
                f"{examples.name}: masks are {masks.shape[1]}x{masks.shape[2]}, the network's input has shape "
                f"{tuple(x.shape[1:])}; bring both to one size."
            )
        usable = (masks >= 0) & (masks != VOID)
        top = int(masks[usable].max()) if usable.any() else -1
        if top < 0:
            raise DataError(f"{examples.name}: no pixel of any mask has a class.")
        if top >= n_classes:
            raise DataError(f"{examples.name}: a mask has class {top}, the network {n_classes} (0..{n_classes - 1}).")
        counts = usable.reshape(len(masks), -1).sum(1)
        self.pixels = int(min(pixels, counts.max()))
        kept = np.flatnonzero(counts >= self.pixels)
        self.name, self.classes = examples.name, list(classes) if classes is not None else None
        self.notes = [*examples.notes, f"{self.pixels} pixels of each picture are looked at"]
        if len(kept) < len(masks):
            self.notes.append(f"{len(masks) - len(kept)} pictures with fewer pixels that have a class were left out")
        self.skipped_names, self.answers = examples.skipped_names, None
        self.columns = {name: np.repeat(values[kept], self.pixels) for name, values in examples.columns.items()}
        self.pictures = examples.subset(kept)
        rng = np.random.default_rng(seed)
        flat = usable[kept].reshape(len(kept), -1)
        self.where = np.stack(
            [np.sort(rng.choice(np.flatnonzero(row), self.pixels, replace=False)) for row in flat]
        )  # (pictures, pixels)
        truth = masks[kept].reshape(len(kept), -1)
        self.labels = np.take_along_axis(truth, self.where, 1).astype(np.int64).reshape(-1)
        self._side = masks.shape[1:]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def groups(self) -> np.ndarray:
        """Which picture each pixel is of, ``(n,)``: pictures are never parted."""
        return np.repeat(np.arange(len(self.where)), self.pixels)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole pictures ``(b, channels + 1, h, w)`` and the classes of their pixels ``(b * pixels,)``."""
        return self._pictures(self._whole(np.asarray(indices)))

    def _whole(self, indices: np.ndarray) -> np.ndarray:
        return np.array(list(dict.fromkeys((indices // self.pixels).tolist())), dtype=np.int64)

    def _pictures(self, at: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        x, _ = self.pictures.batch(at)
        asked = torch.zeros(len(at), self._side[0] * self._side[1], dtype=x.dtype)
        asked.scatter_(1, torch.from_numpy(self.where[at]), 1.0)
        y = self.labels.reshape(-1, self.pixels)[at].reshape(-1)
        return torch.cat([x, asked.reshape(len(at), 1, *self._side)], 1), torch.from_numpy(y)

    @property
    def has_images(self) -> bool:
        """A row is a pixel, no image."""
        return False

    def __getitem__(self, k: int) -> Any:
        return self._pictures(np.array([k // self.pixels]))

    def loader(self, batch_size: int, indices: Sequence[int] | np.ndarray | None = None) -> DataLoader:
        """Batches of whole pictures; ``batch_size`` counts pictures, at most 16."""
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, not {batch_size}.")
        order = np.arange(len(self.where)) if indices is None else self._whole(np.asarray(indices))
        return DataLoader(_PictureBatches(self, order, min(batch_size, 16)), batch_size=None)

    def subset(self, indices: Sequence[int] | np.ndarray) -> PixelExamples:
        """The pictures these pixels are of."""
        at = np.asarray(indices)
        at = self._whole(np.flatnonzero(at) if at.dtype == bool else at)
        part = object.__new__(PixelExamples)
        part.__dict__.update(self.__dict__)
        part.pictures, part.where = self.pictures.subset(at), self.where[at]
        part.labels = self.labels.reshape(-1, self.pixels)[at].reshape(-1)
        rows = (at[:, None] * self.pixels + np.arange(self.pixels)).reshape(-1)
        part.columns = {name: values[rows] for name, values in self.columns.items()}
        return part

    def column(self, name: str) -> np.ndarray:
        """As :meth:`Examples.column`, a row a pixel."""
        self.pictures.column(name)
        return self.columns[name]

    def counts(self) -> np.ndarray:
        """Pixels of each class ``(c,)``."""
        return np.bincount(self.labels, minlength=len(self.classes or ()))

    def content_hash(self) -> str:
        """As :meth:`Examples.content_hash`, pixels included."""
        return hashlib.sha256(self.pictures.content_hash().encode() + self.where.tobytes()).hexdigest()


class _PictureBatches(Dataset):
    def __init__(self, examples: PixelExamples, order: np.ndarray, size: int) -> None:
        self.examples, self.order, self.size = examples, order, size

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= k < len(self):
            raise IndexError(k)
        return self.examples._pictures(self.order[k * self.size : (k + 1) * self.size])
