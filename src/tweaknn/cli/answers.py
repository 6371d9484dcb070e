"""What a network answers with, found out on one example: a class, one logit, several labels, or a class a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tweaknn.delta import Delta
from tweaknn.errors import DataError, InputError, ModelError
from tweaknn.inputs import Examples, align
from tweaknn.inputs.answers import PixelExamples, one_label, several
from tweaknn.network.modes import call, eval_mode, first, one_line, output_of, placement, to_model
from tweaknn.network.views import LabelView, PixelView, View

if TYPE_CHECKING:
    from tweaknn.cli.options import Opened

PIXELS = 512
"""Pixels of each picture that a segmentation network is judged by, unless ``--pixels`` says otherwise."""


def output_shape(model: nn.Module, examples: Examples, head: int | str | None) -> tuple[int, ...]:
    """Shape of the head's output for two examples.

    Raises:
        ModelError: the network does not run on the data, or has no such head.
    """
    x, _ = examples.batch([0])
    try:
        with eval_mode(model), torch.inference_mode():
            return tuple(output_of(call(model, to_model(first(x, 2), *placement(model))), head).shape)
    except ModelError:
        raise
    except Exception as error:
        shape = tuple(x.shape[1:]) if isinstance(x, torch.Tensor) else ", ".join(x)
        raise ModelError(
            f"The network does not run on an input of shape {shape}: {one_line(error)}; "
            "check the preprocessing (--size, --mean, --std, --preprocess)."
        ) from None


def settle(opened: Opened, examples: Examples, pixels: int, seed: int) -> tuple[Examples, str]:
    """Bring network and examples to ``(rows, classes)``: sets ``opened.view`` and returns the examples and a sentence.

    Raises:
        ModelError: an output that is none of the four kinds.
        DataError: labels of another kind than the network's answers.
    """
    shape = output_shape(opened.raw, examples, opened.head)
    rows = 2
    if len(shape) not in (1, 2, 4) or shape[0] != rows or 0 in shape:
        raise ModelError(
            f"The network's output has shape {shape} for two examples; (2, classes), one logit each, or a class a pixel "
            "(2, classes, height, width) is needed."
        )
    opened.n_logits = shape[1] if len(shape) > 1 else 1
    if len(shape) == 4:
        names = opened.classes if opened.classes is not None else examples.classes
        if names is not None and len(names) != opened.n_logits:
            raise DataError(f"There are {len(names)} class names and the network has {opened.n_logits} logits a pixel.")
        opened.view = PixelView(opened.raw, opened.head)
        names = names or [str(j) for j in range(opened.n_logits)]
        found = PixelExamples(examples, pixels, opened.n_logits, names, seed)
        return found, "; ".join(found.notes)
    if examples.answers is not None and (examples.answers.ndim != 2 or opened.n_logits == 1):
        what = "masks" if examples.answers.ndim == 3 else f"{examples.answers.shape[1]} labels an example"
        raise DataError(f"{examples.name}: y holds {what}, but the network gives one answer an example.")
    if opened.n_logits == 1:
        opened.view = LabelView(opened.raw, opened.head)
        aligned, match = align(examples, _two(opened.classes, examples.classes), 2)
        return aligned, f"one logit an example: above 0 means {aligned.classes[1]}; {match.note}"  # type: ignore[index]
    if examples.answers is not None:
        given = several(examples)
        if given.shape[1] != opened.n_logits:
            raise DataError(
                f"{examples.name}: y has {given.shape[1]} labels an example, the network {opened.n_logits}."
            )
        opened.several = True
        aligned, match = align(examples, opened.classes, opened.n_logits)
        aligned.answers = np.empty_like(given)
        aligned.answers[:, match.mapping] = given
        return aligned, f"several labels an example, given where the logit is above 0; {match.note}"
    if opened.head is not None:
        opened.view = View(opened.raw, opened.head)
    aligned, match = align(examples, opened.classes, opened.n_logits)
    return aligned, match.note


def _two(model_classes: Sequence[str] | None, data_classes: Sequence[str] | None) -> list[str] | None:
    if model_classes is not None and len(model_classes) == 2:
        return list(model_classes)
    if model_classes is not None and len(model_classes) == 1 and data_classes is None:
        return [f"not {model_classes[0]}", model_classes[0]]
    return None


def label_view(opened: Opened, examples: Examples, label: int) -> tuple[LabelView, Examples]:
    """One label of several as a binary network and its examples."""
    assert examples.classes is not None
    return LabelView(opened.raw, opened.head, label), one_label(examples, label, examples.classes[label])


def around(opened: Opened, tweaked: nn.Module) -> nn.Module:
    """The tweaked network seen as the base is."""
    return opened.view.of(tweaked) if opened.view is not None else tweaked


def attach_all(deltas: Sequence[Delta], model: nn.Module, example_x: Any = None) -> nn.Module:
    """``model`` with all deltas: a sum of those made for the base, those made for others on top of them in order.

    ``example_x`` is needed where the network takes no single tensor.

    Raises:
        DeltaError, InputError: they were made for other bases, or what one sits on is not there.
    """
    from functools import reduce
    from operator import add

    example = None if isinstance(example_x, torch.Tensor) else example_x
    if not any(delta.below for delta in deltas):
        return reduce(add, deltas).attach(model, example_x=example)
    if sum(not delta.below for delta in deltas) > 1:
        raise InputError("One delta sits on another, so each has to have its place: give them from the lowest on.")
    tweaked = model
    for delta in sorted(deltas, key=lambda each: len(each.below)):
        tweaked = delta.attach(tweaked, example_x=example)
    return tweaked


def example_of(opened: Opened, examples: Examples) -> Any:
    """Two examples as the network takes them."""
    x = first(examples.batch([0])[0], 2)
    return to_model(x, *placement(opened.raw))
