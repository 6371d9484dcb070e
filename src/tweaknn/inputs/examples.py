"""Labelled examples as one value, wherever they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tweaknn.errors import DataError, InputError
from tweaknn.inputs.preprocess import Preprocess
from tweaknn.inputs.sources import ArraySource, ImageSource, ItemSource, Source, TableSource

# Decoded images are kept when all of them fit in this many bytes: 50,000 CIFAR JPEGs take 150 MB, and
# decoding
# them for each pass would cost as much as a small network's forward pass.
CACHE_BYTES = 2**30
_THREADS = 4

Transform = Preprocess | Callable[[Any], torch.Tensor]


class _Pixels:
    """Decoded uint8 images of a source, kept as they are first asked for; shared by all subsets."""

    def __init__(self, source: ImageSource, preprocess: Preprocess) -> None:
        if preprocess.channels is None and not source.in_memory:
            preprocess = replace(preprocess, channels=1 if _all_grey(source) else 3)
        self.source, self.preprocess = source, preprocess
        plain = preprocess.resize is None and preprocess.crop is None
        self.direct = isinstance(source, ArraySource) and plain and source.channels in (1, preprocess.channels)
        self.store: np.ndarray | None = None
        self.have = np.zeros(len(source), dtype=bool)
        self.lazy = False

    def rows(self, indices: np.ndarray) -> np.ndarray:
        if self.direct and isinstance(self.source, ArraySource):
            return self.preprocess.widen(self.source.images[indices])
        missing = indices[~self.have[indices]]
        if len(missing) == 0 and self.store is not None:
            return self.store[indices]
        fresh = self._decode(np.unique(missing))
        if self.store is None and not self.lazy:
            first = next(iter(fresh.values()))
            if len(self.source) * first.nbytes <= CACHE_BYTES:
                self.store = np.empty((len(self.source), *first.shape), dtype=np.uint8)
                self.have = self.have.copy()  # likewise may have come read-only
            else:
                self.lazy = True
        if self.store is not None:
            if not self.store.flags.writeable:  # came from another process' shared memory, e.g. a Ray object store
                self.store, self.have = self.store.copy(), self.have.copy()
            for i, image in fresh.items():
                self._check_shape(i, image.shape, self.store.shape[1:])
                self.store[i] = image
                self.have[i] = True
            return self.store[indices]
        shape = fresh[int(indices[0])].shape
        for i, image in fresh.items():
            self._check_shape(i, image.shape, shape)
        return np.stack([fresh[int(i)] for i in indices])

    def _decode(self, indices: np.ndarray) -> dict[int, np.ndarray]:
        def one(i: int) -> np.ndarray:
            return self.preprocess.pixels(self.source.image(i))

        todo = [int(i) for i in indices]
        if len(todo) < 16 or self.source.in_memory:
            return {i: one(i) for i in todo}
        with ThreadPoolExecutor(_THREADS) as pool:
            return dict(zip(todo, pool.map(one, todo)))

    def _check_shape(self, i: int, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if shape != wanted:
            raise DataError(
                f"{self.source.where(i)}: this image is {_size(shape)} but others are {_size(wanted)}; "
                f"give --size to bring them all to one size."
            )


def _all_grey(source: ImageSource) -> bool:
    """Whether a spread of 32 images are all grey; one coloured image makes the data RGB."""
    for i in np.unique(np.linspace(0, len(source) - 1, 32).astype(int)):
        try:
            if source.mode(int(i)) not in ("1", "L", "I", "I;16", "I;16B"):
                return False
        except DataError:
            continue  # an unreadable image is reported, with its name, when it is needed
    return True


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} with {shape[2]} channel{'s' if shape[2] != 1 else ''}"


class Examples(Dataset):
    """A torch ``Dataset`` of ``(x float tensor, y int)`` that knows its labels, classes, columns and content.

    ``labels`` int64 ``(n,)``; ``classes``: a name a label, or None; ``columns``: further columns ``(n,)`` such as
    groups; ``answers``: where one label an example is not all, several ``(n, l)`` or masks ``(n, h, w)``;
    ``preprocess``: a :class:`Preprocess` or any function from image (or row) to tensor.

    Raises:
        DataError: no examples, or not one label each.
    """

    def __init__(
        self,
        source: Source,
        labels: np.ndarray,
        *,
        classes: Sequence[str] | None = None,
        preprocess: Transform | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
        name: str = "data",
        notes: Sequence[str] = (),
        skipped: Sequence[str] = (),
        answers: np.ndarray | None = None,
    ) -> None:
        self.source = source
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = None if classes is None else [str(c) for c in classes]
        self.preprocess = preprocess
        self.columns = dict(columns or {})
        self.name = name
        self.notes = list(notes)
        self.skipped_names = list(skipped)
        self.indices = np.arange(len(source))
        self.answers = answers
        self._hash: str | None = None
        self._pixels: _Pixels | None = None
        if len(self.labels) != len(source):
            raise DataError(f"{name}: {len(source)} examples but {len(self.labels)} labels.")
        if len(source) == 0:
            raise DataError(f"{name}: there are no examples.")
        if isinstance(source, ImageSource) and (preprocess is None or isinstance(preprocess, Preprocess)):
            self._pixels = _Pixels(source, preprocess or Preprocess())

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def skipped(self) -> int:
        """Number of unreadable images that were left out."""
        return len(self.skipped_names)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """``x (b, ...)`` float32 and ``y (b,)`` int64 of the examples at ``indices``, in this order.

        Raises:
            DataError: an example cannot be read or prepared, or they differ in shape.
        """
        at = np.asarray(indices, dtype=np.int64)
        y = torch.from_numpy(self.labels[at])
        rows = self.indices[at]
        if self._pixels is not None:
            assert isinstance(self._pixels.preprocess, Preprocess)
            pixels = torch.from_numpy(np.ascontiguousarray(self._pixels.rows(rows)))
            return self._pixels.preprocess.normalise(pixels), y
        if isinstance(self.source, TableSource) and not callable(self.preprocess):
            return torch.from_numpy(self.source.rows(rows)), y
        if isinstance(self.source, TableSource) and isinstance(self.preprocess, Preprocess):
            return self.preprocess.normalise_table(torch.from_numpy(self.source.rows(rows))), y
        items = [self._item(int(i)) for i in rows]
        if isinstance(items[0], Mapping):
            return self._mapped(items), y  # type: ignore[return-value]
        shapes = {tuple(x.shape) for x in items}
        if len(shapes) > 1:
            raise DataError(
                f"{self.name}: examples have different shapes ({', '.join(map(str, sorted(shapes)[:3]))}); "
                f"the preprocessing must bring them to one."
            )
        return torch.stack(items), y

    def _transformed(self, raw: Any, i: int) -> Any:
        if isinstance(raw, str) and (self.preprocess is None or isinstance(self.preprocess, Preprocess)):
            raise DataError(f"{self.source.where(i)}: a text needs a network with a tokenizer (hf:...), or --preprocess.")
        # what a user's data set gives as tensors is ready for the network
        ready = isinstance(raw, (torch.Tensor, Mapping)) and isinstance(self.source, ItemSource)
        if self.preprocess is None or ready:
            return raw
        try:
            return self.preprocess(raw)
        except DataError as problem:
            raise DataError(f"{self.source.where(i)}: {problem}") from None
        except InputError:
            raise
        except Exception as problem:
            raise DataError(
                f"{self.source.where(i)}: the preprocessing fails: {type(problem).__name__}: {problem}"
            ) from problem

    def _mapped(self, items: list[Any]) -> dict[str, torch.Tensor]:
        """Keyword arguments of a network, as Hugging Face's classifiers take them: stacked one by one."""
        keys = list(items[0])
        try:
            return {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in keys}
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            first = (str(problem).splitlines() or [type(problem).__name__])[0][:120]
            raise DataError(
                f"{self.name}: examples are dictionaries that do not fit one another ({first}); give all the same keys and "
                "shapes (pad texts to one length)."
            ) from problem

    def _item(self, i: int) -> torch.Tensor:
        raw = self.source.item(i)
        if isinstance(self.source, ItemSource):
            if isinstance(raw, str) or (callable(self.preprocess) and not isinstance(self.preprocess, Preprocess)):
                raw = self._transformed(raw, i)
            elif isinstance(raw, Image.Image):
                raw = (self.preprocess or Preprocess(channels=1 if raw.mode in ("1", "L") else 3))(raw)
        elif self.preprocess is not None:
            raw = self._transformed(raw, i)
        if isinstance(raw, torch.Tensor):
            return raw.detach()
        if isinstance(raw, Mapping):
            return raw  # type: ignore[return-value]
        array = np.asarray(raw)
        if array.dtype.kind not in "fiub":
            kind = type(raw).__name__
            raise DataError(f"{self.source.where(i)}: the network's input must be a tensor or numbers, not {kind}.")
        # Numpy's default is float64, which no network here was trained in.
        return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        x, y = self.batch([index % len(self)])
        return x[0], int(y[0])

    def loader(self, batch_size: int, indices: Sequence[int] | np.ndarray | None = None) -> DataLoader:
        """A ``DataLoader`` of ``(x (b, ...), y (b,))`` in the order of ``indices`` (default: all, in
        order). Raises InputError for a ``batch_size`` below 1."""
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, not {batch_size}.")
        order = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        return DataLoader(_Batches(self, order, batch_size), batch_size=None)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """These examples only (positions or a boolean mask), sharing decoded images and columns.

        Raises:
            InputError: nothing is left.
        """
        at = np.asarray(indices)
        at = np.flatnonzero(at) if at.dtype == bool else at.astype(np.int64)
        if len(at) == 0:
            raise InputError(f"{self.name}: a subset needs at least one example.")
        part = self._copy()
        part.answers = None if self.answers is None else self.answers[at]
        part.indices, part.labels = self.indices[at], self.labels[at]
        part.columns = {name: values[at] for name, values in self.columns.items()}
        part._hash = None
        return part

    def relabelled(self, labels: np.ndarray, classes: Sequence[str] | None, note: str = "") -> Examples:
        """The same examples with other labels ``(n,)`` and class names."""
        part = self._copy()
        part.labels = np.asarray(labels, dtype=np.int64)
        part.classes = None if classes is None else [str(c) for c in classes]
        if note:
            part.notes = [*self.notes, note]
        part._hash = None
        return part

    def _copy(self) -> Examples:
        twin = object.__new__(Examples)
        twin.__dict__.update(self.__dict__)
        return twin

    def column(self, name: str) -> np.ndarray:
        """A further column ``(n,)``, for example patients; raises DataError listing the columns there are."""
        if name not in self.columns:
            raise DataError(f"{self.name} has no column '{name}'; it has: {', '.join(self.columns) or 'none'}.")
        return self.columns[name]

    def image(self, index: int) -> np.ndarray:
        """Example ``index`` as uint8 ``(h, w, 1 or 3)`` for showing to people; raises DataError for
        tables."""
        if not isinstance(self.source, ImageSource):
            raise DataError(f"{self.name} holds no images.")
        return Preprocess().pixels(self.source.image(int(self.indices[index])))

    @property
    def has_images(self) -> bool:
        """Whether :meth:`image` works."""
        return isinstance(self.source, ImageSource)

    def counts(self) -> np.ndarray:
        """Examples of each class ``(c,)``."""
        least = len(self.classes) if self.classes is not None else 0
        return np.bincount(self.labels, minlength=least)

    def content_hash(self) -> str:
        """SHA-256 over labels and raw content, the same for the same examples in the same order.

        Images and tables are hashed whole (as stored, before preprocessing). Of a user's own
        ``Dataset``, whose
        items may cost or change, the labels, the length and 16 evenly spread items are.
        """
        if self._hash is None:
            digest = hashlib.sha256(b"tweaknn examples 1")
            digest.update(np.ascontiguousarray(self.labels.astype("<i8")).tobytes())
            if self.answers is not None:
                digest.update(str(self.answers.shape).encode() + self.answers.astype("<i8").tobytes())
            for piece in self.source.content(self.indices):
                digest.update(len(piece).to_bytes(8, "little") + piece)
            self._hash = digest.hexdigest()
        return self._hash

    def describe(self) -> dict[str, Any]:
        """JSON-ready description: name, number, classes and their counts, preprocessing, content hash,
        notes."""
        preprocess = self.preprocess
        return {
            "name": self.name,
            "n": len(self),
            "classes": self.classes,
            "counts": self.counts().tolist(),
            "skipped": self.skipped,
            "skipped_names": self.skipped_names[:20],
            "preprocess": preprocess.describe() if isinstance(preprocess, Preprocess) else repr(preprocess),
            "content": self.content_hash(),
            "notes": self.notes,
        }


class _Batches(Dataset):
    """Ready-made batches, so that a ``DataLoader`` neither collates nor shuffles."""

    def __init__(self, examples: Examples, order: np.ndarray, batch_size: int) -> None:
        self.examples, self.order, self.batch_size = examples, order, batch_size

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= k < len(self):
            raise IndexError(k)
        return self.examples.batch(self.order[k * self.batch_size : (k + 1) * self.batch_size])
