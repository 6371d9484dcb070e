"""An ``.npz`` with ``x``, ``y`` and optionally ``classes`` and further columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tweaknn.errors import DataError
from tweaknn.inputs.raw import Raw, dense, labels_and_classes
from tweaknn.inputs.sources import ArraySource, Source, TableSource


def load_npz(path: Path) -> Raw:
    """``x``: uint8 images ``(n, h, w)`` or ``(n, h, w, c)``, or numbers ``(n, f)`` (any float ``(n,
    ...)`` is taken as is). ``y``: ``(n,)``, several labels ``(n, l)`` of 0 and 1, or masks ``(n, h, w)``.

    Every other array of length ``n`` is a column. Pickled (object) arrays are refused: they can run code.

    Raises :class:`~tweaknn.errors.DataError` for a truncated file, missing arrays, wrong shapes, NaN.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                try:
                    arrays[key] = archive[key]
                except ValueError as problem:
                    if "allow_pickle" not in str(problem):
                        raise
                    if key in ("x", "y", "classes"):
                        raise DataError(
                            f"'{path}': array '{key}' is pickled, which could run code; save it as numbers or text."
                        ) from problem
    except DataError:
        raise
    except Exception as problem:  # zipfile, zlib, struct and numpy each raise their own
        raise DataError(f"'{path}' is not a readable .npz (truncated?): {problem}") from problem
    for key in ("x", "y"):
        if key not in arrays:
            raise DataError(f"'{path}' has no array '{key}'; it has: {', '.join(arrays) or 'none'}.")
    x, y = arrays.pop("x"), arrays.pop("y")
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"'{path}' holds no examples.")
    if len(x) != len(np.atleast_1d(y)):
        raise DataError(f"'{path}': x has {len(x)} examples but y {len(np.atleast_1d(y))} labels.")
    classes = arrays.pop("classes", None)
    names = None
    if classes is not None:
        names = [v.decode() if isinstance(v, bytes) else str(v) for v in np.atleast_1d(classes).tolist()]
    answers = dense(y, str(path))
    labels, names = labels_and_classes(y if answers is None else np.zeros(len(y), np.int64), names, str(path))
    columns = {key: value for key, value in arrays.items() if value.ndim == 1 and len(value) == len(x)}
    return Raw(_source(x, str(path)), labels, names, columns, answers=answers)


def _source(x: np.ndarray, name: str) -> Source:
    if x.dtype == np.uint8 and (x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in (1, 3, 4))):
        return ArraySource(x, name)
    if x.dtype == np.uint8 and x.ndim == 4:
        raise DataError(
            f"'{name}': uint8 images must have shape (n, height, width, channels) with 1, 3 or 4 channels, "
            f"not {x.shape}."
        )
    if x.dtype.kind in "fiub" and x.ndim >= 2:
        return TableSource(x, name)
    raise DataError(
        f"'{name}': x must be uint8 images (n, h, w[, c]) or numbers (n, f), not {x.dtype} of shape {x.shape}."
    )
