"""The two checks every measure begins with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tweaknn.errors import InputError


def check_logits(logits: ArrayLike) -> np.ndarray:
    """Logits as a finite float64 array ``(n, c)``, ``n >= 1``, ``c >= 2``.

    Raises :class:`InputError` naming the first example whose logits are NaN or infinite.
    """
    array = np.asarray(logits)
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] < 2:
        raise InputError(
            f"logits must have shape (examples, classes) with at least one example and two classes, not {array.shape}."
        )
    array = array.astype(np.float64)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        value = array[first][~np.isfinite(array[first])][0]
        raise InputError(
            f"the logits of {int((~finite).sum())} of {len(array)} examples are not finite; "
            f"the first is example {first} ({value}): check that example and the preprocessing."
        )
    return array


def check_labels(labels: ArrayLike, n: int, classes: int) -> np.ndarray:
    """Labels as int64 ``(n,)`` in ``[0, classes)``; raises :class:`InputError` naming the first that is
    not."""
    array = np.asarray(labels)
    if array.shape != (n,):
        raise InputError(f"labels must have shape ({n},) to go with the {n} examples, not {array.shape}.")
    if array.dtype.kind not in "iub":
        whole = array.dtype.kind == "f" and bool(np.all(array == np.floor(array)))
        if not whole:
            raise InputError(f"labels must be whole numbers, not {array.dtype}.")
    array = array.astype(np.int64)
    outside = (array < 0) | (array >= classes)
    if outside.any():
        first = int(np.argmax(outside))
        raise InputError(
            f"{int(outside.sum())} labels lie outside 0 to {classes - 1}, the range of the network's "
            f"{classes} outputs; the first is {array[first]} at example {first}."
        )
    return array
