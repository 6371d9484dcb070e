"""What every reader of files returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tweaknn.errors import DataError
from tweaknn.inputs.sources import Source, whole_labels


@dataclass
class Raw:
    """A source, labels int64 ``(n,)``, class names or None, further columns ``(n,)``, sentences for the
    user; ``answers``: several labels an example ``(n, l)`` or masks ``(n, h, w)``, in the place of ``labels``."""

    source: Source
    labels: np.ndarray
    classes: list[str] | None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    answers: np.ndarray | None = None


def labels_and_classes(values: np.ndarray, classes: list[str] | None, name: str) -> tuple[np.ndarray, list[str] | None]:
    """Labels as positions: whole numbers as they are; words looked up among ``classes`` or, without, sorted.

    Words that are all whole numbers ("0", "1", ...) are those numbers, unless class names are given.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "OUS":
        labels = whole_labels(array, name)
    else:
        words = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in array.tolist()], dtype=object)
        missing = [k for k, v in enumerate(array.tolist()) if v is None]
        if missing:
            raise DataError(f"{name}: example {missing[0]} has no label.")
        if classes is None and all(w.strip().isdecimal() for w in words):
            labels = words.astype(np.int64)
        else:
            classes = sorted(set(words)) if classes is None else classes
            at = {word: j for j, word in enumerate(classes)}
            if len(at) < len(classes):  # two classes of one name are no trouble while labels are numbers
                twice = next((w for w in words if classes.count(w) > 1), None)
                if twice is not None:
                    raise DataError(f"{name}: two classes are named '{twice}', so labels in words do not say which.")
            unknown = [k for k, w in enumerate(words) if w not in at]
            if unknown and all(w.strip().isdecimal() for w in words):
                labels = words.astype(np.int64)
            elif unknown:
                raise DataError(
                    f"{name}: label '{words[unknown[0]]}' at example {unknown[0]} is not among its classes."
                )
            else:
                labels = np.array([at[w] for w in words], dtype=np.int64)
    if classes is not None and len(labels) and labels.max() >= len(classes):
        first = int(np.argmax(labels >= len(classes)))
        raise DataError(
            f"{name}: label {int(labels[first])} at example {first} lies outside its {len(classes)} classes."
        )
    return labels, classes


def dense(values: np.ndarray, name: str) -> np.ndarray | None:
    """Answers of more than one number an example, int64 ``(n, l)`` or ``(n, h, w)``; None for one label an example.

    Raises DataError for fractions, NaN and words.
    """
    array = np.asarray(values)
    if array.ndim not in (2, 3) or (array.ndim == 2 and array.shape[1] == 1):
        return None
    if array.dtype.kind not in "iubf":
        raise DataError(f"{name}: labels of shape {array.shape} must be whole numbers, not {array.dtype}.")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise DataError(f"{name}: labels of shape {array.shape} must be whole numbers; there are fractions or NaN.")
    return array.astype(np.int64)
