"""Where raw examples lie: image files, encoded bytes, arrays, a user's ``Dataset``."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tweaknn.errors import DataError


class Source:
    """``len``, an item, what to call it in an error, and its raw content for hashing."""

    def __len__(self) -> int:
        raise NotImplementedError

    def item(self, i: int) -> Any:
        """The raw example: a PIL image, an array or a tensor."""
        raise NotImplementedError

    def where(self, i: int) -> str:
        """Words that let a user find example ``i``."""
        raise NotImplementedError

    def content(self, indices: np.ndarray) -> Iterator[bytes]:
        """Raw bytes that identify these examples."""
        raise NotImplementedError


class ImageSource(Source):
    """A source of images; ``in_memory`` when nothing has to be decoded."""

    in_memory = False

    def image(self, i: int) -> Image.Image | np.ndarray:
        """Image ``i``: PIL, fully decoded, or a uint8 array ``(h, w[, c])``."""
        raise NotImplementedError

    def mode(self, i: int) -> str:
        """PIL mode of image ``i``, from its header where that is enough."""
        raise NotImplementedError

    def item(self, i: int) -> Any:
        return self.image(i)


def _decode(stream: Any, where: str, header_only: bool = False) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(stream) as image:
                if not header_only:
                    image.load()
                return image
    except Exception as problem:  # PIL raises a dozen kinds for damaged files
        # Of a stream in memory Pillow's sentence names an address, which says nothing.
        what = "damaged, or no image" if isinstance(stream, io.BytesIO) and "identify" in str(problem) else problem
        raise DataError(
            f"{where}: this image cannot be read ({what}); --skip-unreadable leaves such images out."
        ) from problem


class FileSource(ImageSource):
    """Image files, read when asked for."""

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self.paths, self.root = list(paths), root

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> Image.Image:
        return _decode(self.paths[i], self.where(i))

    def mode(self, i: int) -> str:
        return _decode(self.paths[i], self.where(i), header_only=True).mode

    def where(self, i: int) -> str:
        return str(self.paths[i])

    def content(self, indices: np.ndarray) -> Iterator[bytes]:
        for i in indices:
            yield self.paths[int(i)].read_bytes()


class BytesSource(ImageSource):
    """Encoded images in memory (a Parquet column), decoded when asked for."""

    def __init__(self, encoded: Any, name: str, names: Sequence[str | None] | None = None) -> None:
        self.encoded, self.name, self.names = encoded, name, names

    def __len__(self) -> int:
        return len(self.encoded)

    def _bytes(self, i: int) -> bytes:
        value = self.encoded[i]
        raw = value.as_py() if hasattr(value, "as_py") else value
        if raw is None:
            raise DataError(f"{self.where(i)}: this row has no image; --skip-unreadable leaves such rows out.")
        return raw

    def image(self, i: int) -> Image.Image:
        return _decode(io.BytesIO(self._bytes(i)), self.where(i))

    def mode(self, i: int) -> str:
        return _decode(io.BytesIO(self._bytes(i)), self.where(i), header_only=True).mode

    def where(self, i: int) -> str:
        label = self.names[i] if self.names is not None else None
        return f"{self.name}, row {i}" + (f" ({label})" if label else "")

    def content(self, indices: np.ndarray) -> Iterator[bytes]:
        for i in indices:
            value = self.encoded[int(i)]
            yield (value.as_py() if hasattr(value, "as_py") else value) or b""


class ArraySource(ImageSource):
    """uint8 images ``(n, h, w)`` or ``(n, h, w, c)`` in memory."""

    in_memory = True

    def __init__(self, images: np.ndarray, name: str) -> None:
        self.images, self.name = images, name
        self.channels = 1 if images.ndim == 3 else images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> np.ndarray:
        return self.images[i]

    def mode(self, i: int) -> str:
        return "L" if self.channels == 1 else "RGB"

    def where(self, i: int) -> str:
        return f"{self.name}, example {i}"

    def content(self, indices: np.ndarray) -> Iterator[bytes]:
        yield str(self.images.shape[1:]).encode()
        for start in range(0, len(indices), 4096):
            yield np.ascontiguousarray(self.images[indices[start : start + 4096]]).tobytes()


class TableSource(Source):
    """Numbers ``(n, ...)`` in memory, as float32."""

    def __init__(self, values: np.ndarray, name: str) -> None:
        with np.errstate(over="ignore"):
            self.values, self.name = values.astype(np.float32), name
        finite = np.isfinite(self.values.reshape(len(values), -1)).all(axis=1) if len(values) else np.array([True])
        if not finite.all():
            first = int(np.argmin(finite))
            raise DataError(
                f"{name}: {int((~finite).sum())} rows hold NaN or infinite values; the first is row {first}."
            )

    def __len__(self) -> int:
        return len(self.values)

    def item(self, i: int) -> np.ndarray:
        return self.values[i]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Rows ``(b, ...)`` of these indices."""
        return self.values[indices]

    def where(self, i: int) -> str:
        return f"{self.name}, row {i}"

    def content(self, indices: np.ndarray) -> Iterator[bytes]:
        yield str(self.values.shape[1:]).encode()
        for start in range(0, len(indices), 4096):
            yield np.ascontiguousarray(self.values[indices[start : start + 4096]]).tobytes()


class ItemSource(Source):
    """A user's indexable dataset of ``(x, y)``."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)

    def _pair(self, i: int) -> tuple[Any, Any]:
        try:
            pair = self.dataset[i]
        except DataError:
            raise
        except Exception as problem:
            raise DataError(f"{self.where(i)}: the dataset fails: {type(problem).__name__}: {problem}") from problem
        if not isinstance(pair, (tuple, list)) or len(pair) < 2:
            raise DataError(f"{self.where(i)}: a dataset must give pairs (x, y), not {type(pair).__name__}.")
        return pair[0], pair[1]

    def item(self, i: int) -> Any:
        return self._pair(i)[0]

    def where(self, i: int) -> str:
        return f"{self.name}, example {i}"

    def labels(self) -> np.ndarray:
        """Labels ``(n,)`` int64: from ``.tensors`` or ``.targets`` where they agree with the items, else
        one by one."""
        n = len(self)
        if isinstance(self.dataset, torch.utils.data.TensorDataset) and len(self.dataset.tensors) > 1:
            return whole_labels(self.dataset.tensors[1].cpu().numpy(), self.name)
        for attribute in ("targets", "labels"):
            known = getattr(self.dataset, attribute, None)
            if known is None or not hasattr(known, "__len__") or len(known) != n or n == 0:
                continue
            known = np.asarray(known)
            probe = {0, n // 3, n // 2, n - 1}
            if known.ndim == 1 and all(self._label(i) == known[i] for i in probe):
                return whole_labels(known, self.name)
        return whole_labels(np.array([self._label(i) for i in range(n)]), self.name)

    def answers(self) -> tuple[np.ndarray, np.ndarray | None]:
        """``(labels, None)``, or zeros and what each example has instead: several labels or a mask."""
        from tweaknn.inputs.raw import dense

        n = len(self)
        if n == 0 or np.asarray(_as_array(self._pair(0)[1])).size < 2:
            return self.labels(), None
        rows = [_as_array(self._pair(i)[1]) for i in range(n)]
        shapes = {row.shape for row in rows}
        if len(shapes) > 1:
            raise DataError(f"{self.name}: examples have labels of different shapes ({sorted(shapes)[:3]}).")
        found = dense(np.stack(rows), self.name)
        if found is None:
            raise DataError(f"{self.name}: labels of shape {rows[0].shape} are neither several labels nor a mask.")
        return np.zeros(n, dtype=np.int64), found

    def _label(self, i: int) -> Any:
        y = self._pair(i)[1]
        return y.item() if hasattr(y, "item") and getattr(y, "ndim", 0) == 0 else y

    def content(self, indices: np.ndarray) -> Iterator[bytes]:
        yield str(len(indices)).encode()
        for k in np.unique(np.linspace(0, len(indices) - 1, 16).astype(int)):
            yield np.ascontiguousarray(_as_array(self.item(int(indices[k])))).tobytes()


def _as_array(x: Any) -> np.ndarray:
    if isinstance(x, Mapping):
        return np.concatenate([np.asarray(_as_array(x[key]), dtype=np.float64).reshape(-1) for key in sorted(x)])
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def whole_labels(values: np.ndarray, name: str) -> np.ndarray:
    """Labels as int64 ``(n,)``; raises DataError for another shape, fractions, NaN or negative numbers."""
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{name}: labels must be one whole number an example, not an array of shape {array.shape}.")
    if array.dtype.kind not in "iub":
        try:
            as_float = array.astype(np.float64)
        except (TypeError, ValueError):
            raise DataError(f"{name}: labels must be whole numbers, not {array.dtype}.") from None
        bad = ~np.isfinite(as_float) | (as_float != np.floor(as_float))
        if bad.any():
            first = int(np.argmax(bad))
            raise DataError(f"{name}: labels must be whole numbers; example {first} has {as_float[first]}.")
        array = as_float
    array = array.astype(np.int64)
    if (array < 0).any():
        first = int(np.argmax(array < 0))
        raise DataError(f"{name}: labels must not be negative; example {first} has {int(array[first])}.")
    return array
