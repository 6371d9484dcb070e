"""Which of the network's outputs each class of the data is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tweaknn.errors import DataError, ModelError

if TYPE_CHECKING:
    from tweaknn.inputs.examples import Examples


@dataclass(frozen=True)
class ClassMatch:
    """``mapping[label of the data] = output of the network``, ``classes``: a name an output, ``note``: a
    sentence.

    ``by`` is ``"name"`` or ``"position"``.
    """

    mapping: np.ndarray
    classes: list[str]
    note: str
    by: str


def match_classes(model_classes: Sequence[str] | None, data_classes: Sequence[str] | None, n_logits: int) -> ClassMatch:
    """Match by name when both sides have names (exactly, else ignoring case, spaces, ``_`` and ``-``),
    else by position.

    Fewer classes in the data than in the network are fine by name; by position named data must have as many
    classes as the network has outputs, because a missing folder would silently shift all that follow.

    Raises :class:`~tweaknn.errors.ModelError` when the network's names do not fit its outputs,
    :class:`~tweaknn.errors.DataError` when a class of the data is unknown to the network or the numbers
    disagree.
    """
    if model_classes is not None and len(model_classes) != n_logits:
        raise ModelError(f"the network names {len(model_classes)} classes but has {n_logits} outputs.")
    if model_classes is not None and len(set(model_classes)) != n_logits:
        twice = next(name for name in model_classes if list(model_classes).count(name) > 1)
        if data_classes is not None and twice in data_classes:
            raise ModelError(f"the network names two classes '{twice}': the data's '{twice}' could be either.")
    if model_classes is None and data_classes is None:
        names = [str(j) for j in range(n_logits)]
        note = "neither the network nor the data names its classes: label k is taken to be output k"
        return ClassMatch(np.arange(n_logits), names, note, "position")
    if data_classes is None:
        assert model_classes is not None
        note = "the data does not name its classes: label k is taken to be the network's output k"
        return ClassMatch(np.arange(n_logits), list(model_classes), note, "position")
    if model_classes is None:
        if len(data_classes) != n_logits:
            raise DataError(
                f"model and data disagree on the number of classes: the network has {n_logits} outputs, the data "
                f"{len(data_classes)} classes ({_some(data_classes)}); "
                f"give the module a list `.classes` to match by name."
            )
        note = (
            f"the network does not name its classes: the data's are taken in order "
            f"(output 0 is '{data_classes[0]}', output {n_logits - 1} is '{data_classes[-1]}')"
        )
        return ClassMatch(np.arange(n_logits), list(data_classes), note, "position")
    return _by_name(list(model_classes), list(data_classes))


def _by_name(model_classes: list[str], data_classes: list[str]) -> ClassMatch:
    note = "classes are matched by name"
    at = {name: j for j, name in reversed(list(enumerate(model_classes)))}
    wanted = list(data_classes)
    if not all(name in at for name in wanted):
        loose = {_plain(name): j for name, j in at.items()}
        if len(loose) == len(at) and all(_plain(name) in loose for name in wanted):
            at, wanted = loose, [_plain(name) for name in wanted]
            note += " (ignoring case, spaces and dashes)"
    unknown = [name for name, key in zip(data_classes, wanted) if key not in at]
    if unknown:
        raise DataError(
            f"the network does not know {len(unknown)} of the data's {len(data_classes)} classes "
            f"({_some(unknown)}); it knows: {_some(model_classes, 12)}."
        )
    mapping = np.array([at[key] for key in wanted], dtype=np.int64)
    if len(set(mapping.tolist())) != len(mapping):
        raise DataError("two classes of the data have the same name once case, spaces and dashes are ignored.")
    missing = len(model_classes) - len(data_classes)
    if missing > 0:
        note += f"; {missing} of the network's {len(model_classes)} classes are not in the data"
    return ClassMatch(mapping, model_classes, note, "name")


def _plain(name: str) -> str:
    return "".join(ch for ch in name.casefold() if ch not in " _-")


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def align(examples: Examples, model_classes: Sequence[str] | None, n_logits: int) -> tuple[Examples, ClassMatch]:
    """``examples`` with labels that are positions among the network's ``n_logits`` outputs, and how that
    was done.

    Raises as :func:`match_classes`, and :class:`~tweaknn.errors.DataError` for labels outside the outputs.
    """
    match = match_classes(model_classes, examples.classes, n_logits)
    labels = examples.labels
    upper = len(match.mapping)
    outside = (labels < 0) | (labels >= upper)
    if outside.any():
        first = int(np.argmax(outside))
        raise DataError(
            f"{examples.name}: {int(outside.sum())} labels lie outside the network's {n_logits} outputs; "
            f"the first is {int(labels[first])} at example {first}."
        )
    return examples.relabelled(match.mapping[labels], match.classes, note=match.note), match
