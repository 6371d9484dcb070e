"""The logits of a network, with or without deltas, over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from tweaknn.errors import InputError, ModelError
from tweaknn.network.modes import call, eval_mode, logits_of, on_batch, output_of, placement, to_model


def pair(batch: Any) -> tuple[Any, Any]:
    """``(x, y)`` of what a loader gave. Raises InputError for anything else."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise InputError(
            f"A loader must give pairs (x, y), not {type(batch).__name__}; a network that takes a dictionary gets ({{...}}, y)."
        )
    return batch[0], batch[1]


def _run(model: nn.Module, x: Any, device: torch.device, dtype: torch.dtype, pick: Callable[[Any], torch.Tensor]) -> np.ndarray:
    with on_batch(x):
        return pick(call(model, to_model(x, device, dtype))).float().cpu().numpy()


def _labels(y: Any, n: int, done: int) -> np.ndarray:
    """Labels of a batch, int64 ``(n,)``, with one column as well. Raises InputError for fractions, words, another number of them."""
    values = np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (n,):
        raise InputError(f"Labels must be one whole number an example: {n} here, not an array of shape {values.shape}.")
    if values.dtype.kind not in "iub":
        if values.dtype.kind != "f":
            raise InputError(f"Labels must be whole numbers, positions among the network's outputs, not {values.dtype}.")
        wrong = ~np.isfinite(values) | (values != np.floor(values))
        if wrong.any():
            k = int(np.argmax(wrong))
            raise InputError(f"Labels must be whole numbers; example {done + k} has {values[k]}.")
    return values.astype(np.int64)


def collect_logits(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    *,
    head: int | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run ``model`` in eval mode over ``batches`` of ``(x, y)``.

    Returns:
        Logits ``(n, c)`` float32 and labels ``(n,)`` int64.

    Raises:
        ModelError: a logit is NaN or infinite; the message names the example.
        InputError: there is no example, no pair ``(x, y)``, or a label that is no whole number in the logits' range.
    """
    device, dtype = placement(model)
    logits: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    done = 0
    with eval_mode(model), torch.inference_mode():
        for batch in batches:
            x, y = pair(batch)
            out = _run(model, x, device, dtype, lambda output: logits_of(output, head))
            if not np.isfinite(out).all():
                row = int(np.argwhere(~np.isfinite(out))[0, 0])
                raise ModelError(
                    f"The network's logits of example {done + row} are NaN or infinite; check that example."
                )
            logits.append(out)
            labels.append(_labels(y, len(out), done))
            done += len(out)
            if progress is not None:
                progress(done)
    if not logits:
        raise InputError("There are no examples to look at.")
    all_logits, all_labels = np.concatenate(logits), np.concatenate(labels)
    if all_labels.min() < 0 or all_labels.max() >= all_logits.shape[1]:
        raise InputError(
            f"Labels run from {all_labels.min()} to {all_labels.max()}, the network has {all_logits.shape[1]} logits "
            f"(0..{all_logits.shape[1] - 1})."
        )
    return all_logits, all_labels


def collect_scores(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    *,
    head: int | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """A logit a label over ``batches`` of ``(x, y)``, of a network with several labels an example: ``(n, l)`` float32.

    Raises:
        ModelError: a logit is NaN or infinite; the message names the example.
    """
    device, dtype = placement(model)
    scores: list[np.ndarray] = []
    done = 0
    with eval_mode(model), torch.inference_mode():
        for batch in batches:
            out = _run(model, pair(batch)[0], device, dtype, lambda output: output_of(output, head))
            if not np.isfinite(out).all():
                row = int(np.argwhere(~np.isfinite(out))[0, 0])
                raise ModelError(f"The network's logits of example {done + row} are NaN or infinite; check that example.")
            scores.append(out)
            done += len(out)
            if progress is not None:
                progress(done)
    return np.concatenate(scores)
